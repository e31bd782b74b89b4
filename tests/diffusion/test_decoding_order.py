"""Orders: that every open slot is told once and by one that is known before it, and that layouts tell no lengths."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import law, seeds
from zonkey_core.diffusion.decoding_order import (
    BLANKS,
    GAP_WIDTH,
    PADDING,
    Order,
    at_once,
    columns,
    in_blocks,
    in_streams,
    lay_out,
    nearest_openings,
    opening_times,
    side_by_side,
    then_in_stream,
    with_blocks,
    with_gaps,
)
from zonkey_core.slots import SlotKind

CPU = torch.device("cpu")


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """A number of slots, where streams of them begin, and when these open."""
    count = draw(st.integers(1, 30))
    firsts = [0, *sorted(draw(st.sets(st.integers(1, count - 1), max_size=6)))] if count > 1 else [0]
    openings = [0, *sorted(draw(st.lists(st.integers(0, 12), min_size=len(firsts) - 1, max_size=len(firsts) - 1)))]
    return count, firsts, openings


@st.composite
def gapped(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A number of slots and gaps in them; some touch each other, or an end of the text."""
    runs = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=1, max_size=7))
    ends = list(itertools.accumulate((length for _, length in runs), initial=0))
    return ends[-1], [span for (is_gap, _), span in zip(runs, itertools.pairwise(ends), strict=True) if is_gap]


def slots_where(held: np.ndarray) -> list[int]:
    """What an array of slots names, without its holes."""
    return [slot for slot in held.tolist() if slot >= 0]


def assert_told_in_order(order: Order, count: int) -> None:
    """Every slot of a text stands once and in its place, and where one is told, that is by the known one before it."""
    assert {len(field) for field in order} == {len(order.source)}
    assert slots_where(order.source) == list(range(count))
    assert (np.diff(order.positions) >= 0).all()
    text = order.source >= 0
    assert np.array_equal(order.kinds == SlotKind.TEXT, text)
    assert np.array_equal(order.positions[text], order.source[text])
    place = {slot: place for place, slot in enumerate(order.source.tolist()) if slot >= 0}
    for teller, slot in enumerate(order.told.tolist()):
        if slot >= 0:
            assert place[slot] == teller + 1
            assert order.order[teller] == order.order[place[slot]] - 1
            assert order.positions[teller] == slot - 1
            assert order.kinds[teller] != SlotKind.END


# Texts in streams


@law
@given(streams(), st.booleans(), st.none() | st.integers(1, 20))
def test_in_streams_every_slot_is_told_once(
    case: tuple[int, list[int], list[int]], begins: bool, end_order: int | None
) -> None:
    count, firsts, openings = case
    order = in_streams(count, firsts, openings, begins=begins, end_order=end_order)
    assert_told_in_order(order, count)
    assert sorted(slots_where(order.told)) == list(range(count))
    assert (order.remaining == -1).all()


@law
@given(streams(), st.booleans(), st.none() | st.integers(1, 20))
def test_streams_open_where_and_when_they_are_to(
    case: tuple[int, list[int], list[int]], begins: bool, end_order: int | None
) -> None:
    count, firsts, openings = case
    order = in_streams(count, firsts, openings, begins=begins, end_order=end_order)
    gates = np.isin(order.kinds, (SlotKind.STREAM, SlotKind.DOCUMENT, SlotKind.GAP))
    assert order.told[gates].tolist() == firsts and order.order[gates].tolist() == openings
    opening = SlotKind.DOCUMENT if begins else SlotKind.STREAM
    assert order.kinds[gates].tolist() == [opening, *[SlotKind.STREAM] * (len(firsts) - 1)]
    ends = order.kinds == SlotKind.END
    assert ends.sum() == (end_order is not None)
    if end_order is not None:
        assert ends[-1] and order.positions[-1] == count and order.order[-1] == end_order
    for (first, last), opened in zip(itertools.pairwise([*firsts, count]), openings, strict=True):
        inside = (order.source >= first) & (order.source < last)
        assert order.order[inside].tolist() == list(range(opened + 1, opened + 1 + last - first))


