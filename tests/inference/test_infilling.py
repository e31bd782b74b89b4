"""Infilling: gaps are found and filled, and everything outside them stays byte for byte."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.inference.model_helpers import entries_of, filler, strings_of
from tests.model_helpers import TEXT, few, law
from zonkey_core.diffusion.decoding_order import GAP_WIDTH
from zonkey_core.errors import ConfigError
from zonkey_core.inference import gap_planning, gap_windows, infilling
from zonkey_core.inference.gap_filling import FilledRow, GappedRow, GapScore, Likelihood, score_fills
from zonkey_core.inference.gap_windows import Gap, GappedDocument, _clusters, find_gaps
from zonkey_core.inference.generation import unfold_entries
from zonkey_core.inference.infilling import Fill, InfillingOptions, apply_fills, infill, infill_documents
from zonkey_core.inference.latent_sampler import OpenText as FormedText
from zonkey_core.inference.text_reading import TextReader
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey

DATA = TEXT.encode()


def fill(data: bytes, gaps: list[Gap], *, model: Zonkey | None = None, seed: int = 1, **options: Any) -> list[Fill]:
    settings = InfillingOptions(**{"steps": 2, "candidates": 2, **options})
    return infill(model or filler(), data, gaps, seed=seed, options=settings)


def rows_filled(patch: pytest.MonkeyPatch) -> list[GappedRow]:
    """A list that takes up every row that is filled from now on."""
    found: list[GappedRow] = []
    sound = infilling.fill_gaps

    def noted(level: Any, rows: list[GappedRow], *given: Any, **options: Any) -> list[list[Tensor]]:
        found.extend(rows)
        return sound(level, rows, *given, **options)

    patch.setattr(infilling, "fill_gaps", noted)
    return found


def masked(*words: bytes) -> tuple[bytes, list[Gap]]:
    """Words with a gap between each two."""
    data = b"____".join(words)
    return data, find_gaps(data, b"____")


def assert_kept(data: bytes, gaps: list[Gap], fills: list[Fill]) -> None:
    """The fills are for the gaps, and what stands between them is unchanged."""
    assert [(each.start, each.end) for each in fills] == [(gap.start, gap.end) for gap in gaps]
    result = apply_fills(data, fills)
    expected = 0
    borders = [0, *itertools.chain.from_iterable((gap.start, gap.end) for gap in gaps), len(data)]
    for index, (begin, end) in enumerate(zip(borders[::2], borders[1::2], strict=True)):
        kept = data[begin:end]
        assert result[expected : expected + len(kept)] == kept
        expected += len(kept) + (len(fills[index].text) if index < len(fills) else 0)
    assert expected == len(result)


# Gaps


@pytest.mark.parametrize(
    ("data", "spans"),
    [
        (b"", []),
        (b"no gap_ here__ ", []),
        (b"a ___ b", [(2, 5)]),
        (b"a ____ b_____", [(2, 6), (8, 13)]),
        (b"___", [(0, 3)]),
        (b"______", [(0, 6)]),
        (b"___a___", [(0, 3), (4, 7)]),
        ("naïve ___ 日本".encode(), [(7, 10)]),
        (b"\xff___\xff", [(1, 4)]),
    ],
)
def test_underscores_are_gaps(data: bytes, spans: list[tuple[int, int]]) -> None:
    assert [(gap.start, gap.end) for gap in find_gaps(data)] == spans


@pytest.mark.parametrize(
    ("data", "mask", "spans"),
    [
        (b"a ___ b", b"*", []),
        (b"a * b ** c", b"*", [(2, 3), (6, 7), (7, 8)]),
        (b"a [GAP] b", b"[GAP]", [(2, 7)]),
        (b"a.b", b".", [(1, 2)]),
        (b"xxxxx", b"xx", [(0, 2), (2, 4)]),
        ("…日…".encode(), "日".encode(), [(3, 6)]),
    ],
)
def test_a_mask_is_taken_literally(data: bytes, mask: bytes, spans: list[tuple[int, int]]) -> None:
    assert [(gap.start, gap.end) for gap in find_gaps(data, mask)] == spans


@pytest.mark.parametrize(
    ("data", "pattern", "spans"),
    [(b"a <x> b <yy/>", rb"<\w+/?>", [(2, 5), (8, 13)]), (b"aXbX", rb"X?", [(1, 2), (3, 4)]), (b"abc", rb"x*", []),
     (b"\xff\xfe", rb"[\xf0-\xff]", [(0, 1), (1, 2)])],
)  # fmt: skip
def test_a_pattern_marks_gaps_but_where_it_matches_nothing(
    data: bytes, pattern: bytes, spans: list[tuple[int, int]]
) -> None:
    assert [(gap.start, gap.end) for gap in find_gaps(data, re.compile(pattern))] == spans


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ConfigError, match="mask"):
        find_gaps(b"text", b"")


@st.composite
def gapped(draw: st.DrawFn) -> tuple[bytes, list[Gap]]:
    """Any bytes, with gaps anywhere; they may touch and be empty."""
    data = draw(st.binary(max_size=60))
    borders = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return data, [Gap(begin, end) for begin, end in zip(borders[::2], borders[1::2], strict=False)]


@law
@given(gapped(), st.data())
def test_nothing_but_the_gaps_changes(case: tuple[bytes, list[Gap]], chance: st.DataObject) -> None:
    data, gaps = case
    fills = [Fill(gap.start, gap.end, chance.draw(st.binary(max_size=6)), 0.0) for gap in gaps]
    assert_kept(data, gaps, fills)
    assert apply_fills(data, []) == data


def test_fills_may_come_in_any_order() -> None:
    fills = [Fill(4, 7, b"B", 0.0), Fill(0, 3, b"A", 0.0)]
    assert apply_fills(b"___-___", fills) == apply_fills(b"___-___", fills[::-1]) == b"A-B"


# Filling


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(
    "words",
    [
        (b"The heron ", b" flew away."),
        (b"", b" flew away."),
        (b"The heron ", b""),
        (b"", b""),
        (b"The ", b" stood ", b" shallows, ", b""),
        (b"a", b"b", b"c"),
        (b"Gap in a wo", b"rd, na\xc3", b"\xafve and \xff\xfe raw"),
    ],
    ids=lambda words: f"{len(words) - 1}-{len(words[0])}-{len(words[-1])}",
)
def test_gaps_anywhere_are_filled(levels: int, words: tuple[bytes, ...]) -> None:
    data, gaps = masked(*words)
    fills = fill(data, gaps, model=filler(levels), candidates=3)
    assert_kept(data, gaps, fills)
    assert all(math.isfinite(each.score) and each.candidates[0].log_prob < 0 for each in fills)
    assert any(each.text for each in fills)


def test_adjacent_gaps_are_filled_each() -> None:
    data = b"one ##"
    gaps = find_gaps(data, b"#")
    assert len(gaps) == 2
    fills = fill(data, gaps)
    assert_kept(data, gaps, fills)
    assert all(each.text for each in fills)


@few
@given(gapped(), st.integers(1, 3))
@example((b"", [Gap(0, 0)]), 2)
def test_any_bytes_with_any_gaps_are_filled(case: tuple[bytes, list[Gap]], levels: int) -> None:
    data, gaps = case
    assert_kept(data, gaps, fill(data, gaps, model=filler(levels)))


def test_no_gap_is_no_work() -> None:
    assert fill(DATA, []) == []


def test_a_gap_of_nothing_holds_at_most_the_rest_of_a_string() -> None:
    """The last string before it is told anew, and where there is none, one slot is."""
    model = filler(1, closed=True)
    longest = int(strings_of(model.bottom).lengths.max())
    for candidates in (1, 8):
        data, gaps = masked(b"The heron ", b" flew away.")
        (only,) = fill(data, gaps, model=model, candidates=candidates)
        prefix = strings_of(model.bottom).detokenize(entries_of(model, b"The heron ")[-1:].tolist())
        assert math.isfinite(only.score) and len(prefix + only.text) <= longest
        (only,) = fill(b"___", [Gap(0, 3)], model=model, candidates=candidates)
        assert 0 < len(only.text) <= longest


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_candidates_differ_in_length_and_a_few_share_a_plan(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows_filled(monkeypatch)
    data, gaps = masked(b"The heron ", b" stood in ", b" as ever.")
    fill(data, gaps, model=filler(levels), candidates=9)
    lengths = [row.lengths for row in found]
    assert len(lengths) == 9 and len(set(map(tuple, lengths))) > 2
    for shorter, longer in itertools.pairwise(lengths):
        assert all(1 <= one <= other <= GAP_WIDTH for one, other in zip(shorter, longer, strict=True))
    for row in found:
        assert (row.plan is None) == (levels == 1)
        if row.plan is not None:
            assert sum(row.plan.lengths) == sum(map(len, row.pieces.known)) + sum(row.lengths)
            assert 0 < float(row.plan.plans.alpha.min()) < 1 == float(row.plan.plans.alpha.max())
    if levels > 1:
        formed = [tuple(row.plan.plans.latents.flatten().tolist()) for row in found if row.plan is not None]
        plans = -(-9 // infilling.TOLD_BY_ONE)
        assert len(set(formed)) == plans > 1, "each is formed from noise of its own"
        assert all(formed[index] == formed[index % plans] for index in range(9)), "short and long ones share it"


def test_what_stands_around_gaps_is_known_but_for_the_last_string_before_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = rows_filled(monkeypatch)
    model, words = filler(1), (b"The heron ", b"", b" as ever.")
    fill(*masked(*words), model=model, candidates=1)
    (row,) = found
    for text, known, prefix in zip(words[:-1], row.pieces.known[:-1], row.prefixes, strict=True):
        entries = entries_of(model, text)
        assert torch.equal(known, entries[:-1]) and prefix == strings_of(model.bottom).detokenize(entries[-1:].tolist())
        assert strings_of(model.bottom).detokenize(known.tolist()) + prefix == text
    assert torch.equal(row.pieces.known[-1], entries_of(model, words[-1]))


@few
@given(st.lists(st.text(st.sampled_from("aé ,.日"), max_size=40).map(str.encode), min_size=2, max_size=4))
def test_blocks_of_every_level_lie_around_the_gaps(words: list[bytes]) -> None:
    """Slots of every level but the top are those of the blocks above, and what is known is known at all levels."""
    seen: list[tuple[Level, list[FormedText]]] = []
    sound, model = gap_planning.form_slots, filler(3)

    def noted(level: Level, texts: list[FormedText], *given: Any, **options: Any) -> Any:
        seen.append((level, texts))
        return sound(level, texts, *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gap_planning, "form_slots", noted)
        rows = rows_filled(patch)
        fill(*masked(*words), model=model, candidates=1)
    (row,) = rows
    assert row.plan is not None and sum(row.plan.lengths) == sum(map(len, row.pieces.known)) + sum(row.lengths)
    (_, (top, *_)), (_, (middle, *_)) = seen
    assert len(middle.latents) == len(row.plan.lengths) and sum(middle.blocks) == len(middle.latents)
    assert len(top.latents) == len(middle.blocks)
    for known, block in zip(top.known_mask.tolist(), torch.split(middle.known_mask, list(middle.blocks)), strict=True):
        assert not known or block.all(), "a known block holds known slots alone"
    gap = 0
    for known, size in zip(middle.known_mask.tolist(), row.plan.lengths, strict=True):
        assert not known or size > 0
        gap += not known
    assert 1 <= gap <= len(row.lengths)
    for piece in words:
        closed = [each for each in TextReader(model).read([piece])[0].levels[1].latents[1:-1]]
        found = [torch.isclose(middle.latents, latent, atol=1e-5).all(1).any() for latent in closed]
        assert all(found), "what no gap touches is known"


def test_what_stands_on_either_side_decides_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that a gap lies in is unknown; blocks that it does not touch are known as they stand."""
    found = rows_filled(monkeypatch)
    fill(*masked(DATA[:60], DATA[60:130]), candidates=1)
    fill(*masked(DATA[:60], DATA[70:140]), candidates=1)
    plans = [row.plan for row in found if row.plan is not None]
    known = [plan.plans.latents[plan.plans.alpha == 1] for plan in plans]
    assert all(len(each) > 3 for each in known) and torch.equal(known[0][:2], known[1][:2])
    assert all(int((plan.plans.alpha < 1).sum()) >= 1 for plan in plans)


