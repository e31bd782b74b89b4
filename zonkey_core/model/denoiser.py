"""DDMM, the Denoising Diffusion Mixed Model: at every level one network from noisy slots to clean ones (paper, "DDMM").

It predicts data. Every slot has a noise level of its own: a known one is clean, one of pure noise tells nothing and
does not exist for the others, and between the two lies whatever a sampler makes of it. Beside the slots it reads the
latent of the level above, the *plan* of the block that a slot belongs to, which has a noise level of its own too; where
that is pure noise the level stands alone. The estimate of a slot's clean latent is

    z^ = alpha z + sigma f(readings),

and where a level has a vocabulary, `z^` becomes a softmax over it (`segment_vocabulary`), beside which what known slots
hold may be copied (`pointer`).

An order (`diffusion.decoding_order`) says which readings see which. All slots at once is the usual latent diffusion;
one after another is an autoregressive model of segments, of which keys and values are kept; blocks side by side lie
between.

Shapes: B rows of L readings, latents of width C, states of width D.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.length_model import EDGES
from zonkey_core.model.pointer import Copies, Pointer
from zonkey_core.model.transformer import Block, rotary_phases, soften_outputs
from zonkey_core.slots import Layout, SlotBatch, SlotKind

REACH = 2
"""Readings before each one that are mixed in ahead of every block."""
PLAN_GAIN = 0.5
"""Standard deviation, in states, of what a plan adds before training."""


class DenoisedSlots(NamedTuple):
    """What the denoiser says of the slot that each reading asks."""

    latents: Tensor
    """[B, L, C] estimate of its clean latent, float32."""
    ending_logits: Tensor
    """[B, L, E] hazards of the number of slots from there to the end of the document or gap (`length_model`)."""
    copies: Copies | None = None
    """From where it is copied; None where a level has no vocabulary."""


class _Preceding(nn.Module):
    """Adds to each reading what stands just before it, channel by channel (Allen-Zhu 2025, "Canon layers")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.weights = nn.Parameter(torch.randn(REACH + 1, width) * 0.2)

    def forward(self, states: Tensor, seen: Tensor, cache: KVCache | None, name: str) -> Tensor:
        """[B, n, D] to the same shape; `seen` [REACH, B, n, 1] is 1 where the reading so far before is seen."""
        normed = self.norm(states)
        weights = self.weights.to(normed.dtype)
        mixed: Tensor = states + normed * weights[0]
        kept = normed if cache is None else cache.keep(name, normed.unsqueeze(1)).squeeze(1)
        for distance in range(1, REACH + 1):
            if cache is None or cache.places is None:
                before = functional.pad(kept, (0, 0, distance, 0))[:, : kept.shape[1]]
            else:
                place = (cache.places - distance).clamp(min=0).unsqueeze(-1).expand(-1, -1, kept.shape[-1])
                before = kept.gather(1, place)
            mixed = torch.addcmul(mixed, before * seen[distance - 1].to(before.dtype), weights[distance])
        return mixed


