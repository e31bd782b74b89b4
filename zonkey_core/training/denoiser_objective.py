"""What a level's denoiser minimises: to tell what slots held from what is left of them under noise.

Slots have noise levels of their own, so that one objective serves generation (all at 1), prompts and gaps (the known
ones at 0), and every step in between. Bytes are told as entries of a dictionary, latents are regressed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.diffusion.decoding_order import Kind, draw_plan
from zonkey_core.diffusion.noise_schedule import NoiseSchedule
from zonkey_core.model.denoiser import NoisySlots
from zonkey_core.model.latents import contrastive_loss
from zonkey_core.model.length_model import ending_losses
from zonkey_core.model.level import Level, Segmentation, Windows
from zonkey_core.model.positions import LARGEST_BANK, PositionSequence
from zonkey_core.model.segment_vocabulary import SegmentTokens
from zonkey_core.model.writer import OrderedSlots
from zonkey_core.training.losses import latent_regression
from zonkey_core.training.objectives import window_losses

HINTED = 0.15
"""Share of rows that come with hints of what is told."""
ENDINGS_WEIGHT = 0.3
LATER_ENDINGS = 0.05
"""Weight of the endings that are asked further on in a text, beside those asked where it opens."""


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
    assert level.trunk is not None
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


def choosing_objective(level: Level, pieces: SegmentTokens, generator: torch.Generator) -> dict[str, Tensor]:
    """Tell which entry of the dictionary each slot holds, from those known before it, and where documents and gaps end.

    Some rows come with hints of what is told, as a level above drafts it.
    """
    dictionary, writer, schedule = level.dictionary, level.writer, level.schedule
    assert dictionary is not None and writer is not None
    latents = dictionary.latents()
    plan = draw_plan(pieces.slot_mask, pieces.document_mask, generator)
    held, told = (pieces.entries.gather(1, which.clamp(min=0)) for which in (plan.source, plan.told))
    asked = plan.told >= 0
    noise_level = draw_hint_levels(asked, schedule, generator)
    hinted = noise_level < 1
    noise = torch.randn(int(hinted.sum()), level.channels, generator=generator).to(latents.device)
    hints = latents.new_zeros(*asked.shape, level.channels)
    hints[hinted] = schedule.add_noise(latents.detach()[told[hinted]], noise, noise_level[hinted])
    content = functional.embedding(held, latents) * (plan.source >= 0).unsqueeze(-1)
    estimate = writer(OrderedSlots(plan.layout, content, hints, noise_level))
    measured = plan.remaining >= 0
    endings = ending_losses(
        estimate.ending_logits[measured], plan.remaining[measured], plan.certain_mask[measured]
    )
    weight = torch.where(plan.layout.kinds == Kind.TEXT, LATER_ENDINGS, 1.0)[measured]
    return {
        "choice": dictionary.loss(estimate.latents[asked], schedule.sigma(noise_level[asked]), latents, told[asked]),
        "endings": ENDINGS_WEIGHT * (endings * weight).sum() / weight.sum().clamp(min=LATER_ENDINGS),
    }


def draw_hint_levels(asked: Tensor, schedule: NoiseSchedule, generator: torch.Generator) -> Tensor:
    """Noise levels [B, L] of hints: pure noise but for `HINTED` of the rows, where they share one or have one each."""
    logs = torch.randn(asked.shape, generator=generator)
    logs = logs.where(torch.rand(len(asked), 1, generator=generator) < 0.5, logs[:, :1])
    hinted = (torch.rand(len(asked), 1, generator=generator) < HINTED).to(asked.device) & asked
    return schedule.levels_for_ratios(torch.exp(1.2 + 0.9 * logs)).to(asked.device).where(hinted, 1.0)


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
        assert level.trunk is not None
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
