"""What a measurement says: a value with its interval, beside what trivial methods, real text and rivals score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

Better = Literal["higher", "lower", "neither"]


class Measure(msgspec.Struct, frozen=True, kw_only=True, tag="measure"):
    """One figure."""

    name: str
    """Dotted, the part first: `segment.word_f1`."""
    value: float
    low: float | None = None
    """Lower and upper end of the bootstrap 95 % interval; None where there is nothing to draw anew."""
    high: float | None = None
    floor: float | None = None
    """What a trivial method scores; None where the metric has none."""
    ceiling: float | None = None
    """What real text, or a perfect answer, scores."""
    rivals: dict[str, float] = {}
    n: int
    """Units that were measured: documents, gaps, samples or rounds."""
    seconds: float
    """Time that the measurement took."""
    better: Better = "higher"
    unit: str = ""


class LeftOut(msgspec.Struct, frozen=True, kw_only=True, tag="left_out"):
    """A figure that could not be measured, and what would make it possible."""

    name: str
    reason: str


Outcome = Measure | LeftOut


def as_json(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The outcomes as one JSON object, keyed by metric; what was left out is under `left_out`."""
    result: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for outcome in outcomes:
        if isinstance(outcome, LeftOut):
            left_out[outcome.name] = outcome.reason
            continue
        fields = msgspec.to_builtins(outcome)
        del fields["type"], fields["name"]
        result[outcome.name] = fields
    return result | ({"left_out": left_out} if left_out else {})
