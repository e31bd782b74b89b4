"""Scoring: which pieces count, what each of them adds, and that nothing else matters."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.model_helpers import TEXT, chance, few, fit_dictionary, law, small_model
from zonkey_core import scoring
from zonkey_core.denoiser import NoisySlots
from zonkey_core.dictionary import Pieces
from zonkey_core.model import Zonkey, text_sequence
from zonkey_core.scoring import Question, log_likelihoods

DATA = TEXT.encode()
WHOLE = Question(DATA, [(0, len(DATA))])


@functools.lru_cache(maxsize=2)
def judge(*, fitted: bool = True) -> Zonkey:
    """An untrained model of strong opinions, on strings of a text where it is fitted."""
    model = small_model(2, seed=5)
    if fitted:
        nn.init.normal_(fit_dictionary(model).table)
    nn.init.normal_(model.levels[0].trunk.latent_out.weight)
    return model.eval().requires_grad_(False)


def score(text: bytes, *spans: tuple[int, int], model: Zonkey | None = None) -> float:
    """The score of one text alone."""
    (value,) = log_likelihoods(model or judge(), [Question(text, spans)])
    return value


def pieces_of(text: bytes) -> Pieces:
    """A text as the model cuts it."""
    level, sequence = judge().levels[0], text_sequence(text, device=torch.device("cpu"))
    return level.pieces(sequence, level.split(sequence).start_prob)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """A part of the text or any bytes, and stretches of it."""
    first, last = sorted(draw(st.tuples(st.integers(0, len(DATA)), st.integers(0, len(DATA)))))
    text = draw(st.one_of(st.just(DATA[first:last]), st.binary(max_size=30)))
    borders = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return Question(text, list(zip(borders[::2], borders[1::2], strict=False)))


# What is asked


@few
@given(st.lists(questions(), max_size=6), st.integers(1, 4))
def test_texts_are_scored_as_each_alone(asked: list[Question], together: int) -> None:
    alone = [score(each.text, *each.spans) for each in asked]
    assert log_likelihoods(judge(), asked) == pytest.approx(alone, rel=1e-4, abs=1e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "ROWS_TOGETHER", together)
        assert log_likelihoods(judge(), asked) == pytest.approx(alone, rel=1e-4, abs=1e-4)


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
    assert score(b"") == score(b"", (0, 0)) == score(DATA) == 0
    mixed = log_likelihoods(judge(), [Question(b"", [(0, 0)]), WHOLE, Question(DATA, []), WHOLE])
    assert mixed[0] == mixed[2] == 0 > mixed[1] == pytest.approx(mixed[3], rel=1e-5)


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
def test_pieces_in_or_beside_a_span_are_touched(question: Question) -> None:
    text, spans = question
    if not text:
        return
    pieces = pieces_of(text)
    borders = [*pieces.starts[0].tolist(), len(text)]
    asked = {place for begin, end in spans for place in range(begin, end + 1)}
    expected = [not asked.isdisjoint(range(begin, end + 1)) for begin, end in itertools.pairwise(borders)]
    assert scoring._touched(pieces, len(text), spans).tolist() == expected


# What it adds up to


@torch.no_grad()
@few
@given(questions())
def test_a_score_is_the_sum_over_its_pieces(question: Question) -> None:
    """Against the same sum written out piece by piece, each fold in a pass of its own."""
    text, spans = question
    if not text:
        return
    level = judge().levels[0]
    dictionary = level.dictionary
    assert dictionary is not None
    pieces = pieces_of(text)
    entries = pieces.entries[0].tolist()
    assert dictionary.spell(entries) == text
    touched = scoring._touched(pieces, len(text), spans).tolist()
    latents = dictionary.latents()
    present = torch.ones(1, len(entries), dtype=torch.bool)
    beginning = torch.arange(len(entries)).unsqueeze(0) == 0
    noise = torch.randn(len(entries), level.channels, generator=chance(0))
    expected = 0.0
    for odd in (False, True):
        hidden = [place for place, asked in enumerate(touched) if asked and place % 2 == odd]
        noisy, noise_level = latents[entries], torch.zeros(len(entries))
        noisy[hidden], noise_level[hidden] = noise[hidden], 1.0
        reads = NoisySlots(noisy[None], noise_level[None], torch.zeros(1, *noisy.shape), beginning, present)
        estimate = level.trunk(reads).latents[0].double()
        for place in hidden:
            logits = latents.double() @ estimate[place] + dictionary.bias.double()
            expected += float(logits[entries[place]] - logits.logsumexp(0))
    assert score(text, *spans) == pytest.approx(expected, rel=1e-4, abs=1e-4)
