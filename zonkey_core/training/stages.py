"""What a stage trains and what it minimises.

Segments are those that the model is used with, and in the stages of a single level everything below is fixed. In the
joint stage all objectives of all levels are added up in one graph: the probabilities of cuts are kept, so that losses
reach the splitters through existence, and latents carry the upper levels' gradients down, scaled by how far the stage
is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zonkey_core.config import TrainingConfig
from zonkey_core.model.level import Level
from zonkey_core.model.model import Ascent, Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segmentation import Slots
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.denoiser_objective import denoising_losses
from zonkey_core.training.objectives import (
    COOLEST,
    WARMEST,
    RowOrigins,
    autoencoder_losses,
    splitter_objective,
)
from zonkey_core.training.optimizers import build_optimizers
from zonkey_core.training.processes import mean_over, over_all
from zonkey_core.training.splitter_distillation import Guide, guided_loss

Guides = Mapping[int, Guide | None]
NO_GUIDES: Guides = MappingProxyType({})
"""Without its guide a splitter keeps its cuts."""
STABILITY = 3.0
STABLE_FROM = 0.3
"""Share of level 0's splitter's stage after which its cuts are to stay the same under noise."""
REBUILT = 0.25
"""Share of the segments that the joint stage compresses and decodes for their own sake."""
CERTAIN_FROM = 0.7
"""Share of a splitter's stage after which its cuts are to become certain. Made certain from the start, they stay where
they happen to be: words of text without spaces were found with F1 0.35 instead of 0.76 after five minutes."""


def stage_parameters(model: Zonkey, stage: Stage) -> list[nn.Parameter]:
    """The parameters that a stage moves."""
    if stage.level is None:
        return list(model.parameters())
    return list(_level_parameters(model.levels[stage.level], stage.name))


def stage_optimizers(model: Zonkey, stage: Stage, config: TrainingConfig) -> list[Optimizer]:
    """Optimisers of a stage's parameters."""
    return build_optimizers(stage_parameters(model, stage), config)


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
    guides: Guides = NO_GUIDES,
) -> dict[str, Tensor]:
    """Named losses of a batch of bytes, as `LEVEL/NAME`; their sum is what the stage minimises.

    Where rows are from matters where level 0's splitter learns, and guides by level to the splitters above it.
    """
    if stage.level is None:
        let_down = min(1.0, 2 * fraction)
        return joint_losses(model, sequence, generator, upper_gradient=let_down, origins=origins, guides=guides)
    level = model.levels[stage.level]
    if stage.name == "splitter" and stage.level:
        losses = {"following": guided_loss(model, stage.level, sequence, generator, guides.get(stage.level))}
    elif stage.name == "splitter":
        losses = splitter_objective(
            level,
            sequence,
            generator,
            certainty=float(fraction >= CERTAIN_FROM),
            stability=STABILITY * float(fraction >= STABLE_FROM),
            temperature=WARMEST + (COOLEST - WARMEST) * fraction,
            origins=origins,
        )
    else:
        top = len(model.levels) - 1 if stage.name == "plan" else stage.level
        views = model.ascend(sequence, top)[stage.level :]
        if stage.name == "autoencoder":
            view = views[0]
            losses = autoencoder_losses(level, view.sequence, view.segmentation, generator, choices=view.choices)
        else:
            told = denoising_losses(level, views, generator, learning=1)
            losses = {name.partition("/")[2]: loss for name, loss in told.items()}
    return {f"{stage.level}/{name}": loss for name, loss in losses.items()}


def joint_losses(
    model: Zonkey,
    sequence: PositionSequence,
    generator: torch.Generator,
    *,
    upper_gradient: float,
    origins: RowOrigins | None = None,
    guides: Guides = NO_GUIDES,
) -> dict[str, Tensor]:
    """Every objective of every level in one graph; `upper_gradient` scales what passes down through latents."""
    losses: dict[str, Tensor] = {}
    views: list[Ascent] = []
    rows, split_on = sequence, sequence
    for index, level in enumerate(model.levels):
        if index:
            splits = {"following": guided_loss(model, index, rows, generator, guides.get(index))}
        else:
            splits = splitter_objective(level, split_on, generator, origins=origins)
        start_prob = level.split(split_on).start_prob
        if views:
            sequence, start_prob = views[-1].slots.as_positions(), views[-1].slots.share_out(start_prob)
        segmentation = level.choose_starts(sequence, start_prob, certain=False)
        latents = level.encode(sequence, segmentation)
        slots = level.read_slots(sequence, segmentation, latents)
        losses |= {f"{index}/{name}": loss for name, loss in splits.items()}
        choices = model.choices_above(views)
        rebuilt = autoencoder_losses(level, sequence, segmentation, generator, choices=choices, share=REBUILT)
        losses |= {f"{index}/{name}": loss for name, loss in rebuilt.items()}
        if level.vocabulary is not None:
            losses[f"{index}/drift"] = drift_loss(level, slots)
        slots = slots._replace(latents=_scaled_gradient(slots.latents, upper_gradient))
        views.append(Ascent(sequence, segmentation, start_prob.detach(), latents, slots, choices))
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
