"""Copying: shares add up to one, come from what is held and seen, and reach every entry that is held twice."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import chance, law, normal, seeds
from zonkey_core.model.pointer import NEVER, Copies, Pointer, with_copies

WIDTH, CHANNELS, ENTRIES = 12, 5, 9


def pointed(rows: int, length: int, seed: int) -> tuple[Copies, Tensor]:
    """What a pointer of strong opinions says of some readings, and a mask [B, L, L] of what they see held."""
    torch.manual_seed(seed)
    pointer = Pointer(WIDTH, CHANNELS)
    torch.nn.init.normal_(pointer.gate.weight)
    states, known = (normal(rows, length, size, seed=seed, dtype=torch.float32) for size in (WIDTH, CHANNELS))
    held = torch.rand(rows, length, length, generator=chance(seed)) < 0.4
    return pointer(5 * states, known, held, None), held


@law
@given(st.integers(1, 3), st.integers(1, 9), seeds)
def test_an_answer_is_a_copy_of_one_of_the_slots_that_are_seen_or_none(rows: int, length: int, seed: int) -> None:
    copies, held = pointed(rows, length, seed)
    shares, rest = copies.log_shares.exp(), copies.log_rest.exp()
    torch.testing.assert_close(shares.sum(-1) + rest, torch.ones(rows, length))
    assert (shares[held] > 0).any() or not held.any()
    assert not shares[~held].any()
    assert torch.equal(rest[~held.any(-1)], torch.ones(int((~held.any(-1)).sum())))


@law
@given(st.integers(1, 3), st.integers(1, 9), seeds)
def test_probabilities_of_entries_with_copies_add_up_and_are_those_of_the_score(
    rows: int, length: int, seed: int
) -> None:
    copies, _ = pointed(rows, length, seed)
    held = torch.randint(-1, ENTRIES, (rows, length), generator=chance(seed))
    copies = Copies(copies.log_shares.masked_fill((held < 0).unsqueeze(1), NEVER), copies.log_rest)
    prob = torch.rand(rows, length, ENTRIES, generator=chance(seed + 1)).softmax(-1)
    flat = copies.log_shares.flatten(0, 1), copies.log_rest.flatten()
    mixed = with_copies(prob.flatten(0, 1), *flat, held.repeat_interleave(length, 0)).view(prob.shape)
    whole = copies.log_shares.exp().sum(-1) + copies.log_rest.exp()
    torch.testing.assert_close(mixed.sum(-1), whole)
    for entry in range(ENTRIES):
        wanted = torch.full((rows, length), entry)
        scored = copies.log_copied(held, wanted).exp() + copies.log_rest.exp() * prob[..., entry]
        torch.testing.assert_close(mixed[..., entry], scored)


def test_gradients_are_finite_where_nothing_is_seen() -> None:
    pointer = Pointer(WIDTH, CHANNELS)
    states, known = (normal(1, 4, size, seed=2, dtype=torch.float32) for size in (WIDTH, CHANNELS))
    held = torch.zeros(1, 4, 4, dtype=torch.bool)
    held[0, 3, :2] = True
    copies = pointer(states.requires_grad_(), known, held, None)
    entries = torch.tensor([[7, 1, 1, 1]])
    wanted = torch.tensor([[7, 7, 7, 7]])
    loss = torch.logaddexp(copies.log_copied(entries, wanted), copies.log_rest - 3).sum()
    for gradient in torch.autograd.grad(loss, [states, *pointer.parameters()]):
        assert gradient.isfinite().all() and gradient.any()
