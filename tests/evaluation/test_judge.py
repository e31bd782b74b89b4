"""The judge: what it learns from, what it prefers, and its own figure."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.context_helpers import small_context
from zonkey_core.data import SourceSpec
from zonkey_core.evaluation.baselines import judge as judge_module
from zonkey_core.evaluation.baselines.byte_model import ByteModel, ByteModelShape, byte_losses
from zonkey_core.evaluation.baselines.judge import Judge, get_judge, measure_judge
from zonkey_core.evaluation.context import EvaluationContext, EvaluationOptions
from zonkey_core.evaluation.texts import EvaluationTexts, load_texts, passages

SMALL = ByteModelShape(width=64, layers=1, heads=2, window=64, ngram_rows=4096)


@pytest.fixture(scope="module")
def texts() -> EvaluationTexts:
    return load_texts(SourceSpec(sources=("sample",)), None, limit=10_000, training_bytes=200_000, seed=0)


@pytest.fixture(scope="module")
def judged(texts: EvaluationTexts, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationContext, Judge]:
    """A judge that has learned for a few seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_module, "SHAPE", SMALL)
        context = small_context(
            tmp_path_factory.mktemp("judge"), texts=texts, options=EvaluationOptions(limit=10_000)
        )
        return context, get_judge(context)


def shuffled(text: bytes, *, words: bool) -> bytes:
    parts = text.split(b" ") if words else [bytes([byte]) for byte in text]
    random.Random(0).shuffle(parts)
    return (b" " if words else b"").join(parts)


def test_real_text_is_likelier_than_shuffled_words_and_bytes(
    texts: EvaluationTexts, judged: tuple[EvaluationContext, Judge]
) -> None:
    real = passages(texts.reference, 500)
    ratings = [
        judged[1].nats_per_byte(each).mean()
        for each in (
            real,
            [shuffled(text, words=True) for text in real],
            [shuffled(text, words=False) for text in real],
            [bytes(random.Random(index).randbytes(500)) for index in range(20)],
        )
    ]
    assert ratings == sorted(ratings)
    assert ratings[1] > ratings[0] + 0.03
    assert ratings[2] > ratings[0] + 1
    assert ratings[3] > 4.5


def test_ratings_are_means_of_the_bytes_losses(judged: tuple[EvaluationContext, Judge]) -> None:
    judge = judged[1]
    some = [b"A town in the north.", b"It is."]
    expected = [losses.mean() for losses in byte_losses(judge.model, some)]
    assert judge.nats_per_byte(some) == pytest.approx(np.array(expected))
    assert np.isnan(judge.nats_per_byte([b"", b"a"])).tolist() == [True, False]


def test_what_stands_before_a_text_counts(judged: tuple[EvaluationContext, Judge]) -> None:
    judge = judged[1]
    fitting, foreign = judge.conditional_nats([b"He was bor", b"He was zzz"], [b"n in"] * 2)
    assert fitting < foreign
    whole = judge.nats_per_byte([b"He was born in"]) * 14
    parts = judge.nats_per_byte([b"He was bor"]) * 10 + judge.conditional_nats([b"He was bor"], [b"n in"]) * 4
    assert whole == pytest.approx(parts, abs=0.3)


def test_own_figure(judged: tuple[EvaluationContext, Judge], texts: EvaluationTexts) -> None:
    context, judge = judged
    measure = measure_judge(context, judge)
    assert measure.name == "generate.judge_itself.nats_per_byte"
    assert measure.value == pytest.approx(np.concatenate(byte_losses(judge.model, texts.reference)).mean(), abs=0.01)
    assert measure.floor is not None and measure.low is not None and measure.high is not None
    assert measure.low <= measure.value <= measure.high < measure.floor
    assert measure.n == len(texts.reference)


def test_own_figure_by_hand(tmp_path: Path) -> None:
    """A model that takes `a` and `b` for equally likely, and a floor that has seen three `a` and one `b`."""
    model = ByteModel(SMALL).eval().requires_grad_(False)
    model.norm.weight.zero_()
    model.output_bias.fill_(-200.0)
    model.output_bias[[ord("a"), ord("b")]] = 0.0
    texts = EvaluationTexts(reference=[b"ab", b"", b"aaba"], judging=[b"aa", b"ab"], training=[b"x"])
    measure = measure_judge(small_context(tmp_path, texts=texts), Judge(model, lambda share: None))
    assert measure.value == pytest.approx(math.log(2))
    assert measure.floor == pytest.approx(-(4 * math.log(4 / 260) + 2 * math.log(2 / 260)) / 6)
    assert measure.n == 2


@pytest.fixture
def trained_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The arguments of every training, which does nothing else."""
    calls: list[tuple[Any, dict[str, Any]]] = []

    def fit(documents: Any, **arguments: Any) -> ByteModel:
        calls.append((documents, arguments))
        return ByteModel(SMALL)

    monkeypatch.setattr(judge_module, "fit_byte_model", fit)
    return calls


def test_it_learns_from_its_own_documents_once(tmp_path: Path, trained_with: list[tuple[Any, dict[str, Any]]]) -> None:
    context = small_context(tmp_path, options=EvaluationOptions(limit=300, seed=7))
    first, second = get_judge(context), get_judge(context)
    assert len(trained_with) == 1
    documents, arguments = trained_with[0]
    assert documents == context.texts.judging
    assert (arguments["read_bytes"], arguments["seed"]) == (4500, 7)
    assert first.nats_per_byte([b"text"]) == second.nats_per_byte([b"text"])
    get_judge(small_context(tmp_path, options=EvaluationOptions(limit=300, seed=8)))
    assert len(trained_with) == 2


def test_it_does_not_read_its_documents_too_often(
    tmp_path: Path, trained_with: list[tuple[Any, dict[str, Any]]]
) -> None:
    context = small_context(tmp_path, options=EvaluationOptions(limit=1_000_000))
    get_judge(context)
    assert trained_with[0][1]["read_bytes"] == 5 * sum(map(len, context.texts.judging))


def test_progress_is_told(texts: EvaluationTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float | None]] = []
    monkeypatch.setattr(judge_module, "SHAPE", SMALL)
    options = EvaluationOptions(limit=300)
    context = small_context(tmp_path, texts=texts, options=options, report=lambda *progress: told.append(progress))
    get_judge(context).nats_per_byte([b"text"])
    assert ("training the judge", 1.0) in told and told[-1] == ("judging", 1.0)
