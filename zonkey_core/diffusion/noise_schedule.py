"""Noise schedule of the latent diffusion: how much of a latent is left at noise level t.

    alpha(t) = 1 / sqrt(1 + d^2 tan^2(pi t / 2)),    sigma(t) = sqrt(1 - alpha^2),    t in [0, 1]

`alpha(0) = 1`, `alpha(1) = 0`; d = 1 is the cosine schedule, and larger d spends more of t under heavy noise, which
latents that stay readable under noise need (TEncDM, "noise scheduler").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HIGHEST_RATIO = 25.0
LOWEST_RATIO = 0.4
"""Noise-to-signal ratios between which a sampler steps; below the lowest a decoder reads a latent as it is."""


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

    def sampling_levels(self, steps: int, start: float = 1.0) -> Tensor:
        """The levels that a sampler visits: [steps + 1], from `start` to 0.

        Below pure noise they are equally spaced in the logarithm of the noise-to-signal ratio, because that is where
        a latent takes shape; equal steps of t would spend most evaluations where nothing is left to decide.
        """
        high = HIGHEST_RATIO if start >= 1 else self.scale * math.tan(math.pi / 2 * start)
        inner = steps - 1 if start >= 1 else steps
        ratios = torch.logspace(math.log10(high), math.log10(min(high, LOWEST_RATIO)), inner)
        return torch.cat([torch.ones(steps - inner), self.levels_for_ratios(ratios), torch.zeros(1)])

    def levels_for_ratios(self, ratios: Tensor) -> Tensor:
        """The levels at which sigma / alpha equals the given ratios (noise to signal), any shape."""
        return 2 / math.pi * torch.atan(ratios / self.scale)

    def level_for_ratio(self, ratio: float) -> float:
        """The level at which sigma / alpha equals `ratio` (noise to signal)."""
        return 2 / math.pi * math.atan(ratio / self.scale)
