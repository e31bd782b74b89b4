"""Orders: that every open slot is told once and by one that is known before it, and that layouts tell no lengths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import chance, law, pieces_of, seeds
from zonkey_core.diffusion import decoding_order
from zonkey_core.diffusion.decoding_order import (
    FAR,
    GAP_WIDTH,
    HIDDEN_END,
    PADDING,
    Draft,
    Kind,
    draw_draft,
    draw_plan,
    in_streams,
    lay_out,
    with_gaps,
)

CPU = torch.device("cpu")


def dice(seed: int) -> np.random.Generator:
    """A seeded generator of the kind that drafts are drawn with."""
    return np.random.default_rng(seed)


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


def assert_told_in_order(draft: Draft, count: int) -> None:
    """Every slot of a text stands once and in its place, and where one is told, that is by the known one before it."""
    assert {len(field) for field in draft} == {len(draft.source)}
    assert slots_where(draft.source) == list(range(count))
    assert (np.diff(draft.positions) >= 0).all()
    text = draft.source >= 0
    assert np.array_equal(draft.kinds == Kind.TEXT, text)
    assert np.array_equal(draft.positions[text], draft.source[text])
    place = {slot: place for place, slot in enumerate(draft.source.tolist()) if slot >= 0}
    for teller, slot in enumerate(draft.told.tolist()):
        if slot >= 0:
            assert place[slot] == teller + 1
            assert draft.order[teller] == draft.order[place[slot]] - 1
            assert draft.positions[teller] == slot - 1
            assert draft.kinds[teller] != Kind.END


# Texts in streams


@law
@given(streams(), st.booleans(), st.none() | st.integers(1, 20))
def test_in_streams_every_slot_is_told_once(
    case: tuple[int, list[int], list[int]], begins: bool, end_order: int | None
) -> None:
    count, firsts, openings = case
    draft = in_streams(count, firsts, openings, begins=begins, end_order=end_order)
    assert_told_in_order(draft, count)
    assert sorted(slots_where(draft.told)) == list(range(count))
    assert (draft.remaining == -1).all()


@law
@given(streams(), st.booleans(), st.none() | st.integers(1, 20))
def test_streams_open_where_and_when_they_are_to(
    case: tuple[int, list[int], list[int]], begins: bool, end_order: int | None
) -> None:
    count, firsts, openings = case
    draft = in_streams(count, firsts, openings, begins=begins, end_order=end_order)
    gates = np.isin(draft.kinds, (Kind.STREAM, Kind.DOCUMENT, Kind.GAP))
    assert draft.told[gates].tolist() == firsts and draft.order[gates].tolist() == openings
    opening = Kind.DOCUMENT if begins else Kind.STREAM
    assert draft.kinds[gates].tolist() == [opening, *[Kind.STREAM] * (len(firsts) - 1)]
    ends = draft.kinds == Kind.END
    assert ends.sum() == (end_order is not None)
    if end_order is not None:
        assert ends[-1] and draft.positions[-1] == count and draft.order[-1] == end_order
    for (first, last), opened in zip(itertools.pairwise([*firsts, count]), openings, strict=True):
        inside = (draft.source >= first) & (draft.source < last)
        assert draft.order[inside].tolist() == list(range(opened + 1, opened + 1 + last - first))


def test_a_text_of_nothing_is_an_opening() -> None:
    draft = in_streams(0, [0], [0], begins=True, end_order=None)
    assert draft.kinds.tolist() == [Kind.DOCUMENT]
    assert draft.source.tolist() == draft.told.tolist() == [-1], "and tells nothing"


# Texts with gaps


@law
@given(gapped(), st.booleans(), st.booleans())
def test_in_gaps_every_open_slot_is_told_once(
    case: tuple[int, list[tuple[int, int]]], begins: bool, ends: bool
) -> None:
    count, gaps = case
    draft = with_gaps(count, gaps, begins=begins, ends=ends, measured=True)
    assert_told_in_order(draft, count)
    missing = [slot for first, last in gaps for slot in range(first, last)]
    assert sorted(slots_where(draft.told)) == missing
    assert (draft.remaining == -1).all()
    known = (draft.source >= 0) & ~np.isin(draft.source, missing)
    assert (draft.order[known | (draft.kinds != Kind.TEXT)] == 0).all()
    for first, last in gaps:
        inside = (draft.source >= first) & (draft.source < last)
        assert draft.order[inside].tolist() == list(range(1, last - first + 1))


@law
@given(gapped(), st.booleans(), st.booleans(), st.booleans())
def test_gaps_begin_with_openings_and_ends_are_marked(
    case: tuple[int, list[tuple[int, int]]], begins: bool, ends: bool, measured: bool
) -> None:
    count, gaps = case
    draft = with_gaps(count, gaps, begins=begins, ends=ends, measured=measured)
    assert (draft.kinds == Kind.GAP).sum() == len(gaps) and not (draft.kinds == Kind.STREAM).any()
    assert (draft.kinds == Kind.DOCUMENT).tolist() == [begins and not place for place in range(len(draft.kinds))]
    assert (draft.kinds == Kind.END).sum() == ends and (draft.kinds[-1] == Kind.END or not ends)
    if begins:
        assert draft.positions[0] == -1
    if ends and measured:
        assert draft.positions[-1] == count


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
    asked = one.kinds == Kind.GAP
    assert one.remaining[asked].tolist() == [last - first for first, last in gaps]
    assert other.remaining[asked].tolist() == lengths
    assert (one.remaining[~asked] == -1).all() and (one.told == -1).all() and (one.order == 0).all()


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
    outside = measured.order == 0
    for name in ("kinds", "positions", "order"):
        assert np.array_equal(getattr(measured, name)[outside], getattr(unmeasured, name)), name
    missing = [slot for first, last in gaps for slot in range(first, last)]
    assert slots_where(unmeasured.source) == [slot for slot in range(count) if slot not in missing]


# What training asks


drafts = st.tuples(st.integers(1, 150), seeds, st.booleans(), st.booleans())


def drawn(case: tuple[int, int, bool, bool]) -> tuple[Draft, bool]:
    """A document as training asks for it."""
    count, seed, begins, ends = case
    return draw_draft(count, dice(seed), begins=begins, ends=ends)


@law
@given(drafts)
def test_what_training_asks_can_be_written(case: tuple[int, int, bool, bool]) -> None:
    """All that is not known is told, once, and by a slot that is known before it."""
    draft, _ = drawn(case)
    told = slots_where(draft.told)
    assert len(told) == len(set(told))
    if (draft.kinds == Kind.GAP).any():
        known = slots_where(draft.source[draft.order == 0])
        unheld = sorted(set(range(case[0])) - set(slots_where(draft.source)))
        assert sorted([*known, *told, *unheld]) == list(range(case[0]))
        assert not (told and unheld), "gaps are measured all, or none is"
        if told:
            assert_told_in_order(draft, case[0])
    else:
        assert_told_in_order(draft, case[0])
        assert sorted(told) == list(range(case[0]))
    assert told or (draft.remaining >= 0).any(), "and no document is for nothing"


@law
@given(drafts)
def test_a_length_is_asked_of_those_who_cannot_see_it(case: tuple[int, int, bool, bool]) -> None:
    draft, certain = drawn(case)
    count, _, _, ends = case
    places = np.flatnonzero(draft.remaining >= 0)
    gapped = bool((draft.kinds == Kind.GAP).any())
    assert certain == (gapped or ends)
    for place in places.tolist():
        if gapped:
            assert draft.kinds[place] == Kind.GAP and 1 <= draft.remaining[place] <= GAP_WIDTH
            assert not (draft.told >= 0).any()
            continue
        seen = draft.order <= draft.order[place]
        assert draft.positions[seen].max() == draft.positions[place], "nothing behind it is known"
        assert not (draft.kinds[seen] == Kind.END).any()
        assert draft.remaining[place] == count - 1 - draft.positions[place]
    if not gapped:
        assert 0 in places, "how long a text becomes is asked at its beginning"


@law
@given(seeds, st.booleans())
def test_the_shortest_documents_are_told_as_well(seed: int, begins: bool) -> None:
    draft, certain = draw_draft(1, dice(seed), begins=begins, ends=True)
    assert certain and slots_where(draft.told) == slots_where(draft.source) == [0]
    assert draft.remaining.tolist()[0] == 1
    assert draft.kinds.tolist() == [Kind.DOCUMENT if begins else Kind.STREAM, Kind.TEXT, Kind.END]


def test_documents_are_asked_in_all_ways() -> None:
    """Shares of what is asked, of documents long enough for anything."""
    count, number, generator = 100, 3000, dice(5)
    found = [draw_draft(count, generator, begins=True, ends=True)[0] for _ in range(number)]
    gapped = [draft for draft in found if (draft.kinds == Kind.GAP).any()]
    written = [draft for draft in found if not (draft.kinds == Kind.GAP).any()]
    assert len(gapped) / number == pytest.approx(decoding_order.GAPPED, abs=0.03)
    unmeasured = sum(not (draft.told >= 0).any() for draft in gapped)
    assert unmeasured / len(gapped) == pytest.approx(decoding_order.UNMEASURED, abs=0.06)
    numbers = np.array([(draft.kinds <= Kind.DOCUMENT).sum() - count for draft in written])
    assert (numbers == 1).mean() > decoding_order.ONE_STREAM - 0.03 and (numbers > 12).mean() > 0.02
    shown = np.mean([draft.kinds[-1] == Kind.END for draft in written])
    assert count > FAR and shown == pytest.approx(1 - HIDDEN_END, abs=0.03)
    early = np.mean([draft.order[-1] == 1 for draft in written if draft.kinds[-1] == Kind.END])
    assert early == pytest.approx(decoding_order.AT_ONCE, abs=0.05)


def test_only_what_is_known_to_end_has_an_end() -> None:
    for count, ends in ((20, False), (20, True), (FAR, True), (200, False)):
        found = [draw_draft(count, dice(seed), begins=True, ends=ends)[0] for seed in range(60)]
        assert all((draft.kinds[-1] == Kind.END) == ends for draft in found)


# Plans


rows_of_documents = st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=4), min_size=1, max_size=4)


@law
@given(rows_of_documents, seeds)
def test_a_plan_keeps_documents_apart_and_in_order(lengths: list[list[int]], seed: int) -> None:
    pieces = pieces_of(lengths, begins=[bool((seed >> row) % 2) for row in range(len(lengths))])
    plan = draw_plan(pieces.slot_mask, pieces.document_mask, chance(seed))
    layout = plan.layout
    for row, documents in enumerate(lengths):
        edges = [0, *itertools.accumulate(documents)]
        real = layout.documents[row] != PADDING
        assert (real.int().diff() <= 0).all(), "padding comes last"
        assert (layout.documents[row][real].diff() >= 0).all()
        for number, (first, last) in enumerate(itertools.pairwise(edges)):
            mine = layout.documents[row] == number
            held, told = (field[row][mine] for field in (plan.source, plan.told))
            for slots in (held[held >= 0], told[told >= 0]):
                assert ((slots >= first) & (slots < last)).all() and len(slots.unique()) == len(slots)
            assert mine.any() and (layout.order[row][mine] == 0).any()
            opened = (layout.kinds[row][mine] == Kind.DOCUMENT).any()
            assert opened == pieces.document_mask[row, first], "where a document begins, that is known"
            if number == len(documents) - 1:
                assert not (layout.kinds[row][mine] == Kind.END).any(), "it may go on behind the row"
                certain = (layout.kinds[row][mine] == Kind.GAP).any()
                assert (plan.certain_mask[row][mine] == certain).all()
            else:
                assert plan.certain_mask[row][mine].all()
        padding = ~real
        for field in (plan.source, plan.told, plan.remaining):
            assert (field[row][padding] == -1).all()
        assert not plan.certain_mask[row][padding].any()


@law
@given(rows_of_documents, seeds)
def test_a_plan_is_decided_by_its_generator(lengths: list[list[int]], seed: int) -> None:
    pieces = pieces_of(lengths)
    one, same = (draw_plan(pieces.slot_mask, pieces.document_mask, chance(seed)) for _ in range(2))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.layout, same.layout, strict=True))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one[1:], same[1:], strict=True))


def test_other_generators_draw_other_plans() -> None:
    pieces = pieces_of([[40, 25]])
    plans = [draw_plan(pieces.slot_mask, pieces.document_mask, chance(seed)) for seed in range(20)]
    shapes = {plan.layout.order.numpy().tobytes() for plan in plans}
    assert len(shapes) > 15


@law
@given(st.lists(streams(), min_size=1, max_size=4), st.integers(0, 5))
def test_drafts_are_laid_out_as_they_are(cases: list[tuple[int, list[int], list[int]]], spare: int) -> None:
    chosen = [in_streams(*case, begins=True, end_order=1) for case in cases]
    length = max(len(draft.source) for draft in chosen) + spare
    plan = lay_out(chosen, length, CPU)
    assert plan.source.shape == (len(cases), length)
    for row, draft in enumerate(chosen):
        own = slice(len(draft.source))
        for tensor, field in (
            (plan.layout.kinds, draft.kinds), (plan.layout.positions, draft.positions),
            (plan.layout.order, draft.order), (plan.source, draft.source), (plan.told, draft.told),
            (plan.remaining, draft.remaining),
        ):
            assert tensor[row, own].tolist() == field.tolist()
        assert (plan.layout.documents[row, own] == 0).all()
        assert (plan.layout.documents[row, len(draft.source) :] == PADDING).all()
        assert plan.layout.kinds.min() >= 0, "padding is of a kind that exists"