def test_beginnings_and_ends_are_known_to_be_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_windows, "CONTEXT_BYTES", 20)
    found = rows_filled(monkeypatch)
    data, gaps = masked(b"The heron", b" stood in the shallows", b" as ever.")
    fill(data, gaps, candidates=1)
    assert [(row.pieces.begins, row.pieces.ends) for row in found] == [(True, False), (False, True)]


def scored(patch: pytest.MonkeyPatch) -> tuple[list[FilledRow], list[list[GapScore]]]:
    """Lists that take up every row that is scored from now on, and its scores."""
    rows: list[FilledRow] = []
    scores: list[list[GapScore]] = []

    def noted(level: Level, some: list[FilledRow]) -> list[list[GapScore]]:
        rows.extend(some)
        scores.extend(found := score_fills(level, some))
        return found

    patch.setattr(infilling, "score_fills", noted)
    return rows, scores


def test_each_gap_gets_the_candidate_that_ranks_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = filler(1)
    data, gaps = masked(b"The heron ", b" stood in ", b" as ever.")
    rows, scores = scored(monkeypatch)
    fills = fill(data, gaps, model=model, candidates=16)
    assert len(rows) == 16
    for which, found in enumerate(fills):
        ranks = [infilling._rank(score[which]) for score in scores]
        best = max(range(16), key=ranks.__getitem__)
        (spelled,) = unfold_entries(model.bottom, [rows[best].fills[which]])
        assert spelled.endswith(found.text) and found.score == pytest.approx(ranks[best])
        listed = [each.score for each in found.candidates]
        assert listed == sorted(listed, reverse=True) and listed[0] == found.score and len(listed) > 4
        assert len({each.text for each in found.candidates}) == len(found.candidates)
        assert found.text == found.candidates[0].text
        total = scores[best][which].fill.total + scores[best][which].following.total
        assert found.candidates[0].log_prob == pytest.approx(total)


