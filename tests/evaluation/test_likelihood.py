"""Bits a byte: what is measured of whom, and that passages stand where they are to stand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.context_helpers import small_context
from tests.model_helpers import small_model
from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.evaluation.metrics.ngrams import HIGHEST_ORDER, ByteNgramModel
from zonkey_core.evaluation.results import LeftOut, Measure, Outcome, as_json
from zonkey_core.evaluation.tasks import likelihood
from zonkey_core.evaluation.tasks.likelihood import find_passages, measure_likelihood
from zonkey_core.evaluation.texts import EvaluationTexts
from zonkey_core.inference.context_scoring import Reading
from zonkey_core.inference.scoring import Question, log_likelihoods

WORDS = ["the", "heron", "stood", "naïve", "as", "über", "die", "Brücke", "kam", "niemand", "日本語", "was", "sign"]


def document(size: int, seed: int) -> bytes:
    """Words at random, of about so many bytes."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, size // 5)).encode()


class Guesser:
    """A contestant that thinks every byte equally likely, or does not say."""

    identity = "1"

    def __init__(self, name: str, nats: float | None) -> None:
        self.name = name
        self._nats = nats

    def nats(self, texts: Sequence[bytes]) -> list[float] | None:
        return None if self._nats is None else [self._nats * len(text) for text in texts]

    def generate(self, count: int, max_bytes: int, seed: int) -> list[bytes]:
        raise AssertionError

    def infill(self, *given: object) -> list[bytes]:
        raise AssertionError

    def train_step(self) -> int:
        raise AssertionError


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents, passages and what stands before them of a few bytes."""
    for name, size in (("DOCUMENT_BYTES", 90), ("BEFORE_BYTES", 80), ("PASSAGE_BYTES", 30), ("LEAST_BEFORE", 20)):
        monkeypatch.setattr(likelihood, name, size)


def evaluation(folder: Path, *, levels: int = 2, size: int = 150) -> EvaluationContext:
    reference = [document(size, seed) for seed in range(5)]
    texts = EvaluationTexts(reference=reference, judging=[b"judged"], training=[document(2_000, 7)])
    contestants = [Guesser("even", math.log(256)), Guesser("silent", None)]
    return small_context(folder, levels=levels, texts=texts, contestants=contestants)


def measured(context: EvaluationContext) -> dict[str, Outcome]:
    found = list(measure_likelihood(context))
    json.dumps(as_json(found), allow_nan=False)
    return {outcome.name.removeprefix("likelihood."): outcome for outcome in found}


@pytest.mark.usefixtures("short")
def test_bits_are_those_of_the_beginnings_beside_n_grams_and_contestants(tmp_path: Path) -> None:
    context = evaluation(tmp_path)
    found = measured(context)["bits_per_byte"]
    texts = [text[:90] for text in context.texts.reference]
    texts = [text.decode(errors="ignore").encode() for text in texts]
    total, size = sum(
        each.total for each in log_likelihoods(context.model, [Question(text, [(0, len(text))]) for text in texts])
    ), sum(map(len, texts))
    assert isinstance(found, Measure) and found.low is not None and found.high is not None
    assert found.value == pytest.approx(-total / size / math.log(2), rel=1e-5)
    assert found.low <= found.value <= found.high and found.n == 5 and found.better == "lower"
    assert found.rivals == pytest.approx({"even": 8})
    nats = ByteNgramModel(HIGHEST_ORDER).fit(context.texts.training).nats(texts)
    assert found.floor == pytest.approx(sum(each.sum() for each in nats) / size / math.log(2))
    silent = measured(context)["bits_per_byte.silent"]
    assert isinstance(silent, LeftOut) and "bound" in silent.reason


@pytest.mark.usefixtures("short")
def test_gains_are_shares_of_the_bits_without(tmp_path: Path) -> None:
    found = measured(evaluation(tmp_path))
    values = {name: outcome.value for name, outcome in found.items() if isinstance(outcome, Measure)}
    bits = {reading: values[f"passage.{reading.value}"] for reading in Reading}
    assert len(set(bits.values())) == 4
    assert values["gain.latents"] == pytest.approx(1 - bits[Reading.LATENTS] / bits[Reading.NOTHING])
    assert values["gain.slots"] == pytest.approx(1 - bits[Reading.SLOTS] / bits[Reading.NOTHING])
    assert values["gain.latents_beside_slots"] == pytest.approx(1 - bits[Reading.BOTH] / bits[Reading.SLOTS])
    gain = found["gain.latents"]
    assert isinstance(gain, Measure) and gain.low is not None and gain.high is not None
    assert gain.floor == 0 and gain.low <= gain.value <= gain.high


@pytest.mark.usefixtures("short")
def test_without_a_level_above_there_are_no_latents(tmp_path: Path) -> None:
    found = measured(evaluation(tmp_path, levels=1))
    assert isinstance(found["passage.latents"], LeftOut) and isinstance(found["passage.both"], LeftOut)
    assert isinstance(found["gain.slots"], Measure) and "gain.latents" not in found


def test_without_long_documents_there_are_no_passages(tmp_path: Path) -> None:
    found = measured(evaluation(tmp_path))
    assert isinstance(found["bits_per_byte"], Measure)
    assert isinstance(found["gain"], LeftOut) and "2560 bytes" in found["gain"].reason


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("levels", [1, 2])
def test_passages_stand_behind_text_of_their_documents(levels: int) -> None:
    documents = [document(size, size) for size in (40, 150, 400)]
    model = small_model(levels).eval().requires_grad_(False)
    found = find_passages(model, documents, 6, lambda what, share: None)
    numbers = [number for number, _ in found]
    assert len(numbers) == 6 and set(numbers) == {1, 2}
    if levels == 1:  # where the model cuts, some places are left out
        assert numbers[:4] == [1, 2, 1, 2]
    for number, passage in found:
        whole = documents[number]
        assert passage.before + passage.text in whole
        assert passage.begins == whole.startswith(passage.before + passage.text)
        assert 20 <= len(passage.before) <= 83 and 26 <= len(passage.text) <= 30
        (passage.before + passage.text).decode()
    assert find_passages(model, documents, 2, lambda what, share: None) == found[:2]
