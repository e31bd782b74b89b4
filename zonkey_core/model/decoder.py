"""Decoder: unfolds a segment's latent into the window of lower-level positions that it stands for (paper, "DDMM").

Each window says with what probability it goes on, position by position: existence decays by the decoder's own starts.

Shapes: latents [M, C] with C = N * D, windows [M, S, D].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zonkey_core.model.attention import window_bias
from zonkey_core.model.existence import decoded_log_existence
from zonkey_core.model.transformer import Transformer


class DecodedWindows(NamedTuple):
    """Windows of lower-level positions with their predicted existence."""

    states: Tensor
    """[M, S, D] states from which the level reads symbols or lower latents."""
    start_logits: Tensor
    """[M, S] logits that a new segment begins here; position 0 is ignored."""
    log_existence: Tensor
    """[M, S]."""


class Decoder(nn.Module):
    """Unfolds each latent into its window: a position-wise linear map, then Probabilistic Attention."""

    def __init__(self, width: int, latents: int, heads: int, layers: int, window: int) -> None:
        super().__init__()
        channels = width * latents
        self.shape = (latents, width)
        self.window = window
        self.rank = width // 2
        self.unfold = nn.Linear(channels, window * self.rank)
        self.widen = nn.Linear(self.rank, width)
        self.offsets = nn.Parameter(torch.randn(window, width) * 0.5)
        self.starts = nn.Linear(channels, window)
        self.transformer = Transformer(width, heads, layers, rotary=False)
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, latents: Tensor, window: int | None = None) -> DecodedWindows:
        """latents [M, C] to windows of the first `window` positions (all by default)."""
        length = window or self.window
        start_logits = self.starts(latents).float()[:, :length]
        log_existence = decoded_log_existence(start_logits)
        unfolded = nn.functional.linear(
            latents, self.unfold.weight[: length * self.rank], self.unfold.bias[: length * self.rank]
        )
        states = self.widen(unfolded.view(-1, length, self.rank)) + self.offsets[:length]
        states = torch.cat([latents.view(-1, *self.shape).to(states.dtype), states.to(states.dtype)], 1)
        prefix = self.shape[0]
        bias = window_bias(nn.functional.pad(log_existence, (prefix, 0)))
        states = self.norm(self.transformer(states, bias)[:, prefix:])
        return DecodedWindows(states, start_logits, log_existence)
