"""Bootstrap intervals: worked out by hand, and covering the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zonkey_core.evaluation.metrics.bootstrap import (
    DRAWS,
    Interval,
    bootstrap_mean,
    bootstrap_sums,
    draw_weights,
    interval,
)

Floats = NDArray[np.float64]
numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20).map(lambda values: np.array(values, dtype=np.float64))


def test_two_units_by_hand() -> None:
    """The mean of 0 and 1, drawn anew: 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4, so both tails hold an end."""
    assert bootstrap_mean(np.array([0.0, 1.0]), seed=0) == Interval(0.5, 0.0, 1.0)
    weights = draw_weights(2, seed=0)
    assert weights.shape == (DRAWS, 2)
    assert set(weights[:, 0]) == {0.0, 1.0, 2.0}
    assert np.mean(weights[:, 0] == 1) == pytest.approx(0.5, abs=0.05)


def test_a_ratio_of_sums_by_hand() -> None:
    """Precision of 3 hits in 4 cuts and 1 in 4: 4/8 together, 1/4 and 3/4 where one of them is drawn twice."""
    counts = np.array([[3.0, 4.0], [1.0, 4.0]])
    found = bootstrap_sums(counts, lambda sums: sums[:, 0] / sums[:, 1], seed=1)
    assert found == Interval(0.5, 0.25, 0.75)


def test_percentiles_by_hand() -> None:
    """Of 0, 1, ..., 1000 the 2.5th and the 97.5th percentile are 25 and 975."""
    assert interval(7.0, np.arange(1001.0)) == pytest.approx(Interval(7.0, 25.0, 975.0))
    assert interval(7.0, np.array([math.nan, 1.0, math.inf, 1.0])) == Interval(7.0, 1.0, 1.0)
    assert interval(7.0, np.array([math.nan])) == Interval(7.0, 7.0, 7.0)


def test_one_unit_has_no_width() -> None:
    assert bootstrap_mean(np.array([0.3]), seed=0) == Interval(0.3, 0.3, 0.3)


def test_intervals_cover_the_truth() -> None:
    """Of 200 intervals around means of 60 exponential numbers, about 95 in 100 hold the true mean, 1."""
    chance = np.random.default_rng(5)
    found = [bootstrap_mean(chance.exponential(size=60), seed=seed) for seed in range(200)]
    covered = np.mean([each.low <= 1 <= each.high for each in found])
    assert 0.88 <= covered <= 0.99
    widths = np.array([each.high - each.low for each in found])
    assert widths.mean() == pytest.approx(2 * 1.96 / math.sqrt(60), rel=0.1)


@settings(deadline=None)
@given(numbers, st.integers(0, 1000))
def test_the_interval_lies_within_the_values_and_repeats(values: Floats, seed: int) -> None:
    found = bootstrap_mean(values, seed=seed)
    slack = 1e-9 * max(1.0, float(np.abs(values).max()))
    assert found.value == pytest.approx(values.mean(), abs=slack)
    assert values.min() - slack <= found.low <= found.high <= values.max() + slack
    assert bootstrap_mean(values, seed=seed) == found


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 1000))
def test_every_draw_has_as_many_units(units: int, seed: int) -> None:
    weights = draw_weights(units, seed=seed, draws=20)
    assert (weights >= 0).all()
    assert (weights.sum(1) == units).all()