def test_a_text_of_nothing_is_an_opening() -> None:
    order = in_streams(0, [0], [0], begins=True, end_order=None)
    assert order.kinds.tolist() == [SlotKind.DOCUMENT]
    assert order.source.tolist() == order.told.tolist() == [-1], "and tells nothing"


# Texts with gaps


@law
@given(gapped(), st.booleans(), st.booleans())
def test_in_gaps_every_open_slot_is_told_once(
    case: tuple[int, list[tuple[int, int]]], begins: bool, ends: bool
) -> None:
    count, gaps = case
    order = with_gaps(count, gaps, begins=begins, ends=ends, measured=True)
    assert_told_in_order(order, count)
    missing = [slot for first, last in gaps for slot in range(first, last)]
    assert sorted(slots_where(order.told)) == missing
    assert (order.remaining == -1).all()
    known = (order.source >= 0) & ~np.isin(order.source, missing)
    assert (order.order[known | (order.kinds != SlotKind.TEXT)] == 0).all()
    for first, last in gaps:
        inside = (order.source >= first) & (order.source < last)
        assert order.order[inside].tolist() == list(range(1, last - first + 1))


@law
@given(gapped(), st.booleans(), st.booleans(), st.booleans())
def test_what_stands_before_gaps_and_ends_are_marked(
    case: tuple[int, list[tuple[int, int]]], begins: bool, ends: bool, measured: bool
) -> None:
    count, gaps = case
    order = with_gaps(count, gaps, begins=begins, ends=ends, measured=measured)
    gates = order.kinds == SlotKind.GAP
    assert not (order.kinds == SlotKind.STREAM).any()
    ends_of_gaps = {last for _, last in gaps}
    before = [-1 if not first or first in ends_of_gaps else first - 1 for first, _ in gaps]
    if measured:
        assert (order.source[gates] == -1).all() and gates.sum() == before.count(-1), "where nothing known tells them"
        tellers = [order.told.tolist().index(first) for first, _ in gaps]
        assert order.source[tellers].tolist() == before
    else:
        assert order.source[gates].tolist() == before, "the slot before once more"
    assert (order.kinds == SlotKind.DOCUMENT).tolist() == [begins and not place for place in range(len(order.kinds))]
    assert (order.kinds == SlotKind.END).sum() == ends and (order.kinds[-1] == SlotKind.END or not ends)
    if begins:
        assert order.positions[0] == -1
    if ends and measured:
        assert order.positions[-1] == count


