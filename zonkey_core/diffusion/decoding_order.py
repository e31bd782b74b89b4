"""In which order the slots of a text are told.

*In blocks* is how text is formed: the segments of the level above are told side by side, each from its own start, as
many slots of each at once as the number of evaluations makes necessary. *In streams* is what a level does that has
nothing above it: the whole text from left to right, or cut into streams of about equal length. Gaps are told between
what is known on both sides. How long a gap is must not be seen before it is told, so that is asked of an order in
which every gap is as wide as `GAP_WIDTH` and holds nothing. *At once* is the usual diffusion, where every slot asks
itself.

Arrays of one `Order` have one entry for each of its readings, openings and end marks included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zonkey_core.slots import Layout, SlotKind

GAP_WIDTH = 32
"""Slots that a gap seems to have while its length is asked."""
BLANKS = 2
"""Readings behind such a gap that stand for its last slots and tell nothing: what stands behind a gap mixes in what is
just before it, and must not see what stands before the gap instead."""
PADDING = -1
"""Document of padding."""


class Order(NamedTuple):
    """The readings of a document, or of the part of it that a row holds, in the order of its text."""

    source: NDArray[np.int64]
    """Which of the document's slots is held here, -1 for openings and end marks."""
    kinds: NDArray[np.int64]
    positions: NDArray[np.int64]
    order: NDArray[np.int64]
    """The evaluation in which it is made."""
    told: NDArray[np.int64]
    """Which of the document's slots is asked here, -1 for none."""
    remaining: NDArray[np.int64]
    """Slots from the told one to the end of the document or gap, or at least so many; -1 where it is not asked."""
    blocks: NDArray[np.int64]
    """The block of the slot that is asked or held, -1 for none."""
    left: NDArray[np.int64]
    """Slots from the told one to the end of its block; 0 where that is not known."""


def _blank(length: int) -> Order:
    """Readings of which nothing is said yet."""
    fields = Order(*(np.full(length, -1, dtype=np.int64) for _ in Order._fields))
    fields.left[:] = 0
    return fields


def in_streams(
    count: int, firsts: Sequence[int], openings: Sequence[int], *, begins: bool, end_order: int | None
) -> Order:
    """A text of `count` slots, told in streams that begin at the slots `firsts` and open at the times `openings`.

    `begins` tells whether the document begins here, `end_order` when its end becomes known, None where it never does.
    """
    first, opened = np.asarray(firsts), np.asarray(openings)
    slots = np.arange(count)
    stream = np.searchsorted(first, slots, side="right") - 1
    places, gates = slots + stream + 1, first + np.arange(len(first))
    fields = _blank(count + len(first) + (end_order is not None))
    fields.source[places] = slots
    fields.kinds[places], fields.kinds[gates] = SlotKind.TEXT, SlotKind.STREAM
    fields.positions[places], fields.positions[gates] = slots, first - 1
    fields.order[places], fields.order[gates] = opened[stream] + slots - first[stream] + 1, opened
    fields.told[gates] = np.where(first < count, first, -1)
    follows = np.flatnonzero(stream[1:] == stream[:-1])
    fields.told[places[follows]] = slots[follows] + 1
    if begins:
        fields.kinds[0] = SlotKind.DOCUMENT
    if end_order is not None:
        fields.kinds[-1], fields.positions[-1], fields.order[-1] = SlotKind.END, count, end_order
    return fields


def with_gaps(
    count: int, gaps: Sequence[tuple[int, int]], *, begins: bool, ends: bool, measured: bool
) -> Order:
    """A text of `count` slots, all known but those in `gaps` (first slot, and the one after the last).

    The slot before a gap asks what its first one holds; a gap with nothing known before it has an opening for that.
    Where the gaps are not `measured`, they hold nothing but `BLANKS` and seem to be `GAP_WIDTH` wide; how long each is,
    an opening asks that holds the slot before it once more.
    """
    slots = np.arange(count)
    first, last = np.asarray(gaps, dtype=np.int64).reshape(-1, 2).T
    passed = np.searchsorted(first, slots, side="right")
    begin, end = (np.append(0, edges)[passed] for edges in (first, last))
    held = slots if measured else slots[slots >= end]
    widths = np.zeros_like(first) if measured else GAP_WIDTH - (last - first)
    shift = np.append(0, np.cumsum(widths))
    opened = (first == 0) | np.isin(first, last)
    gated = opened | (not measured)
    openings = np.append(0, np.cumsum(gated))
    places = int(begins) + np.arange(len(held)) + openings[passed[held]]
    askers = int(begins) + np.searchsorted(held, first) + openings[:-1] - ~gated
    fields = _blank(int(begins) + len(held) + openings[-1] + int(ends))
    fields.source[places] = held
    fields.kinds[places], fields.kinds[askers[gated]] = SlotKind.TEXT, SlotKind.GAP
    fields.positions[places], fields.positions[askers] = held + shift[passed[held]], first - 1 + shift[:-1]
    fields.order[:] = 0
    fields.order[places] = np.where(slots < end, slots - begin + 1, 0)[held]
    fields.told[places] = np.where(slots + 1 < end, slots + 1, -1)[held]
    if measured:
        fields.told[askers] = first
    else:
        fields.remaining[askers], fields.source[askers] = last - first, np.where(opened, -1, first - 1)
    if begins:
        fields.kinds[0] = SlotKind.DOCUMENT
    if ends:
        fields.kinds[-1], fields.positions[-1] = SlotKind.END, count + shift[-1]
    if measured:
        return fields
    behind = np.repeat(askers + 1, BLANKS)
    blank = {"kinds": SlotKind.TEXT, "order": 1, "left": 0}
    return Order(*(np.insert(part, behind, blank.get(name, -1)) for name, part in fields._asdict().items()))


