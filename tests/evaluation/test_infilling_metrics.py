"""Gaps and the metrics of fills, on cases worked out by hand, at their floors and at their ceilings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.model_helpers import law
from zonkey_core.evaluation.metrics.infilling_metrics import (
    AFTER,
    BEFORE,
    ENOUGH_CONTEXT,
    MASK,
    GapTask,
    choose_gaps,
    context_gain,
    context_preserved,
    edit_similarity,
    first_words,
    is_exact,
    length_error,
    levenshtein,
    rouge_2,
    seam_gain,
    words_of,
)
from zonkey_core.inference.gap_windows import Gap

SENTENCES = (
    "The heron\u2019s nest was old.", "Über die Brücke kam niemand.",
    "日本語 stood on the sign (there were 3 of them).",
    "It didn't move — not once — in all that time.", "Rain fell; nobody saw it.", "Why would they?",
)


def document(number: int, sentences: int) -> bytes:
    """A text in lines of four sentences, different for each number."""
    drawn = np.random.default_rng(number).choice(SENTENCES, sentences)
    lines = [" ".join(drawn[start : start + 4]) for start in range(0, sentences, 4)]
    return "\n".join([f"Story {number}.", *lines]).encode()


def task(before: bytes, answer: bytes, after: bytes) -> GapTask:
    """A task with the given context."""
    return GapTask(before + MASK + after, Gap(len(before), len(before) + len(MASK)), answer)


def reference_distance(first: bytes, second: bytes) -> int:
    """Levenshtein's definition."""

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, replaced)

    return distance(len(first), len(second))


@pytest.mark.parametrize("words", [1, 3, 8])
def test_gaps_are_runs_of_words_with_their_context(words: int) -> None:
    documents = [document(number, 60) for number in range(4)]
    tasks = choose_gaps(documents, words, 12, seed=5)
    assert len(tasks) == 12
    for each in tasks:
        assert len(words_of(each.answer)) == words
        assert b"\n" not in each.answer
        assert first_words(each.answer, words) == each.answer and each.answer[:1].strip(b" .(;\xe2")
        assert each.text[each.gap.start : each.gap.end] == MASK
        whole = each.before + each.answer + each.after
        assert any(whole in text for text in documents)
        assert ENOUGH_CONTEXT <= len(each.before) <= BEFORE
        assert ENOUGH_CONTEXT - 3 <= len(each.after) <= AFTER
        whole.decode()  # not cut inside a code point


def test_gaps_are_the_same_for_the_same_seed_and_no_answers_overlap() -> None:
    documents = [document(number, 30) for number in range(2)]
    assert choose_gaps(documents, 3, 6, seed=1) == choose_gaps(documents, 3, 6, seed=1)
    assert choose_gaps(documents, 3, 6, seed=1) != choose_gaps(documents, 3, 6, seed=2)
    numbered = b" ".join(b"%04d" % number for number in range(200))
    tasks = choose_gaps([numbered], 8, 1_000, seed=0)
    answers = [word for each in tasks for word in each.answer.split()]
    assert len(answers) == len(set(answers)), "some word is in two answers"
    assert len(tasks) > 12, "gaps that lie apart are left out"


def test_gaps_near_an_end_come_only_when_there_are_no_others() -> None:
    long, short = document(1, 60), b"Only five words are here."
    chosen = choose_gaps([short, long], 1, 30, seed=0)
    assert all(len(each.before) >= ENOUGH_CONTEXT for each in chosen)
    assert {each.answer for each in choose_gaps([short], 1, 30, seed=0)} == set(short[:-1].split())
    assert choose_gaps([short], 8, 30, seed=0) == []
    assert choose_gaps([b"four words\nin two lines"], 4, 30, seed=0) == []
    assert choose_gaps([], 1, 3, seed=0) == []


