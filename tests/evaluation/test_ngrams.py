"""Byte n-grams: what the model writes, and the divergence of counts, against cases worked out by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import law
from zonkey_core.evaluation.metrics.ngrams import HIGHEST_ORDER, ByteNgramModel, byte_ngrams, jensen_shannon

FABLE = b"the heron stood in the shallows and the water went by the heron and the heron flew"


@pytest.mark.parametrize("order", range(1, HIGHEST_ORDER + 1))
@pytest.mark.parametrize("before", [b"", b"h", b"the heron ", b"\xff\x00zzzzz"])
def test_bytes_that_may_follow_have_probability_one_in_all(order: int, before: bytes) -> None:
    model = ByteNgramModel(order).fit([FABLE, b"other"])
    nats = model.nats([before + bytes([value]) for value in range(256)])
    assert sum(np.exp(-each[-1]) for each in nats) == pytest.approx(1)


def test_likelihood_by_hand() -> None:
    (nats,) = ByteNgramModel(2).fit([b"ab", b"ac"]).nats([b"abx"])
    single = {"a": (2 + 3 / 256) / 7, "b": (1 + 3 / 256) / 7, "x": (3 / 256) / 7}
    after_border = (2 + single["a"]) / 3
    after_a = (1 + 2 * single["b"]) / 4
    assert np.exp(-nats) == pytest.approx([after_border, after_a, single["x"]])
    assert ByteNgramModel(2).fit([b"ab"]).nats([]) == []
    assert [len(each) for each in ByteNgramModel(2).fit([b"ab"]).nats([b"", b"xy"])] == [0, 2]


def test_more_context_foresees_text_better() -> None:
    model = [ByteNgramModel(order).fit([FABLE]) for order in (1, 3, HIGHEST_ORDER)]
    totals = [each.nats([b"the water and the heron"])[0].sum() for each in model]
    assert totals[0] > totals[1] > totals[2]


@pytest.mark.parametrize("order", range(2, HIGHEST_ORDER + 1))
def test_only_text_is_written_as_it_is(order: int) -> None:
    assert ByteNgramModel(order).fit([b"abc"]).sample(3, 10, 0) == [b"abc"] * 3


def test_bytes_follow_as_often_as_in_training() -> None:
    written = Counter(ByteNgramModel(2).fit([b"ab"] * 3 + [b"acd"]).sample(4000, 10, 0))
    assert set(written) == {b"ab", b"acd"}
    assert written[b"ab"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_lower_order_of_a_model_is_that_order() -> None:
    model = ByteNgramModel(6).fit([b"xab", b"yac", b"yac", b"yac"])
    assert set(model.sample(200, 10, 0)) == {b"xab", b"yac"}
    second = Counter(model.sample(4000, 10, 0, order=2))
    assert set(second) == {b"xab", b"xac", b"yab", b"yac"}
    assert second[b"xac"] / 4000 == pytest.approx(0.25 * 0.75, abs=0.03)
    first = Counter(b"".join(model.sample(4000, 10, 0, order=1)))
    assert first[ord("a")] / first.total() == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("order", range(1, HIGHEST_ORDER + 1))
def test_samples_hold_only_ngrams_of_their_order(order: int) -> None:
    model = ByteNgramModel(HIGHEST_ORDER).fit([FABLE])
    samples = model.sample(30, 100, 7, order=order)
    grams = set(byte_ngrams(FABLE, order).tolist())
    assert all(set(byte_ngrams(text, order).tolist()) <= grams for text in samples)
    longer = set(byte_ngrams(FABLE, order + 1).tolist())
    assert not all(set(byte_ngrams(text, order + 1).tolist()) <= longer for text in samples) or order > 3


def test_sample_depends_on_its_own_seed() -> None:
    model = ByteNgramModel(3).fit([FABLE])
    assert model.sample(3, 40, 5)[1:] == model.sample(2, 40, 6)
    assert len(set(model.sample(5, 40, 0))) > 1
    assert max(map(len, model.sample(20, 40, 0))) <= 40


def test_any_bytes_are_learned() -> None:
    text = bytes(range(256))
    assert ByteNgramModel(2).fit([text]).sample(1, 300, 0) == [text]


def test_continuation_shortens_what_it_never_saw() -> None:
    model = ByteNgramModel(4).fit([b"abcd", b"xbce"])
    def go_on(prefix: bytes) -> set[bytes]:
        return {model.continue_text(prefix, stop=lambda _: False, max_bytes=9, seed=seed) for seed in range(40)}

    assert go_on(b"abc") == {b"d"}
    assert go_on(b"zzzxbc") == {b"e"}
    assert go_on(b"bc") == {b"d", b"e"}  # seen only behind another byte
    assert go_on(b"b") == {b"cd", b"ce"}
    assert go_on(b"") == {b"abcd", b"xbce"}


def test_continuation_stops_when_told() -> None:
    model = ByteNgramModel(6).fit([b"one two three"])
    assert model.continue_text(b"one", stop=lambda text: text.count(b" ") == 2, max_bytes=99, seed=0) == b" two "
    assert model.continue_text(b"one", stop=lambda _: False, max_bytes=4, seed=0) == b" two"
    assert model.continue_text(b"one", stop=lambda _: False, max_bytes=99, seed=0) == b" two three"


def test_impossible_models_are_refused() -> None:
    for order in (0, HIGHEST_ORDER + 1):
        with pytest.raises(ValueError, match="order"):
            ByteNgramModel(order)
    with pytest.raises(ValueError, match="some text"):
        ByteNgramModel(2).fit([b"", b""])


@law
@given(st.binary(max_size=30), st.integers(1, 7))
def test_ngrams_are_the_slices(text: bytes, n: int) -> None:
    slices = [int.from_bytes(text[start : start + n], "big") for start in range(len(text) - n + 1)]
    assert byte_ngrams(text, n).tolist() == slices


def test_divergence_by_hand() -> None:
    # p = (1, 0), q = (1/2, 1/2): H(3/4, 1/4) - (0 + 1) / 2 = 0.811278 - 0.5
    assert jensen_shannon(np.array([3, 0]), np.array([2, 2])) == pytest.approx(0.311278, abs=1e-6)
    assert jensen_shannon(np.array([1, 2, 3]), np.array([10, 20, 30])) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(np.array([4, 0]), np.array([0, 9])) == pytest.approx(1)
    assert jensen_shannon(np.array([0, 0]), np.array([1, 1])) == 1
