"""Compiled denoisers say what they said before, and a machine that cannot compile is told so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model_helpers import byte_rows, chance, small_model
from zonkey_core.errors import ConfigError
from zonkey_core.model.model import Zonkey
from zonkey_core.training.compiling import compile_denoisers
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.stages import stage_losses

CPU = torch.device("cpu")
TEXTS = (b"the heron stood in the river", b"and the heron stood still, and then it went away")


def gradients(model: Zonkey, length: int) -> list[Tensor]:
    """of what a denoiser tells, to all that it learns."""
    rows = byte_rows(*(text[:length] for text in TEXTS))
    losses = stage_losses(model, Stage("denoiser", 0, 1.0), rows, chance(3), 0.5)
    learning = list(model.bottom.denoiser.parameters())
    return list(torch.autograd.grad(torch.stack(list(losses.values())).sum(), learning, allow_unused=True))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself, where it compiles
def test_compiled_denoisers_learn_the_same() -> None:
    plain = small_model(1, denoiser_layers=1).requires_grad_()
    compiled = copy.deepcopy(plain)
    compile_denoisers(compiled, CPU)
    for length in (28, 17):  # of which the second is of the same form
        pairs = list(zip(gradients(plain, length), gradients(compiled, length), strict=True))
        assert any(mine is not None and mine.any() for mine, _ in pairs)
        for mine, theirs in pairs:
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    assert list(plain.state_dict()) == list(compiled.state_dict())


def test_a_machine_that_cannot_compile_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **options: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ConfigError, match=r"cannot compile here \(InvalidCxxCompiler: .* found\); install g\+\+"):
        compile_denoisers(small_model(1), CPU)
