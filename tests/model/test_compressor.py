"""Laws of the compressor: a position counts in a latent as much as it exists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import few, law, normal, seeds
from zonkey_core.model.compressor import Compressor
from zonkey_core.model.latents import to_sphere

WIDTH, LATENTS, WINDOW = 8, 2, 10


def make_compressor() -> Compressor:
    torch.manual_seed(0)
    return Compressor(WIDTH, LATENTS, 2, 2, WINDOW).double()


def falling(segments: int, length: int, *, seed: int) -> torch.Tensor:
    """Log existence [segments, length], 0 at first and falling."""
    steps = 0.3 * normal(segments, length, seed=seed).abs()
    steps[:, 0] = 0
    return -steps.cumsum(1)


@law
@given(seeds, st.integers(1, WINDOW))
@torch.no_grad()
def test_latents_lie_on_their_sphere(seed: int, length: int) -> None:
    latents = make_compressor()(normal(3, length, WIDTH, seed=seed), falling(3, length, seed=seed + 1))
    assert latents.shape == (3, LATENTS * WIDTH)
    torch.testing.assert_close(latents.norm(dim=1), torch.full((3,), (LATENTS * WIDTH) ** 0.5))


def test_the_sphere_survives_a_zero_vector() -> None:
    assert (to_sphere(torch.zeros(2, 4)) == 0).all()
    torch.testing.assert_close(to_sphere(torch.tensor([[3.0, 0, 0, 0]])), torch.tensor([[2.0, 0, 0, 0]]))


@law
@given(seeds, st.integers(1, 6), st.integers(1, 4))
@torch.no_grad()
def test_a_vanishing_tail_does_not_change_a_latent(seed: int, length: int, appended: int) -> None:
    compressor = make_compressor()
    window, log_exists = normal(2, length + appended, WIDTH, seed=seed), falling(2, length, seed=seed + 1)
    alone = compressor(window[:, :length], log_exists)
    errors = []
    for tail in (-1.0, -12.0, -60.0):
        longer = torch.cat([log_exists, log_exists[:, -1:] + torch.full((2, appended), tail)], 1)
        errors.append((compressor(window, longer) - alone).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 1e-2 and errors[2] < 1e-5


@few
@given(seeds)
def test_a_latent_tells_every_position_whether_it_should_exist(seed: int) -> None:
    log_exists = falling(2, 6, seed=seed).requires_grad_()
    latents = make_compressor()(normal(2, 6, WIDTH, seed=seed), log_exists)
    (gradient,) = torch.autograd.grad((latents * normal(2, LATENTS * WIDTH, seed=seed + 1)).sum(), log_exists)
    assert gradient.isfinite().all() and (gradient[:, 1:] != 0).all()


@pytest.mark.parametrize("place", [0, 3])
@torch.no_grad()
def test_a_latent_depends_on_what_stands_where(place: int) -> None:
    compressor = make_compressor()
    window, log_exists = normal(1, 5, WIDTH, seed=1), torch.zeros(1, 5, dtype=torch.float64)
    base = compressor(window, log_exists)
    other = window.clone()
    other[0, place] *= -1
    assert not torch.allclose(compressor(other, log_exists), base, atol=1e-3)
    assert not torch.allclose(compressor(window.flip(1), log_exists), base, atol=1e-3)
