"""Every metric of generated text against a case worked out by hand, and its interval against theory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.model_helpers import law
from zonkey_core.evaluation.metrics.bootstrap import bootstrap_sums
from zonkey_core.evaluation.metrics.text_metrics import (
    FEW_TRAINING_BYTES,
    METRICS,
    Gains,
    Remembered,
    TrainingWords,
    Yardstick,
    distinct_ratio,
    length_distance,
    score_texts,
    score_with_interval,
    words,
)


def length_judge(texts: Sequence[bytes]) -> NDArray[np.float64]:
    """A judge whose nats per byte are a text's first digit."""
    return np.array([float(text[:1]) for text in texts])


def yardstick(reference: Sequence[bytes] = (b"some text",), training: Sequence[bytes] = (b"some text",)) -> Yardstick:
    return Yardstick(reference=reference, training=TrainingWords(training), judge=length_judge)


def score(texts: Sequence[bytes], metric: str, **given: Sequence[bytes]) -> float:
    return score_texts(texts, yardstick(**given), [metric])[metric]


def test_words_are_runs_between_spaces_without_marks_at_their_ends() -> None:
    text = "The (well-known) co-op's 3.5 %… — Über,\n日本語。 th\x00ing _x_"
    assert words(text.encode()) == ["the", "well-known", "co-op's", "3.5", "über", "日本語", "th\x00ing", "x"]
    assert words(b"\xff\xfe ok ab\xffcd") == ["ok", "ab\ufffdcd"]


def test_known_words_by_hand() -> None:
    training = [b"The heron flew.", b"A fish swam!"]
    assert score([b"the fish flies", b"HERON"], "known_words", training=training) == 3 / 4
    assert score([b"... --"], "known_words", training=training) == 0
    assert score([b"thefish t h e"], "known_words", training=training) == 0


def test_words_must_occur_twice_where_training_text_is_plenty() -> None:
    filler = b"heron " * (FEW_TRAINING_BYTES // 6 + 1)
    texts = [b"heron fish newt"]
    assert score(texts, "known_words", training=[filler, b"fish newt", b"fish"]) == pytest.approx(2 / 3)
    assert score(texts, "known_words", training=[b"heron fish newt"]) == 1


def test_copied_phrases_by_hand() -> None:
    training = [b"One two three four, five six seven eight nine.", b"ten eleven twelve"]
    copied = [b"one two three four five six seven eight", b"zero two three four five six seven eight nine ten"]
    # the first has one phrase, copied; the second three, of which "two ... nine" is; "... nine ten" crosses documents
    assert score(copied, "copied_8grams", training=training) == pytest.approx(2 / 4)
    assert score([b"two three four five six seven eight"], "copied_8grams", training=training) == 0
    assert score([b"one two three four five six seven eight"], "copied_8grams", training=[b"one two"]) == 0
    assert score(training, "copied_8grams", training=training) == 1


@law
@given(st.lists(st.text("ab ", max_size=60), min_size=1, max_size=3), st.text("ab ", max_size=60))
def test_copied_phrases_are_those_of_a_plain_search(training: list[str], text: str) -> None:
    def phrases(found: Sequence[str]) -> list[tuple[str, ...]]:
        return [tuple(found[start : start + 8]) for start in range(len(found) - 7)]

    known = {phrase for document in training for phrase in phrases(document.split())}
    mask = TrainingWords([document.encode() for document in training]).copied_mask(text.split())
    assert mask.tolist() == [phrase in known for phrase in phrases(text.split())]


def test_divergence_by_hand() -> None:
    # bytes: p = (1, 0), q = (1/2, 1/2); pairs: "aa" against "ab", nothing shared; no pair spans two texts
    assert score([b"aa", b"a"], "jsd_1", reference=[b"ab"]) == pytest.approx(0.311278, abs=1e-6)
    assert score([b"aa", b"a"], "jsd_2", reference=[b"ab"]) == pytest.approx(1)
    assert score([b"ba", b"ab"], "jsd_2", reference=[b"abba", b"ab"]) > 0
    assert score([b"ab", b"ab"], "jsd_2", reference=[b"ab"]) == pytest.approx(0)
    assert score([b"ab"], "jsd_3", reference=[b"abc"]) == 1


def test_distinct_gap_by_hand() -> None:
    # 4 words, 2 of them different, against the first 4 of the reference, all different
    reference = [b"one two three", b"four five one"]
    assert score([b"a b", b"a b"], "distinct_gap_1", reference=reference) == pytest.approx(0.5)
    # 3 pairs, of which "a b" and "b a" differ; the reference's first 3 differ; no pair spans two texts
    assert score([b"a b a b"], "distinct_gap_2", reference=reference) == pytest.approx(1 / 3)
    assert score([b"p q", b"r s"], "distinct_gap_2", reference=reference) == 0
    # 6 words, all different, against a reference of which 5 in 6 are
    assert score([b"a b c d e f"], "distinct_gap_1", reference=reference) == pytest.approx(0.2)
    assert score([b"a b"], "distinct_gap_3", reference=reference) == 1
    assert distinct_ratio([]) == 0


def test_length_distance_by_hand() -> None:
    assert length_distance(np.array([1, 3]), np.array([2, 2])) == pytest.approx(1 / 2)
    assert length_distance(np.array([4, 4, 8]), np.array([8, 4, 4])) == 0
    # shares up to 2: 1 against 1/3, from there to 5: 1 against 2/3; mean 3
    assert length_distance(np.array([1]), np.array([1, 2, 6])) == pytest.approx((1 * 2 / 3 + 4 * 1 / 3) / 3)
    assert score([b"ab"], "length_distance", reference=[b"abcd"]) == pytest.approx(1 / 2)


def test_judgement_by_hand() -> None:
    texts, reference = [b"1---", b"4", b""], [b"2"]
    assert score(texts, "judge_nats_per_byte") == pytest.approx((4 * 1 + 1 * 4) / 5)
    assert score(texts, "judge_gap", reference=reference) == pytest.approx(0.4)
    assert score([b"3"], "judge_gap", reference=reference) == pytest.approx(1)
    assert math.isnan(score([b"", b""], "judge_gap", reference=reference))


def test_frechet_distance_needs_embeddings() -> None:
    with pytest.raises(ValueError, match="embeddings"):
        score([b"one"], "frechet")


def test_nothing_written_is_as_bad_as_can_be() -> None:
    nothing = [b""] * 4
    for metric in METRICS:
        if metric in ("coherence", "frechet") or metric.startswith("judge"):
            continue
        expected = 0 if metric in ("known_words", "copied_8grams") else 1
        assert score(nothing, metric, reference=[b"some real text here"]) == pytest.approx(expected), metric


def test_judge_is_asked_once_for_each_text() -> None:
    asked: list[bytes] = []

    def judge(texts: Sequence[bytes]) -> NDArray[np.float64]:
        asked.extend(texts)
        return np.array([float(len(text)) for text in texts])

    remembered = Remembered(judge)
    assert remembered([b"a", b"bb", b"a"]).tolist() == [1, 2, 1]
    assert remembered([b"bb", b"ccc"]).tolist() == [2, 3]
    assert asked == [b"a", b"bb", b"ccc"]


def test_interval_of_a_mean_agrees_with_the_bootstrap() -> None:
    generator = np.random.default_rng(0)
    texts = [b" ".join(generator.choice([b"known", b"zzz"], 10, p=[0.7, 0.3])) for _ in range(200)]
    found = score_with_interval(texts, yardstick(training=[b"known"]), "known_words", seed=0)
    counts = np.array([[text.count(b"known"), 10] for text in texts], float)
    expected = bootstrap_sums(counts, lambda sums: sums[:, 0] / sums[:, 1], seed=0)
    assert found.value == pytest.approx(expected.value)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.25)


