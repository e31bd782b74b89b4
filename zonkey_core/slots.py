"""Rows of slots: what a denoiser reads of a level's segments, one *reading* for each.

A reading holds the latent of one known slot or none, and asks what one open slot holds or none. Told in an order, the
slot before an open one asks it, so that each is read once; told all at once, every open slot asks itself. Openings
stand where a document, block, stream or gap begins and hold nothing; the end of a document holds nothing either.

Nothing here knows the network or the noise schedule. Noise is given as `alpha`, the share of the clean latent that is
left: 1 for what is known, 0 for pure noise, which tells nothing. Shapes: B rows of L readings in the order of the text,
latents of width C, latents of the level above of width C'.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class SlotKind(IntEnum):
    """What a reading is."""

    TEXT = 0
    """Holds a known slot."""
    STREAM = 1
    """Opens a stream inside a block, or a row that does not begin with a document."""
    DOCUMENT = 2
    """Opens a document."""
    GAP = 3
    """Opens a gap, and tells the others nothing."""
    END = 4
    """Stands behind the last slot of a document."""
    BLOCK = 5
    """Opens a block, a segment of the level above."""
    OPEN = 6
    """An open slot that asks itself."""


class Layout(NamedTuple):
    """Where readings stand and which see which; what is padding belongs to a document of its own."""

    kinds: Tensor
    """[B, L]"""
    positions: Tensor
    """[B, L] place in the text; an opening stands where the slot before its first one stands."""
    order: Tensor
    """[B, L] when a reading is made; it sees those that are made no later."""
    documents: Tensor
    """[B, L] readings of different documents do not see each other."""
    silent_mask: Tensor
    """[B, L] true where a reading tells the others nothing: an open slot that is pure noise, the opening of a gap."""
    held_mask: Tensor
    """[B, L] true where a reading holds a slot, which others may copy."""


class SlotBatch(NamedTuple):
    """Rows of readings."""

    layout: Layout
    known: Tensor
    """[B, L, C] clean latent of the slot that is held, zeros where none is."""
    noisy: Tensor
    """[B, L, C] noisy latent of the slot that is asked, zeros where it is pure noise."""
    alpha: Tensor
    """[B, L] how much of that one is left."""
    estimate: Tensor
    """[B, L, C] an earlier estimate of the slot that is asked, from this level or unfolded from the one above."""
    plan: Tensor | None
    """[B, L, C'] latent of the block that the reading belongs to, as the level above has it; None without a level
    above."""
    plan_alpha: Tensor | None
    """[B, L] how much of that is left of noise; 0 where nothing above is given, whatever `plan` holds."""
    left: Tensor
    """[B, L] slots from the one that is asked to the end of its block; 0 where that is not known."""
