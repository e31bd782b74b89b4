"""Ways to cut a text: offsets are exact, the model's are those of its use, and rates are the ones asked for."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import TEXT, few, law, small_model
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.evaluation.baselines import cutters
from zonkey_core.evaluation.baselines.cutters import (
    ModelCutter,
    RandomCutter,
    RuleCutter,
    StartProbs,
    TokenizerCutter,
    TokenizerFailure,
    cut_texts,
    fit_tokenizer,
    fit_tokenizers,
)
from zonkey_core.evaluation.store import Store
from zonkey_core.inference.cutting_levels import cutting_levels
from zonkey_core.inference.segmentation import segment_stream

LONG = (TEXT * 8).encode()
any_text = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"", b"\0", b"a\0b", "a▁b ▁".encode(), b"  two\t\n\r\nspaces  ", b"\xe2\x96", b"<0x41><s><unk>"]),
)


@pytest.fixture(scope="module")
def documents() -> list[bytes]:
    return list(itertools.islice(open_stream(SourceSpec(sources=("sample",)), seed=0, shuffle_documents=1), 60))


@pytest.fixture(scope="module")
def tokenizers(documents: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenizerCutter]:
    found = fit_tokenizers(
        documents, sizes=(1000,), store=Store(tmp_path_factory.mktemp("store")), identity="", report=lambda *_: None
    )
    assert not found.failed
    return found.fitted


@pytest.mark.parametrize("level", [0, 1])
def test_the_model_cuts_as_it_does_in_use(level: int) -> None:
    model = small_model(seed=3)
    used = [each.start for found in segment_stream(cutting_levels(model), [LONG], level=level) for each in found]
    assert len(used) > 20
    assert ModelCutter(model, level=level).cut(LONG).tolist() == used


@few
@given(text=any_text, level=st.sampled_from([0, 1]), threshold=st.floats(0, 1))
def test_any_text_is_cut_from_its_first_byte_and_nowhere_twice(text: bytes, level: int, threshold: float) -> None:
    cuts = ModelCutter(small_model(seed=3), level=level, threshold=threshold).cut(text).tolist()
    assert cuts[:1] == [0][: len(text)]
    assert cuts == sorted(set(cuts)) and all(0 <= cut < len(text) for cut in cuts)


def test_cuts_are_where_the_probability_is_above_the_threshold_by_hand() -> None:
    cutter = ModelCutter(small_model())  # its window is 8
    found = StartProbs(np.arange(6), np.array([1.0, 0.2, 0.6, 0.0, 0.4, 0.9]))
    assert cutter.cut_at(found, 0.5).tolist() == [0, 2, 5]
    assert cutter.cut_at(found, 0.3).tolist() == [0, 2, 4, 5]
    assert cutter.cut_at(found, 1.0).tolist() == [0]
    probs = np.full(20, 0.1)
    probs[[8, 16]] = 0.0  # no cut is allowed here, so one is forced a place before
    assert cutter.cut_at(StartProbs(np.arange(0, 40, 2), probs), 0.5).tolist() == [0, 14, 30]


@pytest.mark.parametrize("wanted", [2.0, 3.5, 6.0])
def test_a_threshold_is_found_for_the_bytes_per_segment_asked_for(wanted: float) -> None:
    cutter = ModelCutter(small_model(seed=3), name="own").with_rate([LONG[:700], LONG[700:]], wanted)
    mean = len(LONG) / sum(len(cutter.cut(text)) for text in (LONG[:700], LONG[700:]))
    assert wanted * 0.97 <= mean <= wanted
    assert cutter.name == "own"


def test_a_rate_that_no_threshold_gives_takes_all_the_cuts_there_are() -> None:
    text = "日本語".encode() * 30
    cutter = ModelCutter(small_model(seed=3)).with_rate([text], 1.0)
    assert cutter.cut(text).tolist() == list(range(0, len(text), 3))


@law
@given(text=any_text)
def test_pieces_of_a_tokenizer_spell_the_text(tokenizers: dict[str, TokenizerCutter], text: bytes) -> None:
    for cutter in tokenizers.values():
        cuts = cutter.cut(text).tolist()
        assert cuts[:1] == [0][: len(text)]
        assert cuts == sorted(set(cuts)) and all(0 <= cut < len(text) for cut in cuts)


def test_tokenizers_cut_at_the_pieces_that_they_learned(tokenizers: dict[str, TokenizerCutter]) -> None:
    """A word that they know is one piece with the space before it, and signs that they do not know are bytes."""
    assert list(tokenizers) == ["bpe_1k", "unigram_1k"]
    for name, cutter in tokenizers.items():
        assert cutter.name == name
        assert cutter.cut(b"and the of the and").tolist()[-4:] == [3, 7, 10, 14]
        assert cutter.cut("the 龘 the".encode()).tolist()[-5:] == [3, 4, 5, 6, 7]


def test_tokenizers_are_kept_and_found_again(documents: list[bytes], tmp_path: Path) -> None:
    store, said = Store(tmp_path), []
    first = fit_tokenizer("bpe", 1000, documents, store=store, identity="x", report=said.append)
    assert said
    again = fit_tokenizer("bpe", 1000, [b"unread"], store=store, identity="x", report=lambda _: pytest.fail("trained"))
    assert first.cut(LONG).tolist() == again.cut(LONG).tolist()
    with pytest.raises(TokenizerFailure):
        fit_tokenizer("bpe", 1000, [b"unread"], store=store, identity="y", report=said.append)


def test_tokenizers_learn_from_text_that_sentencepiece_alone_would_not_take(
    documents: list[bytes], tmp_path: Path
) -> None:
    odd = [document.replace(b" the ", b" \xff\0the ") + b"\0" for document in documents]
    cutter = fit_tokenizer("bpe", 1000, odd, store=Store(tmp_path), identity="", report=lambda _: None)
    assert cutter.cut(b"of\0\xff and").tolist()[-3:] == [2, 3, 4]


def test_too_many_pieces_for_a_text_are_no_error_for_the_others(documents: list[bytes], tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = fit_tokenizers(
        documents[:20], kinds=("bpe",), sizes=(1000, 300_000), store=store, identity="", report=lambda *_: None
    )
    assert list(found.fitted) == ["bpe_1k"]
    assert "too high" in found.failed["bpe_300k"]


def test_random_cuts_have_the_rate_asked_for_and_are_the_same_again() -> None:
    text = ("aé" * 20_000).encode()
    cuts = RandomCutter(0.2, seed=1).cut(text)
    assert 0.19 < len(cuts) / 40_000 < 0.21 and cuts[0] == 0
    assert set((cuts % 3).tolist()) == {0, 1}  # never inside é
    assert RandomCutter(0.2, seed=1).cut(text).tolist() == cuts.tolist() != RandomCutter(0.2, seed=2).cut(text).tolist()
    assert RandomCutter(0.0, seed=1).cut(b"abc").tolist() == [0]
    assert RandomCutter(0.5, seed=1).cut(b"").tolist() == []


def test_the_rule_cuts_behind_full_stops() -> None:
    assert RuleCutter().cut(b"Is it 3.5? Yes!! It\nis. ").tolist() == [0, 11, 17]
    assert RuleCutter().cut(b"").tolist() == []


@pytest.mark.parametrize("level", [0, 1])
def test_texts_are_cut_together_as_each_alone(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutters, "TEXTS_TOGETHER", 3)
    texts = [LONG[:first] for first in (0, 1, 50, 0, 200, 333, len(LONG))]
    shares: list[float] = []
    for cutter in (ModelCutter(small_model(seed=3), level=level, threshold=0.2), RandomCutter(0.5, seed=1)):
        shares.clear()
        found = cut_texts(cutter, texts, shares.append)
        assert [each.tolist() for each in found] == [cutter.cut(text).tolist() for text in texts]
        assert shares[0] == 0 and shares == sorted(shares) and shares[-1] < 1


def test_probabilities_are_read_without_gradients_and_within_bounds() -> None:
    (found,) = ModelCutter(small_model(seed=3)).start_probs([LONG])
    assert found.offsets.tolist() == list(range(len(LONG)))
    assert found.probs[0] == 1 and ((found.probs >= 0) & (found.probs <= 1)).all()
    assert found.probs[LONG.index("ï".encode()) + 1] == 0
    assert torch.is_grad_enabled()
