"""Levels above bytes: their slots are denoised from noise and unfolded into a draft one level down.

A draft enters the level below at a small noise level, because it lies slightly off the clean latents, and is refined in
a few steps; the lowest level's draft is read as bytes.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.model.bytes import BYTE_VALUES
from zonkey_core.model.denoiser import NoisySlots
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey, text_sequence
from zonkey_core.model.stitcher import Stitched, stitch

SPARE_SLOTS = 1.15
"""Slots opened for each one that is expected to be needed."""
REFINING_RATIO = 1.5
"""Noise-to-signal ratio at which a level of latents receives what the level above unfolds."""
REBUILD_RATIO = 2.0
"""Noise-to-signal ratio below which an estimate is decoded and compressed again, so that it is one of real windows."""
END_RUN = 2
"""This many empty slots in a row end a document."""


class Slots(NamedTuple):
    """One row of slots on the way from noise to text."""

    latents: Tensor
    """[M, C] clean latents where known, else the start of the sampling."""
    known_mask: Tensor
    """[M]"""
    starts_document: bool
    noise_level: float
    """Noise level at which unknown slots start; 1 ignores their latents."""


class DenoisedSlots(NamedTuple):
    """What sampling made of a row of slots."""

    latents: Tensor
    """[M, C]"""
    existence: Tensor
    """[M] probability that the slot exists; 1 where it was known."""


@torch.no_grad()
def denoise(
    level: Level, slots: Slots, *, steps: int, temperature: float, generator: torch.Generator
) -> DenoisedSlots:
    """Denoise a row of slots: data prediction, self-conditioning, part of the noise drawn anew at every step.

    Once a latent has taken shape, the estimate stepped toward is the trunk's, decoded and compressed again.
    From noise level t to s the next latent is `alpha_s x^ + sqrt(sigma_s^2 - v) e^ + sqrt(v) noise` with the noise
    e^ implied by the estimate x^ and the ancestral variance `v = (sigma_s/sigma_t)^2 (1 - (alpha_t/alpha_s)^2)`.
    """
    assert level.trunk is not None
    known = slots.known_mask
    device = known.device
    shape = slots.latents.shape

    def fresh() -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    start = torch.full((1,), slots.noise_level, device=device)
    noisy = level.schedule.add_noise(slots.latents, fresh(), start.expand(len(known)))
    latents = torch.where(known.unsqueeze(-1), slots.latents, noisy)
    document_mask = torch.zeros_like(known)
    document_mask[0] = slots.starts_document
    estimate = torch.zeros_like(latents) if slots.noise_level == 1 else slots.latents
    existence = torch.ones_like(known, dtype=torch.float32)
    times = level.schedule.sampling_levels(steps, slots.noise_level).to(device)
    everywhere = torch.ones_like(known)
    for now, following in itertools.pairwise(times):
        level_now = torch.where(known, 0, now)
        reads = NoisySlots(*(field[None] for field in (latents, level_now, estimate, document_mask, everywhere)))
        guess = level.trunk(reads)
        estimate = guess.latents[0]
        existence = guess.existence_logits[0].sigmoid()
        alpha, sigma = level.schedule.alpha(now), level.schedule.sigma(now)
        if sigma < REBUILD_RATIO * alpha:
            estimate[~known] = level.recompress(level.decode(estimate[~known]))
        next_alpha, next_sigma = level.schedule.alpha(following), level.schedule.sigma(following)
        implied = (latents - alpha * estimate) / sigma.clamp(min=1e-6)
        variance = (next_sigma / sigma).square() * (1 - (alpha / next_alpha).square())
        kept = (next_sigma.square() - variance).clamp(min=0).sqrt()
        moved = next_alpha * estimate + kept * implied + temperature * variance.clamp(min=0).sqrt() * fresh()
        latents = torch.where(known.unsqueeze(-1), slots.latents, moved)
    return DenoisedSlots(latents, existence.where(~known, 1.0))


@torch.no_grad()
def unfold(level: Level, slots: DenoisedSlots) -> Stitched:
    """Decode a row of slots and stitch the windows: byte contents [L, 256], or latents of the level below [L, C]."""
    symbols = level.reads_bytes
    decoded = level.decode(slots.latents)
    contents = level.readout(decoded.states)
    if symbols:
        contents = functional.one_hot(contents.argmax(-1), BYTE_VALUES).float()
    return stitch(contents, decoded.log_existence, slots.existence, symbols=symbols)


def read_bytes(level: Level, slots: DenoisedSlots) -> bytes:
    """The text of a row of level 0's slots."""
    return bytes(unfold(level, slots).contents.argmax(-1).tolist()) if len(slots.latents) else b""


@torch.no_grad()
def draft_text(
    model: Zonkey,
    context: bytes,
    room: int,
    *,
    top: int,
    starts_document: bool,
    steps: int,
    temperature: float,
    generator: torch.Generator,
) -> bytes | None:
    """About `room` bytes after a context, denoised from level `top` down to level 1 and decoded.

    Nothing where the text ends here, and None where the levels expect no more than what stands already. The top level
    takes `steps` evaluations, and those below it half as many.
    """
    before = _read_context(model, context, top)
    start: Tensor | None = None
    for index in range(top, 0, -1):
        level, known = model.levels[index], before[index].latents
        if start is None:
            length = math.prod(below.segment_length for below in model.config.levels[: index + 1])
            opened = known.new_zeros(math.ceil(room / length * SPARE_SLOTS), level.channels)
            noise, evaluations = 1.0, steps
        else:
            opened = to_sphere(start)
            noise, evaluations = level.schedule.level_for_ratio(REFINING_RATIO), max(1, steps // 2)
        mask = torch.arange(len(known) + len(opened), device=known.device) < len(known)
        result = denoise(
            level,
            Slots(torch.cat([known, opened]), mask, starts_document, noise),
            steps=evaluations,
            temperature=temperature,
            generator=generator,
        )
        fresh = _until_end(DenoisedSlots(result.latents[len(known) :], result.existence[len(known) :]))
        if not (fresh.existence > 0.5).any():
            return b""
        unfolded = unfold(level, fresh).contents[before[index].written :]
        start = unfolded if len(unfolded) else None
    if start is None:
        return None
    return read_bytes(model.levels[0], DenoisedSlots(to_sphere(start), start.new_ones(len(start))))


def _until_end(slots: DenoisedSlots) -> DenoisedSlots:
    """Drop everything from the first `END_RUN` empty slots on."""
    empty = (slots.existence <= 0.5).float()
    runs = empty.unfold(0, END_RUN, 1).amin(-1).nonzero().flatten() if len(empty) >= END_RUN else empty[:0]
    end = int(runs[0]) if len(runs) else len(empty)
    return DenoisedSlots(slots.latents[:end], slots.existence[:end])


class _Context(NamedTuple):
    """What a level knows of the text so far."""

    latents: Tensor
    """[M, C] of its closed segments; above level 0 the last segment may go on, so it is open and left out."""
    written: int
    """Known positions of the level below that belong to the open segment."""


def _read_context(model: Zonkey, context: bytes, top: int) -> list[_Context]:
    """The text so far as seen by each level up to `top`."""
    if not context:
        return [_Context(torch.zeros(0, level.channels, device=model.device), 0) for level in model.levels]
    views = model.ascend(text_sequence(context, device=model.device), top)
    result = [_Context(views[0].latents.float(), 0)]
    for view in views[1:]:
        written = len(result[-1].latents) - int(view.segmentation.starts[0, -1])
        result.append(_Context(view.latents[:-1].float(), max(0, written)))
    return result


