"""Gap filling: the lowest level tells the open slots of gaps, many candidates side by side, and scores what it told.

Drawing sees all that stands around the gaps. A score is the exact log-probability of what was put there *and* of the
`FOLLOWING` slots after it, slot by slot from left to right by the chain rule, given the rest of the text: so it says
how well a fill goes on from the left, and how well the text goes on from the fill.

Rows are as long as their own text needs and are told `ROWS_TOGETHER` at a time, so that none depends on the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from zonkey_core.devices import choose_precision, in_precision
from zonkey_core.diffusion.decoding_order import GAP_WIDTH, Order, in_streams, lay_out, with_blocks, with_gaps
from zonkey_core.inference.block_decoding import EMPTY, Board, Row
from zonkey_core.inference.planning import BlockPlan
from zonkey_core.inference.scoring import Likelihood, log_probs
from zonkey_core.inference.shapes import groups_of_one_shape, padded_count
from zonkey_core.inference.shared_context import Context, Pieces, Placed, padded, read_contexts, take_up
from zonkey_core.model.length_model import draw_counts
from zonkey_core.model.level import Level
from zonkey_core.model.slot_batches import at_places, gather_entries, slot_batch

ROWS_TOGETHER = 16
"""Rows that are told side by side."""
READ_STEP = 8
"""Slots of a row that are scored at once are padded to a multiple of so many."""
FOLLOWING = 4
"""Slots after a gap that are scored with what was put into it."""
SCORED_CONTEXT = 30
"""Slots before the first gap, and behind what is scored after the last, that scores are given. With what asks a gap
they fill two steps of padding (`shared_context.LENGTH_STEP`)."""

T = TypeVar("T")
R = TypeVar("R")


class GappedRow(NamedTuple):
    """One candidate for the gaps of a text."""

    pieces: Pieces
    context: Context
    """What was kept of reading these."""
    lengths: Sequence[int]
    """Slots of each gap."""
    prefixes: Sequence[bytes]
    """What the first string of each gap begins with."""
    plan: BlockPlan | None = None
    """What the level above says of the whole text, gaps included."""


class FilledRow(NamedTuple):
    """Pieces with something in each gap."""

    pieces: Pieces
    fills: Sequence[Tensor]
    """[M] entries of each gap."""


class GapScore(NamedTuple):
    """What the lowest level says of one gap of a row."""

    fill: Likelihood
    following: Likelihood


def draw_lengths(
    context: Context, shares: Sequence[float], *, least: int = 1, most: int = GAP_WIDTH
) -> list[list[int]]:
    """How many slots the gaps of a text get, between `least` and `most`, once for each of `shares`.

    A share says which of the lengths that are possible it is to be, from the shortest at 0 to the longest at 1.
    """
    logits = context.ending_logits.float()
    return [
        draw_counts(logits, logits.new_full((len(logits),), 1 - share)).clamp(least, most).tolist() for share in shares
    ]


def fill_gaps(
    level: Level,
    rows: Sequence[GappedRow],
    generators: Sequence[torch.Generator],
    *,
    steps: int,
    temperature: float,
) -> list[list[Tensor]]:
    """Fill the gaps of texts, each from its own generator: the entries [M] of each gap of each text."""
    laid = [_lay_out_open(row, steps, generator) for row, generator in zip(rows, generators, strict=True)]

    def tell(group: Sequence[_OpenRow], length: int, width: int) -> list[list[Tensor]]:
        batch = padded_count(len(group), ROWS_TOGETHER, level.device)
        board = Board(level, [each.row for each in group], batch=batch, length=length, temperature=temperature)
        orders = [each.placed.order for each in group]
        blank = lay_out([*orders, *[_NOTHING] * (batch - len(group))], length, level.device).layout
        board.take_up(orders, take_up([each.placed for each in group], blank, level.denoiser.head_width))
        board.run(width, width, lambda: None)
        return [[board.entries[row, slice(*gap)].cpu() for gap in each.gaps] for row, each in enumerate(group)]

    shapes = _common(
        [row.pieces for row in rows], [(padded(len(each.placed.order.source) + 1), each.width) for each in laid]
    )
    # Rows of one batch are told until the longest is, so those that take as long are told together.
    longest = sorted(range(len(laid)), key=lambda index: laid[index].evaluations)
    found = _in_groups([laid[index] for index in longest], [shapes[index] for index in longest], tell)
    told = dict(zip(longest, found, strict=True))
    return [told[index] for index in range(len(laid))]


_NOTHING = in_streams(0, [0], [0], begins=True, end_order=None)


class _OpenRow(NamedTuple):
    """A row that is to be told."""

    row: Row
    placed: Placed
    gaps: list[tuple[int, int]]
    width: int
    """Openings of gaps, which are the slots that are told at a time."""
    evaluations: int


def _lay_out_open(row: GappedRow, steps: int, generator: torch.Generator) -> _OpenRow:
    """Gaps of more slots than evaluations are told in several parts at once."""
    known = row.pieces.known
    gaps = _gap_bounds(known, row.lengths)
    parts: list[tuple[int, int]] = []
    for first, last in gaps:
        number = -(-(last - first) // (steps + 1))
        parts += itertools.pairwise([first + (last - first) * part // number for part in range(number + 1)])
    entries = torch.cat([
        part for piece, count in zip(known, [*row.lengths, 0], strict=True)
        for part in (piece, piece.new_full((count,), EMPTY))
    ])  # fmt: skip
    prefixes = {first: prefix for (first, _), prefix in zip(gaps, row.prefixes, strict=True) if prefix}
    chances = torch.rand(len(entries), generator=generator)
    order = with_gaps(len(entries), parts, begins=row.pieces.begins, ends=row.pieces.ends, measured=True)
    if row.plan is not None:
        order = with_blocks(order, row.plan.lengths)
    open_row = Row(entries, chances, prefixes, None if row.plan is None else row.plan.plans)
    evaluations = int(order.order[order.told >= 0].max(initial=0))
    return _OpenRow(open_row, Placed(row.context, order), gaps, len(parts), evaluations)


def score_fills(level: Level, rows: Sequence[FilledRow]) -> list[list[GapScore]]:
    """How likely each fill, and the `FOLLOWING` slots behind it, are: one score for each gap of each row.

    Fills see what stands before, the fills before them, and all known text but for what follows gaps at once.
    """
    identities = [_identity(row) for row in rows]
    different = dict(zip(identities, rows, strict=True))
    scored = dict(zip(different, _score_different(level, list(different.values())), strict=True))
    return [scored[each] for each in identities]


def _identity(row: FilledRow) -> tuple[int, tuple[tuple[int, ...], ...]]:
    return id(row.pieces), tuple(tuple(fill.tolist()) for fill in row.fills)


def _score_different(level: Level, rows: Sequence[FilledRow]) -> list[list[GapScore]]:
    asked = {id(row.pieces): _without_following(row.pieces) for row in rows}
    contexts = dict(zip(asked, read_contexts(level, [each for each, _ in asked.values()]), strict=True))
    laid = [_lay_out_filled(row.fills, contexts[id(row.pieces)], *asked[id(row.pieces)]) for row in rows]
    assert level.vocabulary is not None
    table = level.vocabulary.latents()
    denoiser = in_precision(level.denoiser, choose_precision("auto", level.device))

    def score(group: Sequence[_AskedRow], length: int, width: int) -> list[list[GapScore]]:
        batch = padded_count(len(group), ROWS_TOGETHER, level.device)
        orders = [each.placed.order for each in group]
        rows = lay_out([*orders, *[_NOTHING] * (batch - len(group))], length, level.device)
        cache = take_up([each.placed for each in group], rows.layout, level.denoiser.head_width)
        table_of_places = np.full((batch, width), length - 1)
        entries = torch.zeros(batch, length, dtype=torch.long)
        for row, each in enumerate(group):
            due = _due(each.placed.order)
            table_of_places[row, : len(due)] = due
            entries[row, : len(each.entries)] = each.entries
        cache.places = torch.from_numpy(table_of_places).to(level.device)
        some = at_places(rows, cache.places)
        entries = entries.to(level.device)
        held = table[entries.gather(1, some.source.clamp(min=0))]
        own = torch.arange(width, device=level.device).expand(batch, width).where(some.source >= 0, -1)
        found = denoiser(slot_batch(held, some._replace(source=own)), cache)
        told, asked = gather_entries(entries, some.told), some.told >= 0
        log_prob = log_probs(level, table, found, asked, told, gather_entries(entries, rows.source))
        which = asked.nonzero()[:, 0].cpu(), some.told[asked].cpu()
        values = torch.zeros(batch, length).index_put(which, log_prob.cpu())
        return [_gap_scores(each, values[row]) for row, each in enumerate(group)]

    lengths = _common(
        [row.pieces for row in rows], [(padded(len(each.placed.order.source) + 1),) for each in laid]
    )
    widths = [-(-len(_due(each.placed.order)) // READ_STEP) * READ_STEP for each in laid]
    return _in_groups(laid, [(length, width) for (length,), width in zip(lengths, widths, strict=True)], score)


class _AskedRow(NamedTuple):
    """A row of which some slots are asked."""

    entries: Tensor
    """[M]"""
    placed: Placed
    fills: list[tuple[int, int]]
    """The slots of each fill."""
    following: list[tuple[int, int]]
    """Those that are asked behind it."""


def _without_following(pieces: Pieces) -> tuple[Pieces, list[Tensor]]:
    """What of pieces a score is given, and the first slots of all but the first, which it asks."""
    first, *rest = pieces.known
    taken = [piece[:FOLLOWING] for piece in rest]
    known = [first[-SCORED_CONTEXT:], *(piece[FOLLOWING:] for piece in rest)]
    begins, ends = pieces.begins and len(first) <= SCORED_CONTEXT, pieces.ends and len(known[-1]) <= SCORED_CONTEXT
    known[-1] = known[-1][:SCORED_CONTEXT]
    return Pieces(known, begins, ends), taken


def _lay_out_filled(
    given: Sequence[Tensor], context: Context, pieces: Pieces, following: Sequence[Tensor]
) -> _AskedRow:
    """Pieces with fills between them, and what follows each of these."""
    known, *rest = pieces.known
    parts, fills, behind, asked = [known], [], [], []
    position = len(known)
    for fill, taken, piece in zip(given, following, rest, strict=True):
        parts += [fill, taken, piece]
        end = position + len(fill)
        fills.append((position, end))
        behind.append((end, end + len(taken)))
        asked.append((position, end + len(taken)))
        position = end + len(taken) + len(piece)
    order = with_gaps(position, asked, begins=pieces.begins, ends=pieces.ends, measured=True)
    return _AskedRow(torch.cat(parts), Placed(context, order), fills, behind)


def _due(order: Order) -> np.ndarray:
    """The readings that a context lacks."""
    return np.flatnonzero((order.order > 0) | (order.told >= 0))


def _gap_scores(row: _AskedRow, values: Tensor) -> list[GapScore]:
    return [
        GapScore(*(Likelihood(float(values[first:last].sum()), last - first) for first, last in spans))
        for spans in zip(row.fills, row.following, strict=True)
    ]


def _common(pieces: Sequence[Pieces], shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each row the shape that all rows of the same pieces fit into."""
    largest: dict[int, tuple[int, ...]] = {}
    for each, shape in zip(pieces, shapes, strict=True):
        largest[id(each)] = tuple(map(max, shape, largest.get(id(each), shape)))
    return [largest[id(each)] for each in pieces]


def _in_groups(
    rows: Sequence[T], shapes: Sequence[tuple[int, ...]], function: Callable[[Sequence[T], int, int], list[list[R]]]
) -> list[list[R]]:
    """What a function makes of rows, `ROWS_TOGETHER` of one shape at a time."""
    results: dict[int, list[R]] = {}
    for (length, width), group in groups_of_one_shape(shapes, ROWS_TOGETHER):
        results.update(zip(group, function([rows[index] for index in group], length, width), strict=True))
    return [results[index] for index in range(len(rows))]


def _gap_bounds(known: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[int, int]]:
    """The first slot of each gap and the one after its last, where gaps have so many."""
    bounds, position = [], 0
    for piece, count in zip(known, counts, strict=False):
        position += len(piece)
        bounds.append((position, position + count))
        position += count
    return bounds
