"""Latent sampler: slots of a level without a vocabulary are denoised, all at once, from pure noise.

Shapes: texts side by side, [B, M] slots of each, latents of width C.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.devices import choose_precision, in_precision
from zonkey_core.diffusion.decoding_order import at_once, lay_out, with_blocks
from zonkey_core.inference.block_decoding import TOGETHER, read_whole
from zonkey_core.inference.shapes import padded_count
from zonkey_core.inference.windows import rebuild_latents
from zonkey_core.model.level import Level
from zonkey_core.model.slot_batches import Plans, at_slots, gather_slots, slot_batch

HIGHEST_RATIO = 12.0
"""Noise-to-signal ratio of the first step below pure noise."""
LOWEST_RATIO = 1.75
"""That of the last, at which the level below takes up what was formed."""

KNOWN_STEP = 16
"""What stands already is padded to a multiple of so many slots."""


class OpenText(NamedTuple):
    """Slots of a text, some of which are open."""

    latents: Tensor
    """[M, C] clean where they are known."""
    known_mask: Tensor
    """[M]"""
    begins: bool
    """Whether a document begins with the first."""
    ends: bool
    """Whether it ends with the last."""
    blocks: Sequence[int] = ()
    """Slots of each block, where the level above says what they hold."""


@torch.no_grad()
def ending_logits(level: Level, known: Sequence[Tensor], begins: Sequence[bool]) -> Tensor:
    """[B, E] hazards of how many slots follow on what is known of texts, [M, C] each."""
    orders = [
        at_once(len(latents), begins=begin, ends=False, known=torch.ones(len(latents), dtype=torch.bool).numpy())
        for latents, begin in zip(known, begins, strict=True)
    ]
    longest = -(-max(map(len, known)) // KNOWN_STEP) * KNOWN_STEP
    orders += [at_once(0, begins=True, ends=False)] * _padding(level, len(orders))
    rows = lay_out(orders, longest + 1, level.device)
    table = torch.zeros(len(orders), longest, level.channels, device=level.device)
    for row, latents in zip(table, known, strict=False):
        row[: len(latents)] = latents
    found = read_whole(level, rows, table)
    last = torch.tensor([len(latents) for latents in known], device=level.device)
    return found.ending_logits[torch.arange(len(known), device=level.device), last]


def _padding(level: Level, count: int) -> int:
    """Rows that are added to so many texts."""
    return -count % padded_count(count, TOGETHER, level.device)


class Formed(NamedTuple):
    """What was made of the slots of texts."""

    latents: list[Tensor]
    """[M, C] of each text."""
    alpha: float
    """How much of noise the level below is to think left of them where they were open."""


@torch.no_grad()
def form_slots(
    level: Level,
    texts: Sequence[OpenText],
    plans: Plans | None,
    generators: Sequence[torch.Generator],
    *,
    steps: int,
    temperature: float,
    length: int,
) -> Formed:
    """Denoise the open slots of texts in `steps` evaluations; rows are padded to `length` slots.

    Data prediction with self-conditioning; before the last evaluation the estimate is decoded and compressed again, so
    that it is one of real windows, and the last one refines it (the paper's dirty pass). Part of the noise is drawn
    anew at every step: from signal and noise (a, s) to (a', s') the next latent is
    `a' x^ + sqrt(s'^2 - v) e^ + sqrt(v) noise` with the noise e^ that the estimate x^ implies and the ancestral
    variance `v = (s'/s)^2 (1 - (a/a')^2)`. Rows are padded to multiples of `TOGETHER` where they are more than
    a few, or products of other shapes round otherwise.
    """
    orders = [at_once(len(text.latents), begins=text.begins, ends=text.ends, known=text.known_mask.cpu().numpy())
              for text in texts]  # fmt: skip
    orders = [with_blocks(order, text.blocks, sized=True) for order, text in zip(orders, texts, strict=True)]
    padding = _padding(level, len(texts))
    orders += [at_once(0, begins=True, ends=False)] * padding
    rows = lay_out(orders, length + 2, level.device)
    clean = torch.zeros(len(orders), length, level.channels, device=level.device)
    open_mask = torch.zeros(len(orders), length, dtype=torch.bool, device=level.device)
    if plans is not None:
        plans = Plans(*(functional.pad(part, (0, 0) * (part.dim() - 1) + (0, padding)) for part in plans))
    for row, text in enumerate(texts):
        clean[row, : len(text.latents)] = text.latents * text.known_mask.unsqueeze(-1)
        open_mask[row, : len(text.latents)] = ~text.known_mask
    ratios = HIGHEST_RATIO * (LOWEST_RATIO / HIGHEST_RATIO) ** torch.linspace(0, 1, max(1, steps - 1))
    left = torch.cat([torch.zeros(1), (1 + ratios.square()).rsqrt()])[: max(1, steps)].tolist()
    denoiser = in_precision(level.denoiser, choose_precision("auto", level.device))
    noisy = torch.zeros_like(clean)
    estimate = torch.zeros_like(clean)
    found = clean
    for step, (alpha, following) in enumerate(itertools.pairwise([*left, left[-1]])):
        share = open_mask * alpha
        batch = slot_batch(clean, rows, noisy=noisy, alpha=share, plans=plans)
        own = gather_slots(estimate, rows.told)
        batch = batch._replace(estimate=own.where(own != 0, batch.estimate))
        found = at_slots(denoiser(batch).latents, rows.told, clean)
        sigma, next_sigma = (1 - alpha * alpha) ** 0.5, (1 - following * following) ** 0.5
        estimate = found
        if step == len(left) - 2:
            estimate = torch.zeros_like(found).masked_scatter(
                open_mask.unsqueeze(-1), rebuild_latents(level, found[open_mask])
            )
        fresh = torch.stack([torch.randn(length, level.channels, generator=each) for each in generators])
        fresh = functional.pad(fresh, (0, 0, 0, 0, 0, padding)).to(level.device)
        variance = (next_sigma / sigma) ** 2 * (1 - (alpha / following) ** 2) if following else next_sigma**2
        implied = (noisy - alpha * found) / sigma
        kept = max(0.0, next_sigma**2 - variance) ** 0.5
        drawn = temperature * max(0.0, variance) ** 0.5
        noisy = following * found + kept * implied + drawn * fresh
    formed = torch.where(open_mask.unsqueeze(-1), found, clean)
    return Formed([row[: len(text.latents)] for row, text in zip(formed, texts, strict=False)],
                  left[-1] or (1 + HIGHEST_RATIO**2) ** -0.5)  # fmt: skip
