"""What a step is said to cost is what it costs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zonkey_core.config import Config, load_preset
from zonkey_core.devices import autocast
from zonkey_core.training.curriculum import plan_stages
from zonkey_core.training.optimizers import take_step
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters
from zonkey_core.training.step_cost import CPU, FRACTION, KeptMemory, StepWalker, drawn_cuts


def real_cost(config: Config, rows: int, name: str, seed: int) -> tuple[int, int]:
    """Operations of a computed step of a stage, and the bytes that its graph kept."""
    walker = StepWalker(config, rows=rows, seed=seed)
    model, stage = walker.model, plan_stages(config.model, config.training.shares, name)[0]
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape) + (parameter.dim() == 1))
    parameters = stage_parameters(model, stage)
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    kept = KeptMemory(model)
    with drawn_cuts(model, seed), FlopCounterMode(display=False) as counter, kept.counted():
        with autocast(CPU, torch.bfloat16):
            losses = stage_losses(model, stage, walker.sequence, torch.Generator().manual_seed(seed), FRACTION)
        optimizers = stage_optimizers(model, stage, config.training)
        take_step(torch.stack(list(losses.values())).sum(), parameters, optimizers, 1)
    return counter.get_total_flops(), kept.bytes


@pytest.mark.parametrize(
    ("rows", "seed", "flops", "memory"),
    [pytest.param(1, 0, 0.01, 0.05, id="same cuts"),
     pytest.param(4, 1, 0.1, 0.1, id="other text and cuts", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_step_of_tiny_costs_what_was_planned(rows: int, seed: int, flops: float, memory: float) -> None:
    config = load_preset("tiny")
    planned = StepWalker(config, rows=rows).cost(plan_stages(config.model, config.training.shares, "joint")[0])
    real_flops, real_bytes = real_cost(config, rows, "joint", seed)
    assert planned.flops + planned.update_flops == pytest.approx(real_flops, rel=flops)
    assert planned.kept_bytes + planned.converted_bytes == pytest.approx(real_bytes, rel=memory)
    assert planned.update_flops > 0 and planned.converted_bytes > 0
