"""What is asked of a training run, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

LARGEST_SEED = (1 << 63) - 1


class TrainingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One run: where to, for how long and on what."""

    out: str
    steps: Annotated[int, msgspec.Meta(ge=1, le=1 << 62)] | None = None
    minutes: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    """The budget is either steps or minutes; exactly one of them is given."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SEED)] = 0
    device: str = "auto"
    precision: str = "auto"
    stage: str | None = None
    """Only the stages of this name."""
    level: Annotated[int, msgspec.Meta(ge=0, le=1 << 10)] | None = None
    """Only the stages of this level."""
    save_every: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    """Seconds between saves; None keeps them under 2 % of the run's time."""
    keep: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2
    """How many of the last checkpoints are kept, the present one among them."""
    accumulate: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 1
    """Pieces that a process takes its rows of a batch in, one after another, to need less memory."""
    checkpoint_activations: bool = False
    """Whether Transformers compute their inner states anew on the way back instead of keeping them."""
    compile: bool = False
    """Whether denoisers are compiled, which takes minutes and makes their steps faster."""
    shard: Literal["none", "full"] = "none"
    """Whether several processes share out parameters, averages and optimiser states of the denoisers' blocks."""


class TrainingResult(NamedTuple):
    """How a run ended."""

    path: Path
    stopped: bool
    """True when it was asked to stop before its end."""
    steps: int
