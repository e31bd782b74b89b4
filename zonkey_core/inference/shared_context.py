"""Shared context: what stands around gaps is read once, and taken up by every candidate for what goes into them.

While the context is read, each gap seems to be `GAP_WIDTH` slots wide and holds nothing, as where its length is asked.
What was kept of it (keys, values and states) then moves to the places that it has around gaps of other lengths:
attention sees distances through rotary phases, so a key that stands d slots further to the right is the same key turned
by the phase of d. The slots before gaps, which ask what these hold, are read anew for each candidate.

Shapes: n readings of a context, L readings of a row, R rows side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zonkey_core.devices import choose_precision, in_precision
from zonkey_core.diffusion.decoding_order import Order, in_streams, lay_out, with_gaps
from zonkey_core.inference.shapes import groups_of_one_shape, padded_count
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.level import Level
from zonkey_core.model.slot_batches import slot_batch
from zonkey_core.model.transformer import rotary_phases, rotate
from zonkey_core.slots import Layout, SlotKind

CONTEXTS_TOGETHER = 4
"""Contexts that are read side by side."""
LENGTH_STEP = 32
"""Contexts and rows are padded to a multiple of so many readings."""


class Pieces(NamedTuple):
    """The text around gaps, as entries of the lowest level's vocabulary."""

    known: Sequence[Tensor]
    """[P] entries of each piece, one more than there are gaps."""
    begins: bool
    """Whether a document begins with the first."""
    ends: bool
    """Whether it ends with the last."""


class Context(NamedTuple):
    """What was kept of the reading of some pieces."""

    layers: dict[str, Tensor]
    """[H, n, D] by the names of `KVCache.layers`."""
    order: Order
    """In which it was read."""
    ending_logits: Tensor
    """[G, E] hazards of the length of each gap."""

    @property
    def length(self) -> int:
        """Readings n, padding included."""
        return next(iter(self.layers.values())).shape[1]


def padded(length: int) -> int:
    """The length of the rows that so many readings lie in."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


@torch.no_grad()
def read_contexts(level: Level, pieces: Sequence[Pieces]) -> list[Context]:
    """Read what stands around gaps; what is kept of one does not depend on the others."""
    assert level.vocabulary is not None
    table = level.vocabulary.latents()
    denoiser = in_precision(level.denoiser, choose_precision("auto", level.device))
    orders = [_unmeasured(each) for each in pieces]
    contexts: dict[int, Context] = {}
    lengths = [(padded(len(order.source) + 1),) for order in orders]
    for (length,), group in groups_of_one_shape(lengths, CONTEXTS_TOGETHER):
        some = [orders[index] for index in group]
        batch = padded_count(len(group), CONTEXTS_TOGETHER, level.device)
        blank = [in_streams(0, [0], [0], begins=True, end_order=None)] * (batch - len(group))
        rows = lay_out([*some, *blank], length, level.device)
        entries = torch.zeros(batch, length, dtype=torch.long)
        for row, index in zip(entries, group, strict=False):
            each = _with_blanks(pieces[index].known)
            row[: len(each)] = each
        cache = KVCache(rows.layout)
        found = denoiser(slot_batch(table[entries.to(level.device)], rows), cache)
        gates = rows.layout.kinds == SlotKind.GAP
        for row, (index, order) in enumerate(zip(group, some, strict=True)):
            kept = {name: layer[row] for name, layer in cache.layers.items()}
            contexts[index] = Context(kept, order, found.ending_logits[row, gates[row]])
    return [contexts[index] for index in range(len(pieces))]


def _unmeasured(pieces: Pieces) -> Order:
    """The order in which pieces are read: each gap has one slot, which is not held."""
    gaps, position = [], 0
    for piece in pieces.known[:-1]:
        position += len(piece)
        gaps.append((position, position + 1))
        position += 1
    count = position + len(pieces.known[-1])
    return with_gaps(count, gaps, begins=pieces.begins, ends=pieces.ends, measured=False)


def _with_blanks(known: Sequence[Tensor]) -> Tensor:
    """[M] the pieces with one slot for each gap between them."""
    return torch.cat([part for piece in known for part in (piece, piece.new_zeros(1))])[:-1]


class Placed(NamedTuple):
    """A row in which a context stands around gaps of some lengths."""

    context: Context
    order: Order


@torch.no_grad()
def take_up(rows: Sequence[Placed], layout: Layout, head_width: int) -> KVCache:
    """A cache for rows [R, L] with this layout, the first of which hold contexts, as if they had been read there."""
    count, length = layout.order.shape
    source = np.zeros((count, length), dtype=np.int64)
    shift = np.zeros((count, length), dtype=np.int64)
    for row, (context, order) in enumerate(rows):
        here, there = _held(order), _held(context.order)
        source[row, here] = there
        shift[row, here] = order.positions[here] - context.order.positions[there]
    which = torch.from_numpy(source).to(layout.order.device)
    phases = rotary_phases(torch.from_numpy(shift).to(layout.order.device), head_width)
    cache = KVCache(layout)
    for name, first in rows[0].context.layers.items() if rows else ():
        layer = first.new_zeros(count, len(first), length, first.shape[-1])
        for row, (context, _) in enumerate(rows):
            torch.index_select(context.layers[name], 1, which[row], out=layer[row])
        cache.layers[name] = rotate(layer, phases) if name.startswith("keys") else layer
    return cache


def _held(order: Order) -> NDArray[np.int64]:
    """The readings of what is known, openings of gaps excepted, in the order of the text."""
    return np.flatnonzero((order.order == 0) & (order.kinds != SlotKind.GAP))


