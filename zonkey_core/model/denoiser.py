"""DDMM, the Denoising Diffusion Mixed Model: one network that decodes and denoises (paper, "DDMM").

It predicts data. The *trunk* sees the noisy latents of a document in order, each at its own noise level, and
estimates the clean ones; at noise level 0 it returns its input. The *decoder* unfolds each estimate, in parallel,
into the window of lower-level positions that it stands for, with their existence. Compressing the decoded windows
again, which the level does, gives the estimate that a sampler steps toward.

Slots may turn out not to exist: the trunk also gives each slot a probability of existing, which is how a text ends
and how a gap closes when fewer slots are needed than were opened.

Shapes: slots [B, M], latents [B, M, C] with C = N * D, windows [B * M, S, D].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zonkey_core.diffusion.noise_schedule import NoiseSchedule
from zonkey_core.model.attention import DocumentBias, window_bias
from zonkey_core.model.existence import LOG_FLOOR, cumulative_log_continue, decoded_log_existence
from zonkey_core.model.transformer import Transformer


class NoisySlots(NamedTuple):
    """What the trunk reads."""

    latents: Tensor
    """[B, M, C] noisy latents."""
    noise_level: Tensor
    """[B, M] in [0, 1]: 0 is known, 1 is pure noise."""
    estimate: Tensor
    """[B, M, C] an earlier estimate of the clean latents (self-conditioning); zeros where there is none."""
    document_mask: Tensor
    """[B, M] true where a slot is the first of a document; slots of different documents do not see each other."""
    slot_mask: Tensor
    """[B, M] false for padding, which nothing attends to."""


class Estimate(NamedTuple):
    """What the trunk says."""

    latents: Tensor
    """[B, M, C] estimate of the clean latents, float32; the mean of what is possible, so shrunk under noise."""
    existence_logits: Tensor
    """[B, M] logit that the slot exists."""


class DecodedWindows(NamedTuple):
    """Windows of lower-level positions with their predicted existence."""

    states: Tensor
    """[M, S, D] states from which the level reads symbols or lower latents."""
    start_logits: Tensor
    """[M, S] logits that a new segment begins here; position 0 is ignored."""
    log_existence: Tensor
    """[M, S]."""


class Trunk(nn.Module):
    """Mixes the noisy latents of a document across slots and estimates the clean ones."""

    def __init__(
        self, channels: int, width: int, heads: int, layers: int, schedule: NoiseSchedule
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.latent_in = nn.Linear(2 * channels, width)
        self.noise_in = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width))
        self.document_start = nn.Parameter(torch.randn(width) * 0.02)
        self.transformer = Transformer(width, heads, layers, rotary=True, neighbours=True)
        self.norm = nn.LayerNorm(width, bias=False)
        self.latent_out = nn.Linear(width, channels)
        self.existence_out = nn.Linear(width, 1)

    def forward(self, slots: NoisySlots) -> Estimate:
        alpha = self.schedule.alpha(slots.noise_level).unsqueeze(-1)
        sigma = self.schedule.sigma(slots.noise_level).unsqueeze(-1)
        level = slots.noise_level.float().unsqueeze(-1)
        states = self.latent_in(torch.cat([slots.latents, slots.estimate], -1))
        states = states + self.noise_in(torch.cat([level, alpha, sigma, (level == 0).float()], -1))
        states = states + self.document_start * slots.document_mask.unsqueeze(-1)
        bias = DocumentBias(
            cumulative_log_continue(slots.document_mask.float()), (~slots.slot_mask).float() * LOG_FLOOR
        )
        states = self.norm(self.transformer(states, bias))
        change = self.latent_out(states).float()
        estimate = alpha * slots.latents.float() + sigma * change
        return Estimate(estimate, self.existence_out(states).squeeze(-1).float())


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
