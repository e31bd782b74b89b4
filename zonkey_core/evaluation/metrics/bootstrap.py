"""Bootstrap intervals: the units of a measurement are drawn anew with replacement, and the figure computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def draw_weights(units: int, *, seed: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """[draws, units]: how often each unit occurs in each draw of as many units with replacement."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(units, np.full(units, 1 / units), size=draws).astype(np.float64)


def interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    """The percentile interval of the drawn values [draws] around `value`; draws that are not finite are left out."""
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return Interval(value, value, value)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def bootstrap_sums(
    counts: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, seed: int
) -> Interval:
    """Interval of a figure that depends on sums over units only.

    counts [units, K]; statistic maps summed counts [draws, K] to [draws], as F1 does hits, cuts and borders.
    """
    value = float(statistic(counts.sum(0, keepdims=True))[0])
    if len(counts) < 2:
        return Interval(value, value, value)
    with np.errstate(divide="ignore", invalid="ignore"):
        return interval(value, statistic(draw_weights(len(counts), seed=seed) @ counts))


def bootstrap_median(values: NDArray[np.float64], *, seed: int) -> Interval:
    """Interval of the median of values [units]."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    return interval(float(np.median(values)), np.median(values[drawn], 1))


def bootstrap_mean(values: NDArray[np.float64], *, seed: int) -> Interval:
    """Interval of the mean of values [units]."""
    return bootstrap_sums(
        np.stack([values, np.ones_like(values)], 1), lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1), seed=seed
    )
