"""The judge of coherence: what it sees in texts about something, by hand and in real ones, and what it does not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.context_helpers import small_context
from zonkey_core.data import SourceSpec
from zonkey_core.errors import CheckpointError
from zonkey_core.evaluation.baselines import coherence_judge
from zonkey_core.evaluation.baselines.coherence_judge import (
    REPEATED,
    CoherenceJudge,
    TopicModel,
    fit_coherence_judge,
    get_coherence_judge,
    load_coherence_judge,
    measure_coherence_judge,
)
from zonkey_core.evaluation.texts import EvaluationTexts, load_texts

TOPICS = ["heron", "water", "reed", "fish", "pond", "wing"], ["king", "crown", "law", "war", "throne", "duke"]


def document(topic: int, words: int, seed: int) -> bytes:
    """Words of a topic, drawn at random."""
    return " ".join(np.random.default_rng(seed).choice(TOPICS[topic], words)).encode()


def fit(documents: list[bytes], read_bytes: int = 200_000) -> CoherenceJudge:
    return fit_coherence_judge(documents, read_bytes=read_bytes, seed=0, report=lambda share: None)


@pytest.fixture(scope="module")
def texts() -> EvaluationTexts:
    return load_texts(SourceSpec(sources=("sample",)), None, limit=100_000, training_bytes=2_000_000, seed=0)


def test_repeated_words_gain_by_hand() -> None:
    model = TopicModel(torch.tensor([0.2, 0.4, 0.4]).log())
    judge = CoherenceJudge(model, ["a", "b"], 10)
    gains = judge.gains_of_halves([(b"a a", b"a b"), (b"c b", b"c"), (b"a", b"..."), (b"", b"a")])
    fresh = {"a": 0.4 * (1 - REPEATED), "b": 0.4 * (1 - REPEATED), "c": 0.02 * (1 - REPEATED)}
    first = math.log((fresh["a"] + REPEATED) / fresh["a"]) - math.log((fresh["b"] + REPEATED / 2) / fresh["b"])
    second = math.log((fresh["c"] + REPEATED / 2) / fresh["c"])
    assert gains.nats == pytest.approx([first, second, 0, 0], rel=1e-5)
    assert gains.sizes.tolist() == [3, 1, 0, 0]


def test_a_topic_is_seen_where_no_word_is_repeated() -> None:
    judge = fit([document(seed % 2, 60, seed) for seed in range(40)], read_bytes=3_000_000)
    own = judge.gains_of_halves([(b"heron water reed", b"fish pond wing"), (b"king crown law", b"war throne duke")])
    other = judge.gains_of_halves([(b"heron water reed", b"war throne duke"), (b"king crown law", b"fish pond wing")])
    assert (own.nats / own.sizes > 0.1).all() and (other.nats / other.sizes < -0.1).all()


def test_texts_that_are_all_the_same_gain_nothing() -> None:
    judge = fit([document(seed % 2, 60, seed) for seed in range(4)])
    gains = judge.gains([document(0, 60, 0)] * 5)
    assert gains.nats == pytest.approx(np.zeros(5), abs=1e-6) and (gains.sizes > 0).all()
    assert judge.gains([b"one text alone"]).sizes.tolist() == [0]
    assert judge.gains([]).nats.shape == (0,)


def test_real_halves_belong_together_and_exchanged_ones_do_not(texts: EvaluationTexts) -> None:
    judge = fit(texts.judging, read_bytes=1_000_000)
    real = [text[:512] for text in texts.reference if len(text) > 200]
    found = measure_coherence_judge(judge, real, seed=0)
    assert found.low is not None and found.floor is not None
    assert found.low > 0.03 and abs(found.floor) < found.low / 2
    assert found.n == len(real)


def test_words_decide_and_not_their_order(texts: EvaluationTexts) -> None:
    judge = fit(texts.judging, read_bytes=100_000)
    halves = [(text[:250], text[250:500]) for text in texts.reference if len(text) > 500]
    turned = [(b" ".join(first.split()[::-1]), b" ".join(second.split()[::-1])) for first, second in halves]
    assert judge.gains_of_halves(halves).nats == pytest.approx(judge.gains_of_halves(turned).nats, rel=1e-3, abs=1e-3)


def test_it_is_trained_once_and_read_back(
    texts: EvaluationTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    context = small_context(tmp_path, texts=texts, report=lambda what, share: said.append(what))
    first = get_coherence_judge(context)
    assert "training the judge of coherence" in said
    monkeypatch.setattr(coherence_judge, "fit_coherence_judge", lambda *given, **options: pytest.fail("trained again"))
    again = get_coherence_judge(context)
    asked = texts.reference[:5]
    assert np.array_equal(first.gains(asked).nats, again.gains(asked).nats)
    (folder,) = context.store.directory.glob("coherence-*")
    (folder / "config.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"delete it and measure again"):
        load_coherence_judge(folder)


def test_nothing_global_is_touched_and_a_seed_decides() -> None:
    documents = [document(seed % 2, 60, seed) for seed in range(6)]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = fit(documents, 20_000), fit(documents, 20_000)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.model.read, second.model.read)


def test_documents_of_a_few_words_teach_how_frequent_words_are() -> None:
    judge = fit([b"heron heron pond", b"reed"])
    assert judge.model.told.abs().max() == 0
    gains = judge.gains_of_halves([(b"heron", b"heron"), (b"pond", b"pond")])
    assert (gains.nats > 0).all()
