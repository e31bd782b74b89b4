"""Laws of a stack of blocks."""

from __future__ import annotations

import torch

from tests.model_helpers import normal
from zonkey_core.model.transformer import Transformer, forget_activations


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


def test_the_first_positions_alone_are_what_they_are_among_all() -> None:
    torch.manual_seed(0)
    network = Transformer(16, 2, 2, rotary=False).double()
    states, bias = normal(2, 7, 16, seed=1), normal(2, 1, 7, 7, seed=2)
    torch.testing.assert_close(network(states, bias, 3), network(states, bias)[:, :3])