def test_interval_of_a_divergence_holds_its_value_and_shrinks() -> None:
    generator = np.random.default_rng(1)
    reference = [generator.bytes(40) for _ in range(100)]
    widths = []
    for count in (20, 180):
        texts = [bytes(byte >> 1 for byte in generator.bytes(40)) for _ in range(count)]
        found = score_with_interval(texts, yardstick(reference), "jsd_1", seed=0)
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < 0.6 * widths[0]


def test_interval_of_a_gap_reaches_zero_where_its_sign_is_open() -> None:
    texts = [b"1", b"3"] * 20
    none = score_with_interval(texts, yardstick([b"2"]), "judge_gap", seed=0)
    assert none.low == 0 and none.value == 0 and 0 < none.high < 1
    below = score_with_interval(texts, yardstick([b"9"]), "judge_gap", seed=0)
    assert 6 < below.low < below.value == 7 < below.high < 8


def test_intervals_do_not_leave_what_is_possible() -> None:
    texts = [b"known"] * 5 + [b"zzz"]
    found = score_with_interval(texts, yardstick(training=[b"known"]), "known_words", seed=0)
    assert 0 <= found.low <= found.value <= found.high <= 1
    one = score_with_interval(texts[:1], yardstick(training=[b"known"]), "known_words", seed=0)
    assert one == (1, 1, 1)


def test_coherence_is_a_gain_per_byte_of_what_has_two_halves() -> None:
    texts = [b"a", b"b", b"c"]
    found = Gains(np.array([4.0, -1.0, 0.0]), np.array([10.0, 20.0, 0.0]))
    given = Yardstick(reference=texts, training=TrainingWords(texts), judge=length_judge, coherence=lambda _: found)
    figure = METRICS["coherence"].figure(texts, given)
    assert figure(np.arange(3)) == pytest.approx(3 / 30)
    assert figure(np.array([1])) == pytest.approx(-1 / 20)
    assert math.isnan(figure(np.array([2])))
    spread = score_with_interval(texts[:2], given, "coherence", seed=0)
    assert spread.low < 0 < spread.value < spread.high
    with pytest.raises(ValueError, match="judge"):
        METRICS["coherence"].figure(texts, yardstick())
