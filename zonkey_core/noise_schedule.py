"""Noise schedule of the latent diffusion: how much of a latent is left at noise level t.

    alpha(t) = 1 / sqrt(1 + d^2 tan^2(pi t / 2)),    sigma(t) = sqrt(1 - alpha^2),    t in [0, 1]

`alpha(0) = 1`, `alpha(1) = 0`; d = 1 is the cosine schedule, and larger d spends more of t under heavy noise, which
latents that stay readable under noise need (TEncDM, "noise scheduler").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class NoiseSchedule:
    """The schedule for one `scale` d; every method takes noise levels in [0, 1] of any shape."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def alpha(self, level: Tensor) -> Tensor:
        """Share of the clean latent that is left, in float32."""
        tangent = self.scale * torch.tan(level.float().clamp(0, 1) * (math.pi / 2))
        return (1 + tangent * tangent).rsqrt().where(level < 1, 0.0)

    def sigma(self, level: Tensor) -> Tensor:
        """Standard deviation of the noise, so that alpha^2 + sigma^2 = 1."""
        return (1 - self.alpha(level).square()).clamp(min=0).sqrt()

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Noised latents: clean, noise [..., D] and levels [...] to [..., D]."""
        return self.alpha(level).unsqueeze(-1) * clean + self.sigma(level).unsqueeze(-1) * noise

    def level_for_ratio(self, ratio: float) -> float:
        """The level at which sigma / alpha equals `ratio` (noise to signal)."""
        return 2 / math.pi * math.atan(ratio / self.scale)
