"""Optimisers: Muon for matrices inside the network, AdamW for everything else, both from torch.

Muon reached the same loss in about a quarter of AdamW's steps here (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from zonkey_core.config import TrainingConfig
from zonkey_core.errors import CheckpointError
from zonkey_core.model.bytes import BYTE_VALUES, SYMBOLS
from zonkey_core.model.hash_embeddings import is_lookup_table
from zonkey_core.model.model import unsaved_buffers
from zonkey_core.training.processes import (
    add_up_gradients,
    clip_gradients,
    gathered,
    is_shared_out,
    laid_out_like,
    local,
)

SMALLEST_MATRIX = 16
"""Narrower matrices have too few directions for orthogonal updates."""


def build_optimizers(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> list[Optimizer]:
    """One optimiser for the matrices and one for the rest, where tables of strings have a rate of their own.

    An optimiser that would have nothing to do is left out.
    """
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in parameters:
        if is_lookup_table(parameter):
            tables.append(parameter)
            continue
        is_table = parameter.dim() == 2 and len(parameter) in (BYTE_VALUES, SYMBOLS)
        inner = parameter.dim() == 2 and min(parameter.shape) >= SMALLEST_MATRIX and not is_table
        (matrices if inner else others).append(parameter)
    optimizers: list[Optimizer] = []
    if matrices:
        optimizers.append(
            Muon(
                _by_layout([{"params": matrices}]),
                lr=config.matrix_learning_rate,
                momentum=0.95,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    rates = ((others, config.learning_rate), (tables, config.table_learning_rate))
    groups: list[dict[str, Any]] = [{"params": group, "lr": rate} for group, rate in rates if group]
    if groups:
        optimizers.append(AdamW(_by_layout(groups), betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _by_layout(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups with those that are shared out among processes apart; all are numbered as if none were."""
    result = []
    first = 0
    for group in groups:
        numbered = list(enumerate(group["params"], first))
        first += len(numbered)
        for shared in (False, True):
            some = [(number, each) for number, each in numbered if is_shared_out(each) == shared]
            if some:
                numbers, parameters = zip(*some, strict=True)
                result.append({**group, "params": list(parameters), "numbers": list(numbers)})
    return result


def learning_rate_factor(fraction: float, step: int, config: TrainingConfig) -> float:
    """Share of the peak rate at a fraction of a stage: a short rise, then a straight fall to `final_rate`.

    The rise takes `warmup` of the stage and never fewer than 20 steps, so that short stages start gently too.
    """
    rise = min(1.0, (step + 1) / 20, fraction / config.warmup if step and config.warmup else 1.0)
    return max(rise, 0.05) * max(config.final_rate, 1 - fraction * (1 - config.final_rate))


def set_learning_rates(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Scale every group's rate from its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def take_step(
    loss: Tensor,
    parameters: Iterable[nn.Parameter],
    optimizers: Iterable[Optimizer],
    clip: float,
    fault: Callable[[float, float], str | None] | None = None,
) -> str | None:
    """One step down the gradient of a scalar loss, whose norm over `parameters` is held to at most `clip`.

    Gradients that are there already are added to, and so are those of all processes. `fault` is told loss and norm,
    and where it gives a reason, nothing is moved and the reason returned.
    """
    torch.autograd.backward(loss)
    parameters = list(parameters)
    add_up_gradients(parameters)
    norm = clip_gradients(parameters, clip)
    reason = fault(*torch.stack([loss.detach().float(), norm.float()]).tolist()) if fault else None
    for optimizer in optimizers:
        if reason is None:
            optimizer.step()
        optimizer.zero_grad()
    return reason


def follow_weights(
    averages: Iterable[Tensor], parameters: Iterable[nn.Parameter], steps: int, config: TrainingConfig
) -> None:
    """Move averages toward the parameters after `steps` steps; the first steps weigh more, so that they catch up."""
    decay = min(config.average_decay, (1 + steps) / (10 + steps))
    with torch.no_grad():
        torch._foreach_lerp_([local(each) for each in averages], [local(each) for each in parameters], 1 - decay)


def resumable_tensors(live: nn.Module, average: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The same as `shared_resumable_tensors`, whole."""
    return {name: gathered(tensor) for name, tensor in shared_resumable_tensors(live, average, optimizers).items()}


def shared_resumable_tensors(
    live: nn.Module, average: nn.Module, optimizers: Iterable[Optimizer]
) -> dict[str, Tensor]:
    """All tensors that a run goes on from, by names that `split_resumable` takes apart."""
    parts = {
        "live": live.state_dict(),
        "unsaved": unsaved_buffers(live),
        "average": average.state_dict(),
        "state": optimizer_tensors(optimizers),
    }
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def split_resumable(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What `resumable_tensors` put together: the parts `live`, `unsaved`, `average` and `state`."""
    parts: dict[str, dict[str, Tensor]] = {"live": {}, "unsaved": {}, "average": {}, "state": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def optimizer_tensors(optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The optimisers' state as named tensors, for safetensors."""
    return {
        f"{which}.{number}.{key}": torch.as_tensor(value)
        for which, optimizer in enumerate(optimizers)
        for number, parameter in _numbered(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _numbered(optimizer: Optimizer) -> list[tuple[int, nn.Parameter]]:
    """The parameters of an optimiser with their numbers, in the order in which it holds them."""
    pairs: list[tuple[int, nn.Parameter]] = []
    for group in optimizer.param_groups:
        pairs += zip(group["numbers"], group["params"], strict=True)
    return pairs


def restore_optimizers(optimizers: Iterable[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; raises `CheckpointError` where it is of another model."""
    for which, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        try:
            for name, tensor in tensors.items():
                owner, index, key = name.split(".", 2)
                if int(owner) == which:
                    state.setdefault(int(index), {})[key] = tensor
            numbered = _numbered(optimizer)
            _check_state(optimizer, dict(numbered), state)
            held = {
                place: {key: laid_out_like(tensor, parameter) for key, tensor in state[number].items()}
                for place, (number, parameter) in enumerate(numbered) if number in state
            }
            optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"the optimizer state does not fit this model ({error})") from error


def _check_state(
    optimizer: Optimizer, parameters: dict[int, nn.Parameter], state: dict[int, dict[str, Tensor]]
) -> None:
    """Raise `ValueError` where a state lacks a parameter or a key, or is of another shape than its parameter."""
    keys = {"momentum_buffer"} if isinstance(optimizer, Muon) else {"step", "exp_avg", "exp_avg_sq"}
    for index, found in state.items():
        if index not in parameters or found.keys() != keys:
            raise ValueError(f"number {index} holds {sorted(found)}")
        for key, tensor in found.items():
            shape = () if key == "step" else parameters[index].shape
            if tensor.shape != shape or not tensor.is_floating_point():
                raise ValueError(f"{key} of number {index} has another shape")
