"""The codebook: codes are nearest directions, what is frequent has one, and they stay what they are."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.model_helpers import chance, law, normal, seeds
from zonkey_core.model.codebook import Codebook

CHANNELS = 24


def directions(count: int, seed: int) -> Tensor:
    """Directions [count, CHANNELS] that lie far apart."""
    basis: Tensor = torch.linalg.qr(normal(CHANNELS, CHANNELS, seed=seed, dtype=torch.float32))[0]
    return basis[:count]


def around(centres: Tensor, each: int, seed: int, spread: float = 0.02) -> Tensor:
    """Points around the centres, `each` a centre, of all lengths and in any order."""
    points = centres.repeat(each, 1)
    points = points + spread * normal(*points.shape, seed=seed, dtype=torch.float32)
    generator = chance(seed)
    points = points * (0.2 + 5 * torch.rand(len(points), 1, generator=generator))
    return points[torch.randperm(len(points), generator=generator)]


def fitted(codes: int, points: Tensor, seed: int = 0) -> Codebook:
    """A codebook that has seen points."""
    codebook = Codebook(codes, points.shape[-1])
    codebook.fit(points, chance(seed))
    return codebook


@law
@given(seeds, st.integers(1, 40))
def test_a_code_is_that_of_the_nearest_direction(seed: int, codes: int) -> None:
    codebook = fitted(codes, normal(300, 6, seed=seed, dtype=torch.float32))
    latents = normal(3, 50, 6, seed=seed + 1, dtype=torch.float32)
    similarity = functional.cosine_similarity(latents.unsqueeze(-2), codebook.centres, dim=-1)
    found = codebook(latents)
    assert found.shape == (3, 50)
    torch.testing.assert_close(similarity.gather(-1, found.unsqueeze(-1)).squeeze(-1), similarity.amax(-1))
    assert torch.equal(codebook(7 * latents), found), "length says nothing"


@law
@given(seeds, st.integers(2, 12))
def test_clear_clusters_have_a_code_each(seed: int, count: int) -> None:
    true = directions(count, seed)
    points = around(true, 80, seed)
    codebook = fitted(CHANNELS, points, seed)
    codes, cluster = codebook(points), (points @ true.T).argmax(-1)
    torch.testing.assert_close(codebook.centres.norm(dim=-1), torch.ones(CHANNELS))
    nearest = (codebook.centres @ true.T).amax(0)
    assert (nearest > 0.99).all(), "every cluster has been found"
    of_codes = [set(cluster[codes == code].tolist()) for code in set(codes.tolist())]
    assert all(len(found) == 1 for found in of_codes), "no code is that of two"


def test_a_centre_is_the_mean_direction_of_what_it_stands_for() -> None:
    points = around(directions(3, 1), 100, 2, spread=0.1)
    codebook = fitted(3, points)
    for _ in range(3):
        codebook.fit(points, chance(0))
    codes = codebook(points)
    for code, centre in enumerate(codebook.centres):
        mean = functional.normalize(points[codes == code], dim=-1).sum(0)
        torch.testing.assert_close(centre, functional.normalize(mean, dim=0))


def test_frequent_directions_have_centres() -> None:
    """Of a few directions that are most of all, none is left out, however many rare ones there are."""
    frequent = directions(8, 3)
    rare = normal(4000, CHANNELS, seed=4, dtype=torch.float32)
    points = torch.cat([frequent.repeat(1000, 1), rare])
    for seed in range(5):
        codebook = fitted(64, points, seed)
        similarity = codebook.centres @ frequent.T
        assert (similarity.amax(0) > 0.9).all()
        assert len(set(similarity.argmax(0).tolist())) == len(frequent), "one each"


@law
@given(seeds)
def test_codes_stay_what_they_were_when_fitted_again(seed: int) -> None:
    true = directions(6, seed)
    codebook = fitted(12, around(true, 50, seed), seed)
    before = codebook.centres.clone()
    codebook.fit(around(true, 50, seed + 1), chance(seed + 1))
    assert (functional.cosine_similarity(codebook.centres, before) > 0.98).all()


@law
@given(seeds)
def test_codes_go_along_where_their_directions_move(seed: int) -> None:
    true = directions(6, seed)
    codebook = Codebook(6, CHANNELS)
    codebook.centres.copy_(true[torch.randperm(6, generator=chance(seed))])
    codes = codebook(true)
    moved = functional.normalize(true + 0.3 * directions(7, seed + 1)[1:], dim=-1)
    codebook.fit(around(moved, 50, seed), chance(seed))
    assert torch.equal(codebook(moved), codes)
    assert (functional.cosine_similarity(codebook.centres[codes], moved) > 0.99).all()


@law
@given(seeds, st.integers(1, 6))
def test_fewer_points_than_codes_are_each_their_own(seed: int, count: int) -> None:
    true = directions(count, seed)
    codebook = fitted(10, true.repeat(30, 1), seed)
    codes = codebook(true)
    assert len(set(codes.tolist())) == count
    torch.testing.assert_close(codebook.centres[codes], true)
    used = torch.zeros(10, dtype=torch.bool)
    used[codes] = True
    assert (codebook.centres[~used] == 0).all()
    assert codebook.centres.isfinite().all()


def test_fitting_is_decided_by_the_generator_alone_and_leaves_its_input() -> None:
    points = normal(500, 8, seed=1, dtype=torch.float32)
    kept = points.clone()
    torch.manual_seed(0)
    first = fitted(16, points, seed=3)
    torch.manual_seed(1)
    assert torch.equal(first.centres, fitted(16, points, seed=3).centres)
    assert not torch.equal(first.centres, fitted(16, points, seed=4).centres)
    assert torch.equal(points, kept)


def test_centres_are_state_and_no_parameters() -> None:
    codebook = fitted(4, normal(50, 8, seed=1, dtype=torch.float32))
    assert not list(codebook.parameters()) and codebook.state_dict().keys() == {"centres"}
    assert not codebook.centres.requires_grad
    other = Codebook(4, 8)
    assert not other.centres.any(), "not fitted yet"
    other.load_state_dict(codebook.state_dict())
    latents = normal(40, 8, seed=2, dtype=torch.float32)
    assert torch.equal(other(latents), codebook(latents))


def test_latents_of_half_precision_have_codes() -> None:
    points = around(directions(5, 1), 40, 1)
    codebook = fitted(5, points)
    assert torch.equal(codebook(points.bfloat16()), codebook(points))