def test_bytes_that_are_no_text_are_part_of_no_word() -> None:
    broken = b"one \xff\xfetwo \xe6\x97 three"
    answers = {each.answer for each in choose_gaps([broken], 1, 9, seed=0)}
    assert answers == {b"one", b"two", b"three"}
    assert [each.answer for each in choose_gaps([broken], 3, 9, seed=0)] == [broken]


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        (b"on the mat, it sat", 3, b"on the mat"),
        (b"  so, it's done.", 2, b"  so, it's"),
        (b"too few", 3, b"too few"),
        (b"", 1, b""),
        ("naïve Üben".encode(), 1, "naïve".encode()),
    ],
)
def test_first_words(text: bytes, count: int, expected: bytes) -> None:
    assert first_words(text, count) == expected


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [(b"kitten", b"sitting", 3), (b"flaw", b"lawn", 2), (b"", b"abc", 3), (b"abc", b"", 3), (b"same", b"same", 0)],
)
def test_levenshtein(first: bytes, second: bytes, distance: int) -> None:
    assert levenshtein(first, second) == distance


short = st.lists(st.sampled_from(b"abc"), max_size=9).map(bytes)


@law
@given(short, short)
def test_levenshtein_is_what_it_is_defined_as(first: bytes, second: bytes) -> None:
    assert levenshtein(first, second) == reference_distance(first, second)


@pytest.mark.parametrize(
    ("fill", "expected"), [(b"cart", 1.0), (b"cat", 0.75), (b"carts are", 4 / 9), (b"mood", 0.0), (b"", 0.0)]
)
def test_edit_similarity(fill: bytes, expected: float) -> None:
    assert edit_similarity(fill, b"cart") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (b"brown fox", 1.0),
        (b"Brown, FOX", 1.0),
        (b"brown dog", 1 / 3),  # quick brown | brown dog, dog jumps: 1 of 3 pairs, and 1 of the answer's 3
        (b"fox", 2 * 1 / (2 + 3)),  # fox jumps of quick fox, fox jumps
        (b"brown brown", 1 / 3),
        (b"brown fox jumps brown fox", 2 * 3 / (6 + 3)),
        (b"", 0.0),
        (b"lazy dogs", 0.0),
        (b"the the the", 0.0),
    ],
)
def test_rouge_2(fill: bytes, expected: float) -> None:
    assert rouge_2(task(b"See, the quick ", b"brown fox", b" jumps high"), fill) == pytest.approx(expected)


def test_rouge_2_of_a_single_word() -> None:
    one = task(b"the quick ", b"fox", b" jumps")
    assert rouge_2(one, b"fox") == 1
    assert rouge_2(one, b"dog") == 0
    assert rouge_2(one, b"red fox") == pytest.approx(2 * 1 / (3 + 2))
    alone = task(b"", b"fox", b"!")
    assert rouge_2(alone, b"Fox") == 1
    assert rouge_2(alone, b"dog") == 0


@pytest.mark.parametrize(
    ("fill", "expected"), [(b"four", 0.0), (b"", 1.0), (b"six six", 0.75), (b"thrice as long", 2.5), (b"one", 0.25)]
)
def test_length_error(fill: bytes, expected: float) -> None:
    assert length_error(fill, b"4444") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("filled", "preserved"),
    [
        (b"ab--ba", True),
        (b"abba", True),
        (b"aba", False),  # one byte cannot be on both sides
        (b"xb--ba", False),
        (b"ab--b", False),
        (b"", False),
    ],
)
def test_context_preserved(filled: bytes, preserved: bool) -> None:
    assert context_preserved(task(b"ab", b"??", b"ba"), filled) is preserved


PLACES = [task(b"place %d: " % number, b"answer %d" % number, b" and so on" * 9) for number in range(4)]
ANSWERS = [place.answer for place in PLACES]


def table(score: Callable[[int, int], float]) -> Callable[[Sequence[bytes], Sequence[bytes]], NDArray[np.float64]]:
    """Nats by the numbers of the fill and of the place, shared among the bytes; 7 for fills without a number."""

    def rate(befores: Sequence[bytes], texts: Sequence[bytes]) -> NDArray[np.float64]:
        values = []
        for before, text in zip(befores, texts, strict=True):
            assert text.endswith((b" and so on" * 9)[:32])
            fill = text[:-32]
            place = int(before.split()[1].rstrip(b":"))
            values.append((score(int(fill.split()[-1]), place) if fill[-1:].isdigit() else 7.0) / len(text))
        return np.array(values)

    return rate


