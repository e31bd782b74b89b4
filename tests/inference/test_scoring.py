"""Scoring: which pieces count, what each of them adds, and that nothing else matters."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.model_helpers import TEXT, chance, few, fit_vocabulary, law, small_model
from zonkey_core.diffusion.decoding_order import in_streams, lay_out, with_gaps
from zonkey_core.inference import block_decoding, scoring
from zonkey_core.inference.block_generation import OpenText, write_texts
from zonkey_core.inference.scoring import Likelihood, Question, Row, log_likelihoods, row_likelihoods
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.model import Zonkey, text_sequence
from zonkey_core.model.segmentation import Slots
from zonkey_core.model.slot_batches import at_places, gather_entries, slot_batch

DATA = TEXT.encode()
WHOLE = Question(DATA, [(0, len(DATA))])
NOTHING = Likelihood(0.0, 0)


@functools.lru_cache(maxsize=2)
def judge(*, fitted: bool = True) -> Zonkey:
    """An untrained model of strong opinions, on strings of a text where it is fitted."""
    model = small_model(2, seed=5)
    if fitted:
        nn.init.normal_(fit_vocabulary(model).table)
    nn.init.normal_(model.bottom.denoiser.latent_out.weight)
    return model.eval().requires_grad_(False)


def ask(question: Question, model: Zonkey | None = None) -> Likelihood:
    """What is said of one text alone."""
    (found,) = log_likelihoods(model or judge(), [question])
    return found


def score(text: bytes, *spans: tuple[int, int], model: Zonkey | None = None) -> float:
    """The log-probability of stretches of one text alone."""
    return ask(Question(text, spans), model).total


def slots_of(text: bytes) -> Slots:
    """A text as the model cuts it."""
    level, sequence = judge().bottom, text_sequence(text, device=torch.device("cpu"))
    return level.read_tokens(sequence, level.choose_starts(sequence, level.split(sequence).start_prob))


def entries_of(text: bytes) -> Tensor:
    """[M] its strings."""
    entries = slots_of(text).entries
    assert entries is not None
    return entries[0]


def touched(text: bytes, spans: list[tuple[int, int]]) -> list[int]:
    """Which pieces of a text lie in or beside a span."""
    borders = [*slots_of(text).starts[0].tolist(), len(text)]
    asked = {place for begin, end in spans for place in range(begin, end + 1)}
    return [
        index for index, (begin, end) in enumerate(itertools.pairwise(borders))
        if not asked.isdisjoint(range(begin, end + 1))
    ]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """A part of the text or any bytes, and stretches of it."""
    first, last = sorted(draw(st.tuples(st.integers(0, len(DATA)), st.integers(0, len(DATA)))))
    text = draw(st.one_of(st.just(DATA[first:last]), st.binary(max_size=30)))
    borders = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    spans = list(zip(borders[::2], borders[1::2], strict=False))
    if draw(st.booleans()):
        spans = [*spans[:1], (spans[-1][1] if spans else 0, len(text))]
    return Question(text, spans, draw(st.booleans()), draw(st.booleans()))


# What is asked


@few
@given(st.lists(questions(), max_size=6), st.integers(1, 4))
def test_texts_are_scored_as_each_alone(asked: list[Question], together: int) -> None:
    alone = [ask(each) for each in asked]
    for rows in (scoring.ROWS_TOGETHER, together):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scoring, "ROWS_TOGETHER", rows)
            found = log_likelihoods(judge(), asked)
        assert [each.pieces for each in found] == [each.pieces for each in alone]
        assert [each.total for each in found] == pytest.approx([each.total for each in alone], rel=1e-4, abs=1e-4)


def test_nothing_global_is_touched() -> None:
    model = judge()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = log_likelihoods(model, [WHOLE])
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert log_likelihoods(model, [WHOLE]) == first


def test_nothing_asked_is_nothing_scored() -> None:
    assert log_likelihoods(judge(), []) == []
    for begins, ends in itertools.product((False, True), repeat=2):
        for question in (Question(b"", [], begins, ends), Question(b"", [(0, 0)], begins, ends)):
            assert ask(question) == NOTHING
        assert ask(Question(DATA, [], begins, ends)) == NOTHING
    mixed = log_likelihoods(judge(), [Question(b"", [(0, 0)]), WHOLE, Question(DATA, []), WHOLE])
    assert mixed[0] == mixed[2] == NOTHING
    assert mixed[1].total < 0 and mixed[1] == pytest.approx(mixed[3], rel=1e-5)


@pytest.mark.parametrize("fitted", [False, True])
def test_spans_count_once_and_by_what_they_touch(fitted: bool) -> None:
    model = judge(fitted=fitted)
    everything = score(DATA, (0, len(DATA)), model=model)
    assert everything < 0
    assert score(DATA, (0, 40), (40, len(DATA)), model=model) == everything
    assert score(DATA, (0, len(DATA)), (50, 60), (70, 70), model=model) == everything
    assert everything < score(DATA, (50, 60), model=model) < 0


@law
@given(questions())
def test_pieces_in_or_beside_a_span_are_counted(question: Question) -> None:
    if not question.text:
        return
    mask = scoring._touched(slots_of(question.text), len(question.text), question.spans)
    expected = touched(question.text, list(question.spans))
    assert mask.nonzero().flatten().tolist() == expected
    assert ask(question).pieces == len(expected)


# What it adds up to


@torch.no_grad()
@few
@given(questions())
def test_a_score_is_the_chain_rule_slot_by_slot(question: Question) -> None:
    """Each piece is told by a reading of its own, which has seen nothing but what is known, and was told before."""
    text, spans, begins, ends = question
    if not text:
        return
    level = judge().bottom
    vocabulary = level.vocabulary
    assert vocabulary is not None
    entries = entries_of(text)
    assert vocabulary.detokenize(entries.tolist()) == text
    asked, count = touched(text, list(spans)), len(entries)
    if asked and asked == list(range(asked[0], count)):
        order = in_streams(count, [0], [0], begins=begins, end_order=asked[0] + 1 if ends else None)
    else:
        gaps = [(part[0], part[-1] + 1) for part in _runs(asked)]
        order = with_gaps(count, gaps, begins=begins, ends=ends, measured=True)
    rows = lay_out([order], len(order.source), torch.device("cpu"))
    cache, latents, expected, told_so_far = KVCache(rows.layout), vocabulary.latents(), 0.0, 0
    for time in range(int(order.order.max()) + 1):
        places = torch.from_numpy(np.flatnonzero(order.order == time)).unsqueeze(0)
        cache.places = places
        some = at_places(rows, places)
        told = level.denoiser(slot_batch(latents[entries].unsqueeze(0), some), cache)
        held = gather_entries(entries.unsqueeze(0), rows.source)[0]
        for index, slot in enumerate(some.told[0].tolist()):
            if slot in asked:
                logits = latents.double() @ told.latents[0, index].double() + vocabulary.bias.double()
                prob = told.copies.log_rest[0, index].exp() * logits.softmax(0)[entries[slot]]
                prob += told.copies.log_shares[0, index, held == entries[slot]].exp().sum()
                expected += float(prob.log())
                told_so_far += 1
    assert told_so_far == len(asked)
    assert ask(question).total == pytest.approx(expected, rel=1e-4, abs=1e-4)


def _runs(places: list[int]) -> list[list[int]]:
    """Places that follow each other, together."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


