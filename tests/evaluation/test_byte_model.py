"""The byte model: its probabilities against arithmetic, its cache against the full pass, its training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model_helpers import TEXT
from zonkey_core.errors import CheckpointError
from zonkey_core.evaluation.baselines import byte_model
from zonkey_core.evaluation.baselines.byte_model import (
    BEGIN,
    ByteModel,
    ByteModelShape,
    KeyValueCache,
    NgramVectors,
    byte_losses,
    load_byte_model,
    next_byte_entropies,
    save_byte_model,
    text_symbols,
)
from zonkey_core.evaluation.baselines.byte_training import fit_byte_model

SHAPE = ByteModelShape(width=32, layers=2, heads=2, window=16, ngram_rows=64)
LONG = TEXT.encode()[:150]
CLOSE = 1e-3
"""Nats by which the same forecast may differ when it is computed in another order, in float32."""


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_model, "choose_precision", lambda name, device: torch.float32)


def random_model(shape: ByteModelShape = SHAPE) -> ByteModel:
    """A model whose forecasts vary much from byte to byte."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ByteModel(shape).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.5 if parameter.dim() == 1 else 0.25))
        model.norm.weight.fill_(2.0)
    return model


def fixed_model(logits: dict[int, float]) -> ByteModel:
    """A model that forecasts the same whatever it has read; bytes that are not named have no probability."""
    model = ByteModel(SHAPE).eval().requires_grad_(False)
    model.norm.weight.zero_()
    model.output_bias.fill_(-200.0)
    for byte, logit in logits.items():
        model.output_bias[byte] = logit
    return model


def fitted(texts: list[bytes], *, seed: int = 0, read_bytes: int = 1_500) -> ByteModel:
    return fit_byte_model(texts, read_bytes=read_bytes, seed=seed, shape=SHAPE, report=lambda share: None)


def test_even_forecasts_by_hand() -> None:
    model = fixed_model(dict.fromkeys(b"abcd", 0.0))
    assert byte_losses(model, [b"abba", b""])[0] == pytest.approx([math.log(4)] * 4)
    assert next_byte_entropies(model, [b"abba"])[0] == pytest.approx([math.log(4)] * 4)


def test_uneven_forecasts_by_hand() -> None:
    model = fixed_model({ord("a"): 1.0, ord("b"): 0.0})
    share = math.e / (1 + math.e)
    nats = {"a": -math.log(share), "b": -math.log(1 - share)}
    assert byte_losses(model, [b"aab"])[0] == pytest.approx([nats["a"], nats["a"], nats["b"]])
    entropy = share * nats["a"] + (1 - share) * nats["b"]
    assert next_byte_entropies(model, [b"ba" * 20])[0] == pytest.approx([entropy] * 40)


def test_losses_are_the_chain_of_forecasts() -> None:
    """The first byte is foreseen from the begin symbol, the others from what `forward` is given."""
    model = random_model()
    text = LONG[: model.window]
    log_probs = model(torch.tensor([[BEGIN, *text[:-1]]])).log_softmax(-1)[0]
    expected = -log_probs[range(len(text)), list(text)]
    assert expected.std() > 1
    assert byte_losses(model, [text])[0] == pytest.approx(expected.numpy(), abs=CLOSE)
    entropies = -(log_probs.exp() * log_probs).sum(-1)
    assert next_byte_entropies(model, [text])[0] == pytest.approx(entropies.numpy(), abs=CLOSE)


def test_forecasts_are_distributions() -> None:
    probs = random_model()(torch.tensor([text_symbols(LONG[:15]).tolist()])).softmax(-1)
    assert probs.shape == (1, 16, 256)
    assert probs.sum(-1).numpy() == pytest.approx(1)


@pytest.mark.parametrize("ngram_rows", [0, 64])
@pytest.mark.parametrize("pieces", [[151], [1] * 151, [5, 11, 1, 40, 94], [16, 135]])
def test_the_cache_gives_the_same_as_judging(pieces: list[int], ngram_rows: int) -> None:
    """However a text is handed over, and over the ends of many windows."""
    model = random_model(ByteModelShape(width=32, layers=2, heads=2, window=16, ngram_rows=ngram_rows))
    cache = KeyValueCache()
    rows = torch.from_numpy(np.stack([text_symbols(LONG), text_symbols(LONG[::-1])]))
    log_probs = torch.cat([model.read(piece, cache) for piece in rows.split(pieces, 1)], 1).log_softmax(-1)
    for text, row in zip((LONG, LONG[::-1]), log_probs, strict=True):
        expected = -row[range(len(text)), list(text)]
        assert byte_losses(model, [text])[0] == pytest.approx(expected.numpy(), abs=CLOSE)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 23, 24, 25, 150])
def test_going_on_from_a_prompt(length: int) -> None:
    """Only the last window is read, and the next byte is foreseen as if all had been."""
    model = random_model()
    prompt = model.prompt(LONG[:length])
    assert prompt.shape[1] <= model.window
    assert prompt[0].tolist() == [BEGIN, *LONG[:length]][-prompt.shape[1] :]
    every = KeyValueCache()
    whole = model.read(torch.from_numpy(text_symbols(LONG[:length])[None]), every)[:, -1]
    assert model.read(prompt, KeyValueCache())[:, -1].numpy() == pytest.approx(whole.numpy(), abs=1e-4)


