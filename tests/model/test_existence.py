"""Laws of existence: starts partition positions, existence starts at 1 and never rises, and gradients are right."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import chance, existence, law, normal, seeds, start_probs
from zonkey_core.model.existence import (
    LOG_FLOOR,
    cumulative_log_continue,
    decoded_log_existence,
    limit_segment_length,
    log_continue_prob,
    sample_starts,
    window_log_existence,
)

probabilities = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0]))


@st.composite
def rows(draw: st.DrawFn, longest: int = 24) -> Tensor:
    """A row of start probabilities, which may be exactly 0 or 1; the first is 1."""
    tail = draw(st.lists(probabilities, max_size=longest - 1))
    return torch.tensor([[1.0, *tail]], dtype=torch.float64)


@law
@given(rows())
def test_starts_partition_every_position(probs: Tensor) -> None:
    length = probs.shape[1]
    exists = existence(probs, list(range(length)), length)[0]
    total = torch.zeros(length, dtype=torch.float64)
    for start in range(length):
        total[start:] += probs[0, start] * exists[start, : length - start]
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-9, rtol=0)


@law
@given(rows(), st.integers(1, 12))
def test_existence_starts_at_one_and_never_rises(probs: Tensor, window: int) -> None:
    length = probs.shape[1]
    log_exists = window_log_existence(
        cumulative_log_continue(probs), torch.arange(length).unsqueeze(0), window
    )
    assert (log_exists[..., 0] == 0).all()
    assert (log_exists.diff() <= 0).all()
    assert (log_exists >= LOG_FLOOR).all()


@law
@given(rows(), st.data())
def test_existence_is_the_product_of_continuing(probs: Tensor, data: st.DataObject) -> None:
    length = probs.shape[1]
    start = data.draw(st.integers(0, length - 1))
    window = data.draw(st.integers(1, length + 3))
    found = existence(probs, [start], window)[0, 0]
    for offset in range(window):
        inside = start + offset < length
        expected = (1 - probs[0, start + 1 : start + offset + 1]).prod().item() if inside else 0.0
        assert found[offset].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_to_every_start_probability(seed: int) -> None:
    probs = start_probs(7, rows=2, seed=seed)[:, 1:].requires_grad_()

    def windows(inner: Tensor) -> Tensor:
        return existence(torch.cat([torch.ones(2, 1, dtype=torch.float64), inner], 1), [0, 2, 5], 5)

    assert torch.autograd.gradcheck(windows, probs)
    (gradient,) = torch.autograd.grad(windows(probs)[:, 0, 1:].sum(), probs)
    assert (gradient[:, :4] < 0).all() and (gradient[:, 4:] == 0).all()


@law
@given(st.integers(1, 9), seeds)
def test_a_certain_start_cuts_a_row_in_two(position: int, seed: int) -> None:
    probs = start_probs(12, seed=seed)
    probs[0, position] = 1
    probs.requires_grad_()
    across = existence(probs, [0, position], 12)[0]
    assert (across[0, position:] <= 1e-25).all()
    alone = existence(probs[:, position:], [0], 12 - position)[0, 0]
    torch.testing.assert_close(across[1, : 12 - position], alone, atol=1e-12, rtol=1e-9)
    (gradient,) = torch.autograd.grad(across.sum(), probs)
    assert gradient.isfinite().all()


def test_hundreds_of_certain_starts_stay_finite_in_float32() -> None:
    probs = torch.full((1, 2000), 0.25)
    probs[:, ::10] = 1
    exists = existence(probs, list(range(0, 2000, 10)), 12)[0]
    torch.testing.assert_close(exists[:, :10], (0.75 ** torch.arange(10)).expand(200, 10), atol=1e-3, rtol=5e-3)
    assert (exists[:, 10:] < 1e-20).all()


def test_log_continue_in_low_precision_is_computed_in_float32() -> None:
    probs = torch.tensor([0.0, 0.25, 1.0], dtype=torch.bfloat16)
    found = log_continue_prob(probs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([0.0, math.log(0.75), LOG_FLOOR]))


@law
@given(st.lists(st.floats(-200, 200), min_size=1, max_size=12))
def test_decoded_existence(logits: list[float]) -> None:
    given_logits = torch.tensor([logits], dtype=torch.float64)
    log_exists = decoded_log_existence(given_logits)[0]
    assert log_exists[0] == 0
    assert (log_exists.diff() <= 0).all()
    product = 1.0
    for offset, logit in enumerate(given_logits[0].tolist()):
        product *= torch.sigmoid(torch.tensor(-logit, dtype=torch.float64)).item() if offset else 1.0
        assert log_exists[offset].exp().item() == pytest.approx(product, abs=1e-12)


def test_decoded_existence_has_a_gradient_to_every_logit_but_the_first() -> None:
    logits = normal(2, 6, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decoded_log_existence(x).exp(), logits)
    (gradient,) = torch.autograd.grad(decoded_log_existence(logits).exp().sum(), logits)
    assert (gradient[:, 0] == 0).all() and (gradient[:, 1:] < 0).all()


def test_drawn_segments_reach_as_far_as_existence_says() -> None:
    draws, length = 40_000, 7
    probs = start_probs(length, seed=5)
    mask = sample_starts(probs.expand(draws, length), chance(6))
    exists = existence(probs, list(range(length)), length)[0]
    for start in range(length):
        for end in range(start, length):
            reaches = mask[:, start] & ~mask[:, start + 1 : end + 1].any(1)
            expected = (probs[0, start] * exists[start, end - start]).item()
            assert reaches.double().mean().item() == pytest.approx(expected, abs=0.012)


def test_drawn_segmentations_always_start_at_the_first_position() -> None:
    assert sample_starts(torch.zeros(3, 5), chance(0)).tolist() == [[True, False, False, False, False]] * 3
    assert sample_starts(torch.ones(1, 5), chance(0)).all()


@law
@given(st.data())
def test_limited_segments_fit_the_window(data: st.DataObject) -> None:
    window = data.draw(st.integers(4, 9))
    forbidden_runs = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=20))
    allowed = torch.tensor([[flag for run in forbidden_runs for flag in [True, *[False] * run]]])
    wished = torch.tensor([data.draw(st.lists(st.sampled_from([True, False, False, False, False]),
                                              min_size=allowed.shape[1], max_size=allowed.shape[1]))])
    before = wished & allowed
    before[:, 0] = True
    after = limit_segment_length(before, allowed, window)
    starts = [*after[0].nonzero().flatten().tolist(), allowed.shape[1]]
    assert all(later - earlier <= window for earlier, later in itertools.pairwise(starts))
    assert (after | ~before).all() and (allowed | ~after).all()
    for start in (after & ~before)[0].nonzero().flatten().tolist():
        earlier = max(place for place in starts if place < start)
        assert not allowed[0, start + 1 : earlier + window + 1].any(), "a later place was permitted"
        following = [*before[0, start:].nonzero().flatten().add(start).tolist(), allowed.shape[1]]
        assert following[0] - earlier > window, "the segment was short enough"


def test_a_window_without_a_permitted_place_is_cut_at_its_end() -> None:
    start_mask = torch.zeros(1, 10, dtype=torch.bool)
    start_mask[:, 0] = True
    after = limit_segment_length(start_mask, start_mask, 4)
    assert after[0].nonzero().flatten().tolist() == [0, 4, 8]


@pytest.mark.parametrize("length", range(1, 14))
def test_one_long_segment_is_cut_into_full_windows(length: int) -> None:
    start_mask = torch.zeros(2, length, dtype=torch.bool)
    start_mask[:, 0] = True
    after = limit_segment_length(start_mask, torch.ones_like(start_mask), 4)
    assert after.tolist() == [[place % 4 == 0 for place in range(length)]] * 2
    assert start_mask.sum() == 2
