"""What a level's denoiser minimises: to tell what slots held from what is left of them under noise.

Slots have noise levels of their own, so that one objective serves generation (all at 1), prompts and gaps (the known
ones at 0), and every step in between. Bytes are told as entries of a dictionary, latents are regressed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.denoiser import NoisySlots
from zonkey_core.dictionary import Dictionary, Pieces
from zonkey_core.level import Level, Segmentation, Windows
from zonkey_core.losses import contrastive_loss, latent_regression
from zonkey_core.noise_schedule import NoiseSchedule
from zonkey_core.objectives import window_losses
from zonkey_core.positions import LARGEST_BANK, PositionSequence

SCATTERED, OPEN_ENDED = 1 / 2, 1 / 4
"""Shares of rows that lose scattered slots, and of those that are open at their end; the others have a gap."""
FROM_START = 1 / 2
"""Share of rows open at their end of which nothing is known but that a document begins."""
LONGEST_BURST = 24
"""Most empty slots at the end of a gap."""
PURE_NOISE = 0.85
"""Share of rows whose unknown slots hold nothing but noise, where generation starts."""


def denoiser_objective(
    level: Level,
    sequence: PositionSequence,
    segmentation: Segmentation,
    latents: Tensor,
    generator: torch.Generator,
    *,
    decoded_share: float = 0.25,
) -> dict[str, Tensor]:
    """Rebuild clean latents, and the windows that they stand for, from slots that each have their own noise level.

    Rows take one of three passes, drawn at random: half are noised; a quarter are noised and read beside the trunk's
    own first estimate (self-conditioning); a quarter are *dirty*, where that estimate, decoded and compressed again,
    is itself noised and refined. Known slots, at noise level 0, are the clean pass. `decoded_share` of the segments
    are decoded as well.
    """
    slots = open_slots(level.upper_sequence(latents, segmentation), generator)
    noise_level = draw_noise_levels(slots, level.schedule, generator)
    clean = slots.latents
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    noisy = level.schedule.add_noise(clean, noise, noise_level)
    reads = NoisySlots(noisy, noise_level, torch.zeros_like(clean), slots.document_mask, slots.slot_mask)
    passes = torch.rand(len(clean), generator=generator).to(clean.device)
    reads = _read_again(level, sequence, segmentation, slots, reads, noise, passes, generator)
    estimate = level.trunk(reads)
    unknown = slots.slot_mask & (noise_level > 0)
    asked = unknown & slots.exists_mask
    sigma = level.schedule.sigma(reads.noise_level)
    weight = asked * sigma.clamp(min=0.2).square().reciprocal()
    chosen = estimate.latents[asked][:LARGEST_BANK]
    targets = clean[asked].detach()
    existence = functional.binary_cross_entropy_with_logits(
        estimate.existence_logits, slots.exists_mask.float(), reduction="none"
    )
    losses = {
        "latents": latent_regression(estimate.latents, clean.detach(), weight),
        "choice": contrastive_loss(chosen, targets[:LARGEST_BANK], targets[:LARGEST_BANK]).sum()
        / max(1, len(chosen)),
        "slots": (existence * unknown).sum() / unknown.sum().clamp(min=1),
    }
    return losses | _decoding_losses(
        level, sequence, segmentation, estimate.latents[slots.exists_mask], generator, decoded_share
    )


def choosing_objective(level: Level, pieces: Pieces, generator: torch.Generator) -> dict[str, Tensor]:
    """Tell which entry of the dictionary each unknown slot held, and which slots held none.

    Half of the rows that are not pure noise are read beside the expected latents of a first pass (self-conditioning).
    """
    dictionary, trunk, schedule = level.dictionary, level.trunk, level.schedule
    assert dictionary is not None
    latents = dictionary.latents()
    task = draw_task(pieces, generator)
    noise_level = draw_unknown_levels(task, schedule, generator)
    clean = functional.embedding(task.entries, latents) * task.exists_mask.unsqueeze(-1)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    noisy = schedule.add_noise(clean, noise, noise_level)
    reads = NoisySlots(noisy, noise_level, torch.zeros_like(noisy), task.document_mask, task.slot_mask)
    again = ((noise_level > 0) & (noise_level < 1)).any(1)
    again &= (torch.rand(len(again), generator=generator) < 0.5).to(again.device)
    if again.any():
        with torch.no_grad():
            some = NoisySlots(*(field[again] for field in reads))
            reads.estimate[again] = expected_latents(dictionary, latents, some, trunk(some).latents, schedule)
    estimate = trunk(reads)
    sigma = schedule.sigma(noise_level)
    asked = task.unknown_mask & task.exists_mask
    existence = functional.binary_cross_entropy_with_logits(
        estimate.existence_logits[task.unknown_mask], task.exists_mask[task.unknown_mask].float(), reduction="sum"
    )
    return {
        "choice": dictionary.loss(estimate.latents[asked], sigma[asked], latents, task.entries[asked]),
        "slots": existence / task.unknown_mask.sum().clamp(min=1),
    }


def expected_latents(
    dictionary: Dictionary, latents: Tensor, slots: NoisySlots, estimate: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """[B, M, C] expected latents of unknown slots under their distributions; those of known ones as they are."""
    unknown = slots.slot_mask & (slots.noise_level > 0)
    prob = dictionary.logits(estimate[unknown], schedule.sigma(slots.noise_level[unknown]), latents).softmax(-1)
    return slots.latents.masked_scatter(unknown.unsqueeze(-1), (prob @ latents).to(slots.latents.dtype))


class Task(NamedTuple):
    """What a denoiser that chooses from a dictionary is asked in training."""

    entries: Tensor
    """[B, M] what each slot holds; of no meaning where it holds nothing."""
    exists_mask: Tensor
    """[B, M] false where a slot turns out to be empty."""
    unknown_mask: Tensor
    """[B, M] true for all that is asked; empty slots are never known."""
    document_mask: Tensor
    slot_mask: Tensor
    """[B, M] false in padding."""


def draw_task(pieces: Pieces, generator: torch.Generator) -> Task:
    """Hide parts of rows as generation and infilling will find them hidden.

    Rows lose scattered slots, or have a gap, a stretch with empty slots at its end as when more are opened than are
    needed, or are open at their end, from anywhere or from the beginning of a document on. Where that document ends
    before the row does, all that follows is empty, so whether slot i exists asks whether the text is longer than i.
    """
    batch, length = pieces.entries.shape
    device = pieces.entries.device

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device)

    mode = chance(batch, 1)
    scattered, open_ended = mode < SCATTERED, mode >= 1 - OPEN_ENDED
    count = pieces.slot_mask.sum(1, keepdim=True)
    first, last = torch.split((chance(batch, 2).sort(1).values * count).long(), 1, 1)
    beginning = torch.where(pieces.document_mask, chance(batch, length), -chance(batch, length))
    from_start = open_ended & (chance(batch, 1) < FROM_START) & pieces.document_mask.any(1, keepdim=True)
    first = beginning.argmax(1, keepdim=True).where(from_start, first)
    burst = torch.exp2(chance(batch, 1) * math.log2(LONGEST_BURST)).long().masked_fill(scattered | open_ended, 0)

    order = torch.arange(length + int(burst.max()), device=device).unsqueeze(0)
    source = order - (order - last).clamp(min=0).minimum(burst)
    slot_mask = source < count
    source = source.clamp(max=length - 1)
    documents = pieces.document_mask.gather(1, source) & slot_mask
    empty = (order > last) & (order <= last + burst)
    ended = open_ended & (documents & (order > first)).cummax(1).values
    exists = slot_mask & ~empty & ~ended
    stretch = (source >= first) & (open_ended | (source <= last))
    hidden = torch.where(scattered, chance(*source.shape) < chance(batch, 1), stretch)
    return Task(
        pieces.entries.gather(1, source), exists, slot_mask & (hidden | ~exists), documents & exists, slot_mask
    )


def draw_unknown_levels(task: Task, schedule: NoiseSchedule, generator: torch.Generator) -> Tensor:
    """Noise levels [B, M], 0 for known slots.

    The others are pure noise in `PURE_NOISE` of the rows, and lie at one level, or at one each, in the rest.
    """
    batch, count = task.unknown_mask.shape
    logs = torch.randn(batch, count, generator=generator)
    logs = logs.where(torch.rand(batch, 1, generator=generator) < 0.5, logs[:, :1])
    pure = torch.rand(batch, 1, generator=generator) < PURE_NOISE
    level = schedule.levels_for_ratios(torch.exp(1.2 + 0.9 * logs)).masked_fill(pure, 1.0)
    return level.to(task.unknown_mask.device) * task.unknown_mask


class OpenSlots(NamedTuple):
    """A level's latents in slots, some of which stand for nothing."""

    latents: Tensor
    """[B, M, C], zero where nothing exists."""
    exists_mask: Tensor
    """[B, M] true where the slot holds a segment, in the order of the segmentation."""
    document_mask: Tensor
    slot_mask: Tensor
    """[B, M] true where there is a slot at all."""


