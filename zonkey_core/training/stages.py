"""What a stage trains and what it minimises.

Segments are those that the model is used with, and in the stages of a single level everything below is fixed. In the
joint stage all objectives of all levels are added up in one graph: the probabilities of cuts are kept, so that losses
reach the splitters through existence, and latents carry the upper levels' gradients down, scaled by how far the stage
is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zonkey_core.config import TrainingConfig
from zonkey_core.model.level import Level
from zonkey_core.model.model import Ascent, Zonkey
from zonkey_core.model.positions import LocatedPositions, PositionSequence
from zonkey_core.model.segmentation import Slots
from zonkey_core.training.augmentation import UPPER_KIND_SHARES, noise_rows
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.denoiser_objective import denoising_losses
from zonkey_core.training.objectives import (
    COOLEST,
    WARMEST,
    RowOrigins,
    autoencoder_losses,
    rows_to_noise,
    splitter_objective,
)
from zonkey_core.training.optimizers import build_optimizers
from zonkey_core.training.processes import mean_over, over_all
from zonkey_core.training.splitter_distillation import following_loss, telling_values

STABILITY = 3.0
STABLE_FROM = 0.3
"""Share of level 0's splitter's stage after which its cuts are to stay the same under noise."""
REBUILT = 0.25
"""Share of the segments that the joint stage compresses and decodes for their own sake."""
FOLLOW_FROM = 0.6
"""Share of a later splitter's stage after which it follows its guide."""
CERTAIN_FROM = 0.7
"""Share of a splitter's stage after which its cuts are to become certain. Made certain from the start, they stay where
they happen to be: words of text without spaces were found with F1 0.35 instead of 0.76 after five minutes."""


def stage_parameters(model: Zonkey, stage: Stage) -> list[nn.Parameter]:
    """The parameters that a stage moves."""
    if stage.level is None:
        return list(model.parameters())
    return list(_level_parameters(model.levels[stage.level], stage.name))


def guide_parameters(model: Zonkey) -> list[nn.Parameter]:
    """The parameters of all guides."""
    return [parameter for level in model.levels if level.guide is not None for parameter in level.guide.parameters()]


def stage_optimizers(model: Zonkey, stage: Stage, config: TrainingConfig) -> list[Optimizer]:
    """Optimisers of a stage's parameters, with those of guides at their own rate."""
    return build_optimizers(stage_parameters(model, stage), config, guide_parameters(model))


def _level_parameters(level: Level, name: str) -> Iterator[nn.Parameter]:
    if name == "splitter":
        yield from level.splitter_parameters()
    elif name == "autoencoder":
        yield from level.autoencoder_parameters()
    elif name == "denoiser":
        yield from level.denoiser_parameters()
    else:
        yield from level.denoiser.parameters()


def stage_losses(
    model: Zonkey,
    stage: Stage,
    sequence: PositionSequence,
    generator: torch.Generator,
    fraction: float,
    origins: RowOrigins | None = None,
) -> dict[str, Tensor]:
    """Named losses of a batch of bytes, as `LEVEL/NAME`; their sum is what the stage minimises.

    Where rows are from matters in the stage of level 0's splitter.
    """
    if stage.level is None:
        return joint_losses(model, sequence, generator, upper_gradient=min(1.0, 2 * fraction))
    level = model.levels[stage.level]
    if stage.name == "splitter":
        located = model.located_positions(sequence, stage.level)
        losses = splitter_objective(
            level,
            located.sequence,
            generator,
            certainty=float(fraction >= CERTAIN_FROM),
            stability=STABILITY * float(fraction >= STABLE_FROM),
            temperature=WARMEST + (COOLEST - WARMEST) * fraction,
            origins=origins,
        )
        if level.guide is not None and fraction >= FOLLOW_FROM:
            losses["following"] = guided_loss(model, stage.level, sequence, located, generator)
    else:
        top = len(model.levels) - 1 if stage.name == "plan" else stage.level
        views = model.ascend(sequence, top)[stage.level :]
        if stage.name == "autoencoder":
            losses = autoencoder_losses(level, views[0].sequence, views[0].segmentation, generator)
        else:
            told = denoising_losses(level, views, generator, learning=1)
            losses = {name.partition("/")[2]: loss for name, loss in told.items()}
    return {f"{stage.level}/{name}": loss for name, loss in losses.items()}


def guided_loss(
    model: Zonkey, index: int, rows: PositionSequence, located: LocatedPositions, generator: torch.Generator
) -> Tensor:
    """`following_loss` of level `index`, at least 1, for rows of bytes and its positions of them; some are noised."""
    level, some = model.levels[index], rows_to_noise(rows)
    assert level.guide is not None
    clean = LocatedPositions(rows_to_noise(located.sequence), located.offsets[: len(some.values)])
    with torch.no_grad():
        start_prob = level.guide(clean.sequence).start_prob
    telling = telling_values(some, clean.offsets, start_prob * clean.sequence.exists_mask)
    noised, origins = noise_rows(some, generator, UPPER_KIND_SHARES, telling)
    return following_loss(level, clean, start_prob, model.located_positions(noised, index), origins)


def joint_losses(
    model: Zonkey, sequence: PositionSequence, generator: torch.Generator, *, upper_gradient: float
) -> dict[str, Tensor]:
    """Every objective of every level in one graph; `upper_gradient` scales what passes down through latents."""
    losses: dict[str, Tensor] = {}
    views: list[Ascent] = []
    rows, split_on = sequence, sequence
    for index, level in enumerate(model.levels):
        splits = splitter_objective(level, split_on, generator)
        if level.guide is not None:
            splits["following"] = guided_loss(model, index, rows, model.located_positions(rows, index), generator)
        start_prob = level.split(split_on).start_prob
        if views:
            sequence, start_prob = views[-1].slots.as_positions(), views[-1].slots.share_out(start_prob)
        segmentation = level.choose_starts(sequence, start_prob, certain=False)
        latents = level.encode(sequence, segmentation)
        slots = level.read_slots(sequence, segmentation, latents)
        losses |= {f"{index}/{name}": loss for name, loss in splits.items()}
        rebuilt = autoencoder_losses(level, sequence, segmentation, generator, share=REBUILT)
        losses |= {f"{index}/{name}": loss for name, loss in rebuilt.items()}
        if level.vocabulary is not None:
            losses[f"{index}/drift"] = drift_loss(level, slots)
        slots = slots._replace(latents=_scaled_gradient(slots.latents, upper_gradient))
        views.append(Ascent(sequence, segmentation, start_prob.detach(), latents, slots))
        split_on = level.upper_sequence(_scaled_gradient(latents, upper_gradient), segmentation)
    return losses | denoising_losses(model.bottom, views, generator)


def drift_loss(level: Level, slots: Slots) -> Tensor:
    """How far the strings of slots have drifted, on average over the distinct ones of the whole batch."""
    assert level.vocabulary is not None
    entries, drifts = level.drift(slots)
    seen = torch.zeros(len(level.vocabulary.lengths), device=drifts.device).index_fill(0, entries, 1.0)
    shares = 1 / over_all(seen)[entries]
    return mean_over((drifts * shares).sum(), shares.sum())


def _scaled_gradient(latents: Tensor, share: float) -> Tensor:
    return latents * share + latents.detach() * (1 - share)
