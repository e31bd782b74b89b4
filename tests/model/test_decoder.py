"""Laws of the decoder: each latent unfolds by itself into a window whose existence decays."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import law, normal, seeds
from zonkey_core.model.decoder import Decoder

WIDTH, LATENTS, WINDOW = 8, 2, 10


def make_decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(WIDTH, LATENTS, 2, 2, WINDOW).double()


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
