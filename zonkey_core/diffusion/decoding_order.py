"""In which order the slots of a text are told: layouts for the writer, of texts that are written and of gaps.

A text is written in streams, each from left to right and told slot by slot. The first stream begins alone; the others
open at later times, and then it is known, too, whether the text ends. Gaps are told between what is known on both
sides. How long a gap is must not be seen before it is told, so that is asked of a layout in which every gap is as wide
as `GAP_WIDTH` and holds nothing.

Arrays of one draft have one entry for each of its slots, openings and end marks included.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GAP_WIDTH = 32
"""Slots that a gap seems to have while its length is asked."""
GAPPED = 0.25
"""Share of documents that are read with gaps in training; the others are written."""
UNMEASURED = 0.25
"""Share of those whose gaps hold nothing, and are asked how long they are."""
ONE_STREAM = 0.4
"""Share of documents that are written in a single stream."""
LONGEST_GAP, LONGEST_KNOWN, SHORTEST_STREAM = 48, 64, 3
STAGGERS = (0, 1, 2, 3, 4, 6, 8)
"""Times between the openings of neighbouring streams."""
AT_ONCE = 0.6
"""Share of documents whose streams all open at the beginning; in others the first is written some way before."""
HIDDEN_END, FAR = 0.3, 64
"""Share of the ends of documents of more than so many slots that are not shown."""
PADDING = -1
"""Document of padding."""


class Kind(IntEnum):
    """What a slot is."""

    TEXT = 0
    STREAM = 1
    """Opens a stream inside a document, or a row that does not begin with a document."""
    DOCUMENT = 2
    """Opens a document."""
    GAP = 3
    """Opens a gap."""
    END = 4
    """Stands behind the last slot of a document."""


class Layout(NamedTuple):
    """Rows of slots in the order of the text; what is padding belongs to a document of its own."""

    kinds: Tensor
    """[B, L]"""
    positions: Tensor
    """[B, L] place in the text; an opening stands where the slot before its first one stands."""
    order: Tensor
    """[B, L] when a slot is known."""
    documents: Tensor
    """[B, L] slots of different documents do not see each other."""


class Draft(NamedTuple):
    """A document, or the part of it that a row holds, in the order of its text."""

    source: NDArray[np.int64]
    """Which of the document's slots is held here, -1 for openings and end marks."""
    kinds: NDArray[np.int64]
    positions: NDArray[np.int64]
    order: NDArray[np.int64]
    told: NDArray[np.int64]
    """Which of the document's slots is told here, -1 for none."""
    remaining: NDArray[np.int64]
    """Slots from the told one to the end of the document or gap, or at least so many; -1 where it is not asked."""


def in_streams(
    count: int, firsts: Sequence[int], openings: Sequence[int], *, begins: bool, end_order: int | None
) -> Draft:
    """A text of `count` slots, written in streams that begin at the slots `firsts` and open at the times `openings`.

    `begins` tells whether the document begins here, `end_order` when its end becomes known, None where it never does.
    """
    first, opened = np.asarray(firsts), np.asarray(openings)
    slots = np.arange(count)
    stream = np.searchsorted(first, slots, side="right") - 1
    places, gates = slots + stream + 1, first + np.arange(len(first))
    length = count + len(first) + (end_order is not None)
    draft = Draft(*(np.full(length, -1, dtype=np.int64) for _ in Draft._fields))
    draft.source[places] = slots
    draft.kinds[places], draft.kinds[gates] = Kind.TEXT, Kind.STREAM
    draft.positions[places], draft.positions[gates] = slots, first - 1
    draft.order[places], draft.order[gates] = opened[stream] + slots - first[stream] + 1, opened
    draft.told[gates] = np.where(first < count, first, -1)
    follows = np.flatnonzero(stream[1:] == stream[:-1])
    draft.told[places[follows]] = slots[follows] + 1
    if begins:
        draft.kinds[0] = Kind.DOCUMENT
    if end_order is not None:
        draft.kinds[-1], draft.positions[-1], draft.order[-1] = Kind.END, count, end_order
    return draft


def with_gaps(
    count: int, gaps: Sequence[tuple[int, int]], *, begins: bool, ends: bool, measured: bool
) -> Draft:
    """A text of `count` slots, all known but those in `gaps` (first slot, and the one after the last).

    Where the gaps are not `measured`, they hold nothing and seem to be `GAP_WIDTH` wide.
    """
    slots = np.arange(count)
    first, last = np.asarray(gaps, dtype=np.int64).reshape(-1, 2).T
    passed = np.searchsorted(first, slots, side="right")
    begin, end = (np.append(0, edges)[passed] for edges in (first, last))
    held = slots if measured else slots[slots >= end]
    widths = np.zeros_like(first) if measured else GAP_WIDTH - (last - first)
    shift = np.append(0, np.cumsum(widths))
    places = int(begins) + np.arange(len(held)) + passed[held]
    gates = int(begins) + np.searchsorted(held, first) + np.arange(len(first))
    length = int(begins) + len(held) + len(first) + int(ends)
    draft = Draft(*(np.full(length, -1, dtype=np.int64) for _ in Draft._fields))
    draft.source[places] = held
    draft.kinds[places], draft.kinds[gates] = Kind.TEXT, Kind.GAP
    draft.positions[places], draft.positions[gates] = held + shift[passed[held]], first - 1 + shift[:-1]
    draft.order[:] = 0
    draft.order[places] = np.where(slots < end, slots - begin + 1, 0)[held]
    draft.told[places] = np.where(slots + 1 < end, slots + 1, -1)[held]
    if measured:
        draft.told[gates] = first
    else:
        draft.remaining[gates] = last - first
    if begins:
        draft.kinds[0] = Kind.DOCUMENT
    if ends:
        draft.kinds[-1], draft.positions[-1] = Kind.END, count + shift[-1]
    return draft