def opening_times(lengths: Sequence[int], steps: int) -> list[int]:
    """When blocks of these lengths open, so that all are told in `steps` evaluations, or in the longest's if more.

    Blocks open as late as there is time, so that each has something to follow; where there is time for all slots one by
    one, each waits for the one before it.
    """
    if not lengths:
        return []
    sizes = np.asarray(lengths)
    one_by_one = np.cumsum(sizes) - sizes
    spread = np.round(np.maximum(0, steps - sizes) * np.arange(len(sizes)) / max(1, len(sizes) - 1)).astype(int)
    times: list[int] = (one_by_one if steps >= sizes.sum() else np.minimum(spread, one_by_one)).tolist()
    return times


def in_blocks(
    lengths: Sequence[int], steps: int, *, known: int = 0, begins: bool, ends: bool,
    opens: NDArray[np.bool_] | None = None,
) -> Order:  # fmt: skip
    """A text whose blocks have these lengths, told side by side in `steps` evaluations.

    Its first `known` slots are known. A block with more open slots than evaluations is told in several streams, which
    open where a mask `opens` [M] of slots is true, if one is given, and then may be fewer.
    """
    firsts = np.cumsum([0, *lengths])
    open_from = int(np.searchsorted(firsts[1:], known, side="right"))
    rest = [int(firsts[block + 1] - max(firsts[block], known)) for block in range(open_from, len(lengths))]
    times = [0] * open_from + opening_times(rest, steps)
    parts = [
        _block(
            block, int(first), length, steps, time, known=max(0, min(length, known - int(first))),
            opens=None if opens is None else opens[first : first + length],
        )
        for block, (first, length, time) in enumerate(zip(firsts, lengths, times, strict=False))
    ]
    fields = Order(*map(np.concatenate, zip(*parts, strict=True))) if parts else _blank(0)
    if begins and parts:
        fields.kinds[0] = SlotKind.DOCUMENT
    if not ends:
        return fields
    end = _blank(1)
    end.kinds[0], end.positions[0], end.order[0] = SlotKind.END, firsts[-1], 0
    return Order(*map(np.concatenate, zip(fields, end, strict=True)))