def open_slots(upper: PositionSequence, generator: torch.Generator, *, share: float = 0.06) -> OpenSlots:
    """Open slots that should turn out empty: after the end of each document, and here and there within.

    upper: latents [B, M, C] with existing segments first in each row. A document's end is known only where another
    follows it in the row.
    """
    exists, values = upper.exists_mask, upper.values
    device = values.device
    ends = torch.zeros_like(exists)
    ends[:, :-1] = upper.document_mask[:, 1:] & exists[:, 1:]
    burst = torch.randint(1, 5, exists.shape, generator=generator).to(device)
    sprinkled = (torch.rand(exists.shape, generator=generator) < share).to(device)
    extra = torch.where(exists & (ends | sprinkled), burst, 0)
    place = torch.arange(exists.shape[1], device=device) + extra.cumsum(1) - extra
    total = exists.sum(1) + extra.sum(1)
    slots = int(total.max())
    place = place.where(exists, slots)
    grid = values.new_zeros(len(values), slots + 1, values.shape[-1])
    grid = grid.scatter(1, place.unsqueeze(-1).expand_as(values), values)[:, :slots]
    filled = torch.zeros(len(values), slots + 1, dtype=torch.bool, device=device)
    starts = filled.scatter(1, place, upper.document_mask)[:, :slots]
    filled = filled.scatter(1, place, exists)[:, :slots]
    return OpenSlots(grid, filled, starts, torch.arange(slots, device=device) < total.unsqueeze(1))


