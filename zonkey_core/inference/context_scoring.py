"""What a text before it says of a passage, read as slots, or as what the latents of the level above unfold to, or both.

A passage is told from left to right, in one stream to which the level above says nothing: where its blocks begin and
how long they are stays unknown, so nothing of the passage itself is given away. What stands before it is known, and
what is read of that is chosen (`Reading`). Both are cut apart from each other, so the passage is spelled with the same
strings whatever is read before it, and the latents know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from zonkey_core.diffusion.decoding_order import in_blocks, in_streams, then_in_stream
from zonkey_core.inference.planning import LevelContext
from zonkey_core.inference.scoring import Likelihood, Row, row_likelihoods
from zonkey_core.inference.text_reading import ReadText, TextReader
from zonkey_core.inference.windows import read_windows
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.slot_batches import Plans

SURE = 0.5
"""Existence with which a slot of a window is read."""


class Reading(Enum):
    """What is read of the text before a passage."""

    NOTHING = "nothing"
    LATENTS = "latents"
    """Of its blocks, the latents of the level above alone, which its decoder unfolds into slots."""
    SLOTS = "slots"
    """The slots, with nothing above."""
    BOTH = "both"
    """The slots, in blocks with their latents."""


class Passage(NamedTuple):
    """A text, and what stands before it in its document; neither is empty."""

    before: bytes
    text: bytes
    begins: bool = True
    """Whether the document begins with the text before."""


def closed_bytes(model: Zonkey, text: bytes) -> int:
    """How many bytes of a text its closed blocks take, the last one of which ends for certain; 0 of a single block.

    The model has at least two levels.
    """
    (read,) = TextReader(model).read([text])
    slots, blocks = (level.starts.tolist() for level in read.levels[:2])
    return int(slots[blocks[-2]])


def passage_likelihoods(model: Zonkey, passages: Sequence[Passage], reading: Reading) -> list[Likelihood]:
    """How likely each passage is, given what is read of the text before it; where a document ends is not asked.

    `Reading.LATENTS` and `Reading.BOTH` need a model of at least two levels.
    """
    return row_likelihoods(model.bottom, _rows(model, passages, reading))


def _rows(model: Zonkey, passages: Sequence[Passage], reading: Reading) -> list[Row]:
    """Passages, each behind what is read of the text before it."""
    reader = TextReader(model)
    contexts = reader.read([passage.before for passage in passages])
    read = reader.read([passage.text for passage in passages])
    return [_lay_out(model, before, text, passage.begins, reading)
            for passage, before, text in zip(passages, contexts, read, strict=True)]  # fmt: skip


@torch.no_grad()
def _lay_out(model: Zonkey, context: ReadText, passage: ReadText, begins: bool, reading: Reading) -> Row:
    """A passage behind what is read of the text before it."""
    text, before = passage.entries, context.entries
    asked = torch.ones_like(text, dtype=torch.bool)
    if reading is Reading.NOTHING:
        return Row(text, asked, in_streams(len(text), [0], [0], begins=False, end_order=None))
    if reading is Reading.LATENTS:
        before = _unfolded(model.bottom, context.levels[1].latents)
    entries = torch.cat([before, text])
    asked = torch.cat([torch.zeros_like(before, dtype=torch.bool), asked])
    if reading is not Reading.BOTH:
        return Row(entries, asked, in_streams(len(entries), [0], [0], begins=begins, end_order=None))
    blocks = context.levels[1]
    lengths = blocks.starts.diff().tolist()
    assert sum(lengths) == len(before)
    known = in_blocks(lengths, 1, known=len(before), begins=begins, ends=False)
    return Row(entries, asked, then_in_stream(known, len(before), len(text)), _plans(model, blocks, len(entries)))


def _unfolded(level: Level, latents: Tensor) -> Tensor:
    """[M] the strings that a level tells, as the windows of blocks above it say, which are decoded from [K, C]."""
    assert level.above is not None
    windows = read_windows(level.above, latents)
    return level.nearest_entries(windows.contents[windows.log_existence.exp() > SURE]).cpu()


def _plans(model: Zonkey, context: LevelContext, slots: int) -> Plans:
    """The latents of known blocks as plans without noise, and no drafts."""
    latents = context.latents
    drafts = latents.new_zeros(slots, model.bottom.channels)
    return Plans(latents, torch.ones(len(latents), device=latents.device), drafts)
