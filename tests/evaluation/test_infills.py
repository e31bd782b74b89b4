"""Filled gaps are compared as they should be: true answers win, and every deliberately bad filler is caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.evaluation.context_helpers import small_context
from zonkey_core.data import SourceSpec
from zonkey_core.evaluation.baselines.judge import get_judge
from zonkey_core.evaluation.context import EvaluationContext, EvaluationOptions
from zonkey_core.evaluation.metrics.infilling_metrics import GapTask, choose_gaps, context_gain, words_of
from zonkey_core.evaluation.results import LeftOut, Measure
from zonkey_core.evaluation.tasks import infills
from zonkey_core.evaluation.tasks.infills import (
    CONSTANT_WORDS,
    GAP_WORDS,
    METRICS,
    NGRAM_BYTES,
    measure_infilling,
    previous_sentence,
    trivial_fillers,
)
from zonkey_core.evaluation.texts import EvaluationTexts, load_texts
from zonkey_core.inference.gap_windows import Gap, GappedDocument
from zonkey_core.inference.infilling import Candidate, Fill

TRIVIAL = {"nothing", "previous_sentence", "constant", "ngram"}
FIGURES = {"context_preserved", f"exact_in_{infills.CANDIDATES}", *METRICS}


@pytest.fixture(scope="module")
def texts() -> EvaluationTexts:
    return load_texts(SourceSpec(sources=("sample",)), None, limit=60_000, training_bytes=60_000, seed=0)


class Reader:
    """A judge that knows the text by heart: every run of bytes that does not stand there costs a nat."""

    def __init__(self, documents: Sequence[bytes], length: int = 5) -> None:
        self.length = length
        self.known = {text[place : place + length] for text in documents for place in range(len(text))}

    def conditional_nats(self, befores: Sequence[bytes], texts: Sequence[bytes]) -> NDArray[np.float64]:
        return np.array([self.nats(before, text) / len(text) for before, text in zip(befores, texts, strict=True)])

    def nats(self, before: bytes, text: bytes) -> float:
        read = before[-self.length + 1 :] + text
        places = range(len(read) - self.length + 1)
        return float(sum(read[place : place + self.length] not in self.known for place in places))


def context_of(folder: Path, texts: EvaluationTexts, **changes: Any) -> EvaluationContext:
    return small_context(folder, texts=texts, options=EvaluationOptions(limit=75_000), **changes)


def fill_with(monkeypatch: pytest.MonkeyPatch, filler: Callable[[GappedDocument], bytes]) -> None:
    """Let the model fill gaps so."""

    def fill(
        model: object, documents: Sequence[GappedDocument], *, options: object
    ) -> Iterator[tuple[int, list[Fill | None]]]:
        for number, document in enumerate(documents):
            text, (gap,) = filler(document), document.gaps
            yield number, [Fill(gap.start, gap.end, text, 0.0, (Candidate(text, 0.0, 0.0),))]

    monkeypatch.setattr(infills, "infill_documents", fill)


def measured(
    context: EvaluationContext, monkeypatch: pytest.MonkeyPatch, filler: Callable[[GapTask], bytes]
) -> dict[str, Measure]:
    """All figures of a model that fills gaps so."""
    tasks = {
        task.text: task
        for words in GAP_WORDS
        for task in choose_gaps(context.texts.reference, words, context.options.gaps, context.options.seed)
    }

    fill_with(monkeypatch, lambda document: filler(tasks[document.data]))
    monkeypatch.setattr(infills, "get_judge", lambda context: Reader(context.texts.reference))
    outcomes = list(measure_infilling(context))
    assert all(isinstance(outcome, Measure) for outcome in outcomes)
    return {outcome.name: outcome for outcome in outcomes if isinstance(outcome, Measure)}


def beats(figure: Measure, than: float) -> bool:
    return figure.value > than if figure.better == "higher" else figure.value < than


def test_true_answers_reach_every_ceiling_and_beat_every_floor(
    tmp_path: Path, texts: EvaluationTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(context_of(tmp_path, texts), monkeypatch, lambda task: task.answer)
    assert set(found) == {f"infill.{words}.{metric}" for words in GAP_WORDS for metric in FIGURES}
    for name, figure in found.items():
        assert figure.value == figure.ceiling, name
        assert figure.floor is not None and figure.low is not None and figure.high is not None
        assert figure.low <= figure.value <= figure.high
        if not name.endswith("word_count"):  # the n-gram model and the constant may write as many words
            assert beats(figure, figure.floor), f"{name}: {figure.value} against a floor of {figure.floor}"
        assert figure.n == 15 and figure.seconds >= 0
        if not name.endswith(("context_preserved", f"exact_in_{infills.CANDIDATES}")):
            assert set(figure.rivals) == TRIVIAL
            assert figure.floor == (max if figure.better == "higher" else min)(figure.rivals.values())
    for words in GAP_WORDS:
        assert [found[f"infill.{words}.{metric}"].value for metric in ("edit_similarity", "rouge_2")] == [1, 1]
        assert found[f"infill.{words}.length_error"].value == found[f"infill.{words}.length_median"].value == 0
        assert found[f"infill.{words}.exact"].value == found[f"infill.{words}.word_count"].value == 1


@pytest.mark.parametrize(
    ("filler", "caught_by"),
    [
        (lambda task: b"", {"edit_similarity", "rouge_2", "length_error", "context_gain", "seam_gain", "exact"}),
        (lambda task: b"of the most", {"context_gain", "seam_gain"}),
        (lambda task: task.before[-300:], {"edit_similarity", "length_error"}),
        (lambda task: task.after, {"edit_similarity", "length_error"}),
        (lambda task: b"the " * 40, {"edit_similarity", "length_error", "context_gain"}),
        (lambda task: words_of(task.before)[-1].encode(), {"rouge_2"}),
        (lambda task: task.answer[::-1], {"rouge_2"}),
    ],
)
def test_bad_fillers_are_caught(
    tmp_path: Path,
    texts: EvaluationTexts,
    monkeypatch: pytest.MonkeyPatch,
    filler: Callable[[GapTask], bytes],
    caught_by: set[str],
) -> None:
    found = measured(context_of(tmp_path, texts), monkeypatch, filler)
    for words in GAP_WORDS:
        figures = {metric: found[f"infill.{words}.{metric}"] for metric in METRICS}
        caught = {metric for metric, each in figures.items() if each.floor is not None and not beats(each, each.floor)}
        assert caught_by <= caught, words


def test_context_that_is_changed_is_noticed(
    tmp_path: Path, texts: EvaluationTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tmp_path, texts)
    monkeypatch.setattr(infills, "get_judge", lambda context: Reader(context.texts.reference))


    def spoil(
        model: object, documents: Sequence[GappedDocument], *, options: object
    ) -> Iterator[tuple[int, list[Fill | None]]]:
        for number, document in enumerate(documents):
            gap = document.gaps[0]
            yield number, [Fill(gap.start - document.seed % 3, gap.end, b"x", 0.0)]

    monkeypatch.setattr(infills, "infill_documents", spoil)
    figures = {each.name: each for each in measure_infilling(context) if isinstance(each, Measure)}
    assert [figures[f"infill.{words}.context_preserved"].value for words in GAP_WORDS] == pytest.approx([1 / 3] * 3)


class Scribe:
    """A rival that knows the answers, and says so."""

    name = "scribe_true_answer"
    identity = "1"
    asked = 0

    def infill(self, text: bytes, gaps: Sequence[Gap], answers: Sequence[bytes], seed: int) -> list[bytes]:
        self.asked += 1
        return list(answers)


def test_contestants_fill_the_same_gaps(
    tmp_path: Path, texts: EvaluationTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    scribe = Scribe()
    context = context_of(tmp_path, texts, contestants=[scribe])
    found = measured(context, monkeypatch, lambda task: b"")
    for words in GAP_WORDS:
        for metric in METRICS:
            figure = found[f"infill.{words}.{metric}"]
            assert figure.rivals["scribe_true_answer"] == figure.ceiling
            assert figure.floor in {figure.rivals[name] for name in TRIVIAL}, "a contestant is no floor"
    assert scribe.asked == 3 * context.options.gaps


def test_filling_goes_on_where_it_was_stopped(
    tmp_path: Path, texts: EvaluationTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, float | None]] = []
    context = small_context(
        tmp_path, texts=texts, options=EvaluationOptions(limit=150_000), report=lambda *what: said.append(what)
    )
    first, asked = measured(context, monkeypatch, lambda task: task.answer[:4]), []

    def count(task: GapTask) -> bytes:
        asked.append(task)
        if len(asked) > 25:
            raise KeyboardInterrupt
        return task.answer[:4]

    assert [share for what, share in said if what == "filling gaps of 3 words"][-1] == 1
    again = measured(context, monkeypatch, lambda task: pytest.fail("filled twice"))
    assert {name: figure.value for name, figure in again.items()} == {name: each.value for name, each in first.items()}
    context.store.clear()
    with pytest.raises(KeyboardInterrupt):
        measured(context, monkeypatch, count)
    done = set(asked[:20])
    measured(context, monkeypatch, lambda task: pytest.fail("filled twice") if task in done else task.answer[:4])


def test_text_without_such_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"Three words here.\nFour words are here.\nAnd so on."] * 3
    context = small_context(tmp_path, texts=EvaluationTexts(reference=lines, judging=lines, training=lines))
    fill_with(monkeypatch, lambda document: b"a")
    monkeypatch.setattr(infills, "get_judge", lambda context: Reader(context.texts.reference))
    outcomes = list(measure_infilling(context))
    left_out = [outcome for outcome in outcomes if isinstance(outcome, LeftOut)]
    assert [outcome.name for outcome in left_out] == ["infill.8"]
    assert "8 words" in left_out[0].reason
    assert len(outcomes) == 1 + 2 * len(FIGURES)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (b"One is here. Two is there! And then", b"Two is there!"),
        (b"One is here. And then", b"One is here."),
        (b"One is here. Two.\n\n", b"Two."),
        (b"  Nothing ends yet ", b"Nothing ends yet"),
        (b"", b""),
    ],
)
def test_previous_sentence(before: bytes, expected: bytes) -> None:
    assert previous_sentence(before) == expected


def test_trivial_fillers(texts: EvaluationTexts) -> None:
    fillers = trivial_fillers([b"A part of the sea, and part of the ship: part of the plan." * 3, *texts.training[:3]])
    assert set(fillers) == TRIVIAL
    tasks = choose_gaps(texts.reference, 3, 12, seed=0)
    assert {fillers["constant"](task, 0) for task in tasks} == {b"part of the"}
    written = [fillers["ngram"](task, seed) for seed, task in enumerate(tasks)]
    assert written == [fillers["ngram"](task, seed) for seed, task in enumerate(tasks)]
    lengths = {len(words_of(text)) for text in written if len(text) < NGRAM_BYTES}
    assert max(lengths) <= max(GAP_WORDS) and len(lengths & set(GAP_WORDS)) > 1
    assert fillers["nothing"](tasks[0], 0) == b""
    assert fillers["previous_sentence"](tasks[0], 0) in tasks[0].before
    assert len(words_of(trivial_fillers([b"--"])["constant"](tasks[0], 0))) < CONSTANT_WORDS


def test_an_untrained_model_is_caught(
    tmp_path: Path, texts: EvaluationTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infills, "get_judge", lambda context: Reader(context.texts.reference))
    monkeypatch.setattr(infills, "GAP_WORDS", (3,))
    context = small_context(tmp_path, levels=1, texts=texts)
    figures = {each.name: each for each in measure_infilling(context) if isinstance(each, Measure)}
    assert figures["infill.3.context_preserved"].value == 1
    rouge = figures["infill.3.rouge_2"]
    assert rouge.floor is not None and not beats(rouge, rouge.floor)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_real_words_suit_their_context_better_than_any_floor(tmp_path: Path) -> None:
    """Under the judge as it is, trained on little text."""
    texts = load_texts(SourceSpec(sources=("sample",)), None, limit=60_000, training_bytes=200_000, seed=0)
    judge = get_judge(small_context(tmp_path, texts=texts, options=EvaluationOptions(limit=60_000)))
    for words in GAP_WORDS:
        tasks = choose_gaps(texts.reference, words, 80, seed=0)
        real = context_gain(judge.conditional_nats, tasks, [task.answer for task in tasks], seed=0)
        assert real.low > 0
        for name, filler in trivial_fillers(texts.training).items():
            fills = [filler(task, seed) for seed, task in enumerate(tasks)]
            assert context_gain(judge.conditional_nats, tasks, fills, seed=0).value < real.value, (words, name)
