"""What a stage trains and what it minimises.

In the stages of a single level everything below is fixed, and segments are those that the model is used with. In the
joint stage every level's three objectives are added up, segmentations are drawn from the splitters so that the
expected loss reaches them, and latents carry the upper level's gradient down, scaled by how far the stage is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zonkey_core.config import TrainingConfig
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import LocatedPositions, PositionSequence
from zonkey_core.training.augmentation import UPPER_KIND_SHARES, noise_rows
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.denoiser_objective import choosing_objective, denoiser_objective
from zonkey_core.training.objectives import (
    COOLEST,
    WARMEST,
    autoencoder_objective,
    rows_to_noise,
    splitter_objective,
)
from zonkey_core.training.optimizers import build_optimizers
from zonkey_core.training.splitter_distillation import following_loss, telling_values

STABILITY = 3.0
STABLE_FROM = 0.3
"""Share of level 0's splitter's stage after which its cuts are to stay the same under noise."""
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
    else:
        yield from level.denoiser_parameters()


def stage_losses(
    model: Zonkey, stage: Stage, sequence: PositionSequence, generator: torch.Generator, fraction: float
) -> dict[str, Tensor]:
    """Named losses of a batch of bytes, as `LEVEL/NAME`; their sum is what the stage minimises."""
    if stage.level is None:
        return joint_losses(model, sequence, generator, upper_gradient=min(1.0, 2 * fraction))
    level = model.levels[stage.level]
    rows, located = sequence, model.located_positions(sequence, stage.level)
    sequence = located.sequence
    if stage.name == "splitter":
        losses = splitter_objective(
            level,
            sequence,
            generator,
            certainty=float(fraction >= CERTAIN_FROM),
            stability=STABILITY * float(fraction >= STABLE_FROM),
            temperature=WARMEST + (COOLEST - WARMEST) * fraction,
        )
        if stage.level and fraction >= FOLLOW_FROM:
            losses["following"] = guided_loss(model, stage.level, rows, located, generator)
    else:
        with torch.no_grad():
            start_prob = level.split(sequence).start_prob
        if stage.name == "denoiser" and level.dictionary is not None:
            losses = choosing_objective(level, level.pieces(sequence, start_prob), generator)
        else:
            segmentation = level.choose_starts(sequence, start_prob)
            if stage.name == "autoencoder":
                losses = autoencoder_objective(level, sequence, segmentation, generator).losses
            else:
                latents = level.encode(sequence, segmentation).detach()
                losses = denoiser_objective(level, sequence, segmentation, latents, generator)
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
    """Every objective of every level in one graph; `upper_gradient` scales what passes down through the latents."""
    losses: dict[str, Tensor] = {}
    rows = sequence
    for index, level in enumerate(model.levels):
        splits = splitter_objective(level, sequence, generator)
        if index:
            splits["following"] = guided_loss(model, index, rows, model.located_positions(rows, index), generator)
        start_prob = level.split(sequence).start_prob
        segmentation = level.choose_starts(sequence, start_prob, generator=generator)
        encoded = autoencoder_objective(level, sequence, segmentation, generator)
        if level.dictionary is None:
            denoised = denoiser_objective(level, sequence, segmentation, encoded.latents, generator)
        else:
            denoised = choosing_objective(level, level.pieces(sequence, start_prob.detach()), generator)
        named = splits | encoded.losses | denoised
        losses |= {f"{index}/{name}": loss for name, loss in named.items()}
        passed = encoded.latents * upper_gradient + encoded.latents.detach() * (1 - upper_gradient)
        sequence = level.upper_sequence(passed, segmentation)
    return losses