@law
@given(gapped(), st.booleans(), st.booleans(), st.data())
def test_what_is_unmeasured_looks_the_same_whatever_its_length(
    case: tuple[int, list[tuple[int, int]]], begins: bool, ends: bool, data: st.DataObject
) -> None:
    count, gaps = case
    lengths = data.draw(st.lists(st.integers(1, GAP_WIDTH), min_size=len(gaps), max_size=len(gaps)))
    others, shift = [], 0
    for (first, last), length in zip(gaps, lengths, strict=True):
        others.append((first + shift, first + shift + length))
        shift += length - (last - first)
    one, other = (
        with_gaps(total, spans, begins=begins, ends=ends, measured=False)
        for total, spans in ((count, gaps), (count + shift, others))
    )
    for name in ("kinds", "positions", "order", "told"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    asked = one.kinds == SlotKind.GAP
    assert one.remaining[asked].tolist() == [last - first for first, last in gaps]
    assert other.remaining[asked].tolist() == lengths
    assert (one.remaining[~asked] == -1).all() and (one.told == -1).all()
    blank = one.order > 0
    assert (one.source[blank] == -1).all() and (one.kinds[blank] == SlotKind.TEXT).all()
    assert (one.order[~blank] == 0).all()
    behind = (np.flatnonzero(asked)[:, None] + np.arange(1, BLANKS + 1)).flatten()
    assert np.array_equal(np.flatnonzero(blank), behind), "behind every gap, and nowhere else"


@law
@given(gapped(), st.booleans(), st.booleans())
def test_a_gap_that_is_as_wide_as_it_seems_moves_nothing(
    case: tuple[int, list[tuple[int, int]]], begins: bool, ends: bool
) -> None:
    """What stands around unmeasured gaps stands where it would around gaps of that width."""
    count, gaps = case
    wide, shift = [], 0
    for first, last in gaps:
        wide.append((first + shift, first + shift + GAP_WIDTH))
        shift += GAP_WIDTH - (last - first)
    unmeasured = with_gaps(count, gaps, begins=begins, ends=ends, measured=False)
    measured = with_gaps(count + shift, wide, begins=begins, ends=ends, measured=True)
    outside, known = (
        (order.order == 0) & (order.kinds != SlotKind.GAP) for order in (measured, unmeasured)
    )
    for name in ("kinds", "positions", "order"):
        assert np.array_equal(getattr(measured, name)[outside], getattr(unmeasured, name)[known]), name
    missing = [slot for first, last in gaps for slot in range(first, last)]
    assert slots_where(unmeasured.source[known]) == [slot for slot in range(count) if slot not in missing]


# Texts in blocks


class Blocks(NamedTuple):
    """A text in blocks."""

    lengths: list[int]
    steps: int
    known: int

    @property
    def edges(self) -> list[int]:
        """Where blocks begin, and the end."""
        return [0, *itertools.accumulate(self.lengths)]

    @property
    def rest(self) -> dict[int, int]:
        """Blocks that are not known whole, with how many of their slots are open."""
        spans = enumerate(itertools.pairwise(self.edges))
        sizes = {block: last - max(first, self.known) for block, (first, last) in spans}
        return {block: size for block, size in sizes.items() if size > 0}

    def order(self, *, begins: bool = True, ends: bool = True) -> Order:
        return in_blocks(self.lengths, self.steps, known=self.known, begins=begins, ends=ends)


@st.composite
def blocks(draw: st.DrawFn) -> Blocks:
    """Blocks, of which the first slots may be known."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=7))
    steps = draw(st.integers(1, sum(lengths) + 3))
    known = draw(st.just(0) | st.integers(0, sum(lengths)))
    return Blocks(lengths, steps, known)


def evaluations(order: Order) -> int:
    """How many it takes to tell all that is asked."""
    return int(order.order[order.told >= 0].max(initial=-1)) + 1


def tell(order: Order, held: set[int]) -> list[list[int]]:
    """The slots that each evaluation tells, where only those in `held` are known at first."""
    told_in = []
    for time in range(evaluations(order)):
        made = order.order <= time
        assert set(slots_where(order.source[made])) <= held, "what is read is known by then"
        told = slots_where(order.told[order.order == time])
        assert not held & set(told) and len(set(told)) == len(told), "and what is asked is not"
        held |= set(told)
        told_in.append(told)
    return told_in


@law
@given(blocks(), st.booleans(), st.booleans())
def test_in_blocks_every_open_slot_is_told_once_and_no_known_one(case: Blocks, begins: bool, ends: bool) -> None:
    order = case.order(begins=begins, ends=ends)
    assert slots_where(order.source) == list(range(case.edges[-1]))
    told_in = tell(order, set(range(case.known)))
    assert sorted(itertools.chain(*told_in)) == list(range(case.known, case.edges[-1]))
    assert (order.remaining == -1).all()
    place = {slot: place for place, slot in enumerate(order.source.tolist()) if slot >= 0}
    for teller, slot in enumerate(order.told.tolist()):
        if slot >= 0:
            assert place[slot] == teller + 1 and order.positions[teller] == slot - 1
            assert order.order[place[slot]] == order.order[teller] + 1, "and is read in the next evaluation"


@law
@given(blocks())
def test_blocks_are_told_side_by_side_in_as_many_evaluations_as_there_are(case: Blocks) -> None:
    order = case.order()
    rest = case.rest
    found = evaluations(order)
    assert found <= case.steps
    longest = max(rest.values(), default=0)
    assert found >= -(-longest // max(1, -(-longest // case.steps))), "the longest in as few streams as will do"
    if case.steps >= sum(rest.values()):
        assert found == sum(rest.values())
    elif len(rest) > 1 and list(rest.values())[-1] <= case.steps:
        last = min(case.steps - list(rest.values())[-1], sum(list(rest.values())[:-1]))
        assert order.order[(order.kinds == SlotKind.BLOCK) & (order.blocks == max(rest))].tolist() == [last]


@law
@given(blocks())
def test_with_time_for_all_slots_each_sees_all_before_it(case: Blocks) -> None:
    case = case._replace(steps=sum(case.rest.values()) + case.steps)
    assert tell(case.order(), set(range(case.known))) == [[slot] for slot in range(case.known, case.edges[-1])]


@law
@given(blocks())
def test_one_evaluation_tells_everything(case: Blocks) -> None:
    case = case._replace(steps=1)
    told = tell(case.order(), set(range(case.known)))
    assert told == [list(range(case.known, case.edges[-1]))] * bool(case.rest)


@law
@given(blocks())
def test_a_block_is_told_in_no_more_streams_than_its_length_makes_necessary(case: Blocks) -> None:
    order = case.order()
    for block, (first, last) in enumerate(itertools.pairwise(case.edges)):
        inside = order.blocks == block
        gates = inside & (order.source < 0)
        if block not in case.rest:
            assert gates.sum() == 1 and (order.told[inside] == -1).all() and (order.order[inside] == 0).all()
            assert order.source[inside].tolist() == [-1, *range(first, last)]
            continue
        known = max(0, case.known - first)
        assert gates.sum() == -(-case.rest[block] // case.steps)
        asked = order.told[inside & (order.told >= 0)]
        assert asked.tolist() == list(range(first + known, last)), "in the order of the text"
        held = order.order[inside & (order.source >= 0)]
        assert (held[:known] == 0).all()
        falls = np.flatnonzero(np.diff(held[known:]) < 1) + 1
        sizes = np.diff([0, *falls, last - first - known])
        assert len(sizes) == gates.sum() and sizes.max() - sizes.min() <= 1, "of about equal length"
        opened = held[known:] - np.concatenate([np.arange(size) for size in sizes]) - 1
        assert (opened == opened[0]).all(), "and all open together"
        times = order.order[gates].tolist()
        assert times == [0 if known else opened[0], *[opened[0]] * (len(times) - 1)]


@law
@given(blocks(), st.booleans(), st.booleans())
def test_blocks_begin_with_openings_and_positions_are_those_of_the_text(
    case: Blocks, begins: bool, ends: bool
) -> None:
    order = case.order(begins=begins, ends=ends)
    text = order.source >= 0
    assert np.array_equal(order.kinds == SlotKind.TEXT, text)
    assert np.array_equal(order.positions[text], order.source[text])
    assert (np.diff(order.positions) >= 0).all()
    gates = np.isin(order.kinds, (SlotKind.BLOCK, SlotKind.DOCUMENT))
    assert order.positions[gates].tolist() == [first - 1 for first in case.edges[:-1]]
    assert order.blocks[gates].tolist() == list(range(len(case.lengths)))
    assert order.kinds[0] == (SlotKind.DOCUMENT if begins else SlotKind.BLOCK)
    assert (order.kinds == SlotKind.DOCUMENT).sum() == begins
    assert (order.kinds == SlotKind.END).sum() == ends
    if ends:
        end = tuple(int(field[-1]) for field in order)
        blank = Order(-1, SlotKind.END, case.edges[-1], 0, -1, -1, -1, 0)  # type: ignore[arg-type]
        assert end == tuple(blank)


@law
@given(blocks())
def test_a_reading_belongs_to_the_block_of_what_it_asks_and_knows_how_much_of_it_is_left(case: Blocks) -> None:
    order = case.order(ends=False)
    assert (order.blocks >= 0).all()
    for place, block in enumerate(order.blocks.tolist()):
        first, last = case.edges[block], case.edges[block + 1]
        for slot in (order.told[place], order.source[place]):
            assert slot == -1 or first <= slot < last
        if order.told[place] >= 0:
            assert order.left[place] == last - order.told[place]
        elif order.source[place] < 0:
            assert order.left[place] == last - first, "an opening that asks nothing says how long its block is"
        else:
            assert 0 <= order.left[place] <= last - order.source[place]


@law
@given(blocks(), seeds)
def test_streams_of_blocks_open_where_they_may(case: Blocks, seed: int) -> None:
    count = case.edges[-1]
    opens = np.random.default_rng(seed).random(count) < 0.5
    order = in_blocks(case.lengths, case.steps, known=case.known, begins=True, ends=True, opens=opens)
    assert all(opens[slot] for slot in order.told[order.kinds == SlotKind.STREAM])
    told_in = tell(order, set(range(case.known)))
    assert sorted(itertools.chain(*told_in)) == list(range(case.known, count))
    anywhere = in_blocks(case.lengths, case.steps, known=case.known, begins=True, ends=True, opens=opens | True)
    plain = in_blocks(case.lengths, case.steps, known=case.known, begins=True, ends=True)
    assert all(map(np.array_equal, anywhere, plain))


@law
@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 31), seeds)
def test_the_nearest_openings_are_openings_and_none_is_nearer(places: list[int], count: int, seed: int) -> None:
    opens = np.random.default_rng(seed).random(count) < 0.3
    found = nearest_openings(np.array(sorted(places), dtype=np.int64), opens)
    possible = np.flatnonzero(opens)
    assert opens[found].all() and len(set(found.tolist())) == len(found)
    nearest = [np.abs(possible - place).min(initial=10**6) for place in places]
    if len(possible):
        assert all(np.abs(found - place).min() == least for place, least in zip(places, nearest, strict=True))
    assert all(
        any(abs(slot - place) == least for place, least in zip(places, nearest, strict=True)) for slot in found
    )


def test_two_blocks_by_hand() -> None:
    order = in_blocks([3, 2], 3, begins=True, ends=True)
    document, block, text, end = SlotKind.DOCUMENT, SlotKind.BLOCK, SlotKind.TEXT, SlotKind.END
    assert order.kinds.tolist() == [document, text, text, text, block, text, text, end]
    assert order.source.tolist() == [-1, 0, 1, 2, -1, 3, 4, -1]
    assert order.told.tolist() == [0, 1, 2, -1, 3, 4, -1, -1]
    assert order.order.tolist() == [0, 1, 2, 3, 1, 2, 3, 0]
    assert order.positions.tolist() == [-1, 0, 1, 2, 2, 3, 4, 5]
    assert order.blocks.tolist() == [0, 0, 0, 0, 1, 1, 1, -1]
    assert order.left.tolist() == [3, 2, 1, 0, 2, 1, 0, 0]


def test_a_block_in_two_streams_behind_a_prompt_by_hand() -> None:
    order = in_blocks([2, 6], 2, known=4, begins=False, ends=False)
    block, text, stream = SlotKind.BLOCK, SlotKind.TEXT, SlotKind.STREAM
    assert order.kinds.tolist() == [block, text, text, block, *[text] * 4, stream, text, text]
    assert order.source.tolist() == [-1, 0, 1, -1, 2, 3, 4, 5, -1, 6, 7]
    assert order.told.tolist() == [-1, -1, -1, -1, -1, 4, 5, -1, 6, 7, -1]
    assert order.order.tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 0, 1, 2]
    assert order.positions.tolist() == [-1, 0, 1, 1, 2, 3, 4, 5, 5, 6, 7]
    assert order.left[3:].tolist() == [6, 5, 4, 3, 2, 2, 1, 0]


def test_a_stream_behind_blocks_that_are_known_by_hand() -> None:
    known = in_blocks([3, 2], 1, known=5, begins=True, ends=False)
    order = then_in_stream(known, 5, 2)
    document, block, text, stream = SlotKind.DOCUMENT, SlotKind.BLOCK, SlotKind.TEXT, SlotKind.STREAM
    assert order.kinds.tolist() == [document, text, text, text, block, text, text, stream, text, text]
    assert order.source.tolist() == [-1, 0, 1, 2, -1, 3, 4, -1, 5, 6]
    assert order.told.tolist() == [-1, -1, -1, -1, -1, -1, -1, 5, 6, -1]
    assert order.positions.tolist() == [-1, 0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert order.order.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 2, 3]
    assert order.blocks.tolist() == [0, 0, 0, 0, 1, 1, 1, -1, -1, -1]
    assert order.left.tolist() == [3, 2, 1, 0, 2, 1, 0, 0, 0, 0]


@law
@given(st.booleans(), st.integers(1, 5))
def test_no_blocks_are_an_end_or_nothing(begins: bool, steps: int) -> None:
    order = in_blocks([], steps, begins=begins, ends=True)
    assert order.kinds.tolist() == [SlotKind.END] and order.positions.tolist() == [0]
    assert not len(in_blocks([], steps, begins=begins, ends=False).source)


# When blocks open


lengths_of_blocks = st.lists(st.integers(1, 12), min_size=1, max_size=9)


@law
@given(lengths_of_blocks, st.integers(1, 80))
def test_blocks_open_in_time_and_never_after_all_before_them_is_told(lengths: list[int], steps: int) -> None:
    times = opening_times(lengths, steps)
    assert len(times) == len(lengths) and times[0] == 0
    before = [0, *itertools.accumulate(lengths)]
    for time, size, passed in zip(times, lengths, before, strict=False):
        assert 0 <= time <= passed
        assert time + size <= max(steps, size)
    if steps >= sum(lengths):
        assert times == before[:-1]
    elif len(lengths) > 1:
        assert times[-1] == min(max(0, steps - lengths[-1]), before[-2]), "the last as late as there is time"


@law
@given(lengths_of_blocks, st.integers(1, 80), st.integers(0, 9))
def test_with_more_time_no_block_opens_earlier(lengths: list[int], steps: int, more: int) -> None:
    pairs = zip(opening_times(lengths, steps), opening_times(lengths, steps + more), strict=True)
    assert all(short <= long for short, long in pairs)


@law
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 90))
def test_blocks_of_one_length_open_in_turn_and_evenly(number: int, length: int, steps: int) -> None:
    times = opening_times([length] * number, steps)
    between = np.diff(times)
    assert (between >= 0).all() and (between <= length).all()
    assert not len(between) or between.max() - between.min() <= 1


def test_opening_times_by_hand() -> None:
    assert opening_times([], 4) == []
    assert opening_times([5, 2, 3], 1) == opening_times([5, 2, 3], 2) == [0, 0, 0]
    assert opening_times([5, 2, 3], 5) == [0, 2, 2]
    assert opening_times([5, 2, 3], 9) == [0, 4, 6]
    assert opening_times([5, 2, 3], 10) == opening_times([5, 2, 3], 99) == [0, 5, 7]
    assert opening_times([1, 1, 6], 7) == [0, 1, 1], "none waits for nothing"


# All at once


@law
@given(st.lists(st.booleans(), max_size=20), st.booleans(), st.booleans(), st.booleans())
def test_at_once_every_slot_is_held_or_asks_itself(
    held: list[bool], anything: bool, begins: bool, ends: bool
) -> None:
    count, known = len(held), np.array(held, dtype=bool)
    if not anything:
        known[:] = False
    order = at_once(count, begins=begins, ends=ends, known=known if anything else None)
    assert {len(field) for field in order} == {1 + count + ends}
    inside = slice(1, count + 1)
    assert slots_where(order.source) == np.flatnonzero(known).tolist()
    assert slots_where(order.told) == np.flatnonzero(~known).tolist()
    assert order.source[inside][known].tolist() == order.positions[inside][known].tolist()
    assert order.positions[: count + 1].tolist() == list(range(-1, count))
    assert order.kinds[0] == (SlotKind.DOCUMENT if begins else SlotKind.STREAM)
    assert (order.kinds[inside] == np.where(known, SlotKind.TEXT, SlotKind.OPEN)).all()
    if ends:
        assert order.kinds[-1] == SlotKind.END and order.positions[-1] == count
    assert (order.order == 0).all(), "all see all"
    assert (order.remaining == -1).all() and (order.blocks == -1).all() and (order.left == 0).all()


# Blocks of other orders


@st.composite
def any_orders(draw: st.DrawFn) -> tuple[Order, int]:
    """An order of another kind, and its number of slots."""
    begins, ends, measured = (draw(st.booleans()) for _ in range(3))
    way = draw(st.integers(0, 2))
    if way == 0:
        count, gaps = draw(gapped())
        return with_gaps(count, gaps, begins=begins, ends=ends, measured=measured), count
    if way == 1:
        case = draw(streams())
        return in_streams(*case, begins=begins, end_order=1 if ends else None), case[0]
    held = draw(st.lists(st.booleans(), min_size=1, max_size=20))
    return at_once(len(held), begins=begins, ends=ends, known=np.array(held)), len(held)


@law
@given(any_orders(), st.data())
def test_each_reading_belongs_to_the_block_of_what_it_asks_or_else_holds(
    case: tuple[Order, int], data: st.DataObject
) -> None:
    order, count = case
    cuts = sorted({0, *data.draw(st.lists(st.integers(0, count - 1), max_size=5))})
    lengths = np.diff([*cuts, count]).tolist()
    block_of = [block for block, length in enumerate(lengths) for _ in range(length)]
    found = with_blocks(order, lengths)
    for place, block in enumerate(found.blocks.tolist()):
        slot = int(order.told[place]) if order.told[place] >= 0 else int(order.source[place])
        assert block == (block_of[slot] if slot >= 0 else -1)
    for name in set(Order._fields) - {"blocks"}:
        assert np.array_equal(getattr(found, name), getattr(order, name)), name
    assert (found.left == 0).all(), "how long they are is not known"


def test_the_blocks_of_blocks_are_the_blocks() -> None:
    for case in (Blocks([3, 1, 4], 3, 0), Blocks([3, 1, 4], 2, 2)):
        order = case.order()
        asked = (order.told >= 0) | (order.source >= 0)
        assert np.array_equal(with_blocks(order, case.lengths).blocks[asked], order.blocks[asked])


# Rows of orders


@law
@given(st.lists(any_orders() | blocks().map(lambda case: (case.order(), 0)), min_size=1, max_size=4), st.integers(0, 5))
def test_orders_are_laid_out_as_they_are(cases: list[tuple[Order, int]], spare: int) -> None:
    orders = [order for order, _ in cases]
    length = max(len(order.source) for order in orders) + spare
    rows = lay_out(orders, length, CPU)
    assert rows.source.shape == (len(orders), length)
    assert torch.equal(rows.layout.silent_mask, rows.layout.kinds == SlotKind.GAP)
    for row, order in enumerate(orders):
        own, padding = slice(len(order.source)), slice(len(order.source), None)
        for name in Order._fields:
            tensor = getattr(rows.layout if name in ("kinds", "positions", "order") else rows, name)
            assert tensor[row, own].tolist() == getattr(order, name).tolist(), name
        assert (rows.layout.documents[row, own] == 0).all() and rows.certain_mask[row, own].all()
        assert (rows.layout.documents[row, padding] == PADDING).all()
        for tensor in (rows.source, rows.told, rows.remaining, rows.blocks):
            assert (tensor[row, padding] == -1).all()
        assert not rows.certain_mask[row, padding].any() and (rows.left[row, padding] == 0).all()
    assert rows.layout.kinds.min() >= 0, "padding is of a kind that exists"


def test_documents_of_one_row_keep_their_numbers_and_how_certain_they_are() -> None:
    first, second = at_once(2, begins=True, ends=True), in_streams(3, [0], [0], begins=True, end_order=None)
    row = np.concatenate([columns(first, 0, certain=True), columns(second, 1, certain=False)], 1)
    rows = side_by_side([row], row.shape[1] + 1, CPU)
    assert rows.layout.documents.tolist() == [[0] * 4 + [1] * 4 + [PADDING]]
    assert rows.certain_mask.tolist() == [[True] * 4 + [False] * 5]
    assert rows.layout.kinds[0, :8].tolist() == [*first.kinds.tolist(), *second.kinds.tolist()]
