"""Laws of what transformers add to attention: neighbours count as much as they are of the same document."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import chance, law, normal, seeds, start_probs
from zonkey_core.model.attention import DocumentBias
from zonkey_core.model.existence import LOG_FLOOR, cumulative_log_continue
from zonkey_core.model.transformer import Neighbours, Transformer, forget_activations

WIDTH = 8


def make_neighbours() -> Neighbours:
    torch.manual_seed(0)
    return Neighbours(WIDTH).double()


def certain(*lengths: int) -> torch.Tensor:
    """`C` [1, L] of documents of these lengths."""
    starts = torch.cat([torch.arange(length) == 0 for length in lengths])
    return cumulative_log_continue(starts.double().unsqueeze(0))


@law
@given(seeds, st.integers(1, 9))
@torch.no_grad()
def test_a_neighbour_counts_as_much_as_it_is_of_the_same_document(seed: int, length: int) -> None:
    neighbours, states = make_neighbours(), normal(2, length, WIDTH, seed=seed)
    starts = start_probs(length, rows=2, seed=seed)
    absent = torch.where(torch.rand(2, length, generator=chance(seed)) < 0.2, LOG_FLOOR, 0.0).double()
    found = neighbours(states, DocumentBias(cumulative_log_continue(starts), absent))
    normed = neighbours.norm(states)
    for row in range(2):
        for place in range(length):
            expected = states[row, place] + normed[row, place] * neighbours.weights[Neighbours.REACH]
            for other in range(max(0, place - Neighbours.REACH), min(length, place + Neighbours.REACH + 1)):
                between = starts[row, min(place, other) + 1 : max(place, other) + 1]
                if other != place and absent[row, other] == 0:
                    weight = neighbours.weights[Neighbours.REACH + other - place]
                    expected = expected + (1 - between).prod() * weight * normed[row, other]
            torch.testing.assert_close(found[row, place], expected, atol=1e-6, rtol=1e-6)


@law
@given(seeds, st.integers(1, 6), st.integers(1, 6))
@torch.no_grad()
def test_a_document_beside_another_is_as_it_is_alone(seed: int, before: int, after: int) -> None:
    neighbours, states = make_neighbours(), normal(1, before + after, WIDTH, seed=seed)
    together = neighbours(states, DocumentBias(certain(before, after)))
    alone = [neighbours(part, DocumentBias(certain(part.shape[1]))) for part in states.split([before, after], 1)]
    torch.testing.assert_close(together, torch.cat(alone, 1))


@law
@given(seeds, st.integers(1, 6), st.integers(1, 4))
@torch.no_grad()
def test_padding_is_no_neighbour(seed: int, length: int, padding: int) -> None:
    neighbours, states = make_neighbours(), normal(1, length + padding, WIDTH, seed=seed)
    absent = torch.where(torch.arange(length + padding) < length, 0.0, LOG_FLOOR).double().unsqueeze(0)
    padded = neighbours(states, DocumentBias(certain(length + padding), absent))
    alone = neighbours(states[:, :length], DocumentBias(certain(length)))
    torch.testing.assert_close(padded[:, :length], alone)
    assert padded.isfinite().all()


@torch.no_grad()
def test_neighbours_reach_so_far_and_both_ways() -> None:
    neighbours, states = make_neighbours(), normal(1, 9, WIDTH, seed=1)
    changed = states.clone()
    changed[:, 4] *= -1
    moved = (neighbours(changed, DocumentBias(certain(9))) != neighbours(states, DocumentBias(certain(9)))).any(-1)
    assert moved[0].nonzero().flatten().tolist() == list(range(4 - Neighbours.REACH, 5 + Neighbours.REACH))


def test_what_is_computed_anew_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    network = Transformer(16, 2, 3, rotary=True)
    states = normal(2, 7, 16, seed=1, dtype=torch.float32).requires_grad_()
    kept = torch.autograd.grad(network(states, None).square().sum(), [states, *network.parameters()])
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each.numel()) or each, lambda each: each):
        network(states, None)
        before = sum(saved)
        forget_activations(network)
        saved.clear()
        result = network(states, None)
    assert sum(saved) < before / 3
    anew = torch.autograd.grad(result.square().sum(), [states, *network.parameters()])
    for first, second in zip(kept, anew, strict=True):
        torch.testing.assert_close(first, second)
