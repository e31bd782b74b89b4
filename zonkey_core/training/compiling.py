"""How steps are computed: with less memory, or by denoisers that torch has compiled into fewer passes over memory."""

from __future__ import annotations

import torch

from zonkey_core.errors import ConfigError
from zonkey_core.model import attention
from zonkey_core.model.model import Zonkey
from zonkey_core.model.transformer import forget_activations
from zonkey_core.training.run_options import TrainingOptions

GRAPHS = 64
"""Forms of a denoiser that are compiled at most: with and without plans, gradients, or a length that divides evenly."""


def arrange_computation(model: Zonkey, options: TrainingOptions, device: torch.device) -> None:
    """Prepare a model that is to be trained as the options say; raises `ConfigError` as `compile_denoisers` does."""
    if options.checkpoint_activations:
        forget_activations(model)
    if options.compile:
        compile_denoisers(model, device)


def compile_denoisers(model: Zonkey, device: torch.device) -> None:
    """Let the denoisers of all levels be compiled when they are first called.

    Raises `ConfigError` where nothing can be compiled, as without a C++ compiler on a CPU.
    """
    import torch._dynamo  # takes a second to import

    try:
        torch.compile(torch.negative)(torch.ones(2, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(f"--compile: torch cannot compile here ({reason}); install g++, or leave it out") from error
    attention.attend_by_rows = torch.compiler.disable(attention.attend_by_rows)  # type: ignore[no-untyped-call]
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for level in model.levels:
        level.denoiser.compile(dynamic=True)
