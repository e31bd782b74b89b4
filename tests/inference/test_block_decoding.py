"""Block decoding: entries are drawn as often as their probabilities say, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.model_helpers import chance, law, normal, seeds
from zonkey_core.inference.block_decoding import BLOCK, LEAST_SHARE, draw_entries


@law
@given(st.sampled_from([1, 2, 5, BLOCK - 1, BLOCK, BLOCK + 1, 300]), st.sampled_from([0.5, 1.0, 2.0]), seeds)
def test_entries_are_drawn_as_often_as_the_softmax_says(kinds: int, temperature: float, seed: int) -> None:
    """But for those that are hardly ever drawn."""
    logits = 2 * normal(kinds, seed=seed, dtype=torch.float32)
    prob = (logits / temperature).softmax(-1)
    prob = prob.where(prob > LEAST_SHARE * prob.max(), 0.0)
    count = 4000
    for numbers, tolerance in (
        ((torch.arange(count) + 0.5) / count, 1.1 / count),
        (torch.rand(count, generator=chance(seed)), 0.05),
    ):
        drawn = draw_entries(logits.softmax(-1).expand(count, -1), numbers, temperature)
        share = torch.bincount(drawn, minlength=kinds) / count
        torch.testing.assert_close(share, prob / prob.sum(), atol=tolerance, rtol=0)
        assert not share[prob == 0].any()


@law
@given(st.integers(1, 9), st.sampled_from([0, 2, BLOCK - 2, 200]), st.sampled_from([0.3, 1.0]), seeds)
def test_what_is_impossible_is_never_drawn(possible: int, first: int, temperature: float, seed: int) -> None:
    logits = normal(possible, seed=seed, dtype=torch.float32)
    for impossible in (-1e4, -torch.inf):
        wide = functional.pad(logits, (first, 143), value=impossible)
        numbers = torch.tensor([0.0, 1e-12, 0.5, 1 - 2**-24])
        drawn = draw_entries(wide.softmax(-1).expand(len(numbers), -1), numbers, temperature)
        assert ((drawn >= first) & (drawn < first + possible)).all()
        assert draw_entries(wide.softmax(-1).unsqueeze(0), numbers[:1], 0.0).item() == first + int(logits.argmax())


@law
@given(st.integers(1, 300), st.floats(0, 1, width=32), st.sampled_from([0.0, 1e-3, 1.0, 10.0]), seeds)
def test_only_entries_that_there_are_are_drawn(kinds: int, number: float, temperature: float, seed: int) -> None:
    logits = 40 * normal(3, kinds, seed=seed, dtype=torch.float32)
    drawn = draw_entries(logits.softmax(-1), torch.full((3,), number), temperature)
    assert drawn.shape == (3,) and ((drawn >= 0) & (drawn < kinds)).all()


@law
@given(st.integers(1, 9), seeds)
def test_little_temperature_is_as_good_as_none(kinds: int, seed: int) -> None:
    logits = normal(20, kinds, seed=seed, dtype=torch.float32)
    numbers = torch.rand(20, generator=chance(seed))
    assert torch.equal(draw_entries(logits.softmax(-1), numbers, 0.0), logits.argmax(-1))
    assert torch.equal(draw_entries(logits.softmax(-1), numbers, 1e-6), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_told_is_nothing_drawn(temperature: float) -> None:
    assert draw_entries(torch.zeros(0, 300), torch.zeros(0), temperature).shape == (0,)
