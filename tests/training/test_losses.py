"""Losses: the expected loss over segmentations against all of them, the rest against cases done by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.model_helpers import chance, normal, start_probs
from zonkey_core.model.existence import cumulative_log_continue, sample_starts, window_log_existence
from zonkey_core.model.latents import contrastive_loss
from zonkey_core.training.losses import (
    RATES,
    existence_loss,
    existence_loss_at_rates,
    expected_segment_loss,
    expected_segment_sum,
    latent_regression,
    rate_penalty,
    uncertainty_penalty,
)

LENGTH = 5


def segment_costs(probs: Tensor) -> Tensor:
    """A loss for every (start, offset), [L, S], which itself depends on the probabilities, as through a latent."""
    fixed = normal(LENGTH, LENGTH, seed=1).abs()
    return fixed * (1 + 0.3 * torch.sin(3 * probs.cumsum(0)).unsqueeze(1))


def log_existence(probs: Tensor, starts: Tensor) -> Tensor:
    return window_log_existence(cumulative_log_continue(probs.unsqueeze(0)), starts.unsqueeze(0), LENGTH)[0]


def exact_sum(probs: Tensor) -> Tensor:
    """`sum_s p_s sum_k e(s, s+k) loss(s, k)` as it is written."""
    exists = log_existence(probs, torch.arange(LENGTH)).exp()
    return (probs.unsqueeze(1) * exists * segment_costs(probs)).sum()


def with_first(inner: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), inner])


@pytest.mark.parametrize("baseline", [0.0, 0.9, -3.0])
@pytest.mark.parametrize("seed", range(3))
def test_drawn_starts_estimate_the_expected_loss_without_bias(baseline: float, seed: int) -> None:
    inner = start_probs(LENGTH, seed=seed)[0, 1:].requires_grad_()
    value, gradient, certain = 0.0, torch.zeros_like(inner), 0.0
    for tail in itertools.product([False, True], repeat=LENGTH - 1):
        drawn = torch.tensor(tail)
        weight = torch.where(drawn, inner, 1 - inner).prod().item()
        probs = with_first(inner)
        starts = torch.tensor([True, *tail]).nonzero().flatten()
        estimate = expected_segment_sum(
            segment_costs(probs)[starts], log_existence(probs, starts), probs[starts], baseline
        )
        value += weight * estimate.item()
        gradient += weight * torch.autograd.grad(estimate, inner)[0]
        certain += weight
    assert certain == pytest.approx(1)
    exact = exact_sum(with_first(inner))
    assert value == pytest.approx(exact.item())
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, inner)[0])


def test_mean_loss_of_many_draws_is_the_exact_expectation() -> None:
    inner = start_probs(LENGTH, seed=4)[0, 1:].requires_grad_()
    rows = 20_000
    probs = with_first(inner)
    row, starts = sample_starts(probs.detach().expand(rows, -1), chance(5)).nonzero(as_tuple=True)
    assert len(row) > rows
    exists = log_existence(probs, torch.arange(LENGTH))
    found = expected_segment_loss(segment_costs(probs)[starts], exists[starts], probs[starts])
    exact = exact_sum(probs) / LENGTH
    assert found.item() == pytest.approx(exact.item(), rel=0.01)
    gradients = [torch.autograd.grad(loss, inner, retain_graph=True)[0] for loss in (found, exact)]
    torch.testing.assert_close(*gradients, atol=0.01, rtol=0.05)


def test_a_constant_loss_moves_no_start() -> None:
    inner = start_probs(LENGTH, seed=6)[0, 1:].requires_grad_()
    probs = with_first(inner)
    starts = torch.tensor([0, 2, 3])
    loss = expected_segment_loss(torch.full((3, LENGTH), 1.7).double(), log_existence(probs, starts), probs[starts])
    assert loss.item() == pytest.approx(1.7)
    torch.testing.assert_close(torch.autograd.grad(loss, inner)[0], torch.zeros_like(inner))


def test_hard_segmentation_has_the_mean_loss_of_its_positions() -> None:
    probs = torch.tensor([1.0, 0, 0, 1, 0], dtype=torch.float64)
    starts = torch.tensor([0, 3])
    costs = normal(2, LENGTH, seed=7).abs().requires_grad_()
    loss = expected_segment_loss(costs, log_existence(probs, starts), probs[starts])
    assert loss.item() == pytest.approx((costs[0, :3].sum() + costs[1, :2].sum()).item() / 5)
    (gradient,) = torch.autograd.grad(loss, costs)
    expected = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.float64) / 5
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def test_rate_penalty() -> None:
    probs = torch.tensor([[1.0, 0.2, 0.3], [0.5, 0.9, 0.9]])
    exists = torch.tensor([[True, True, True], [True, False, False]])
    assert rate_penalty(probs, exists, 0.3).item() == pytest.approx(100 * (0.5 - 0.3) ** 2)
    assert rate_penalty(probs, exists, 0.5).item() == pytest.approx(0, abs=1e-9)
    assert rate_penalty(probs, torch.zeros_like(exists), 0.5).isfinite()


def test_uncertainty_penalty() -> None:
    probs = torch.tensor([[1.0, 0.5, 0.2, 0.7]])
    exists = torch.tensor([[True, True, True, False]])
    assert uncertainty_penalty(probs, exists).item() == pytest.approx((0.25 + 0.16) / 3)


def test_existence_loss_is_the_weighted_cross_entropy() -> None:
    predicted = torch.tensor([[0.5, 0.2], [0.9, 0.5]], dtype=torch.float64)
    true = torch.tensor([[1.0, 0.25], [0.0, 0.5]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
    logits = predicted.logit()
    entropy = -(0.25 * math.log(0.2) + 0.75 * math.log(0.8))
    expected = (math.log(2) + 0.5 * entropy + math.log(2)) / 2.5
    assert existence_loss(logits, true, weight).item() == pytest.approx(expected, rel=1e-5)
    at_truth = torch.tensor([[0.25, 0.5]], dtype=torch.float64).logit().requires_grad_()
    loss = existence_loss(at_truth, at_truth.detach().sigmoid(), torch.ones(1, 2, dtype=torch.float64))
    assert torch.autograd.grad(loss, at_truth)[0].abs().max() < 1e-7


def test_the_loss_at_rates_is_that_of_odds_which_are_multiplied() -> None:
    true = torch.tensor([[0.02, 0.3, 0.9]], dtype=torch.float64)
    logits = torch.tensor([[-6.0, 1.0, 2.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.5, 1.0]], dtype=torch.float64)
    expected = sum(
        share * existence_loss(logits + math.log(odds), (true.logit() + math.log(odds)).sigmoid(), weight)
        for odds, share in RATES
    )
    torch.testing.assert_close(existence_loss_at_rates(logits, true, weight), expected, rtol=1e-5, atol=1e-6)
    at_truth = true.logit().requires_grad_()
    (gradient,) = torch.autograd.grad(existence_loss_at_rates(at_truth, true, weight), at_truth)
    assert gradient.abs().max() < 1e-6


def test_at_lower_rates_it_matters_how_unlikely_a_start_is() -> None:
    """One of a hundredth, told as one of a hundred thousandth, costs next to nothing at the splitter's own rate."""
    true, one = torch.tensor([[0.01]]), torch.ones(1, 1)
    told = torch.tensor([[1e-5]]).logit()

    def missed(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        return (loss(told, true, one) - loss(true.logit(), true, one)).item()

    assert missed(existence_loss_at_rates) > 10 * missed(existence_loss) > 0


def test_certain_starts_cost_nothing_at_any_rate() -> None:
    logits, true = torch.tensor([[40.0, -40.0]]), torch.tensor([[1.0, 0.0]])
    assert existence_loss_at_rates(logits, true, torch.ones(1, 2)) < 1e-6


def test_latent_regression() -> None:
    estimate = torch.tensor([[1.0, 3.0], [0.0, 0.0], [5.0, 5.0]])
    target = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert latent_regression(estimate, target, torch.tensor([3.0, 1.0, 0.0])).item() == pytest.approx((3 * 2 + 1) / 4)


def test_contrastive_loss() -> None:
    bank = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3]])
    loss = contrastive_loss(torch.tensor([[5.0, 0, 0]]), bank[:1], bank, sharpness=2)
    assert loss.tolist() == pytest.approx([math.log(math.exp(2) + 2) - 2])
    blind = contrastive_loss(torch.tensor([[1.0, 1, 1]]), bank[1:2], bank)
    assert blind.tolist() == pytest.approx([math.log(3)])
    assert contrastive_loss(-bank[:1], bank[:1], bank).item() > loss.item()


def test_equal_latents_share_their_probability() -> None:
    bank = torch.tensor([[1.0, 0], [0, 1], [2.0, 0]])
    shared = contrastive_loss(bank[:1], bank[:1], bank, sharpness=2)
    assert shared.tolist() == pytest.approx([math.log(2 * math.exp(2) + 1) - math.log(2) - 2], abs=1e-6)
    assert contrastive_loss(bank[:1], bank[:1], bank[[0, 2]]).tolist() == pytest.approx([0], abs=1e-6)


def test_only_the_estimate_learns_from_the_contrastive_loss() -> None:
    estimate, target = normal(3, 4, seed=1).requires_grad_(), normal(3, 4, seed=2).requires_grad_()
    loss = contrastive_loss(estimate, target, target).sum()
    to_estimate, to_target = torch.autograd.grad(loss, [estimate, target], allow_unused=True)
    assert (to_estimate != 0).all()
    assert to_target is None
