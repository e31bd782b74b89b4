"""Endings: hazards over bins against plain probabilities of counts, and counts that are drawn as often as they say."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import chance, law, normal, seeds
from zonkey_core.model.length_model import EDGES, draw_counts, ending_losses, log_survival

BINS = [range(begin, end) for begin, end in itertools.pairwise((0, *EDGES))]
"""The counts that each bin with a hazard holds."""
counts = st.integers(0, EDGES[-1] + 50)


def hazards(seed: int, *, rows: int = 1, scale: float = 2.0) -> Tensor:
    """Logits [rows, E] under which long counts are possible."""
    return scale * normal(rows, len(EDGES), seed=seed, dtype=torch.float32) - 2


def probabilities(logits: Tensor) -> list[float]:
    """How likely each count below the last edge is, and last how likely all others are together."""
    left, result = 1.0, []
    for hazard, held in zip(logits.double().sigmoid().tolist(), BINS, strict=True):
        result += [left * hazard / len(held)] * len(held)
        left *= 1 - hazard
    return [*result, left]


@law
@given(st.lists(counts, min_size=1, max_size=8), seeds)
def test_a_count_costs_what_its_bin_has_of_the_probability(remaining: list[int], seed: int) -> None:
    logits = hazards(seed, rows=len(remaining))
    certain = torch.rand(len(remaining), generator=chance(seed)) < 0.5
    losses = ending_losses(logits, torch.tensor(remaining), certain)
    for loss, row, count, known in zip(losses.tolist(), logits, remaining, certain.tolist(), strict=True):
        likely = probabilities(row)
        held = next((held for held in BINS if count in held), range(EDGES[-1], EDGES[-1] + 1))
        expected = sum(likely[held.start : held.stop]) if known else sum(likely[held.start :])
        assert loss == pytest.approx(-torch.tensor(expected).log().item(), rel=1e-4, abs=1e-5)


@law
@given(seeds)
def test_all_counts_together_are_certain(seed: int) -> None:
    logits = hazards(seed).expand(len(EDGES) + 1, -1)
    firsts = torch.tensor([0, *EDGES])
    losses = ending_losses(logits, firsts, torch.ones(len(firsts), dtype=torch.bool))
    torch.testing.assert_close(losses.neg().exp().sum(), torch.tensor(1.0))


@law
@given(seeds, st.floats(0, 30))
def test_survival_never_rises_and_is_what_a_censored_count_costs(seed: int, scale: float) -> None:
    logits = hazards(seed, scale=scale)
    survival = log_survival(logits)[0]
    assert survival[0] <= 0 and (survival.diff() <= 0).all()
    censored = torch.zeros(len(EDGES), dtype=torch.bool)
    losses = ending_losses(logits.expand(len(EDGES), -1), torch.tensor(EDGES), censored)
    torch.testing.assert_close(-losses, survival)


@law
@given(counts, st.booleans(), seeds)
def test_gradients_are_those_of_differences(count: int, certain: bool, seed: int) -> None:
    logits, step = hazards(seed).requires_grad_(), 0.02

    def loss(at: Tensor) -> Tensor:
        return ending_losses(at, torch.full((len(at),), count), torch.full((len(at),), certain))

    (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
    moves = step * torch.eye(len(EDGES))
    slopes = (loss(logits.detach() + moves) - loss(logits.detach() - moves)) / (2 * step)
    torch.testing.assert_close(gradient[0], slopes, atol=2e-3, rtol=2e-3)
    beyond = torch.arange(len(EDGES)) > sum(count >= edge for edge in EDGES)
    assert (gradient[0][beyond] == 0).all(), "what lies behind the count is not asked"


def test_sure_hazards_and_no_questions_are_finite() -> None:
    logits = torch.tensor([1e4, -1e4]).repeat(len(EDGES))[: len(EDGES)].expand(3, -1).clone().requires_grad_()
    losses = ending_losses(logits, torch.tensor([0, 3, 400]), torch.tensor([True, True, False]))
    torch.autograd.backward(losses.sum())
    assert losses.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()
    assert losses[0] == 0 and losses[1] >= 1e4
    none = torch.zeros(0, dtype=torch.long)
    assert ending_losses(logits[:0], none, none.bool()).shape == draw_counts(logits[:0], none.float()).shape == (0,)


# Counts drawn


@law
@given(seeds, st.floats(0, 4))
def test_counts_are_drawn_as_often_as_they_are_likely(seed: int, scale: float) -> None:
    logits, number = hazards(seed, scale=scale), 20_000
    drawn = draw_counts(logits.expand(number, -1), (torch.arange(number) + 0.5) / number)
    share = torch.bincount(drawn, minlength=EDGES[-1] + 1) / number
    torch.testing.assert_close(share, torch.tensor(probabilities(logits[0])), atol=2.1 / number, rtol=1e-3)


@law
@given(seeds, st.floats(0, 1, exclude_max=True, width=32))
def test_a_draw_inverts_the_survival_function(seed: int, number: float) -> None:
    """At least n are drawn exactly where the number is below the probability of that."""
    logits = hazards(seed)
    (count,) = draw_counts(logits, torch.tensor([number])).tolist()
    likely = probabilities(logits[0])
    assert sum(likely[count:]) >= number - 1e-5
    assert count == EDGES[-1] or sum(likely[count + 1 :]) <= number + 1e-5


@law
@given(seeds)
def test_a_larger_number_never_draws_a_larger_count(seed: int) -> None:
    numbers = torch.rand(200, generator=chance(seed)).sort().values
    drawn = draw_counts(hazards(seed).expand(200, -1), numbers)
    assert (drawn.diff() <= 0).all() and drawn.min() >= 0 and drawn.max() <= EDGES[-1]


@pytest.mark.parametrize("number", [1e-9, 0.5, 1 - 2**-24])
def test_where_it_is_sure_the_number_does_not_matter(number: float) -> None:
    logits = torch.full((len(EDGES) + 1, len(EDGES)), -30.0)
    logits[torch.arange(len(EDGES)), torch.arange(len(EDGES))] = 30.0
    drawn = draw_counts(logits, torch.full((len(EDGES) + 1,), number)).tolist()
    assert all(count in held for count, held in zip(drawn, BINS, strict=False))
    assert drawn[-1] == EDGES[-1]
