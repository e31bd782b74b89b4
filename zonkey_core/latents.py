"""Latent vectors live on the sphere of radius sqrt(C), so each coordinate has unit mean square."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def to_sphere(latents: Tensor) -> Tensor:
    """Scale [..., C] vectors to the radius sqrt(C), in float32."""
    wide = latents.float()
    scaled: Tensor = functional.normalize(wide, dim=-1, eps=1e-6) * wide.shape[-1] ** 0.5
    return scaled
