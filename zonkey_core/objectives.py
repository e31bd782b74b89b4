"""What each stage of training minimises, for one level.

Three objectives share one shape: a level and a batch of rows in, named losses out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.bytes import BYTE_VALUES
from zonkey_core.denoiser import DecodedWindows, NoisySlots
from zonkey_core.existence import LOG_FLOOR, cumulative_log_continue
from zonkey_core.level import Level, Segmentation, Windows
from zonkey_core.losses import (
    contrastive_loss,
    existence_loss,
    expected_segment_loss,
    latent_regression,
    overlong_penalty,
    rate_penalty,
    uncertainty_penalty,
)
from zonkey_core.noise_schedule import NoiseSchedule
from zonkey_core.positions import LARGEST_BANK, PositionSequence
from zonkey_core.segment_splitter import draw_relaxed, hide_positions
from zonkey_core.text_noise import noise_rows, noised_start_prob

NOISED_ROWS = 2
"""One row in so many is noised where a splitter is held to the same cuts under noise."""
WARMEST, COOLEST = 1.0, 0.4
"""Temperatures at which starts are drawn at the beginning of a splitter's stage and at its end."""
DECODER_NOISE = 0.5
"""Largest noise-to-signal ratio that the autoencoder's decoder is trained to undo."""


class Encoded(NamedTuple):
    """The latents of a batch's existing segments, and what decoding them cost."""

    latents: Tensor
    """[K, C] in the order of the segmentation's existing slots."""
    losses: dict[str, Tensor]


def splitter_objective(
    level: Level,
    sequence: PositionSequence,
    generator: torch.Generator,
    *,
    certainty: float = 1.0,
    stability: float = 1.0,
    temperature: float = COOLEST,
) -> dict[str, Tensor]:
    """Leak-free masked modelling: splitter and reader both see the masked sequence only (design of the splitter).

    It trains level 0's splitter, and above that its guide. The reader is given starts drawn at a `temperature`
    (`draw_relaxed`). `certainty` weighs the penalty on probabilities that are neither 0 nor 1, and `stability` that on
    cuts of bytes that change under noise.
    """
    hidden, values = hide_positions(sequence, level.config.mask_rate, generator)
    splits = (level.guide or level.splitter)(sequence._replace(values=values))
    drawn = draw_relaxed(splits, temperature, generator)
    told = level.reader_loss(level.reader(values, hidden, drawn), sequence.values[hidden])
    if level.reads_bytes:
        alone = alone_in_segment(drawn)[hidden]
        told = (1 - alone) * told + alone * unigram_cost(sequence)[hidden]
    masked = told.sum() / max(1, len(told))
    cumulative = cumulative_log_continue(splits.start_prob)
    rate = rate_penalty(splits.start_prob, sequence.exists_mask, 1 / level.config.segment_length)
    losses = {
        "masked": masked,
        "rate": rate,
        "overlong": overlong_penalty(cumulative, level.config.window),
        "uncertainty": certainty * uncertainty_penalty(splits.start_prob, sequence.exists_mask),
    }
    if stability and level.reads_bytes:
        losses["stability"] = stability * stability_loss(level, sequence, generator)
    return losses


def alone_in_segment(start_prob: Tensor) -> Tensor:
    """[B, L] probability that a position is all of its segment: `p_i p_{i+1}`, and a row's end begins another."""
    return start_prob * functional.pad(start_prob[:, 1:], (0, 1), value=1.0)


def unigram_cost(sequence: PositionSequence) -> Tensor:
    """[B, L] nats that it takes to tell a byte from nothing: `-log` of its share of the batch.

    A byte that is cut off from all others costs this much. A reader would learn which bytes it finds alone, and the
    splitter, which has seen what surrounds a hidden byte, could then tell it by cutting it off.
    """
    counts = torch.bincount(sequence.values[sequence.exists_mask], minlength=BYTE_VALUES).float()
    cost: Tensor = -(counts / counts.sum()).clamp(min=1e-9).log()
    return cost[sequence.values]


def rows_to_noise(sequence: PositionSequence) -> PositionSequence:
    """The rows of a batch that are noised: one in `NOISED_ROWS`."""
    return PositionSequence(*(part[: -(-len(part) // NOISED_ROWS)] for part in sequence))


def stability_loss(level: Level, sequence: PositionSequence, generator: torch.Generator) -> Tensor:
    """Cross-entropy of the starts of noised rows against the splitter's own of the clean ones, a fixed target.

    One row in `NOISED_ROWS` is noised.
    """
    clean = rows_to_noise(sequence)
    with torch.no_grad():
        target = level.split(clean).start_prob
    noised, origins = noise_rows(clean, generator)
    splits = level.split(noised)
    return existence_loss(splits.start_logits, noised_start_prob(target, origins), noised.cut_open().float())


def window_losses(
    level: Level, parts: list[tuple[Windows, DecodedWindows]], start_prob: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of decoded positions, expected over segmentations, and of their predicted starts.

    parts: all windows of the batch, in groups of one length; start_prob [K] of its existing segments. What lies
    behind a certain start or the end of a row is left out, so that it is no wrong answer to any choice either.
    """
    losses, log_existences, drawn, asked, starts, start_logits = [], [], [], [], [], []
    for windows, decoded in parts:
        possible = windows.log_existence.detach() > LOG_FLOOR / 2
        loss = torch.zeros_like(windows.log_existence).masked_scatter(
            possible, level.readout.loss(decoded.states[possible], windows.values[possible])
        )
        beyond = (0, level.config.window - possible.shape[1])
        losses.append(functional.pad(loss, beyond))
        log_existences.append(functional.pad(windows.log_existence, beyond, value=LOG_FLOOR))
        drawn.append(start_prob[windows.segments])
        asked.append(windows.log_existence.detach().exp()[:, :-1].flatten())
        starts.append(windows.start_prob.detach()[:, 1:].flatten())
        start_logits.append(decoded.start_logits[:, 1:].flatten())
    if not parts:
        return start_prob.new_zeros(()), start_prob.new_zeros(())
    positions = expected_segment_loss(torch.cat(losses), torch.cat(log_existences), torch.cat(drawn))
    return positions, existence_loss(torch.cat(start_logits), torch.cat(starts), torch.cat(asked))


def autoencoder_objective(
    level: Level, sequence: PositionSequence, segmentation: Segmentation, generator: torch.Generator
) -> Encoded:
    """Compress every segment and decode it from its latent, half of them under a little noise."""
    start_prob = segmentation.start_prob.gather(1, segmentation.starts)[segmentation.slot_mask]
    latents = start_prob.new_zeros(len(start_prob), level.channels)
    parts = []
    for windows in level.windows(sequence, segmentation):
        clean = level.compress(windows.values, windows.log_existence)
        latents = latents.index_copy(0, windows.segments, clean)
        ratio = DECODER_NOISE * torch.rand(len(clean), generator=generator).mul(2).sub(1).clamp(min=0)
        noise = torch.randn(clean.shape, generator=generator) * ratio.unsqueeze(-1)
        parts.append((windows, level.decode(clean + noise.to(clean.device), windows.values.shape[1])))
    positions, existence = window_losses(level, parts, start_prob)
    return Encoded(latents, {"positions": positions, "existence": existence})


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
