"""Compressor: one segment's window becomes N latent vectors (paper, "Compressor").

N learned queries stand before the window and go through a Transformer with Probabilistic Attention, so that a
position counts as much as it exists. The N x D result lies on the sphere of radius sqrt(N D), which fixes its scale
for the diffusion and leaves nothing to gain by growing or shrinking.

Shapes: window [M, S, D] embedded by the level, log existence [M, S], latents [M, N * D].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.attention import window_bias
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.transformer import Transformer


class Compressor(nn.Module):
    """Windows of embedded positions to latents on the sphere."""

    def __init__(self, width: int, latents: int, heads: int, layers: int, window: int) -> None:
        super().__init__()
        self.latents = latents
        self.queries = nn.Parameter(torch.randn(latents, width))
        self.offsets = nn.Parameter(torch.randn(window, width))
        self.transformer = Transformer(width, heads, layers, rotary=False)
        self.norm = nn.LayerNorm(width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, window: Tensor, log_existence: Tensor) -> Tensor:
        """window [M, S, D] with S at most the level's, log existence [M, S] (0 at position 0)."""
        segments, length, _ = window.shape
        queries = self.queries.to(window.dtype).expand(segments, -1, -1)
        states = torch.cat([queries, window + self.offsets[:length].to(window.dtype)], 1)
        bias = window_bias(functional.pad(log_existence, (self.latents, 0)))
        states = self.transformer(states, bias, self.latents)
        return to_sphere(self.out(self.norm(states)).flatten(1))