@pytest.mark.parametrize(("old", "new"), [(b"The", b"Two"), (b"by. Then", b"on. They")])
def test_what_stands_on_both_sides_of_a_gap_matters(old: bytes, new: bytes) -> None:
    changed, span = DATA.replace(old, new), (130, 132)
    asked = [[entries_of(text)[place] for place in touched(text, [span])] for text in (DATA, changed)]
    assert changed != DATA and asked[0] == asked[1], "the same is asked"
    assert score(changed, span) != pytest.approx(score(DATA, span), abs=1e-4)


def test_the_end_of_a_text_is_given_only_what_stands_before() -> None:
    """So each piece more that is asked adds a cost of its own."""
    text = 2 * DATA
    borders = [*slots_of(text).starts[0].tolist(), len(text)]
    asked = [Question(text, [(border + 1, len(text))]) for border in borders[:-1]]
    totals = [found.total for found in log_likelihoods(judge(), asked)]
    costs = [before - after for before, after in itertools.pairwise(totals)]
    assert len(costs) > 40 and all(cost < 0 for cost in costs)
    behind = score(text, (borders[10] + 1, borders[11] - 1))
    assert behind != pytest.approx(costs[10], abs=1e-3), "in a gap, what follows is given as well"


@pytest.mark.parametrize("spans", [[(0, len(DATA))], [(30, 40)], [(30, 40), (150, len(DATA))]])
def test_whether_a_document_begins_and_ends_with_a_text_matters(spans: list[tuple[int, int]]) -> None:
    totals = {ask(Question(DATA, spans, *marks)).total for marks in itertools.product((False, True), repeat=2)}
    assert len(totals) == 4


@few
@given(st.integers(0, 20), st.integers(1, 25), st.booleans(), st.integers(0, 1000))
def test_a_text_told_slot_by_slot_is_as_likely_as_its_draws_were(
    before: int, room: int, begins: bool, seed: int
) -> None:
    """With nothing above, the score is the sum of the log-probabilities of what was drawn."""
    level, drawn = judge().bottom, list[Tensor]()
    sound = block_decoding.draw_entries

    def noted(prob: Tensor, numbers: Tensor, temperature: float, least_share: float) -> Tensor:
        entries = sound(prob, numbers, temperature, least_share)
        if len(entries):
            drawn.append(prob[0, entries[0]].log())
        return entries

    known = 40 + torch.arange(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_decoding, "draw_entries", noted)
        patch.setattr(block_decoding, "choose_precision", lambda *given: torch.float32)
        (written,) = write_texts(
            level, [OpenText(known, room, begins)], [chance(seed)], steps=room + 2, temperature=1.0
        )
    assert len(drawn) == len(written.entries)
    if not drawn:
        return
    count = before + len(written.entries)
    order = in_streams(count, [0], [0], begins=begins, end_order=before + 1 if written.ended else None)
    asked = torch.arange(count) >= before
    with torch.no_grad():
        (found,) = row_likelihoods(level, [Row(torch.cat([known, written.entries]), asked, order)])
    assert found.pieces == len(drawn)
    assert found.total == pytest.approx(float(torch.stack(drawn).sum()), rel=1e-4)
