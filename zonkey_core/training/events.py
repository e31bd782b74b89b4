"""What training reports while it runs; `metrics.jsonl` holds the same, one line an event."""

from __future__ import annotations

import msgspec


class StageEvent(msgspec.Struct, tag_field="event", tag="stage", frozen=True):
    """A stage of the curriculum begins."""

    stage: str
    level: int | None


class StepEvent(msgspec.Struct, tag_field="event", tag="step", frozen=True):
    """Where training stands, at most about once a second."""

    stage: str
    level: int | None
    step: int
    fraction: float
    """Of the whole run, 0 to 1."""
    losses: dict[str, float]
    bytes_per_second: float
    bytes_seen: int
    seconds: float
    seconds_left: float
    learning_rate: float


class SplitsEvent(msgspec.Struct, tag_field="event", tag="splits", frozen=True):
    """A held line of text with its current splits."""

    segments: list[str]


class SampleEvent(msgspec.Struct, tag_field="event", tag="sample", frozen=True):
    """A sample from the model as it is."""

    text: str


class FiguresEvent(msgspec.Struct, tag_field="event", tag="figures", frozen=True):
    """Held-out measurements."""

    figures: dict[str, float]


class CheckpointEvent(msgspec.Struct, tag_field="event", tag="checkpoint", frozen=True):
    """A checkpoint has been written."""

    path: str
    step: int


class SkippedStepEvent(msgspec.Struct, tag_field="event", tag="skipped step", frozen=True):
    """A step was left out, as it would have done harm."""

    step: int
    reason: str


class SkippedDataEvent(msgspec.Struct, tag_field="event", tag="skipped data", frozen=True):
    """A damaged line, or the rest of a damaged file, was left out."""

    reason: str


class GuideEvent(msgspec.Struct, tag_field="event", tag="guide", frozen=True):
    """A level above bytes has learned from the ends of documents where its segments begin, if there were enough."""

    level: int
    documents: int
    """That end in the text."""
    fitted: bool


Event = (
    GuideEvent | StageEvent | StepEvent | SplitsEvent | SampleEvent | FiguresEvent | CheckpointEvent | SkippedStepEvent
    | SkippedDataEvent
)
