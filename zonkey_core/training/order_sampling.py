"""The orders in which training asks for slots: those of use, drawn document by document.

A document is told in blocks with plans from the level above, or with gaps and such plans, or all at once, or with
nothing above at all, in streams or gaps as a level is used that stands alone. The level above is told of its own slots,
the blocks, which of them are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zonkey_core.diffusion.decoding_order import (
    GAP_WIDTH,
    Order,
    OrderedRows,
    at_once,
    columns,
    in_blocks,
    in_streams,
    nearest_openings,
    side_by_side,
    then_in_stream,
    with_blocks,
    with_gaps,
)

ALONE, BLOCKS, GAPS, AT_ONCE = range(4)
SHARES = (0.22, 0.43, 0.2, 0.15)
"""Shares of documents that are told alone, in blocks, with gaps and all at once, where there is a level above."""
GAPPED = 0.6
"""Share of documents told alone that are read with gaps; the others are written."""
UNMEASURED = 0.5
"""Share of those whose gaps hold nothing, and are asked how long they are."""
ONE_STREAM = 0.4
"""Share of documents told alone that are written in a single stream."""
LONGEST_GAP, LONGEST_KNOWN, SHORTEST_STREAM = 48, 64, 3
STAGGERS = (0, 1, 2, 3, 4, 6, 8)
"""Times between the openings of neighbouring streams."""
TOGETHER = 0.6
"""Share of documents whose streams all open at the beginning; in others the first is written some way before."""
HIDDEN_END, FAR = 0.3, 64
"""Share of the ends of documents of more than so many slots that are not shown."""
ONE_BY_ONE = 0.2
"""Share of documents told in blocks that are told slot by slot; in others the number of evaluations is drawn."""
MOST_STEPS = 2.5
"""The most evaluations, as a share of the longest block, of those others."""
UNPLANNED = 0.15
"""Share of documents told in blocks of which only the first have plans, and the rest is one stream without any."""
PROMPTED = 0.2
"""Share of documents told in blocks whose first slots are known."""


class DrawnOrders(NamedTuple):
    """What training asks of rows of slots."""

    rows: OrderedRows
    known_blocks: Tensor | None
    """[B, M'] blocks that the level above knows."""
    alone_blocks: Tensor | None
    """[B, M'] blocks of documents that are told with nothing above."""
    at_once_mask: Tensor
    """[B, M] slots that ask themselves."""


class _Document(NamedTuple):
    """What is drawn for one document."""

    order: Order
    certain: bool
    known: NDArray[np.bool_]
    """Of each block."""
    mode: int


def draw_orders(
    slot_mask: Tensor,
    document_mask: Tensor,
    open_mask: Tensor,
    block_mask: Tensor | None,
    generator: torch.Generator,
) -> DrawnOrders:
    """Orders of all documents in rows of slots [B, M], in the order of the text; no row decides about another.

    slot_mask: false in padding; document_mask: true where a slot begins a document; open_mask: true where a stream may
    open with a slot; block_mask: true where one begins a block, as at the beginnings of rows and documents; without it
    there is no level above.
    """
    device = slot_mask.device
    counts = slot_mask.sum(1).tolist()
    seeds = torch.randint(2**62, (len(counts),), generator=generator).tolist()
    begins, opens = document_mask.cpu().numpy(), open_mask.cpu().numpy()
    blocks = None if block_mask is None else block_mask.cpu().numpy()
    rows, known_rows, alone_rows = [], [], []
    itself = np.zeros(slot_mask.shape, dtype=bool)
    for row, (count, seed) in enumerate(zip(counts, seeds, strict=True)):
        chance = np.random.default_rng(seed)
        edges = [0, *(np.flatnonzero(begins[row, 1:count]) + 1).tolist(), count]
        parts, known, alone = [], [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=bool)]
        passed = 0
        for number, (first, last) in enumerate(itertools.pairwise(edges)):
            starts = None if blocks is None else np.flatnonzero(blocks[row, first:last])
            drawn = _draw_document(
                opens[row, first:last], starts, chance, begins=bool(begins[row, first]), ends=last < count
            )
            order = drawn.order
            shifted = order._replace(
                source=np.where(order.source < 0, -1, order.source + first),
                told=np.where(order.told < 0, -1, order.told + first),
                blocks=np.where(order.blocks < 0, -1, order.blocks + passed),
            )
            parts.append(columns(shifted, number, certain=drawn.certain))
            known.append(drawn.known)
            alone.append(np.full(len(drawn.known), drawn.mode == ALONE))
            passed += len(drawn.known)
            itself[row, first:last] = drawn.mode == AT_ONCE
        rows.append(np.concatenate(parts, 1))
        known_rows.append(np.concatenate(known))
        alone_rows.append(np.concatenate(alone))
    ordered = side_by_side(rows, max(row.shape[1] for row in rows), device)
    masks = [None if blocks is None else _padded(each, device) for each in (known_rows, alone_rows)]
    return DrawnOrders(ordered, masks[0], masks[1], torch.from_numpy(itself).to(device))


