"""The writer: level 0's denoiser, which tells slots in an order and never reads what is not written yet.

Every slot has a noise level of its own. One that is still open is pure noise and tells nothing, so for the others it
does not exist yet: attention gives it existence 0. What remains is a Transformer in which a slot sees those that are
known no later than itself, to its left and to its right, and the slot before an open one tells what that holds. All
slots are told in one pass in training, and while text is written, each is read once, with kept keys and values.

Slots that are told at the same time do not see each other. A row is therefore written in streams, each from left to
right, any number of them side by side: one stream is an autoregressive model of segments, and as many streams as slots
are one parallel step. Beside what holds text there are *openings*, before the first slot of a stream or gap, and the
*end* of a document where it is known.

An open slot may also come with a hint, a noisy latent at a noise level below 1, as a level above drafts it.

Shapes: B rows of L slots in the order of the text, latents of width C, states of width D.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.diffusion.decoding_order import Kind, Layout
from zonkey_core.diffusion.noise_schedule import NoiseSchedule
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.length_model import EDGES
from zonkey_core.model.transformer import Block, rotary_phases, soften_outputs

REACH = 2
"""Slots before each one that are mixed in ahead of every block."""


class OrderedSlots(NamedTuple):
    """What the writer reads."""

    layout: Layout
    latents: Tensor
    """[B, L, C] latents of slots that hold text, zeros elsewhere."""
    hints: Tensor
    """[B, L, C] noisy latent of the slot that is told, zeros where there is nothing but noise."""
    noise_level: Tensor
    """[B, L] its noise level, 1 for pure noise."""


class Told(NamedTuple):
    """What the writer says of the slot behind each one."""

    latents: Tensor
    """[B, L, C] estimate of its clean latent, float32."""
    ending_logits: Tensor
    """[B, L, E] hazards of the number of slots from there to the end of the document or gap (`length_model`)."""


class _Preceding(nn.Module):
    """Adds to each slot what stands just before it, channel by channel (Allen-Zhu 2025, "Canon layers")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.weights = nn.Parameter(torch.randn(REACH + 1, width) * 0.2)

    def forward(self, states: Tensor, seen: Tensor, cache: KVCache | None, name: str) -> Tensor:
        """[B, n, D] to the same shape; `seen` [REACH, B, n, 1] is 1 where the slot so far before is known and near."""
        normed = self.norm(states)
        weights = self.weights.to(normed.dtype)
        mixed: Tensor = states + normed * weights[0]
        kept = normed if cache is None else cache.keep(name, normed.unsqueeze(1)).squeeze(1)
        for distance in range(1, REACH + 1):
            if cache is None:
                before = functional.pad(kept, (0, 0, distance, 0))[:, : kept.shape[1]]
            else:
                place = (cache.places - distance).clamp(min=0).unsqueeze(-1).expand(-1, -1, kept.shape[-1])
                before = kept.gather(1, place)
            mixed = torch.addcmul(mixed, before * seen[distance - 1].to(before.dtype), weights[distance])
        return mixed


class Writer(nn.Module):
    """Tells the slot behind each slot from those that are known by then."""

    def __init__(self, channels: int, width: int, heads: int, layers: int, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.head_width = width // heads
        self.gain = channels**-0.5
        """Scale of what is added to a hint."""
        self.latent_in = nn.Linear(2 * channels, width)
        self.noise_in = nn.Linear(3, width, bias=False)
        self.kinds = nn.Parameter(torch.randn(len(Kind), width) * 0.5)
        self.preceding = nn.ModuleList(_Preceding(width) for _ in range(layers))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.latent_out = nn.Linear(width, channels)
        self.ending_out = nn.Linear(width, len(EDGES))
        self.ending_bias = nn.Parameter(torch.zeros(len(Kind), len(EDGES)))
        soften_outputs(self.blocks)

    def forward(self, slots: OrderedSlots, cache: KVCache | None = None) -> Told:
        """Read whole rows, or with a cache the slots at its `places`, whose kept fellows are read with them."""
        alpha, sigma = (
            part(slots.noise_level).unsqueeze(-1) for part in (self.schedule.alpha, self.schedule.sigma)
        )
        hinted = (slots.noise_level < 1).float().unsqueeze(-1)
        dtype = self.latent_in.weight.dtype
        states = self.latent_in(torch.cat([slots.latents, slots.hints], -1).to(dtype))
        noise = torch.cat([hinted, hinted * slots.noise_level.unsqueeze(-1), alpha], -1)
        states = states + self.noise_in(noise.to(dtype))
        states = states + functional.embedding(slots.layout.kinds, self.kinds).to(states.dtype)
        everything = slots.layout if cache is None else cache.layout
        bias = _unknown_bias(slots.layout, everything).to(states.dtype)
        places = None if cache is None else cache.places
        seen = _seen_before(slots.layout, everything, places)
        phases = rotary_phases(slots.layout.positions, self.head_width)
        for index, (preceding, block) in enumerate(zip(self.preceding, self.blocks, strict=True)):
            states = preceding(states, seen, cache, f"states {index}")
            keep = None
            if cache is not None:
                keys, values = (functools.partial(cache.keep, f"{name} {index}") for name in ("keys", "values"))
                keep = keys, values
            states = block(states, bias, phases, keep)
        states = self.norm(states)
        change = self.latent_out(states).float()
        estimate = alpha * slots.hints.float() + sigma * self.gain * change
        usual = functional.embedding(slots.layout.kinds, self.ending_bias).float()
        return Told(estimate, self.ending_out(states).float() + usual)


def _unknown_bias(queries: Layout, keys: Layout) -> Tensor:
    """[B, 1, n, L] log existence of keys for queries: 0 where they are known in time and of the same document."""
    later = keys.order.unsqueeze(1) > queries.order.unsqueeze(2)
    apart = keys.documents.unsqueeze(1) != queries.documents.unsqueeze(2)
    return torch.zeros_like(later, dtype=torch.float32).masked_fill_(later | apart, -torch.inf).unsqueeze(1)


def _seen_before(queries: Layout, keys: Layout, places: Tensor | None) -> Tensor:
    """[REACH, B, n, 1] 1 where the slot so many places before is known in time and of one document."""
    if places is None:
        places = torch.arange(keys.order.shape[1], device=keys.order.device).expand_as(keys.order)
    seen = []
    for distance in range(1, REACH + 1):
        before = (places - distance).clamp(min=0)
        near = (places >= distance) & (keys.documents.gather(1, before) == queries.documents)
        seen.append(near & (keys.order.gather(1, before) <= queries.order))
    return torch.stack(seen).unsqueeze(-1).float()