def test_what_follows_counts_and_length_alone_does_not() -> None:
    def rank(fill: tuple[float, int], following: float = -9.0) -> float:
        return infilling._rank(GapScore(Likelihood(*fill), Likelihood(following, 4)))

    assert rank((-8.0, 2), -5.0) > rank((-8.0, 2), -6.0) and rank((-8.0, 2)) > rank((-9.0, 2))
    assert rank((-2.0, 2)) == rank((-3.0, 2)), "too easy is no better"
    shorter, longer = rank((-infilling.SLOT_NATS - 1, 1)), rank((-10 * infilling.SLOT_NATS - 1, 10))
    assert shorter - longer == pytest.approx(math.log(10))


@pytest.mark.parametrize(("least", "most"), [(0, 3), (4, 9), (0, 0), (12, None)])
def test_fills_have_as_many_bytes_as_are_allowed(least: int, most: int | None) -> None:
    data, gaps = masked(b"The heron ", b" stood in ", b" as ever.")
    fills = fill(data, gaps, candidates=8, min_bytes=least, max_bytes=most)
    assert all(least <= len(each.text) <= (len(data) * 99 if most is None else most)
               for found in fills for each in found.candidates)  # fmt: skip
    assert most == 0 or len(fills) == 2


def test_a_gap_for_which_there_is_nothing_is_left_out() -> None:
    data, gaps = masked(b"The heron ", b" as ever.")
    told: list[int] = []
    options = InfillingOptions(steps=2, candidates=2, min_bytes=5000, max_bytes=5001)
    assert infill(filler(), data, gaps, seed=1, options=options, on_filled=told.append) == []
    assert told == [1]


