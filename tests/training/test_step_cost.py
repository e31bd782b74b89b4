"""What a step is said to cost is what it costs."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.training_helpers import small_config
from zonkey_core.config import load_preset
from zonkey_core.devices import autocast
from zonkey_core.training.batches import row_lengths
from zonkey_core.training.curriculum import Stage, plan_stages
from zonkey_core.training.optimizers import take_step
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters
from zonkey_core.training.step_cost import CPU, FRACTION, StepWalker, drawn_cuts, update_flops
from zonkey_core.training.step_memory import StepMemory, TensorMemory, mean_peak


def filled_walker(preset: str, rows: int, seed: int, draws: int = 1) -> StepWalker:
    """Text, and a model whose weights are drawn by chance."""
    walker = StepWalker(load_preset(preset), rows=rows, seed=seed, draws=draws)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in walker.model.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape) + (parameter.dim() == 1))
    return walker


def second_step(walker: StepWalker, stage: Stage, draw: int) -> tuple[int, StepMemory]:
    """Operations of a computed step, and what its tensors hold at most; optimisers made their states in one before."""
    parameters = stage_parameters(walker.model, stage)
    walker.model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizers = stage_optimizers(walker.model, stage, walker.config.training)
    for _ in range(2):
        states = [each for optimizer in optimizers for state in optimizer.state.values() for each in state.values()]
        memory = TensorMemory(walker.model, (each for each in states if isinstance(each, Tensor)))
        seed = walker.seed + draw
        with drawn_cuts(walker.model, seed), FlopCounterMode(display=False) as counter, memory:
            with autocast(CPU, torch.bfloat16):
                chance = torch.Generator().manual_seed(seed)
                losses = stage_losses(walker.model, stage, walker.rows(draw), chance, FRACTION)
            take_step(torch.stack(list(losses.values())).sum(), parameters, optimizers, 1)
    return counter.get_total_flops(), memory.course().peak()


@pytest.mark.parametrize("name", ["autoencoder", "joint"])
def test_a_step_of_tiny_costs_what_was_planned(name: str) -> None:
    walker = filled_walker("tiny", 1, 0)
    stage = plan_stages(walker.config.model, walker.config.training.shares, name)[0]
    planned = StepWalker(walker.config, rows=1)
    flops, course = planned.walk(stage, planned.rows(0), 0)
    memory = course.peak()
    real_flops, real_memory = second_step(walker, stage, 0)
    update = update_flops(planned.model, stage, planned.config.training)
    assert flops + update == pytest.approx(real_flops, rel=0.01) and update > 0
    assert memory.total() == pytest.approx(real_memory.total(), rel=0.01)
    assert memory.converted_weights == pytest.approx(real_memory.converted_weights, rel=0.01) and memory.activations > 0


@pytest.mark.slow
def test_steps_of_tiny_with_other_text_and_cuts_cost_about_as_much() -> None:
    walker = filled_walker("tiny", 4, 1000, draws=4)
    stage = plan_stages(walker.config.model, walker.config.training.shares, "joint")[0]
    found = [second_step(walker, stage, draw) for draw in range(4)]
    planned = StepWalker(walker.config, rows=4, draws=4).cost(stage)
    flops = statistics.mean(each for each, _ in found)
    assert planned.flops + planned.update_flops == pytest.approx(flops, rel=0.1)
    held = statistics.mean(memory.total() for _, memory in found)
    assert mean_peak(planned.courses).total() == pytest.approx(held, rel=0.15)


def test_all_gradients_are_there_at_the_end_of_the_way_back() -> None:
    walker = StepWalker(small_config(row_bytes=256), rows=1)
    stage = plan_stages(walker.config.model, walker.config.training.shares, "joint")[0]
    _, course = walker.walk(stage, walker.rows(0), 0)
    without_text = course.peak(text=0.0)
    matrices = sum(4 * each.numel() for each in walker.model.parameters() if each.dim() > 1)
    assert 0.9 * matrices < without_text.gradients < 1.5 * matrices, "a text of no length leaves them alone"
    assert course.peak(text=1000.0).gradients < 0.2 * matrices, "and one of great length is most when they are to come"


def test_chance_and_shortened_rows_are_in_the_mean() -> None:
    walker = StepWalker(small_config(row_bytes=512), rows=1, draws=4)
    stage = plan_stages(walker.config.model, walker.config.training.shares, "denoiser")[0]
    cost = walker.cost(stage)
    flops = [walker.walk(stage, walker.rows(draw, 128 if draw % 2 else 512), draw)[0] for draw in range(4)]
    long, short = statistics.mean(flops[::2]), statistics.mean(flops[1::2])
    weight = sum(share * (length - 128) / (512 - 128) for length, share in row_lengths(512, stage).items())
    assert long != short and cost.flops == pytest.approx(short + (long - short) * weight)
    assert len(cost.courses) == 2 and cost.bytes == 512
    splitter = plan_stages(walker.config.model, walker.config.training.shares, "splitter")[0]
    assert len(walker.cost(splitter).courses) == 4
