"""Vectors on the sphere: choosing among those of a table costs what a plain softmax says, and the nearest is found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.model_helpers import normal
from zonkey_core.model.latents import ROWS_TOGETHER, choice_nats, nearest_rows, to_sphere

CHANNELS, ENTRIES = 24, 90
TABLE = to_sphere(normal(ENTRIES, CHANNELS, seed=0))
BIAS = normal(ENTRIES, seed=5, dtype=torch.float32)


def case(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries that learn, which entries they are to choose, and what is made of the nats of each."""
    queries = normal(rows, CHANNELS, seed=1, dtype=torch.float32) / 2
    weights = normal(rows, seed=2, dtype=torch.float32)
    return queries.requires_grad_(), torch.arange(rows) * 7 % ENTRIES, weights


def plain_nats(queries: Tensor, entries: Tensor) -> Tensor:
    return functional.cross_entropy(queries @ TABLE.T + BIAS, entries, reduction="none")


@pytest.mark.parametrize("rows", [0, 1, ROWS_TOGETHER, 2 * ROWS_TOGETHER + 5])
def test_a_choice_costs_its_cross_entropy_and_teaches_the_same(rows: int) -> None:
    queries, entries, weights = case(rows)
    found, plain = choice_nats(queries, entries, TABLE, BIAS), plain_nats(queries, entries)
    torch.testing.assert_close(found, plain)
    gradients = [torch.autograd.grad(nats, queries, weights)[0] for nats in (found, plain)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_choice_in_bfloat16_is_close_and_comes_in_float32() -> None:
    queries, entries, weights = case(ROWS_TOGETHER + 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = choice_nats(queries, entries, TABLE, BIAS)
    assert found.dtype == torch.float32
    plain = plain_nats(queries, entries)
    torch.testing.assert_close(found, plain, atol=0.05, rtol=0.01)
    assert not torch.equal(found, plain)
    to_found, to_plain = (torch.autograd.grad(nats, queries, weights)[0] for nats in (found, plain))
    assert to_found.dtype == torch.float32
    assert (to_found - to_plain).norm() < 0.02 * to_plain.norm()


def test_a_choice_does_not_move_what_it_is_made_from() -> None:
    queries, entries, weights = case(9)
    table, bias = TABLE.clone().requires_grad_(), BIAS.clone().requires_grad_()
    nats = choice_nats(queries, entries, table, bias)
    to_queries, *others = torch.autograd.grad(nats, [queries, table, bias], weights, allow_unused=True)
    assert (to_queries != 0).all() and others == [None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", [0.0, 0.3, 2.0])
def test_the_nearest_is_found(noise: float, dtype: torch.dtype) -> None:
    table = to_sphere(normal(ROWS_TOGETHER + 188, CHANNELS, seed=3))
    noised = (table + noise * normal(*table.shape, seed=4, dtype=torch.float32)).to(dtype)
    found = nearest_rows(noised, table)
    assert torch.equal(found, torch.cdist(to_sphere(noised).double(), table.double()).argmin(-1))
    right = found == torch.arange(len(table))
    assert right.all() if not noise else right.any() and (noise < 1 or not right.all())


def test_of_no_latents_none_is_nearest() -> None:
    assert nearest_rows(TABLE[:0], TABLE).shape == (0,)
