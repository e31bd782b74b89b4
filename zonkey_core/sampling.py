"""Generation: the top level is denoised from noise, and each level below refines what the one above unfolds.

All slots of a level are denoised at once. A level's windows are stitched into an estimate of the latents one level
down, which enter there at a small noise level, because they lie slightly off the clean ones, and are refined in a
few steps; and so on to bytes. Text longer than the model's rows continues from its own end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.bytes import BYTE_VALUES
from zonkey_core.denoiser import NoisySlots
from zonkey_core.errors import ConfigError
from zonkey_core.latents import to_sphere
from zonkey_core.level import Level
from zonkey_core.model import Zonkey, text_sequence
from zonkey_core.stitcher import Stitched, stitch

GROUP_BYTES = 512
"""Text that is sampled at once."""
CONTEXT_BYTES = 384
"""Text before it that is read."""
SPARE_SLOTS = 1.15
"""Slots opened for each one that is expected to be needed."""
REFINING_RATIO = 1.5
"""Noise-to-signal ratio at which a level receives what the level above unfolds."""
REBUILD_RATIO = 2.0
"""Noise-to-signal ratio below which an estimate is decoded and compressed again, so that it is one of real windows."""
END_RUN = 2
"""This many empty slots in a row end a document."""


class SamplingOptions(msgspec.Struct, frozen=True):
    """How text is sampled."""

    steps: int = 16
    """Evaluations of a level's trunk from pure noise to none."""
    temperature: float = 1.0
    """Scale of the noise that is added anew at each step; 0 takes the most typical path."""
    max_bytes: int = 512
    level: int | None = None
    """Where sampling starts: the top level by default, 0 for level 0 alone."""


class Sample(msgspec.Struct, frozen=True):
    """One text."""

    seed: int
    text: bytes


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


def generate(
    model: Zonkey, *, seeds: Sequence[int], options: SamplingOptions, prompt: bytes = b""
) -> Iterator[Sample]:
    """Sample one text per seed, each yielded when ready; a prompt is kept as the beginning of every one.

    A sample depends on its own seed alone. Raises `ConfigError` for options out of range.
    """
    top = resolve_level(model, options)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        text = prompt
        while len(text) < options.max_bytes:
            room = min(GROUP_BYTES, options.max_bytes - len(text))
            piece, ended = _continue_text(model, text, room, top, options, generator)
            text += piece
            if ended or not piece:
                break
        yield Sample(seed, _trim(text, options.max_bytes, kept=len(prompt)))


def resolve_level(model: Zonkey, options: SamplingOptions) -> int:
    """The level at which sampling starts; raises `ConfigError` for options out of range."""
    top = len(model.levels) - 1 if options.level is None else options.level
    if not 0 <= top < len(model.levels):
        raise ConfigError(f"level must be between 0 and {len(model.levels) - 1}, not {top}")
    check_sampling(options.steps, options.temperature)
    if options.max_bytes < 1:
        raise ConfigError(f"max-bytes must be at least 1, not {options.max_bytes}")
    return top


def check_sampling(steps: int, temperature: float) -> None:
    """Raise `ConfigError` for a number of steps or a temperature that is out of range."""
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, not {steps}")
    if not 0 <= temperature <= 10:
        raise ConfigError(f"temperature must lie between 0 and 10, not {temperature}")


@torch.no_grad()
def denoise(
    level: Level, slots: Slots, *, steps: int, temperature: float, generator: torch.Generator
) -> DenoisedSlots:
    """Denoise a row of slots: data prediction, self-conditioning, part of the noise drawn anew at every step.

    Once a latent has taken shape, the estimate stepped toward is the trunk's, decoded and compressed again.
    From noise level t to s the next latent is `alpha_s x^ + sqrt(sigma_s^2 - v) e^ + sqrt(v) noise` with the noise
    e^ implied by the estimate x^ and the ancestral variance `v = (sigma_s/sigma_t)^2 (1 - (alpha_t/alpha_s)^2)`.
    """
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


def _continue_text(
    model: Zonkey, text: bytes, room: int, top: int, options: SamplingOptions, generator: torch.Generator
) -> tuple[bytes, bool]:
    """Sample about `room` bytes after `text`; also says whether the document ended."""
    context = text[-CONTEXT_BYTES:]
    before = _read_context(model, context, top)
    whole = len(context) == len(text)
    start: Tensor | None = None
    ended = False
    for index in range(top, -1, -1):
        level, known = model.levels[index], before[index].latents
        if start is None:
            length = math.prod(below.segment_length for below in model.config.levels[: index + 1])
            opened = known.new_zeros(math.ceil(room / length * SPARE_SLOTS), level.channels)
            noise, steps = 1.0, options.steps
        else:
            opened = to_sphere(start)
            noise, steps = level.schedule.level_for_ratio(REFINING_RATIO), max(1, options.steps // 2)
        mask = torch.arange(len(known) + len(opened), device=known.device) < len(known)
        result = denoise(
            level,
            Slots(torch.cat([known, opened]), mask, whole, noise),
            steps=steps,
            temperature=options.temperature,
            generator=generator,
        )
        fresh, stopped = _until_end(DenoisedSlots(result.latents[len(known) :], result.existence[len(known) :]))
        ended = ended or stopped
        if index == 0:
            return read_bytes(level, fresh), ended
        if not (fresh.existence > 0.5).any():
            return b"", True
        unfolded = unfold(level, fresh).contents[before[index].written :]
        start = unfolded if len(unfolded) else None
    raise AssertionError("the loop returns at level 0")


def _until_end(slots: DenoisedSlots) -> tuple[DenoisedSlots, bool]:
    """Drop everything from the first `END_RUN` empty slots on."""
    empty = (slots.existence <= 0.5).float()
    if len(empty) < END_RUN:
        return slots, False
    runs = empty.unfold(0, END_RUN, 1).amin(-1).nonzero().flatten()
    if not len(runs):
        return slots, False
    end = int(runs[0])
    return DenoisedSlots(slots.latents[:end], slots.existence[:end]), True


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


def _trim(text: bytes, limit: int, *, kept: int) -> bytes:
    """At most `limit` bytes, not ending inside a code point; the first `kept` bytes stay in any case."""
    limit = max(limit, kept)
    if len(text) <= limit:
        return text
    end = limit
    while end > max(limit - 3, kept) and 0x80 <= text[end] < 0xC0:
        end -= 1
    return text[:end]
