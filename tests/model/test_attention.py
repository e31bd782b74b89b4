"""Laws of Probabilistic Attention: hard masks and plain attention are its limits, and gradients reach existence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import law, normal, seeds, start_probs
from zonkey_core.model import attention
from zonkey_core.model.attention import (
    PLAIN_LENGTH,
    attend,
    attend_reference,
    document_bias,
    window_bias,
    window_ratio,
)
from zonkey_core.model.existence import cumulative_log_continue
from zonkey_core.model.transformer import rotary_phases, rotate

LONG = PLAIN_LENGTH + 8
ALL_PATHS = pytest.mark.parametrize(
    "length", [(9, 0), (LONG, LONG), (LONG, 0)], ids=["plain", "rows", "fused"], indirect=True
)


@pytest.fixture
def length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Keys, where so many as the second number says are at most attended to row by row."""
    keys, most = request.param
    monkeypatch.setattr(attention, "ROWS_LENGTH", most)
    return int(keys)


def heads(length: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [2, 2, length, 4]."""
    queries, keys, values = (normal(2, 2, length, 4, seed=3 * seed + part).to(dtype) for part in range(3))
    return queries, keys, values


def falling_existence(length: int, seed: int) -> Tensor:
    """Existence [2, length], 1 at first and strictly falling."""
    steps = 0.02 + 0.3 * normal(2, length, seed=seed).abs() * min(1.0, 9 / length)
    steps[:, 0] = 0
    return (-steps.cumsum(1)).exp()


def masked_softmax(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention as every textbook has it, to the keys in `mask`."""
    logits = torch.einsum("bhqd,bhkd->bhqk", queries, keys) / queries.shape[-1] ** 0.5
    weights = torch.where(mask, logits.exp(), 0.0)
    return torch.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdim=True), values)


@ALL_PATHS
@pytest.mark.parametrize("asking", [1, 7])
@pytest.mark.parametrize("biases", [1, 2], ids=["one for all rows", "one a row"])
def test_every_path_has_the_gradients_of_plain_attention(length: int, biases: int, asking: int) -> None:
    queries, keys, values = (part.requires_grad_() for part in heads(length, seed=4))
    mask = normal(biases, 1, asking, length, seed=5) > -0.5
    mask[..., 0] = True
    bias = torch.where(mask, 0.0, -torch.inf).double()
    some = queries[:, :, :asking]
    found, expected = attend(some, keys, values, bias), masked_softmax(some, keys, values, mask)
    weights = normal(*found.shape, seed=6).double()
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (queries, keys, values)),
        torch.autograd.grad((expected * weights).sum(), (queries, keys, values)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@ALL_PATHS
@pytest.mark.parametrize("existing", [1, 5, 9])
def test_existence_of_one_or_zero_is_a_hard_mask(length: int, existing: int) -> None:
    inputs = heads(length, seed=existing)
    exists = (torch.arange(length) < existing).double().expand(2, length)
    mask = torch.where(torch.arange(length) < existing, 0.0, -torch.inf).double().expand(2, 1, length, length)
    soft = attend(*inputs, window_bias(exists.log()))[:, :, :existing]
    assert torch.equal(soft, attend(*inputs, mask)[:, :, :existing])
    queries, keys, values = (part[:, :, :existing] for part in inputs)
    expected = masked_softmax(queries, keys, values, torch.tensor(True))
    torch.testing.assert_close(soft, expected)
    reference = attend_reference(*inputs, window_ratio(exists))[:, :, :existing]
    torch.testing.assert_close(reference, expected)


@ALL_PATHS
def test_certain_starts_are_a_hard_mask_between_segments(length: int) -> None:
    inputs = heads(length, seed=1)
    starts = (torch.arange(length) % 4 == 0).double().expand(2, length)
    segment = starts.cumsum(1)
    same = (segment.unsqueeze(2) == segment.unsqueeze(1)).unsqueeze(1)
    bias = document_bias(cumulative_log_continue(starts))
    soft = attend(*inputs, bias)
    assert torch.equal(soft, attend(*inputs, torch.where(same, 0.0, -torch.inf).double()))
    torch.testing.assert_close(soft, masked_softmax(*inputs, same))
    torch.testing.assert_close(attend_reference(*inputs, same.double()), masked_softmax(*inputs, same))


@law
@given(st.integers(1, 6), seeds)
def test_positions_that_do_not_exist_have_no_influence_at_all(existing: int, seed: int) -> None:
    length = 7
    queries, keys, values = heads(length, seed)
    exists = (torch.arange(length) < existing).double().expand(2, length)
    other_keys, other_values = keys.clone(), values.clone()
    other_keys[:, :, existing:] = 3 * normal(2, 2, length - existing, 4, seed=seed + 7)
    other_values[:, :, existing:] = -5
    ratio, bias = window_ratio(exists), window_bias(exists.log())
    before = attend_reference(queries, keys, values, ratio)[:, :, :existing]
    assert torch.equal(before, attend_reference(queries, other_keys, other_values, ratio)[:, :, :existing])
    before = attend(queries, keys, values, bias)[:, :, :existing]
    after = attend(queries, other_keys, other_values, bias)[:, :, :existing]
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)