def test_later_bytes_change_nothing() -> None:
    model = random_model()
    for keep in (1, 7, 16, 40, 100):
        first = byte_losses(model, [LONG])[0][:keep]
        second = byte_losses(model, [LONG[:keep] + LONG[keep:][::-1]])[0]
        assert first == pytest.approx(second[:keep], abs=CLOSE)
        assert np.abs(second[keep:] - byte_losses(model, [LONG])[0][keep:]).max() > 0.5


def test_every_byte_sees_at_least_half_a_window() -> None:
    """A byte that is changed changes the forecasts of all of the next half window's bytes."""
    model = random_model()
    for place in (20, 31, 32, 33, 64):
        changed = LONG[:place] + b"~" + LONG[place + 1 :]
        apart = np.abs(byte_losses(model, [LONG])[0] - byte_losses(model, [changed])[0])
        assert (apart[place + 1 : place + 1 + model.stride] > 1e-3).all()
        assert (apart[place + 1 + model.window :] < 1e-3).all()


def test_texts_side_by_side_do_not_touch() -> None:
    model = random_model()
    texts = [LONG[start : start + size] for start, size in ((0, 150), (3, 1), (9, 0), (20, 64), (50, 17))]
    for text, losses in zip(texts, byte_losses(model, texts), strict=True):
        assert losses.shape == (len(text),)
        assert losses == pytest.approx(byte_losses(model, [text])[0], abs=CLOSE)


@pytest.mark.parametrize("cut", [0, 1, 8, 30, 149])
def test_what_stands_before_is_read_but_not_judged(cut: int) -> None:
    model = random_model()
    whole = byte_losses(model, [LONG])[0]
    rest = byte_losses(model, [LONG[cut:]], befores=[LONG[:cut]])[0]
    assert rest == pytest.approx(whole[cut:], abs=CLOSE)


def test_judging_reports_to_its_end() -> None:
    shares: list[float] = []
    byte_losses(random_model(), [LONG * 10], report=shares.append)
    assert len(shares) > 1 and shares == sorted(shares) and shares[-1] == 1


def test_equal_ngrams_have_equal_vectors() -> None:
    vectors = NgramVectors(4096, 8)
    torch.nn.init.normal_(vectors.table)
    first, second = (vectors(torch.tensor([list(text)]), None)[0] for text in (b"xyzabcdef", b"Qabcdef"))
    assert torch.equal(first[-1], second[-1])  # all six bytes are the same
    assert torch.equal(first[-2, :6], second[-2, :6])  # the share of two, three and four bytes
    assert not torch.equal(first[-2, 6:], second[-2, 6:])  # six bytes that begin otherwise


def test_different_ngrams_share_vectors_by_chance_only() -> None:
    rows = 4096
    vectors = NgramVectors(rows, 4)
    with torch.no_grad():
        vectors.table.copy_(torch.arange(vectors.table.numel()).view(vectors.table.shape))
    pairs = torch.tensor([[first, second] for first in range(64) for second in range(64)])
    places = vectors(pairs, None)[:, 1, 0].unique()
    assert len(places) > 0.95 * rows * (1 - math.exp(-1))  # no fewer than of as many balls thrown into boxes


def test_hidden_ngrams_are_made_up_for() -> None:
    vectors = NgramVectors(64, 8)
    torch.nn.init.normal_(vectors.table)
    symbols = torch.tensor([list(b"some text")])
    hiding = torch.Generator().manual_seed(0)
    drawn = torch.stack([vectors(symbols, hiding) for _ in range(500)])
    assert ((drawn == 0).float().mean() - 0.5).abs() < 0.02
    assert (drawn.mean(0) - vectors(symbols, None)).abs().max() < 0.6


def test_fitting_learns_the_text() -> None:
    """Better than the frequencies of bytes, on text that was learned."""
    text = LONG * 3
    counts = np.bincount(np.frombuffer(text, np.uint8))
    shares = counts[counts > 0] / len(text)
    before, after = (byte_losses(fitted([text], read_bytes=size), [text])[0].mean() for size in (1, 16_000))
    assert before > 4
    assert after < 0.7 * -(shares * np.log(shares)).sum()


def test_fitting_is_the_same_each_time_and_leaves_the_global_state() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = fitted([LONG, LONG[::-1]]), fitted([LONG, LONG[::-1]])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = fitted([LONG, LONG[::-1]], seed=1)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_fitting_reads_what_it_is_told_to() -> None:
    shares: list[float] = []
    fit_byte_model([b"short"], read_bytes=5 * 16 * 16, seed=0, shape=SHAPE, report=shares.append)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model = random_model()
    save_byte_model(model, tmp_path)
    state = torch.get_rng_state()
    loaded = load_byte_model(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert loaded.shape == model.shape
    assert (byte_losses(loaded, [LONG])[0] == byte_losses(model, [LONG])[0]).all()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_model_is_named(tmp_path: Path, name: str) -> None:
    save_byte_model(random_model(), tmp_path)
    (tmp_path / name).write_bytes(b'{"width": 8')
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_byte_model(tmp_path)


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    save_byte_model(random_model(), tmp_path)
    (tmp_path / "config.json").write_text('{"width": 64, "layers": 2, "heads": 2, "window": 16}')
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_byte_model(tmp_path)
