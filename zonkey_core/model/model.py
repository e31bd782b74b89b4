"""Zonkey: a stack of levels, each of which reads the slots of the one below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zonkey_core.config import ModelConfig
from zonkey_core.model.level import Level
from zonkey_core.model.positions import Choices, LocatedPositions, PositionSequence
from zonkey_core.model.segmentation import Segmentation, Slots


class Ascent(NamedTuple):
    """One level's view of a batch on the way up."""

    sequence: PositionSequence
    """The level's positions: bytes, or the slots of the level below."""
    segmentation: Segmentation
    split_prob: Tensor
    """[B, L] what the splitter says of each position, where the segmentation may be certain."""
    latents: Tensor
    """[K, C] latents of the existing segments, in order."""
    slots: Slots
    """What its denoiser tells."""
    choices: Choices | None = None
    """What its positions hold, where they are slots of a level with a vocabulary."""

    def by_slots(self) -> Ascent:
        """The same with slots in place of segments, where these are spelled with several."""
        slots = self.slots
        segmentation = Segmentation(slots.starts, slots.slot_mask, slots.document_mask, self.segmentation.start_prob)
        segmentation = segmentation._replace(start_prob=segmentation.start_mask().float())
        return self._replace(segmentation=segmentation, latents=slots.latents[slots.slot_mask])


class Zonkey(nn.Module):
    """The whole model: its lowest level, which reads bytes and holds the one above it, and so on up."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.bottom = Level(config.levels, None)

    @property
    def levels(self) -> list[Level]:
        """The levels, lowest first."""
        return list(self.bottom.stack())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.bottom.device

    def unsaved(self) -> dict[str, Tensor]:
        """What training goes on with and a saved model does without."""
        return unsaved_buffers(self)

    def clear_unsaved(self, *, keep: bool) -> None:
        """Put zeros in its place; without `keep`, what takes no memory, on the meta device."""
        for name, buffer in self.unsaved().items():
            owner, _, last = name.rpartition(".")
            setattr(self.get_submodule(owner), last, buffer.zero_() if keep else buffer.to("meta"))

    @torch.no_grad()
    def load_unsaved(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `unsaved` gave."""
        for name, buffer in self.unsaved().items():
            buffer.copy_(tensors[name])

    @torch.no_grad()
    def ascend(self, sequence: PositionSequence, top: int, start_probs: Tensor | None = None) -> list[Ascent]:
        """Segment and compress a batch of bytes up to and including level `top`, without gradients.

        `start_probs` [B, L] replaces the lowest level's own probabilities, where a caller fixes its cuts.
        """
        views: list[Ascent] = []
        for level in self.levels[: top + 1]:
            positions, split_prob = self._split(sequence, views, start_probs)
            segmentation = level.choose_starts(positions, split_prob)
            latents = level.encode(positions, segmentation)
            slots = level.read_slots(positions, segmentation, latents)
            views.append(Ascent(positions, segmentation, split_prob, latents, slots, self.choices_above(views)))
        return views

    def choices_above(self, views: Sequence[Ascent]) -> Choices | None:
        """What the positions of the level above those of `views` hold, where these are slots with a vocabulary."""
        return self.levels[len(views) - 1].choices(views[-1].slots) if views else None

    @torch.no_grad()
    def slot_masks(self, sequence: PositionSequence, index: int) -> tuple[Tensor, Tensor]:
        """`slot_mask` and `document_mask` [B, M] of the slots of level `index`, which are not compressed for that."""
        views = self.ascend(sequence, index - 1) if index else []
        level = self.levels[index]
        positions, split_prob = self._split(sequence, views, None)
        return level.slot_masks(positions, level.choose_starts(positions, split_prob))

    def _split(
        self, sequence: PositionSequence, views: Sequence[Ascent], start_probs: Tensor | None
    ) -> tuple[PositionSequence, Tensor]:
        """The positions of the level above those of `views`, or of the lowest one, and where segments may begin."""
        level = self.levels[len(views)]
        if not views:
            return sequence, level.split(sequence).start_prob if start_probs is None else start_probs
        below = views[-1]
        upper = self.levels[len(views) - 1].upper_sequence(below.latents, below.segmentation)
        return below.slots.as_positions(), below.slots.share_out(level.split(upper).start_prob)

    @torch.no_grad()
    def located_positions(self, sequence: PositionSequence, index: int) -> LocatedPositions:
        """What the splitter of level `index` reads of a batch of bytes, without gradients."""
        offsets = torch.arange(sequence.exists_mask.shape[1], device=sequence.values.device)
        offsets = offsets.expand_as(sequence.exists_mask)
        if not index:
            return LocatedPositions(sequence, offsets)
        views = self.ascend(sequence, index - 2) if index > 1 else []
        for view in views:
            offsets = offsets.gather(1, view.slots.starts)
        level = self.levels[index - 1]
        positions, split_prob = self._split(sequence, views, None)
        segmentation = level.choose_starts(positions, split_prob)
        begins = offsets.gather(1, segmentation.starts)
        return LocatedPositions(level.upper_sequence(level.encode(positions, segmentation), segmentation), begins)


def unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module that are not in its `state_dict`."""
    saved = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


def byte_sequence(values: Tensor, document_mask: Tensor) -> PositionSequence:
    """Rows of bytes [B, L] without padding as the lowest level's positions."""
    return PositionSequence(values.long(), torch.ones_like(document_mask), document_mask)


def text_sequence(text: bytes, *, device: torch.device) -> PositionSequence:
    """One text that begins a document, as a batch of one row."""
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().unsqueeze(0).to(device)
    document_mask = torch.zeros_like(values, dtype=torch.bool)
    document_mask[:, 0] = True
    return byte_sequence(values, document_mask)