def draw_known(slot_mask: Tensor, document_mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which slots [B, M] of a level without a vocabulary are known where it is trained by itself, and which are not
    used at all, since their document only asks how long it is."""
    shape = slot_mask.shape
    number = document_mask.long().cumsum(1).clamp(max=shape[1] - 1)
    mode, share = (torch.rand(shape, generator=generator).to(number.device).gather(1, number) for _ in range(2))
    known = (torch.rand(shape, generator=generator).to(number.device) < share) & (mode > 0.5) & slot_mask
    return known, (mode < SHARES[ALONE]) & slot_mask


def _padded(rows: Sequence[NDArray[np.bool_]], device: torch.device) -> Tensor:
    table = np.zeros((len(rows), max(map(len, rows))), dtype=bool)
    for row, filled in zip(table, rows, strict=True):
        row[: len(filled)] = filled
    return torch.from_numpy(table).to(device)


def _draw_document(
    opens: NDArray[np.bool_],
    starts: NDArray[np.int64] | None,
    chance: np.random.Generator,
    *,
    begins: bool,
    ends: bool,
) -> _Document:
    """A document of slots whose blocks begin at `starts`; streams may open where `opens` is true of a slot."""
    count = len(opens)
    if starts is None:
        order, certain = draw_alone(opens, chance, begins=begins, ends=ends)
        return _Document(order, certain, np.zeros(0, dtype=bool), ALONE)
    lengths = np.diff(np.append(starts, count))
    known = np.zeros(len(lengths), dtype=bool)
    mode = int(chance.choice(len(SHARES), p=SHARES))
    gaps = draw_gaps(count, chance, LONGEST_GAP) if mode == GAPS else []
    if mode == GAPS and gaps:
        order = with_gaps(count, gaps, begins=begins, ends=ends, measured=True)
        block_of = np.repeat(np.arange(len(lengths)), lengths)
        known[:] = True
        for first, last in gaps:
            known[block_of[first:last]] = False
        return _Document(with_blocks(order, lengths.tolist()), True, known, mode)
    if mode == ALONE:
        order, certain = draw_alone(opens, chance, begins=begins, ends=ends)
        return _Document(order, certain, known, mode)
    if mode == AT_ONCE:
        order = at_once(count, begins=begins, ends=ends)
        block_of = np.repeat(np.arange(len(lengths)), lengths)
        inside = slice(1, count + 1)
        order.blocks[inside], order.left[inside] = block_of, np.append(starts, count)[block_of + 1] - np.arange(count)
        return _Document(order, True, known, mode)
    return _draw_blocks(lengths, known, opens, chance, begins=begins, ends=ends)


def _draw_blocks(
    lengths: NDArray[np.int64],
    known: NDArray[np.bool_],
    opens: NDArray[np.bool_],
    chance: np.random.Generator,
    *,
    begins: bool,
    ends: bool,
) -> _Document:
    """A document that is told in blocks, in a number of evaluations that is drawn."""
    count = int(lengths.sum())
    if len(lengths) > 1 and chance.random() < UNPLANNED:
        first_open = int(chance.integers(1, len(lengths)))
        before = int(lengths[:first_open].sum())
        known[:first_open] = True
        read = in_blocks(lengths[:first_open].tolist(), 1, known=before, begins=begins, ends=False)
        return _Document(then_in_stream(read, before, count - before), True, known, BLOCKS)
    prompt = int(chance.integers(count)) if chance.random() < PROMPTED else 0
    ends_of_blocks = np.cumsum(lengths)
    first_open = int(np.searchsorted(ends_of_blocks, prompt, side="right"))
    longest = int(lengths[first_open:].max())
    steps = count
    if chance.random() >= ONE_BY_ONE:
        steps = max(1, round(2 ** chance.uniform(1, np.log2(max(3, min(count, MOST_STEPS * longest))))))
    order = in_blocks(lengths.tolist(), steps, known=prompt, begins=begins, ends=ends, opens=opens)
    known[:first_open] = True
    return _Document(order, True, known, BLOCKS)


def draw_alone(
    opens: NDArray[np.bool_], chance: np.random.Generator, *, begins: bool, ends: bool
) -> tuple[Order, bool]:
    """A document of slots told with nothing above, and whether what it asks of lengths is certain.

    Streams may open where `opens` is true of a slot.
    """
    count = len(opens)
    if count > 2 and chance.random() < GAPPED:
        measured = chance.random() >= UNMEASURED
        gaps = draw_gaps(count, chance, LONGEST_GAP if measured else GAP_WIDTH)
        if gaps:
            return with_gaps(count, gaps, begins=begins, ends=ends, measured=measured), True
    firsts = _draw_streams(opens, chance)
    second = 1 if chance.random() < TOGETHER else int(chance.integers(1, (firsts[1] if len(firsts) > 1 else count) + 1))
    stagger = STAGGERS[int(chance.integers(len(STAGGERS)))]
    openings = [0, *(second + stagger * number for number in range(len(firsts) - 1))]
    shown = ends and not (count > FAR and chance.random() < HIDDEN_END)
    order = in_streams(count, firsts, openings, begins=begins, end_order=second if shown else None)
    asked = (order.order < second) & (order.positions < (firsts[1] if len(firsts) > 1 else count))
    order.remaining[asked] = count - 1 - order.positions[asked]
    return order, ends


def _draw_streams(opens: NDArray[np.bool_], chance: np.random.Generator) -> list[int]:
    """Where streams begin: one, or some of about equal length."""
    count = len(opens)
    if count <= SHORTEST_STREAM or chance.random() < ONE_STREAM:
        return [0]
    size = 2 ** chance.uniform(np.log2(SHORTEST_STREAM), np.log2(count))
    number = round(count / size)
    cuts = np.arange(1, number) * (count / number) + chance.uniform(-0.4, 0.4, max(0, number - 1)) * size
    inside = np.array([int(cut) for cut in cuts if 1 <= cut < count], dtype=np.int64)
    return [0, *nearest_openings(inside, opens & (np.arange(count) > 0)).tolist()]


def draw_gaps(count: int, chance: np.random.Generator, longest: int) -> list[tuple[int, int]]:
    """Gaps and what is known between them by turns, small ones as often as large ones.

    Sometimes nothing is known between two, as where one gap is told in several streams.
    """
    gaps: list[tuple[int, int]] = []
    position = 0 if chance.random() < 0.1 else int(2 ** chance.uniform(0, np.log2(LONGEST_KNOWN)))
    while position < count:
        last = position + int(2 ** chance.uniform(0, np.log2(longest + 0.99)))
        if last <= count:
            gaps.append((position, last))
        position = last + int(2 ** chance.uniform(-1, np.log2(LONGEST_KNOWN)))
    return gaps


def known_and_open(
    slot_mask: Tensor, document_mask: Tensor, held_mask: Tensor, counted_mask: Tensor, block_mask: Tensor | None
) -> OrderedRows:
    """Rows of an upper level's slots [B, M]: those of a mask are held, the others ask themselves.

    `counted_mask` marks all slots of documents that hold only what is held, from the front: the last of it, or the
    opening, asks how many there are from there to the document's end. `block_mask` marks slots that begin a block,
    where there is a level above.
    """
    device = slot_mask.device
    counts = slot_mask.sum(1).tolist()
    begins, held, counted = (mask.cpu().numpy() for mask in (document_mask, held_mask, counted_mask))
    blocks = None if block_mask is None else block_mask.cpu().numpy()
    rows = []
    for row, count in enumerate(counts):
        edges = [0, *(np.flatnonzero(begins[row, 1:count]) + 1).tolist(), count]
        parts = []
        for number, (first, last) in enumerate(itertools.pairwise(edges)):
            span, ends = slice(first, last), last < count
            if counted[row, first]:
                kept = int(held[row, span].sum())
                order = at_once(kept, begins=bool(begins[row, first]), ends=False, known=np.ones(kept, dtype=bool))
                order.remaining[-1] = last - first - kept
            else:
                order = at_once(last - first, begins=bool(begins[row, first]), ends=ends, known=held[row, span])
                if blocks is not None:
                    starts = np.flatnonzero(blocks[row, span])
                    order = with_blocks(order, np.diff(np.append(starts, last - first)).tolist(), sized=True)
                    before = int(blocks[row, :first].sum())
                    order = order._replace(blocks=np.where(order.blocks < 0, -1, order.blocks + before))
            shifted = order._replace(
                source=np.where(order.source < 0, -1, order.source + first),
                told=np.where(order.told < 0, -1, order.told + first),
            )
            parts.append(columns(shifted, number, certain=ends))
        rows.append(np.concatenate(parts, 1))
    return side_by_side(rows, max(row.shape[1] for row in rows), device)