class Denoiser(nn.Module):
    """Estimates what open slots hold; `channels_above` is None where no level is above, `blocks` the longest block.

    With `copying`, it also says which known slots they may be copies of.
    """

    def __init__(
        self, channels: int, channels_above: int | None, width: int, heads: int, layers: int, *, blocks: int,
        copying: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.head_width = width // heads
        self.gain = channels**-0.5
        """Scale of what is added to a noisy latent."""
        self.latent_in = nn.Linear(3 * channels, width)
        self.noise_in = nn.Linear(3, width, bias=False)
        self.kinds = nn.Parameter(torch.randn(len(SlotKind), width) * 0.5)
        self.left = nn.Parameter(torch.zeros(blocks + 1, width))
        self.plan_in: nn.Linear | None = None
        self.plan_noise_in: nn.Linear | None = None
        if channels_above is not None:
            self.plan_in = nn.Linear(channels_above, width, bias=False)
            self.plan_noise_in = nn.Linear(2, width, bias=False)
            nn.init.normal_(self.plan_in.weight, std=PLAN_GAIN * channels_above**-0.5)
            nn.init.zeros_(self.plan_noise_in.weight)
        self.preceding = nn.ModuleList(_Preceding(width) for _ in range(layers))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.latent_out = nn.Linear(width, channels)
        self.ending_out = nn.Linear(width, len(EDGES))
        self.ending_bias = nn.Parameter(torch.zeros(len(SlotKind), len(EDGES)))
        self.pointer = Pointer(width, channels) if copying else None
        soften_outputs(self.blocks)

    def forward(self, slots: SlotBatch, cache: KVCache | None = None) -> DenoisedSlots:
        """Read whole rows, or those readings that stand at the `places` of a cache, and with them what it keeps."""
        layout = slots.layout
        alpha = slots.alpha.float().unsqueeze(-1)
        sigma = (1 - alpha.square()).clamp(min=0).sqrt()
        dtype = self.latent_in.weight.dtype
        states = self.latent_in(torch.cat([slots.known, slots.noisy, slots.estimate], -1).to(dtype))
        hinted = (alpha > 0).float()
        states = states + self.noise_in(torch.cat([hinted, hinted * sigma, alpha], -1).to(dtype))
        states = states + functional.embedding(layout.kinds, self.kinds).to(states.dtype)
        states = states + functional.embedding(slots.left.clamp(max=len(self.left) - 1), self.left).to(states.dtype)
        if self.plan_in is not None and self.plan_noise_in is not None and slots.plan is not None:
            assert slots.plan_alpha is not None
            left_of_plan = slots.plan_alpha.float().unsqueeze(-1)
            given = (left_of_plan > 0).float()
            states = states + self.plan_in((slots.plan * given).to(dtype))
            states = states + self.plan_noise_in(torch.cat([given, left_of_plan], -1).to(dtype))
        everything, places = (layout, None) if cache is None else (cache.layout, cache.places)
        bias = _existence_bias(layout, everything, places).to(states.dtype)
        seen = _seen_before(layout, everything, places)
        phases = rotary_phases(layout.positions, self.head_width)
        for index, (preceding, block) in enumerate(zip(self.preceding, self.blocks, strict=True)):
            states = preceding(states, seen, cache, f"states {index}")
            keep = None
            if cache is not None:
                keys, values = (functools.partial(cache.keep, f"{name} {index}") for name in ("keys", "values"))
                keep = keys, values
            states = block(states, bias, phases, keep)
        states = self.norm(states)
        estimate = alpha * slots.noisy.float() + sigma * self.gain * self.latent_out(states).float()
        usual = functional.embedding(layout.kinds, self.ending_bias).float()
        copies = None
        if self.pointer is not None:
            held = everything.held_mask.unsqueeze(1) & (bias.squeeze(1) == 0)
            copies = self.pointer(states, slots.known, held, cache)
        return DenoisedSlots(estimate, self.ending_out(states).float() + usual, copies)


def _existence_bias(queries: Layout, keys: Layout, places: Tensor | None) -> Tensor:
    """[B, 1, n, L] log existence of keys for queries: 0 where they are made in time, tell something, and are of the
    same document; every reading sees itself."""
    later = keys.order.unsqueeze(1) > queries.order.unsqueeze(2)
    apart = keys.documents.unsqueeze(1) != queries.documents.unsqueeze(2)
    every = torch.arange(keys.order.shape[1], device=keys.order.device)
    itself = every == (every if places is None else places).unsqueeze(-1)
    hidden = later | apart | (keys.silent_mask.unsqueeze(1) & ~itself)
    return torch.zeros_like(hidden, dtype=torch.float32).masked_fill_(hidden, -torch.inf).unsqueeze(1)


def _seen_before(queries: Layout, keys: Layout, places: Tensor | None) -> Tensor:
    """[REACH, B, n, 1] 1 where the reading so many places before is made in time, tells something, and is of one
    document with it."""
    if places is None:
        places = torch.arange(keys.order.shape[1], device=keys.order.device).expand_as(keys.order)
    seen = []
    for distance in range(1, REACH + 1):
        before = (places - distance).clamp(min=0)
        near = (places >= distance) & (keys.documents.gather(1, before) == queries.documents)
        near = near & ~keys.silent_mask.gather(1, before)
        seen.append(near & (keys.order.gather(1, before) <= queries.order))
    return torch.stack(seen).unsqueeze(-1).float()
