"""Plans add up, and say what dividing a model among GPUs changes."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.training_helpers import small_config
from zonkey_core.model.model import Zonkey
from zonkey_core.training.run_plan import PlanRequest, RunPlan, plan_run

CONFIG = small_config(row_bytes=256)


@cache
def planned(**changes: object) -> RunPlan:
    return plan_run(CONFIG, PlanRequest(draws=2, **changes))  # type: ignore[arg-type]


def test_parts_and_memory_are_those_of_the_model() -> None:
    plan = planned()
    count = sum(parameter.numel() for parameter in Zonkey(CONFIG.model).parameters())
    assert sum(plan.parameters.values()) == count
    joint = next(stage for stage in plan.stages if stage.name == "joint")
    assert joint.trained_parameters == count
    assert plan.memory.weights == plan.memory.averaged_weights == 4 * count
    assert 0 <= plan.memory.gradients < 4 * count, "they are not all there when most is held"
    assert planned(accumulate=2, stage="joint").memory.gradients == 4 * count, "but of an earlier piece they are"
    assert 4 * count < plan.memory.optimizer_state < 8 * count
    assert plan.memory.total() == max(stage.gpu_bytes for stage in plan.stages) == joint.gpu_bytes
    assert plan.days is plan.text_bytes is plan.steps is None


def test_the_length_of_a_run_may_be_given_in_text_time_or_steps() -> None:
    plan = planned(text_bytes=1e9, gpus=2, teraflops=100.0, utilisation=0.5, stage="splitter")
    assert plan.days == pytest.approx(1e9 * plan.flops_per_byte / (2 * 100e12 * 0.5) / 86400)
    assert plan.steps == pytest.approx(1e9 / (2 * 256))
    steps = planned(steps=1000, stage="splitter")
    assert steps.text_bytes == 1000 * 2 * 256
    assert steps.days is not None
    assert planned(seconds=86400 * steps.days, stage="splitter").text_bytes == pytest.approx(steps.text_bytes)


def test_gpus_share_rows_and_with_shard_the_denoisers() -> None:
    one, four = planned(), planned(gpus=4)
    assert (one.batch_rows, four.batch_rows) == (2, 4), "a row for each at least"
    assert four.memory.activations < one.memory.activations
    divided = planned(gpus=4, shard="full").memory
    blocks = sum(
        parameter.numel() for level in Zonkey(CONFIG.model).levels for parameter in level.denoiser.blocks.parameters()
    )
    assert divided.weights == four.memory.weights - 4 * blocks * 3 / 4
    whole, parts = (planned(gpus=4, accumulate=2, stage="joint", shard=shard) for shard in ("none", "full"))
    assert parts.memory.gradients == whole.memory.gradients - 4 * blocks * 3 / 4
    assert divided.optimizer_state < four.memory.optimizer_state


def test_less_is_kept_where_states_are_computed_anew_or_less_precise() -> None:
    plain = planned()
    lean = planned(checkpoint_activations=True)
    assert lean.memory.activations < plain.memory.activations
    assert lean.flops_per_byte > plain.flops_per_byte
    full = planned(precision=torch.float32)
    assert full.memory.converted_weights == 0 < plain.memory.converted_weights
    assert full.memory.activations > plain.memory.activations
