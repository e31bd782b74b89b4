"""Borders of words and sentences, and scores against them, worked out by hand and between floor and ceiling."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import law
from zonkey_core.evaluation.metrics.boundaries import (
    calibration_counts,
    calibration_error_of_sums,
    code_points,
    contest_of,
    f1_of_sums,
    join_points,
    landing_probs,
    match_counts,
    move_cuts,
    next_word_sign,
    precision_of_sums,
    recall_of_sums,
    sentences_of,
    strip_spaces,
    word_starts,
)

PROSE = (
    "The heron stood in the shallows, naïve as ever. Über die Brücke kam niemand; 日本語 was on the sign. "
    "“It waited”, and waited -- and the water (cold) went by.\n\nThen — very late — it flew.  "
).encode() * 20
any_text = st.one_of(
    st.binary(max_size=60), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
)


def offsets(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@law
@given(text=any_text)
def test_any_bytes_come_back_from_their_code_points(text: bytes) -> None:
    points, bounds = code_points(text)
    assert join_points(points) == text
    assert len(bounds) == len(points) + 1 and bounds[0] == 0 and bounds[-1] == len(text)
    assert [text[begin:end] for begin, end in itertools.pairwise(bounds)] == [
        sign.encode("utf-8", "surrogateescape") for sign in text.decode("utf-8", "surrogateescape")
    ]


def test_the_next_letter_or_digit() -> None:
    assert next_word_sign(b"a, b.").tolist() == [0, 3, 3, 3, 5, 5]
    assert next_word_sign("é 語".encode()).tolist() == [0, 3, 3, 3, 6, 6, 6]
    assert next_word_sign(b"\xff 7").tolist() == [2, 2, 2, 3]
    assert next_word_sign(b"").tolist() == [0]


def test_words_begin_after_whitespace() -> None:
    assert word_starts(b'It is "so", well-known.\n\nYes').tolist() == [0, 3, 6, 12, 25]
    assert word_starts(" 日 本\u3000語".encode()).tolist() == [1, 5, 11]


def test_spaces_are_stripped_and_words_found_again() -> None:
    text, begins = strip_spaces("It is\u00a0é \n语 - x ".encode())
    assert text == "Itisé语-x".encode()
    assert begins.tolist() == [0, 2, 4, 6, 9, 10]
    assert strip_spaces(b" \n")[0] == b""


@law
@given(text=any_text)
def test_stripping_agrees_with_splitting(text: bytes) -> None:
    stripped, begins = strip_spaces(text)
    words = [word.encode("utf-8", "surrogateescape") for word in text.decode("utf-8", "surrogateescape").split()]
    assert stripped == b"".join(words)
    assert begins.tolist() == [sum(map(len, words[:index])) for index in range(len(words))]
    assert len(word_starts(text)) == len(words)


def test_a_cut_counts_where_the_next_letter_stands() -> None:
    """`The "cat" sat.`: words at 0, 5 and 10."""
    text = b'The "cat" sat.'
    signs = next_word_sign(text)
    borders = move_cuts(word_starts(text), signs)
    assert borders.tolist() == [5, 10]
    for same in ((3, 8), (4, 9), (5, 10), (0, 3, 4, 5, 8, 9, 13)):
        assert move_cuts(offsets(*same), signs).tolist() == [5, 10]
    assert match_counts(move_cuts(offsets(0, 2, 4, 6), signs), borders).tolist() == [1, 3, 2]


def test_precision_recall_and_f1_by_hand() -> None:
    sums = np.array([[3.0, 4.0, 6.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    assert precision_of_sums(sums).tolist() == [0.75, 0, 0]
    assert recall_of_sums(sums).tolist() == [0.5, 0, 0]
    assert f1_of_sums(sums).tolist() == [0.6, 0, 0]


@pytest.mark.parametrize("spaces", [True, False])
def test_true_words_beat_every_floor(spaces: bool) -> None:
    text, begins = (PROSE, word_starts(PROSE)) if spaces else strip_spaces(PROSE)
    contest = contest_of([(text, begins)])

    def f1(cuts: np.ndarray) -> float:
        return float(f1_of_sums(contest.counts([cuts]))[0])

    assert f1(begins) == 1
    chance = np.random.default_rng(0).random(len(text)) < contest.rate
    every = np.arange(len(text))
    floors = [np.flatnonzero(chance), every, offsets(0), every[::5]]
    assert max(map(f1, floors)) < 0.7
    assert f1(offsets(0)) == 0


def test_sentences_and_where_they_begin() -> None:
    paragraph = ["Émile ran.", "***", " He didn't stop -- ever! ", "“Why?” + $"]
    text, begins = sentences_of(paragraph, bare=False)
    assert text.decode() == "Émile ran. *** He didn't stop -- ever! “Why?” + $"
    assert begins.tolist() == [0, 12, 16, 40]
    contest = contest_of([(text, begins)])
    assert contest.borders[0].tolist() == [16, 43]  # `***` has no letter of its own
    text, begins = sentences_of(paragraph, bare=True)
    assert text.decode() == "émile ran he didnt stop ever why"
    assert begins.tolist() == [0, 11, 30]
    assert sentences_of(["--"], bare=True)[0] == b""


def test_rate_counts_borders_per_byte() -> None:
    assert contest_of([(b"ab cd", word_starts(b"ab cd")), (b"x y z", word_starts(b"x y z"))]).rate == 3 / 10


def test_probabilities_of_landing_by_hand() -> None:
    """`ab cd.`: the space and `c` both lead to `c`, and the full stop leads nowhere."""
    signs = next_word_sign(b"ab cd.")
    places = landing_probs(np.array([1.0, 0.05, 0.5, 0.5, 0.25, 0.9]), signs)
    assert places.offsets.tolist() == [1, 3, 4]
    assert places.probs == pytest.approx([0.05, 0.75, 0.25])
    assert landing_probs(np.array([1.0, 0.0, 1.0, 0.3, 0.0, 0.0]), signs).probs.tolist() == [0, 1, 0]
    assert len(landing_probs(np.zeros(0), next_word_sign(b"")).offsets) == 0


def test_calibration_by_hand() -> None:
    places = landing_probs(np.array([1.0, 0.05, 0.5, 0.5, 0.25, 0.9]), next_word_sign(b"ab cd."))
    sums = calibration_counts(places, offsets(3))[None]
    assert sums.sum() == pytest.approx(3 + 1.05 + 1)
    assert calibration_error_of_sums(sums)[0] == pytest.approx((0.05 + 0.25 + 0.25) / 3)


def test_errors_within_a_bin_cancel_and_those_of_two_bins_do_not() -> None:
    signs = next_word_sign(b"xabcd")
    same = landing_probs(np.array([1.0, 0.52, 0.52, 0.58, 0.58]), signs)
    assert calibration_error_of_sums(calibration_counts(same, offsets(1, 2))[None])[0] == pytest.approx(0.05)
    apart = landing_probs(np.array([1.0, 0.45, 0.45, 0.65, 0.65]), signs)
    assert calibration_error_of_sums(calibration_counts(apart, offsets(1, 2))[None])[0] == pytest.approx(0.6)


def test_true_probabilities_are_calibrated_and_certain_guesses_are_not() -> None:
    signs, borders = next_word_sign(PROSE), move_cuts(word_starts(PROSE), next_word_sign(PROSE))

    def error(probs: np.ndarray) -> float:
        return float(calibration_error_of_sums(calibration_counts(landing_probs(probs, signs), borders)[None])[0])

    perfect = np.zeros(len(PROSE))
    perfect[word_starts(PROSE)] = 1
    assert error(perfect) == 0
    guesses = (np.random.default_rng(0).random(len(PROSE)) < len(borders) / len(PROSE)).astype(float)
    assert error(guesses) > 0.2
