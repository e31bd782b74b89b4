"""Latent vectors live on the sphere of radius sqrt(C), so each coordinate has unit mean square."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def to_sphere(latents: Tensor) -> Tensor:
    """Scale [..., C] vectors to the radius sqrt(C), in float32."""
    wide = latents.float()
    scaled: Tensor = functional.normalize(wide, dim=-1, eps=1e-6) * wide.shape[-1] ** 0.5
    return scaled


def contrastive_loss(estimate: Tensor, target: Tensor, bank: Tensor, *, sharpness: float = 12.0) -> Tensor:
    """Cross-entropy of picking the target out of a bank of real latents, per estimate: [K, C] to [K].

    `-log sum_{j same as i} exp(l_ij) / sum_j exp(l_ij)` with `l_ij = sharpness cos(estimate_i, bank_j)`. The bank
    [J, C] holds the targets [K, C] themselves; entries that equal a target (cosine above 0.999) share its
    probability, so that frequent latents are not each other's negatives. A target of zeros, which is padding, costs
    nothing. Targets and bank are not differentiated.
    Products are in float32 whatever the autocast, because bfloat16 cannot tell a cosine of 0.999 from 1.
    """
    with torch.autocast(estimate.device.type, enabled=False):
        unit_bank = functional.normalize(bank.detach().float(), dim=-1)
        logits = sharpness * functional.normalize(estimate.float(), dim=-1) @ unit_bank.T
        unit_target = functional.normalize(target.detach().float(), dim=-1)
        same = unit_target @ unit_bank.T > 0.999
        is_latent = same.any(-1)
        matched = logits.masked_fill(~(same | ~is_latent.unsqueeze(-1)), -torch.inf)
        return torch.logsumexp(logits, -1) - torch.logsumexp(matched, -1)
