"""Laws of the noise schedule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import law, normal
from zonkey_core.diffusion.noise_schedule import NoiseSchedule

scales = st.floats(0.2, 20)
SCALES = pytest.mark.parametrize("scale", [1.0, 3.0, 5.0, 9.0])


@law
@given(scales, st.floats(0, 1))
def test_signal_and_noise_have_unit_power(scale: float, level: float) -> None:
    schedule, at = NoiseSchedule(scale), torch.tensor(level)
    assert (schedule.alpha(at).square() + schedule.sigma(at).square()).item() == pytest.approx(1, abs=1e-6)


@law
@given(scales, st.floats(0.01, 0.99))
def test_alpha_is_its_closed_form(scale: float, level: float) -> None:
    expected = 1 / math.sqrt(1 + (scale * math.tan(math.pi * level / 2)) ** 2)
    assert NoiseSchedule(scale).alpha(torch.tensor(level)).item() == pytest.approx(expected, rel=1e-4)


@SCALES
def test_endpoints_are_exact(scale: float) -> None:
    schedule = NoiseSchedule(scale)
    ends = torch.tensor([0.0, 1.0])
    assert schedule.alpha(ends).tolist() == [1, 0]
    assert schedule.sigma(ends).tolist() == [0, 1]


@SCALES
def test_noise_only_grows(scale: float) -> None:
    schedule, levels = NoiseSchedule(scale), torch.linspace(0, 1, 200)
    assert (schedule.alpha(levels).diff() < 0).all()
    assert (schedule.sigma(levels).diff() >= 0).all()


def test_a_scale_of_one_is_the_cosine_schedule_and_larger_ones_are_noisier() -> None:
    levels = torch.linspace(0, 1, 50)
    torch.testing.assert_close(NoiseSchedule(1).alpha(levels), torch.cos(levels * math.pi / 2), atol=1e-6, rtol=1e-4)
    assert (NoiseSchedule(5).alpha(levels[1:-1]) < NoiseSchedule(3).alpha(levels[1:-1])).all()


def test_every_slot_is_noised_at_its_own_level() -> None:
    schedule = NoiseSchedule(3)
    clean, noise = (normal(2, 3, 4, seed=seed, dtype=torch.float32) for seed in (1, 2))
    levels = torch.tensor([[0.0, 0.4, 1.0], [1.0, 0.0, 0.2]])
    noised = schedule.add_noise(clean, noise, levels)
    for row in range(2):
        for slot in range(3):
            alpha, sigma = schedule.alpha(levels[row, slot]), schedule.sigma(levels[row, slot])
            torch.testing.assert_close(noised[row, slot], alpha * clean[row, slot] + sigma * noise[row, slot])
    assert torch.equal(noised[0, 0], clean[0, 0]) and torch.equal(noised[0, 2], noise[0, 2])


@law
@given(scales, st.floats(0.01, 50))
def test_level_for_ratio(scale: float, ratio: float) -> None:
    schedule = NoiseSchedule(scale)
    level = torch.tensor(schedule.level_for_ratio(ratio))
    assert (schedule.sigma(level) / schedule.alpha(level)).item() == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("start", [1.0, 0.3])
def test_sampling_levels_fall_from_the_start_to_zero(steps: int, start: float) -> None:
    schedule = NoiseSchedule(5.0)
    levels = schedule.sampling_levels(steps, start)
    assert len(levels) == steps + 1
    assert levels[0] == pytest.approx(start)
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


def test_inner_sampling_levels_are_even_in_the_log_ratio() -> None:
    schedule = NoiseSchedule(5.0)
    inner = schedule.sampling_levels(9)[1:-1]
    steps = (schedule.sigma(inner) / schedule.alpha(inner)).log().diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-3, atol=1e-3)