@pytest.mark.parametrize("levels", [1, 2])
def test_a_gap_is_filled_alike_whatever_other_gaps_are_far_from_it(levels: int) -> None:
    model, first = filler(levels), b"The heron ____ stood in the shallows. "
    far = b"Nothing at all happens here for long. " * 40
    alone = fill(first + far, find_gaps(first), model=model)
    data = first + far + first * 3 + far + b"And ____ so on"
    together = fill(data, find_gaps(data), model=model)
    assert together[0] == alone[0] and len(together) == 5


def test_texts_are_filled_as_each_alone() -> None:
    model = filler(2)
    texts = [b"The ____ flew", b"", b"____", b"no gap", b"It ____ was so. " + DATA + b" ____ a", b"The ____ flew"]
    documents = [GappedDocument(data, find_gaps(data), seed) for seed, data in enumerate(texts)]
    options = InfillingOptions(steps=2, candidates=2)
    found: dict[int, list[Fill]] = {}
    for number, fills in infill_documents(model, documents, options=options):
        found.setdefault(number, []).extend(each for each in fills if each is not None)
    for number, document in enumerate(documents):
        alone = infill(model, document.data, document.gaps, seed=document.seed, options=options)
        assert found.get(number, []) == alone
    assert found[0] != found[5]


def test_fills_depend_on_the_seed_alone() -> None:
    data, gaps = masked(b"The ", b" stood ", b" shallows, naive as ever.")
    first = fill(data, gaps, seed=3)
    torch.manual_seed(9)
    assert fill(data, gaps, seed=3) == first
    assert fill(data, gaps, seed=4) != first