@ALL_PATHS
def test_full_existence_is_plain_attention(length: int) -> None:
    inputs = heads(length, seed=2)
    everywhere = masked_softmax(*inputs, torch.tensor(True))
    ones = torch.ones(2, length, dtype=torch.float64)
    for bias in (window_bias(ones.log()), document_bias(cumulative_log_continue(1 - ones)), None):
        assert bias is None or (bias == 0).all()
        torch.testing.assert_close(attend(*inputs, bias), everywhere)
    if length <= PLAIN_LENGTH:
        assert torch.equal(attend(*inputs, window_bias(ones.log())), attend(*inputs, None))
    assert (window_ratio(ones) == 1).all()
    torch.testing.assert_close(attend_reference(*inputs, window_ratio(ones)), everywhere)


@law
@given(seeds, st.integers(1, 4))
def test_a_vanishing_tail_leaves_the_rest_as_it_is(seed: int, appended: int) -> None:
    length = 6
    queries, keys, values = heads(length + appended, seed)
    exists = falling_existence(length, seed)
    kept = queries[:, :, :length], keys[:, :, :length], values[:, :, :length]
    alone = attend(*kept, window_bias(exists.log()))
    torch.testing.assert_close(attend_reference(*kept, window_ratio(exists)), alone)
    errors = []
    for tail in (1e-1, 1e-4, 1e-12, 0.0):
        longer = torch.cat([exists, exists[:, -1:] * torch.full((2, appended), tail)], 1)
        for found in (
            attend(queries, keys, values, window_bias(longer.log())),
            attend_reference(queries, keys, values, window_ratio(longer)),
        ):
            errors.append((found[:, :, :length] - alone).abs().max().item())
    assert errors[0] > errors[2] > errors[4]
    assert max(errors[4:]) < 1e-9