def test_context_gain_of_two_gaps() -> None:
    """s(0,0) = 1, s(1,1) = 2, s(1,0) = 5, s(0,1) = 4: (5 + 4 - 1 - 2) / 2 = 3."""
    scores = {(0, 0): 1.0, (1, 1): 2.0, (1, 0): 5.0, (0, 1): 4.0}
    found = context_gain(table(lambda fill, place: scores[fill, place]), PLACES[:2], ANSWERS[:2], seed=0)
    assert found == pytest.approx((3, 3, 3))


def test_context_gain_of_a_ring() -> None:
    """Each of four gaps meets the next two: pairs 01 12 23 30 and 02 13 20 31, and only 0 suits its place."""

    def score(fill: int, place: int) -> float:
        return 1.0 if fill == place == 0 else 5.0

    found = context_gain(table(score), PLACES, ANSWERS, seed=0)
    assert found.value == pytest.approx((4 * 4 / 2) / 8)
    assert found.low < found.value < found.high


def test_what_is_easy_in_itself_gains_nothing() -> None:
    for ease in (0.0, 3.0):
        found = context_gain(
            table(lambda fill, place, ease=ease: 9 - ease * fill - place - (fill == place)), PLACES, ANSWERS, seed=0
        )
        assert found.value == pytest.approx(1)


def test_context_gain_at_its_floor_and_below() -> None:
    suits = table(lambda fill, place: 2.0 if fill == place else 6.0)
    assert context_gain(suits, PLACES, ANSWERS, seed=0) == pytest.approx((4, 4, 4))
    assert context_gain(suits, PLACES, [b"the same"] * 4, seed=0) == (0, 0, 0)
    moved = [*ANSWERS[1:], ANSWERS[0]]
    assert context_gain(suits, PLACES, moved, seed=0).value < 0


def test_nothing_between_two_ends_of_texts_gains_nothing() -> None:
    """Texts without a byte, which a judge has no figure for, have no nats."""

    def rate(befores: Sequence[bytes], texts: Sequence[bytes]) -> NDArray[np.float64]:
        rates = [0.5 if before.startswith(b"y") else 0.0 for before in befores]
        return np.where([bool(text) for text in texts], rates, np.nan)

    ends = [task(b"x ", b"word", b""), task(b"yes ", b"term", b"")]
    assert context_gain(rate, ends, [b"", b""], seed=0) == (0, 0, 0)
    assert context_gain(rate, ends, [b"four", b""], seed=0).value == pytest.approx((0 + 4 * 0.5 - 0 - 0) / 2)


def test_seam_gain_judges_what_follows_alone() -> None:
    """Each gap's own fill saves as many nats as it is long, and another's none."""

    def rate(befores: Sequence[bytes], texts: Sequence[bytes]) -> NDArray[np.float64]:
        nats = []
        for before, text in zip(befores, texts, strict=True):
            (task,) = [each for each in PLACES if before.startswith(each.before) and each.after.startswith(text)]
            fill = before[len(task.before) :]
            nats.append((20 - len(fill) * (fill == ANSWERS[PLACES.index(task)])) / max(1, len(text)))
        return np.array(nats)

    found = seam_gain(rate, PLACES, ANSWERS, seed=0)
    assert found.value == pytest.approx(np.mean([len(answer) for answer in ANSWERS]))
    assert found.low <= found.value <= found.high
    assert seam_gain(rate, PLACES, [b"the same"] * len(PLACES), seed=0) == (0, 0, 0)


@pytest.mark.parametrize(("fill", "exact"), [(b"river", True), (b" river\n", True), (b"River", False), (b"", False)])
def test_exact(fill: bytes, exact: bool) -> None:
    assert is_exact(fill, b"river") == exact
