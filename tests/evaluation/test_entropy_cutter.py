"""Entropy cutters: their rules by hand, their thresholds, and that they find words which a model knows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from zonkey_core.evaluation.baselines import entropy_cutter
from zonkey_core.evaluation.baselines.byte_model import ByteModel, ByteModelShape, next_byte_entropies
from zonkey_core.evaluation.baselines.byte_training import fit_byte_model
from zonkey_core.evaluation.baselines.entropy_cutter import (
    GLOBAL,
    MONOTONE,
    EntropyCutter,
    EntropyReader,
    entropy_cutters,
)

SHAPE = ByteModelShape(width=32, layers=1, heads=2, window=64, ngram_rows=1024)
WORDS = (b"alpha", b"bravo", b"charlie", b"delta", b"foxtrot", b"golf", b"hotel", b"mike", b"oscar", b"quebec")


class Given(EntropyReader):
    """Entropies that a test gives, one after another, for every text."""

    def __init__(self, entropies: list[float]) -> None:
        super().__init__(ByteModel(SHAPE))
        self.entropies = np.array(entropies, dtype=np.float32)

    def read(self, text: bytes) -> NDArray[np.float32]:
        return self.entropies[: len(text)]


def test_rules_by_hand() -> None:
    reader = Given([5, 1, 3, 2, 2, 4])
    assert EntropyCutter(GLOBAL, reader, 2.5).cut(b"abcdef").tolist() == [0, 2, 5]
    assert EntropyCutter(GLOBAL, reader, 1.5).cut(b"abcdef").tolist() == [0, 2, 3, 4, 5]
    assert EntropyCutter(GLOBAL, reader, 9).cut(b"abcdef").tolist() == [0]
    assert EntropyCutter(MONOTONE, reader, 1.5).cut(b"abcdef").tolist() == [0, 2, 5]
    assert EntropyCutter(MONOTONE, reader, -0.5).cut(b"abcdef").tolist() == [0, 2, 4, 5]
    assert EntropyCutter(MONOTONE, reader, -1.5).cut(b"abcdef").tolist() == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("name", [GLOBAL, MONOTONE])
def test_an_empty_text_has_no_segments(name: str) -> None:
    cutter = EntropyCutter(name, EntropyReader(ByteModel(SHAPE)), 0.0)
    assert cutter.cut(b"").tolist() == []
    assert cutter.cut(b"").dtype == cutter.cut(b"a").dtype == np.int64
    assert cutter.cut(b"a").tolist() == [0]


@pytest.mark.parametrize("name", [GLOBAL, MONOTONE])
@pytest.mark.parametrize("bytes_per_segment", [1.0, 2.0, 3.7, 10.0, 100.0, 800.0])
def test_thresholds_give_the_rate_that_is_asked_for(name: str, bytes_per_segment: float) -> None:
    reader = Given(np.random.default_rng(0).random(800).tolist())
    texts = [b"x" * 800, b""]
    cutter = EntropyCutter(name, reader).with_rate(texts, bytes_per_segment)
    cuts = sum(len(cutter.cut(text)) for text in texts)
    assert cuts == round(800 / bytes_per_segment)


@pytest.mark.parametrize("name", [GLOBAL, MONOTONE])
def test_no_cut_inside_a_code_point(name: str) -> None:
    text = "née 日本語 🙂!".encode() + b"\x80\x80"
    starts = [0, 1, 3, 4, 5, 8, 11, 14, 15, 19, 20, 21]
    reader = Given([*range(len(text))])
    assert EntropyCutter(name, reader, -1.0).cut(text).tolist() == starts
    cutter = EntropyCutter(name, reader).with_rate([text], 1.0)  # more than there are
    assert set(cutter.cut(text).tolist()) <= set(starts)


def test_entropies_are_the_models_and_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ByteModel(SHAPE).eval().requires_grad_(False)
    asked: list[bytes] = []

    def counted(model: ByteModel, texts: list[bytes]) -> list[NDArray[np.float64]]:
        asked.extend(texts)
        return next_byte_entropies(model, texts)

    monkeypatch.setattr(entropy_cutter, "next_byte_entropies", counted)
    texts = [b"one text", b"another text"]
    for cutter in entropy_cutters(model, texts, bytes_per_segment=3):
        assert [len(cutter.cut(text)) for text in texts]
    assert asked == texts
    reader = EntropyReader(model)
    assert reader.read(texts[0]) == pytest.approx(next_byte_entropies(model, texts[:1])[0])


def test_words_are_found_where_the_next_byte_is_hard_to_foresee() -> None:
    """Words in any order: what follows a whole word is open, and within one nothing is."""
    generator = np.random.default_rng(0)

    def text_and_starts(count: int) -> tuple[bytes, set[int]]:
        chosen = [WORDS[index] for index in generator.integers(len(WORDS), size=count)]
        return b"".join(chosen), set(np.cumsum([0, *map(len, chosen[:-1])]).tolist())

    training, known = text_and_starts(400)
    model = fit_byte_model([training], read_bytes=120_000, seed=0, shape=SHAPE, report=lambda share: None)
    text, starts = text_and_starts(100)
    cutters = entropy_cutters(model, [training], bytes_per_segment=len(training) / len(known))
    assert [cutter.name for cutter in cutters] == [GLOBAL, MONOTONE]
    for cutter in cutters:
        found = set(cutter.cut(text).tolist())
        assert len(found & starts) > 0.85 * max(len(found), len(starts))
