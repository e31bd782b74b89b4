"""Steps that would do harm are left out, and a stage whose gradients have changed for good is not held up."""

from __future__ import annotations

import math

import pytest
import torch

from zonkey_core.checkpoint import TrainingRecord
from zonkey_core.training.optimizers import take_step
from zonkey_core.training.step_judge import JUDGED_FROM, MOST_BROKEN, MOST_SPIKES, SPIKE, StepJudge


def judged(norms: list[float], *, first_step: int = 0) -> list[bool]:
    """Whether each of the steps with these norms is left out."""
    record = TrainingRecord(data={}, options={}, stage_step=first_step)
    judge = StepJudge(record)
    left_out = []
    for norm in norms:
        left_out.append(judge.fault(1.0, norm) is not None)
        record.stage_step += 1
    return left_out


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)])
def test_what_is_no_number_is_left_out(loss: float, norm: float) -> None:
    record = TrainingRecord(data={}, options={})
    judge = StepJudge(record)
    for number in range(MOST_BROKEN):
        assert not judge.hopeless
        assert judge.fault(loss, norm) is not None
        assert record.faults_in_row == number + 1 and record.gradient_norm == 0
    assert judge.hopeless
    assert judge.fault(1.0, 1.0) is None
    assert not judge.hopeless


def test_a_spike_is_left_out_and_leaves_no_trace() -> None:
    ordinary = [1.0] * (JUDGED_FROM + 5)
    assert judged([*ordinary, SPIKE * 1.1, 1.0, SPIKE * 0.9]) == [False] * len(ordinary) + [True, False, False]


def test_the_beginning_of_a_stage_is_not_judged() -> None:
    assert not any(judged([1.0] * 10 + [1e9]))


def test_a_new_measure_is_taken_up() -> None:
    ordinary = [1.0] * (JUDGED_FROM + 5)
    assert judged([*ordinary, *[1e6] * 10])[len(ordinary) :] == [True] * MOST_SPIKES + [False] * (10 - MOST_SPIKES)


def test_a_step_that_is_left_out_moves_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    assert take_step((weight * torch.nan).sum(), [weight], [optimizer], 1.0, lambda loss, norm: "broken") == "broken"
    assert torch.equal(weight, torch.ones(3)) and not optimizer.state and weight.grad is None
    assert take_step(weight.sum(), [weight], [optimizer], 1.0, lambda loss, norm: None) is None
    assert not torch.equal(weight, torch.ones(3))
