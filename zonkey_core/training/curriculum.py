"""The order in which a model learns.

From the bottom up each level learns to split, to compress and to denoise, with nothing above it yet; then all learn in
one joint phase from end to end. A naive joint start gives a poor model. After that phase what denoisers have to form
has settled, and they go on learning from the top down: first that of the top level, from which text begins, then those
below, which learn to tell what the level above *plans*, all else as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zonkey_core.config import ModelConfig, StageShares
from zonkey_core.errors import ConfigError

STAGES = ("splitter", "autoencoder", "denoiser", "joint", "plan")
LAST = 0.5
"""Share of the top level's time for its denoiser that comes after the joint stage."""


class Stage(NamedTuple):
    """One stage: its name, the level it trains (None for all) and its share of the run, summing to 1."""

    name: str
    level: int | None
    share: float


def plan_stages(
    model: ModelConfig, shares: StageShares, only: str | None = None, only_level: int | None = None
) -> list[Stage]:
    """The curriculum of a model; with `only`, just the stages of that name, and with `only_level`, of that level."""
    if only is not None and only not in STAGES:
        raise ConfigError(f"unknown stage {only!r}; choose one of {', '.join(STAGES)}")
    if only_level is not None and only == "joint":
        raise ConfigError("the joint stage trains all levels; leave out the level")
    if only_level is not None and not 0 <= only_level < len(model.levels):
        raise ConfigError(f"level {only_level} is not one of this model's, 0 to {len(model.levels) - 1}")
    depth = len(model.levels)
    upwards = [
        Stage(name, level, _share(getattr(shares, name), level)) for level in range(depth) for name in STAGES[:3]
    ]
    downwards = [Stage("plan", level, _share(shares.plan, level)) for level in reversed(range(depth - 1))]
    joint = [Stage("joint", None, shares.joint)]
    if depth > 1 and shares.joint and only is None and only_level is None:
        top = upwards.pop()
        upwards.append(top._replace(share=top.share * (1 - LAST)))
        joint.append(top._replace(share=top.share * LAST))
    stages = [*upwards, *joint, *downwards]
    stages = [
        stage for stage in stages
        if stage.share > 0 and only in (None, stage.name) and only_level in (None, stage.level)
    ]
    total = sum(stage.share for stage in stages)
    if not total:
        raise ConfigError("training.shares leaves no stage with a share above 0")
    return [stage._replace(share=stage.share / total) for stage in stages]


def _share(shares: Sequence[float], level: int) -> float:
    """A level's share; the last one given repeats for the levels above it."""
    return shares[min(level, len(shares) - 1)] if shares else 0.0
