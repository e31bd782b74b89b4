"""Generation: text is written from noise, all slots of a stretch side by side, and several texts at a time.

Level 0 fills open slots with strings of its dictionary. Where a level above it starts, that level's slots are denoised
first, its windows are stitched into a draft one level down, which enters there at a small noise level, because it lies
slightly off the clean latents, and is refined in a few steps; and so on to bytes. Text longer than the model's rows
continues from its own end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.bytes import BYTE_VALUES
from zonkey_core.denoiser import NoisySlots
from zonkey_core.errors import ConfigError
from zonkey_core.filling import EMPTY, OpenRow, fill_rows
from zonkey_core.latents import to_sphere
from zonkey_core.level import Level
from zonkey_core.model import Zonkey, text_sequence
from zonkey_core.scoring import Question, log_likelihoods
from zonkey_core.stitcher import Stitched, stitch

GROUP_BYTES = 512
"""Text that is sampled at once."""
CONTEXT_BYTES = 384
"""Text before it that is read."""
SPARE_SLOTS = 1.15
"""Slots opened for each one that is expected to be needed."""
REFINING_RATIO = 1.5
"""Noise-to-signal ratio at which a level of latents receives what the level above unfolds."""
DRAFT_RATIO = 5.0
"""The same for level 0; up to 2, noise leaves no doubt of which string it is."""
REBUILD_RATIO = 2.0
"""Noise-to-signal ratio below which an estimate is decoded and compressed again, so that it is one of real windows."""
END_RUN = 2
"""This many empty slots in a row end a document."""
TOGETHER = 16
"""Texts that are written side by side."""
OTHER_DRAWS = 1_000_003
"""What parts the seeds of the candidates for one text."""
MOST_STEPS = 128


class SamplingOptions(msgspec.Struct, frozen=True):
    """How text is sampled."""

    steps: int = 32
    """Evaluations of a level's trunk from pure noise to none."""
    temperature: float = 1.0
    """Divides the logits of what is chosen, and scales the noise that upper levels draw anew at each step."""
    max_bytes: int = 512
    level: int = 0
    """Where sampling starts."""
    best_of: int = 1
    """Candidates for each text, of which the one that the model finds likeliest is kept."""


class Sample(msgspec.Struct, frozen=True):
    """One text."""

    seed: int
    text: bytes
    score: float | None = None
    """Log-probability per byte, in nats, where there was a choice."""


class Forming(NamedTuple):
    """A text on its way from noise."""

    level: int
    before: bytes
    """What stands already."""
    pieces: list[bytes | None]
    """What follows; None where a slot is still noise."""


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
    model: Zonkey,
    *,
    seeds: Sequence[int],
    options: SamplingOptions,
    prompt: bytes = b"",
    watch: Callable[[Forming], None] | None = None,
) -> Iterator[Sample]:
    """Sample one text per seed, `TOGETHER` at a time; a prompt is kept as the beginning of every one.

    A sample depends on its own seed alone. `watch` is shown how the first text of every group forms. Raises
    `ConfigError` for options out of range.
    """
    check_options(model, options)
    draws = [(seed, seed + OTHER_DRAWS * which) for seed in seeds for which in range(options.best_of)]
    waiting: list[Sample] = []
    for first in range(0, len(draws), TOGETHER):
        group = draws[first : first + TOGETHER]
        texts = _write(model, [draw for _, draw in group], options, prompt, watch)
        if options.best_of == 1:
            yield from (Sample(seed, text) for (seed, _), text in zip(group, texts, strict=True))
            continue
        waiting += _score(model, [seed for seed, _ in group], texts, len(prompt))
        while len(waiting) >= options.best_of:
            candidates, waiting = waiting[: options.best_of], waiting[options.best_of :]
            yield max(candidates, key=lambda candidate: candidate.score or -math.inf)


def _score(model: Zonkey, seeds: Sequence[int], texts: Sequence[bytes], kept: int) -> list[Sample]:
    """Texts with the log-probability per byte of what follows the prompt, given all the rest."""
    likelihoods = log_likelihoods(model, [Question(text, [(kept, len(text))]) for text in texts])
    return [
        Sample(seed, text, likelihood / max(1, len(text) - kept))
        for seed, text, likelihood in zip(seeds, texts, likelihoods, strict=True)
    ]


