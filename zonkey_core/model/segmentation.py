"""What the segments of a batch of rows are: where they begin, the slots that stand for them, and their windows.

Shapes: B rows of L positions, M segments or slots in each, K segments over the whole batch, windows of S positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zonkey_core.model.positions import Choices, PositionSequence

WINDOW_STEPS = (7, 10, 14, 19, 26, 36)
"""Window lengths, below the longest, at which segments are handled together."""


class Segmentation(NamedTuple):
    """A segmentation of a batch of rows."""

    starts: Tensor
    """[B, M] position of each segment's start; 0 in padding."""
    slot_mask: Tensor
    """[B, M] false in padding."""
    document_mask: Tensor
    """[B, M] true where the segment begins a document."""
    start_prob: Tensor
    """[B, L] the splitter's probabilities."""

    def start_mask(self) -> Tensor:
        """[B, L] true where a segment begins."""
        mask = torch.zeros(self.start_prob.shape, dtype=torch.bool, device=self.starts.device)
        rows, which = self.slot_mask.nonzero(as_tuple=True)
        return mask.index_put((rows, self.starts[rows, which]), self.slot_mask.new_ones(()))


class Slots(NamedTuple):
    """What a level's denoiser tells and the level above compresses into blocks, in the order of the text."""

    latents: Tensor
    """[B, M, C] zeros in padding."""
    entries: Tensor | None
    """[B, M] which strings of the vocabulary, where there is one."""
    slot_mask: Tensor
    """[B, M] false in padding."""
    document_mask: Tensor
    """[B, M] true where a slot begins a document."""
    starts: Tensor
    """[B, M] the level's position that each begins at; 0 in padding."""
    segments: Tensor
    """[B, M] which of the row's segments each spells, or a part of which."""
    first_mask: Tensor
    """[B, M] true where a segment begins with the slot."""

    def as_positions(self) -> PositionSequence:
        """The positions of the level above."""
        return PositionSequence(self.latents, self.slot_mask, self.document_mask)

    def share_out(self, of_segments: Tensor) -> Tensor:
        """[B, M] start probabilities of slots from those [B, M'] of the segments that begin with them."""
        return of_segments.gather(1, self.segments) * self.first_mask


class Windows(NamedTuple):
    """Windows of K segments, all of one length S."""

    segments: Tensor
    """[K] which of the batch's existing segments these are."""
    values: Tensor
    """[K, S] or [K, S, C]."""
    log_existence: Tensor
    """[K, S]."""
    start_prob: Tensor
    """[K, S] probability that a segment begins at each position."""
    choices: Choices | None = None
    """Of the same positions [K, S], where they stand for strings of a vocabulary."""


def length_groups(sizes: Tensor, longest: int) -> Iterator[tuple[int, Tensor]]:
    """Which of K windows of these sizes, at most `longest`, are handled together: a length and the numbers [n] of the
    windows that fit into it and no shorter one, from the shortest on. Those of size 0 are left out."""
    lower = 0
    for length in sorted({min(step, longest) for step in (*WINDOW_STEPS, longest)}):
        index = ((sizes > lower) & (sizes <= length)).nonzero().flatten()
        lower = length
        if len(index):
            yield length, index