def nearest_openings(places: NDArray[np.int64], opens: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The slots nearest to these places, each once, where a mask [M] is true; none where it never is."""
    possible = np.flatnonzero(opens)
    if not len(possible):
        return possible
    after = np.searchsorted(possible, places).clip(max=len(possible) - 1)
    before = (after - 1).clip(min=0)
    nearer = possible[after] - places < places - possible[before]
    return np.unique(np.where(nearer, possible[after], possible[before]))


def _block(
    block: int, first: int, length: int, steps: int, time: int, *, known: int, opens: NDArray[np.bool_] | None
) -> Order:
    """One block that opens at a time, its first `known` slots known."""
    if known == length:
        held = np.arange(length)
        fields = _blank(1 + len(held))
        fields.source[1:], fields.order[:] = first + held, 0
        fields.kinds[0], fields.kinds[1:] = SlotKind.BLOCK, SlotKind.TEXT
        fields.positions[0], fields.positions[1:] = first - 1, first + held
        fields.blocks[:], fields.left[0], fields.left[1:] = block, length, length - held - 1
        return fields
    number = -(-(length - known) // steps)
    cuts = known + np.round(np.arange(number) * (length - known) / number).astype(int)
    if opens is not None:
        cuts = np.append(known, nearest_openings(cuts[1:], opens & (np.arange(length) > known)))
        number = len(cuts)
    slots = np.arange(length)
    stream = np.searchsorted(cuts, slots, side="right") - 1
    # A stream after the first has an opening of its own, before its first slot; the block's stands before all.
    places = slots + 1 + np.maximum(stream, 0)
    gates = np.concatenate([[0], cuts[1:] + np.arange(1, number)])
    fields = _blank(length + number)
    fields.source[places] = first + slots
    fields.kinds[places], fields.kinds[gates], fields.kinds[0] = SlotKind.TEXT, SlotKind.STREAM, SlotKind.BLOCK
    fields.positions[places], fields.positions[gates] = first + slots, first + np.concatenate([[0], cuts[1:]]) - 1
    fields.order[places] = np.where(slots < known, 0, time + slots - cuts[np.maximum(stream, 0)] + 1)
    fields.order[gates] = time
    last_of_stream = np.append(stream[1:] != stream[:-1], True)
    fields.told[places] = np.where((slots >= known) & ~last_of_stream, first + slots + 1, -1)
    fields.told[gates[1:]] = first + cuts[1:]
    if known:
        fields.order[0] = 0
        fields.told[places[known - 1]] = first + known
    else:
        fields.told[0] = first
    asked = np.where(fields.told >= 0, fields.told, fields.positions + 1)
    fields.blocks[:], fields.left[:] = block, np.maximum(0, first + length - asked)
    return fields


def then_in_stream(known: Order, before: int, count: int) -> Order:
    """An order of `before` known slots, and behind it `count` slots in one stream that belongs to no block."""
    stream = in_streams(count, [0], [0], begins=False, end_order=None)
    stream = stream._replace(
        source=np.where(stream.source < 0, -1, stream.source + before),
        positions=stream.positions + before,
        order=stream.order + 1,
        told=np.where(stream.told < 0, -1, stream.told + before),
    )
    return Order(*map(np.concatenate, zip(known, stream, strict=True)))


def at_once(
    count: int, *, begins: bool, ends: bool, known: NDArray[np.bool_] | None = None
) -> Order:
    """A text of `count` slots, each of which asks itself, but those of a mask `known` [count], which are held."""
    fields = _blank(1 + count + int(ends))
    slots = np.arange(count)
    held = np.zeros(count, dtype=bool) if known is None else known
    inside = slice(1, count + 1)
    fields.order[:] = 0
    fields.kinds[0] = SlotKind.DOCUMENT if begins else SlotKind.STREAM
    fields.kinds[inside] = np.where(held, SlotKind.TEXT, SlotKind.OPEN)
    fields.source[inside], fields.told[inside] = np.where(held, slots, -1), np.where(held, -1, slots)
    fields.positions[inside] = slots
    if ends:
        fields.kinds[-1], fields.positions[-1] = SlotKind.END, count
    return fields


class OrderedRows(NamedTuple):
    """Rows of orders side by side, [B, L]."""

    layout: Layout
    source: Tensor
    """Which of the row's slots is held, -1 for none."""
    told: Tensor
    """Which of the row's slots is asked, -1 for none."""
    remaining: Tensor
    certain_mask: Tensor
    """False where `remaining` says no more than that there are at least so many."""
    blocks: Tensor
    left: Tensor


def with_blocks(order: Order, lengths: Sequence[int], *, sized: bool = False) -> Order:
    """The same for a text whose blocks have these lengths, whatever its order: each reading belongs to the block of the
    slot that it asks or else holds. Where blocks are `sized`, it is known how far each goes."""
    block_of = np.repeat(np.arange(len(lengths)), lengths)
    if not len(block_of):
        return order
    which = np.where(order.told >= 0, order.told, order.source)
    blocks = np.where(which < 0, -1, block_of[which])
    left = np.where(order.told >= 0, np.cumsum(lengths)[blocks] - order.told, 0)
    return order._replace(blocks=blocks, left=left if sized else order.left)


def lay_out(orders: Sequence[Order], length: int, device: torch.device) -> OrderedRows:
    """Rows of `length` readings with one order in each, and padding."""
    return side_by_side([columns(order, 0, certain=True) for order in orders], length, device)


def columns(order: Order, document: int, *, certain: bool) -> NDArray[np.int64]:
    """All that is said of an order's readings, one row for each field."""
    length = len(order.source)
    return np.stack([*order, np.full(length, document), np.full(length, int(certain))])


def side_by_side(rows: Sequence[NDArray[np.int64]], length: int, device: torch.device) -> OrderedRows:
    """Rows of columns as tensors of one length."""
    table = np.full((len(rows), len(Order._fields) + 2, length), PADDING)
    for row, filled in zip(table, rows, strict=True):
        row[:, : filled.shape[1]] = filled
    source, kinds, positions, order, told, remaining, blocks, left, documents, certain = (
        torch.from_numpy(table).to(device).unbind(1)
    )
    layout = Layout(kinds.clamp(min=0), positions, order, documents, kinds == SlotKind.GAP, source >= 0)
    return OrderedRows(layout, source, told, remaining, certain > 0, blocks, left.clamp(min=0))