def _write(
    model: Zonkey,
    draws: Sequence[int],
    options: SamplingOptions,
    prompt: bytes,
    watch: Callable[[Forming], None] | None,
) -> list[bytes]:
    """One text for each of the numbers that seed the draws, side by side."""
    level = model.levels[0]
    dictionary = level.dictionary
    assert dictionary is not None
    generators = [torch.Generator().manual_seed(draw) for draw in draws]
    texts = [prompt for _ in draws]
    going = [index for index in range(len(draws)) if len(prompt) < options.max_bytes]
    while going:
        rooms = [min(GROUP_BYTES, options.max_bytes - len(texts[index])) for index in going]
        rows = [
            _open_row(model, texts[index], room, options, generators[index], watch if index == 0 else None)
            for index, room in zip(going, rooms, strict=True)
        ]
        shown = None
        if watch is not None and going[0] == 0:
            before, known = texts[0], int((rows[0].gaps == 0).sum())

            def shown(entries: list[Tensor], before: bytes = before, known: int = known) -> None:
                pieces = [None if each == EMPTY else dictionary.spell([each]) for each in entries[0][known:].tolist()]
                watch(Forming(0, before, pieces))

        filled = fill_rows(
            level, rows, [generators[index] for index in going],
            steps=options.steps, temperature=options.temperature, on_step=shown,
        )
        left = []
        for index, row, entries in zip(going, rows, filled, strict=True):
            fresh = entries[row.gaps > 0]
            piece = dictionary.spell(fresh[fresh != EMPTY].tolist())
            texts[index] += piece
            ended = not len(fresh) or int(fresh[-1]) == EMPTY
            if piece and not ended and len(texts[index]) < options.max_bytes:
                left.append(index)
        going = left
    return [_trim(text, options.max_bytes, kept=len(prompt)) for text in texts]


def _open_row(
    model: Zonkey,
    text: bytes,
    room: int,
    options: SamplingOptions,
    generator: torch.Generator,
    watch: Callable[[Forming], None] | None,
) -> OpenRow:
    """The end of a text, and slots for about `room` bytes more; a level above 0 drafts what they hold."""
    level = model.levels[0]
    assert level.dictionary is not None
    context = text[-CONTEXT_BYTES:]
    known = read_entries(level, context)
    whole = len(context) == len(text)
    count = math.ceil(room / level.dictionary.mean_length() * SPARE_SLOTS)
    opened, noise = torch.zeros(count, dtype=torch.long), 1.0
    draft = _draft(model, context, whole, room, options, generator) if options.level else None
    if draft is not None:
        opened = read_entries(level, draft)
        noise = level.schedule.level_for_ratio(DRAFT_RATIO)
        if watch is not None:
            watch(Forming(options.level, text, [level.dictionary.spell([each]) for each in opened.tolist()]))
    gaps = torch.cat([torch.zeros_like(known), torch.ones_like(opened)])
    return OpenRow(torch.cat([known, opened]), gaps, whole, noise)


@torch.no_grad()
def read_entries(level: Level, text: bytes) -> Tensor:
    """A text as entries [M] of level 0's dictionary."""
    if not text:
        return torch.zeros(0, dtype=torch.long)
    sequence = text_sequence(text, device=next(level.parameters()).device)
    return level.pieces(sequence, level.split(sequence).start_prob).entries[0].cpu()


def check_options(model: Zonkey, options: SamplingOptions) -> None:
    """Raise `ConfigError` for options out of range."""
    if not 0 <= options.level < len(model.levels):
        raise ConfigError(f"level must be between 0 and {len(model.levels) - 1}, not {options.level}")
    check_sampling(options.steps, options.temperature)
    if options.max_bytes < 1:
        raise ConfigError(f"max-bytes must be at least 1, not {options.max_bytes}")
    if options.best_of < 1:
        raise ConfigError(f"best-of must be at least 1, not {options.best_of}")


def check_sampling(steps: int, temperature: float) -> None:
    """Raise `ConfigError` for a number of steps or a temperature that is out of range."""
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps must be between 1 and {MOST_STEPS}, not {steps}")
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


@torch.no_grad()
def _draft(
    model: Zonkey, context: bytes, whole: bool, room: int, options: SamplingOptions, generator: torch.Generator
) -> bytes | None:
    """About `room` bytes after a context, denoised from the starting level down and decoded; no level 0 refines it.

    Nothing where the text ends here, and None where the levels expect no more than what stands already.
    """
    before = _read_context(model, context, options.level)
    start: Tensor | None = None
    for index in range(options.level, 0, -1):
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


def _trim(text: bytes, limit: int, *, kept: int) -> bytes:
    """At most `limit` bytes, not ending inside a code point; the first `kept` bytes stay in any case."""
    limit = max(limit, kept)
    if len(text) <= limit:
        return text
    end = limit
    while end > max(limit - 3, kept) and 0x80 <= text[end] < 0xC0:
        end -= 1
    return text[:end]