def draw_draft(count: int, chance: np.random.Generator, *, begins: bool, ends: bool) -> tuple[Draft, bool]:
    """A document of `count` slots as training asks for it, and whether what it asks of lengths is certain."""
    if count > 2 and chance.random() < GAPPED:
        measured = chance.random() >= UNMEASURED
        gaps = _draw_gaps(count, chance, LONGEST_GAP if measured else GAP_WIDTH)
        if gaps:
            return with_gaps(count, gaps, begins=begins, ends=ends, measured=measured), True
    firsts = _draw_streams(count, chance)
    second = 1 if chance.random() < AT_ONCE else int(chance.integers(1, (firsts[1] if len(firsts) > 1 else count) + 1))
    stagger = STAGGERS[int(chance.integers(len(STAGGERS)))]
    openings = [0, *(second + stagger * number for number in range(len(firsts) - 1))]
    shown = ends and not (count > FAR and chance.random() < HIDDEN_END)
    draft = in_streams(count, firsts, openings, begins=begins, end_order=second if shown else None)
    asked = (draft.order < second) & (draft.positions < (firsts[1] if len(firsts) > 1 else count))
    draft.remaining[asked] = count - 1 - draft.positions[asked]
    return draft, ends


def _draw_streams(count: int, chance: np.random.Generator) -> list[int]:
    """Where streams begin: one, or some of about equal length."""
    if count <= SHORTEST_STREAM or chance.random() < ONE_STREAM:
        return [0]
    size = 2 ** chance.uniform(np.log2(SHORTEST_STREAM), np.log2(count))
    number = round(count / size)
    cuts = np.arange(1, number) * (count / number) + chance.uniform(-0.4, 0.4, max(0, number - 1)) * size
    return [0, *sorted({int(cut) for cut in cuts if 1 <= cut < count})]


def _draw_gaps(count: int, chance: np.random.Generator, longest: int) -> list[tuple[int, int]]:
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


class Plan(NamedTuple):
    """Rows of drafts side by side, [B, L]."""

    layout: Layout
    source: Tensor
    """Which of the row's slots is held, -1 for none."""
    told: Tensor
    """Which of the row's slots is told, -1 for none."""
    remaining: Tensor
    certain_mask: Tensor
    """False where `remaining` says no more than that there are at least so many."""


def draw_plan(slot_mask: Tensor, document_mask: Tensor, generator: torch.Generator) -> Plan:
    """Drafts of all documents in rows of slots [B, M], in the order of the text.

    slot_mask: false in padding; document_mask: true where a slot begins a document.
    """
    chance = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    counts = slot_mask.sum(1).tolist()
    rows = []
    for count, begins in zip(counts, document_mask.cpu().numpy(), strict=True):
        edges = [0, *(np.flatnonzero(begins[1:count]) + 1).tolist(), count]
        drafts = []
        for number, (first, last) in enumerate(itertools.pairwise(edges)):
            draft, certain = draw_draft(last - first, chance, begins=bool(begins[first]), ends=last < count)
            shifted = draft._replace(
                source=np.where(draft.source < 0, -1, draft.source + first),
                told=np.where(draft.told < 0, -1, draft.told + first),
            )
            drafts.append(_columns(shifted, number, certain))
        rows.append(np.concatenate(drafts, 1))
    return _side_by_side(rows, max(row.shape[1] for row in rows), slot_mask.device)


def lay_out(drafts: Sequence[Draft], length: int, device: torch.device) -> Plan:
    """Rows of `length` slots with one draft in each, and padding."""
    return _side_by_side([_columns(draft, 0, True) for draft in drafts], length, device)


def _columns(draft: Draft, document: int, certain: bool) -> NDArray[np.int64]:
    """All that a plan says of a draft's slots, one row for each field."""
    length = len(draft.source)
    return np.stack([*draft, np.full(length, document), np.full(length, int(certain))])


def _side_by_side(rows: Sequence[NDArray[np.int64]], length: int, device: torch.device) -> Plan:
    """Rows of columns as tensors of one length."""
    table = np.full((len(rows), len(Draft._fields) + 2, length), PADDING)
    for row, filled in zip(table, rows, strict=True):
        row[:, : filled.shape[1]] = filled
    source, kinds, positions, order, told, remaining, documents, certain = (
        torch.from_numpy(table).to(device).unbind(1)
    )
    return Plan(Layout(kinds.clamp(min=0), positions, order, documents), source, told, remaining, certain > 0)