@pytest.mark.parametrize("levels", [1, 2])
def test_more_candidates_score_better(levels: int) -> None:
    data, gaps = masked(b"The heron stood in the ", b" as ever.")
    scores = [
        [fill(data, gaps, model=filler(levels), candidates=count, seed=seed)[0].score for seed in range(12)]
        for count in (1, 12)
    ]
    assert sum(scores[1]) / 12 > sum(scores[0]) / 12 + 0.3


def test_gaps_near_each_other_are_filled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_windows, "CONTEXT_BYTES", 20)
    gaps = [Gap(0, 3), Gap(22, 25), Gap(45, 48), Gap(90, 93)]
    assert _clusters(gaps[::-1]) == [gaps[:2], gaps[2:3], gaps[3:]]
    data = bytearray((TEXT * 2).encode()[:100])
    for gap in gaps:
        data[gap.start : gap.end] = b"___"
    fills = fill(bytes(data), gaps)
    assert_kept(bytes(data), gaps, fills)


def test_far_text_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_windows, "CONTEXT_BYTES", 30)
    near = b"a" * 30 + b"___" + b"b" * 30
    first, second = (
        fill(far + near + far, [Gap(len(far) + 30, len(far) + 33)])[0] for far in (b"far away ", b"elsewhere, ")
    )
    assert (first.text, first.score) == (second.text, second.score)


@pytest.mark.parametrize("steps", [1, 2, 5, 32, 128])
@pytest.mark.parametrize("levels", [1, 2])
def test_every_number_of_evaluations_fills_gaps(levels: int, steps: int) -> None:
    data, gaps = masked(b"The heron ", b" stood in the ", b" as ever.")
    fills = fill(data, gaps, model=filler(levels), steps=steps)
    assert_kept(data, gaps, fills)
    assert all(each.text for each in fills)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"candidates": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"min_bytes": -1},
     {"max_bytes": 2, "min_bytes": 3}], ids=str,
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "-")):
        fill(*masked(b"one ", b" two"), **wrong)


def test_it_is_told_how_many_gaps_are_filled() -> None:
    far = DATA * 4
    data = b"____ " + far + b" ____ and ____ " + far + b" ____"
    told: list[int] = []
    fills = infill(
        filler(), data, find_gaps(data), seed=1, options=InfillingOptions(steps=2, candidates=2), on_filled=told.append
    )
    assert told == [1, 3, 4] and len(fills) == 4