def test_a_later_key_counts_as_much_as_it_exists_given_the_query() -> None:
    exists = torch.tensor([[1.0, 0.5, 0.1]], dtype=torch.float64)
    ratio = torch.tensor([[1.0, 0.5, 0.1], [1.0, 1.0, 0.2], [1.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(window_ratio(exists)[0, 0], ratio)
    torch.testing.assert_close(window_bias(exists.log())[0, 0].exp(), ratio)


def test_document_positions_count_as_much_as_they_share_a_segment() -> None:
    starts = torch.tensor([[1.0, 0.5, 0.0, 0.75]], dtype=torch.float64)
    ratio = torch.tensor(
        [[1, 0.5, 0.5, 0.125], [0.5, 1, 1, 0.25], [0.5, 1, 1, 0.25], [0.125, 0.25, 0.25, 1]], dtype=torch.float64
    )
    torch.testing.assert_close(document_bias(cumulative_log_continue(starts))[0, 0].exp(), ratio)


def test_reference_gradients_are_right() -> None:
    inputs = [part[:1, :1].requires_grad_() for part in heads(4, seed=3)]
    exists = falling_existence(4, seed=3)[:1].requires_grad_()

    def window(exists: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attend_reference(queries, keys, values, window_ratio(exists))

    assert torch.autograd.gradcheck(window, (exists, *inputs))
    probs = start_probs(4, seed=3)[:, 1:].requires_grad_()

    def document(inner: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        starts = torch.cat([torch.ones(1, 1, dtype=torch.float64), inner], 1)
        return attend_reference(queries, keys, values, document_bias(cumulative_log_continue(starts)).exp())

    assert torch.autograd.gradcheck(document, (probs, *inputs))


@ALL_PATHS
@pytest.mark.parametrize("form", ["window", "document"])
def test_fast_path_equals_reference(length: int, form: str) -> None:
    inputs = heads(length, seed=4)
    if form == "window":
        leaf = falling_existence(length, seed=4).requires_grad_()
        pairs = (window_bias(leaf.log()), window_ratio(leaf))
    else:
        leaf = start_probs(length, rows=2, seed=4, high=0.5).requires_grad_()
        bias = document_bias(cumulative_log_continue(leaf))
        pairs = (bias, bias.exp())
    fast, reference = attend(*inputs, pairs[0]), attend_reference(*inputs, pairs[1])
    torch.testing.assert_close(fast, reference)
    probe = normal(*fast.shape, seed=5)
    gradients = [torch.autograd.grad((out * probe).sum(), leaf, retain_graph=True)[0] for out in (fast, reference)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][:, 1:] != 0).all()


def test_fast_path_equals_reference_where_existence_is_zero() -> None:
    inputs = heads(6, seed=6)
    exists = torch.tensor([[1, 1, 0.5, 0.2, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(
        attend(*inputs, window_bias(exists.log())), attend_reference(*inputs, window_ratio(exists))
    )


@ALL_PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_nan_at_zero_existence_forward_or_backward(length: int, dtype: torch.dtype) -> None:
    queries, keys, values = inputs = [part.requires_grad_() for part in heads(length, seed=7, dtype=dtype)]
    starts = torch.full((2, length), 0.3)
    starts[:, ::5] = 1
    starts[:, 1::5] = 0
    starts.requires_grad_()
    cumulative = cumulative_log_continue(starts)
    ended = (torch.arange(length) * -0.5).where(torch.arange(length) < 4, -torch.inf).repeat(2, 1).requires_grad_()
    for leaf, bias in (
        (starts, document_bias(cumulative)),
        (starts, window_bias(cumulative - cumulative[:, :1])),
        (ended, window_bias(ended)),
    ):
        mixed = attend(queries, keys, values, bias)
        assert mixed.dtype == dtype and mixed.isfinite().all()
        gradients = torch.autograd.grad(mixed.float().square().sum(), [*inputs, leaf], retain_graph=True)
        assert all(gradient.isfinite().all() and (gradient != 0).any() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_reference_gradients_are_finite_at_zero_existence(dtype: torch.dtype) -> None:
    queries, keys, values = heads(5, seed=8, dtype=dtype)
    keys[:, :, 3:] *= 1000
    exists = torch.tensor([[1, 0.5, 0.25, 0, 0], [1, 0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    mixed = attend_reference(queries, keys, values, window_ratio(exists))
    assert mixed.isfinite().all()
    (gradient,) = torch.autograd.grad(mixed[:, :, :3].float().sum(), exists)
    assert gradient.isfinite().all()
    calm = attend_reference(queries, torch.zeros_like(keys), values, window_ratio(exists))
    (gradient,) = torch.autograd.grad(calm[0, 0, 0, 0].float(), exists)
    assert (gradient[0, 1:] != 0).all(), "a position that does not exist yet is told whether it should"


def test_rotary_attention_depends_on_distances_alone() -> None:
    queries, keys, _ = heads(6, seed=9)
    phases = rotary_phases(torch.arange(16), 4).double()
    near, far = phases[:, :6], phases[:, 10:]
    torch.testing.assert_close(
        rotate(queries, near) @ rotate(keys, near).transpose(2, 3),
        rotate(queries, far) @ rotate(keys, far).transpose(2, 3),
        atol=1e-5,
        rtol=1e-5,
    )
    assert not torch.allclose(rotate(queries, near), rotate(queries, far))
