"""Laws of the compressor and of the denoiser's two halves, trunk and decoder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import chance, few, law, normal, seeds, start_probs
from zonkey_core.diffusion.noise_schedule import NoiseSchedule
from zonkey_core.model.attention import DocumentBias
from zonkey_core.model.compressor import Compressor
from zonkey_core.model.denoiser import Decoder, NoisySlots, Trunk
from zonkey_core.model.existence import LOG_FLOOR, cumulative_log_continue
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.transformer import Neighbours

CHANNELS, WIDTH, LATENTS, WINDOW = 6, 8, 2, 10


def make_trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk(CHANNELS, 16, 2, 2, NoiseSchedule(5.0))


def make_decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(WIDTH, LATENTS, 2, 2, WINDOW).double()


def make_compressor() -> Compressor:
    torch.manual_seed(0)
    return Compressor(WIDTH, LATENTS, 2, 2, WINDOW).double()


def slots(count: int, *, seed: int, rows: int = 1) -> NoisySlots:
    """One document a row, at any noise level."""
    levels = torch.rand(rows, count, generator=chance(seed))
    starts = (torch.arange(count) == 0).expand(rows, -1).clone()
    noisy, estimate = (normal(rows, count, CHANNELS, seed=seed + part, dtype=torch.float32) for part in (1, 2))
    return NoisySlots(noisy, levels, estimate, starts, torch.ones(rows, count, dtype=torch.bool))


def joined(first: NoisySlots, second: NoisySlots) -> NoisySlots:
    """Two documents in one row."""
    return NoisySlots(*(torch.cat(pair, 1) for pair in zip(first, second, strict=True)))


def falling(segments: int, length: int, *, seed: int) -> torch.Tensor:
    """Log existence [segments, length], 0 at first and falling."""
    steps = 0.3 * normal(segments, length, seed=seed).abs()
    steps[:, 0] = 0
    return -steps.cumsum(1)


@law
@given(st.data(), seeds)
@torch.no_grad()
def test_known_slots_come_back_exactly(data: st.DataObject, seed: int) -> None:
    reads = slots(6, seed=seed, rows=2)
    known = torch.tensor(data.draw(st.lists(st.booleans(), min_size=12, max_size=12))).view(2, 6)
    reads = reads._replace(noise_level=reads.noise_level.clamp(min=0.1).masked_fill(known, 0.0))
    estimate = make_trunk()(reads).latents
    assert torch.equal(estimate[known], reads.latents[known])
    assert (estimate[~known] != reads.latents[~known]).all()


@torch.no_grad()
def test_at_pure_noise_the_latent_itself_adds_nothing_to_the_estimate() -> None:
    trunk = make_trunk()
    torch.nn.init.zeros_(trunk.latent_out.weight)
    reads = slots(4, seed=1)
    reads = reads._replace(noise_level=torch.ones_like(reads.noise_level))
    torch.testing.assert_close(trunk(reads).latents, trunk.latent_out.bias.expand(1, 4, -1))


@law
@given(seeds, st.integers(1, 5), st.integers(1, 5))
@torch.no_grad()
def test_documents_do_not_influence_each_other(seed: int, count: int, before: int) -> None:
    trunk = make_trunk()
    document = slots(count, seed=seed)
    alone = trunk(document)
    for other_seed in (seed + 10, seed + 20):
        other = slots(before, seed=other_seed)
        after = trunk(joined(other, document))
        torch.testing.assert_close(after.latents[:, before:], alone.latents, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(after.existence_logits[:, before:], alone.existence_logits, atol=1e-5, rtol=1e-4)
        followed = trunk(joined(document, other))
        torch.testing.assert_close(followed.latents[:, :count], alone.latents, atol=1e-5, rtol=1e-4)


@law
@given(seeds, st.integers(1, 6), st.integers(1, 4))
@torch.no_grad()
def test_padding_slots_have_no_influence(seed: int, count: int, padding: int) -> None:
    trunk = make_trunk()
    row = slots(count, seed=seed)
    alone = trunk(row)
    empty = slots(padding, seed=seed + 5)
    empty = empty._replace(
        document_mask=torch.zeros_like(empty.document_mask), slot_mask=torch.zeros_like(empty.slot_mask)
    )
    padded = trunk(joined(row, empty))
    torch.testing.assert_close(padded.latents[:, :count], alone.latents, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(padded.existence_logits[:, :count], alone.existence_logits, atol=1e-6, rtol=1e-5)
    assert padded.latents.isfinite().all()


@torch.no_grad()
def test_slots_of_one_document_do_see_each_other_and_their_levels() -> None:
    trunk = make_trunk()
    reads = slots(5, seed=3)
    base = trunk(reads).latents
    for field, value in (("latents", 2.0), ("estimate", 2.0), ("noise_level", 0.0)):
        changed = getattr(reads, field).clone()
        changed[0, 4] = value
        moved = trunk(reads._replace(**{field: changed})).latents
        assert (moved[0, :4] != base[0, :4]).any(-1).all(), field
    unknown = trunk(reads._replace(document_mask=torch.zeros_like(reads.document_mask))).latents
    assert (unknown != base).any()


# Neighbours


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


# The decoder and the compressor


@law
@given(seeds, st.integers(1, WINDOW))
@torch.no_grad()
def test_decoded_existence_starts_at_one_and_never_rises(seed: int, window: int) -> None:
    decoded = make_decoder()(5 * normal(3, LATENTS * WIDTH, seed=seed), window)
    assert decoded.states.shape == (3, window, WIDTH)
    assert (decoded.log_existence[:, 0] == 0).all()
    assert (decoded.log_existence.diff() <= 0).all()
    expected = torch.sigmoid(-decoded.start_logits[:, 1:]).cumprod(1)
    torch.testing.assert_close(decoded.log_existence[:, 1:].exp(), expected, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_a_shorter_window_decodes_alike_where_existence_has_ended() -> None:
    decoder = make_decoder()
    decoder.starts.bias[5] = 200.0
    latents = normal(3, LATENTS * WIDTH, seed=2)
    whole, short = decoder(latents), decoder(latents, 5)
    torch.testing.assert_close(short.states, whole.states[:, :5])
    assert torch.equal(short.start_logits, whole.start_logits[:, :5])
    assert torch.equal(short.log_existence, whole.log_existence[:, :5])


@torch.no_grad()
def test_each_latent_is_decoded_by_itself() -> None:
    decoder = make_decoder()
    latents = normal(4, LATENTS * WIDTH, seed=3)
    together = decoder(latents).states
    torch.testing.assert_close(torch.cat([decoder(latent.unsqueeze(0)).states for latent in latents]), together)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


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