def draw_noise_levels(slots: OpenSlots, schedule: NoiseSchedule, generator: torch.Generator) -> Tensor:
    """Noise levels [B, M]: a quarter of the rows share one, a quarter draw one per slot, half know some slots.

    Levels are drawn where the loss is neither solved nor hopeless: noise-to-signal is log-normal around e^1.2, and
    three in ten are pure noise, where generation starts. Known slots are at 0; empty ones are never known.
    """
    batch, count = slots.slot_mask.shape

    def draw(shape: tuple[int, int]) -> Tensor:
        ratio = torch.exp(1.2 + 0.9 * torch.randn(shape, generator=generator))
        level = schedule.levels_for_ratios(ratio)
        return level.where(torch.rand(shape, generator=generator) > 0.3, 1.0)

    mode = torch.rand(batch, 1, generator=generator)
    shared, separate = draw((batch, 1)).expand(batch, count), draw((batch, count))
    level = separate.where((mode > 0.25) & (mode < 0.5), shared)
    scattered = torch.rand(batch, count, generator=generator) < torch.rand(batch, 1, generator=generator)
    position = torch.arange(count) / count
    low, high = torch.split(torch.rand(batch, 2, generator=generator).sort(1).values, 1, 1)
    high = high.where(torch.rand(batch, 1, generator=generator) < 0.5, 1.0)
    outside = (position < low) | (position >= high)
    known = torch.where(mode < 0.75, scattered, outside) & (mode >= 0.5)
    return level.to(slots.latents.device).masked_fill(known.to(slots.latents.device) & slots.exists_mask, 0.0)


@torch.no_grad()
def _read_again(
    level: Level,
    sequence: PositionSequence,
    segmentation: Segmentation,
    slots: OpenSlots,
    reads: NoisySlots,
    noise: Tensor,
    passes: Tensor,
    generator: torch.Generator,
) -> NoisySlots:
    """Give half of the rows an earlier estimate, by the passes [B] drawn in [0, 1): self-conditioned or dirty."""
    again = passes > 0.5
    dirty = (passes > 0.75).unsqueeze(1)
    first = torch.zeros_like(reads.latents)
    if again.any():
        first[again] = level.trunk(NoisySlots(*(field[again] for field in reads))).latents
    flat = first[slots.exists_mask]
    rebuilt = flat.clone()
    for windows in level.windows(sequence, segmentation, dirty.expand_as(slots.exists_mask)[slots.exists_mask]):
        decoded = level.decode(flat[windows.segments], windows.values.shape[1])
        rebuilt[windows.segments] = level.recompress(decoded)
    estimate = first.masked_scatter(slots.exists_mask.unsqueeze(-1), rebuilt)
    lower = reads.noise_level * torch.rand(len(first), 1, generator=generator).to(first.device)
    unclean = dirty & (reads.noise_level > 0)
    noised = level.schedule.add_noise(estimate, noise, lower)
    return reads._replace(
        latents=torch.where(unclean.unsqueeze(-1), noised, reads.latents),
        noise_level=torch.where(unclean, lower, reads.noise_level),
        estimate=estimate,
    )


def _decoding_losses(
    level: Level,
    sequence: PositionSequence,
    segmentation: Segmentation,
    flat: Tensor,
    generator: torch.Generator,
    share: float,
) -> dict[str, Tensor]:
    """Decode a share of the estimated latents [K, C], so that the decoder learns from what the trunk emits."""
    start_prob = segmentation.start_prob.gather(1, segmentation.starts)[segmentation.slot_mask]
    parts = []
    for windows in level.windows(sequence, segmentation):
        keep = torch.rand(len(windows.segments), generator=generator).to(flat.device) < share
        part = Windows(*(field[keep] for field in windows))
        if len(part.segments):
            parts.append((part, level.decode(flat[part.segments], part.values.shape[1])))
    positions, existence = window_losses(level, parts, start_prob)
    return {"decoded": positions, "decoded_existence": existence}
