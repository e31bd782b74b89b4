"""Zonkey: a stack of levels, each of which reads the latents of the one below."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zonkey_core.config import ModelConfig
from zonkey_core.model.level import Level, Segmentation
from zonkey_core.model.positions import LocatedPositions, PositionSequence


class Ascent(NamedTuple):
    """One level's view of a batch on the way up."""

    sequence: PositionSequence
    """The level's positions."""
    segmentation: Segmentation
    latents: Tensor
    """[K, C] latents of the existing segments, in order."""


class Zonkey(nn.Module):
    """The whole model; `levels[0]` reads bytes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        levels: list[Level] = []
        for level_config in config.levels:
            levels.append(Level(level_config, levels[-1].channels if levels else None))
        self.stack = nn.ModuleList(levels)

    @property
    def levels(self) -> list[Level]:
        """The levels, lowest first."""
        return [level for level in self.stack if isinstance(level, Level)]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def ascend(self, sequence: PositionSequence, top: int, start_probs: Tensor | None = None) -> list[Ascent]:
        """Segment and compress a batch of bytes up to and including level `top`, without gradients.

        `start_probs` [B, L] replaces level 0's own probabilities, where a caller fixes its cuts.
        """
        views = []
        for index, level in enumerate(self.levels[: top + 1]):
            probs = start_probs if index == 0 and start_probs is not None else level.split(sequence).start_prob
            segmentation = level.choose_starts(sequence, probs)
            latents = level.encode(sequence, segmentation)
            views.append(Ascent(sequence, segmentation, latents))
            sequence = level.upper_sequence(latents, segmentation)
        return views

    @torch.no_grad()
    def located_positions(self, sequence: PositionSequence, index: int) -> LocatedPositions:
        """What level `index` reads of a batch of bytes, without gradients."""
        if index == 0:
            order = torch.arange(sequence.values.shape[1], device=sequence.values.device)
            return LocatedPositions(sequence, order.expand_as(sequence.values))
        views = self.ascend(sequence, index - 1)
        offsets = views[0].segmentation.starts
        for view in views[1:]:
            offsets = offsets.gather(1, view.segmentation.starts)
        below = views[-1]
        return LocatedPositions(self.levels[index - 1].upper_sequence(below.latents, below.segmentation), offsets)


def byte_sequence(values: Tensor, document_mask: Tensor) -> PositionSequence:
    """Rows of bytes [B, L] without padding as level 0's positions."""
    return PositionSequence(values.long(), torch.ones_like(document_mask), document_mask)


def text_sequence(text: bytes, *, device: torch.device) -> PositionSequence:
    """One text that begins a document, as a batch of one row."""
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().unsqueeze(0).to(device)
    document_mask = torch.zeros_like(values, dtype=torch.bool)
    document_mask[:, 0] = True
    return byte_sequence(values, document_mask)
