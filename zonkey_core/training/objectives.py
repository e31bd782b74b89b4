"""What a level's splitter and its autoencoder minimise.

Both objectives share one shape: a level and a batch of rows in, named losses out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.model.bytes import BYTE_VALUES
from zonkey_core.model.decoder import DecodedWindows
from zonkey_core.model.existence import LOG_FLOOR, cumulative_log_continue
from zonkey_core.model.level import Level
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_splitter import draw_relaxed, hide_positions
from zonkey_core.model.segmentation import Segmentation, Windows
from zonkey_core.training.augmentation import noise_rows, noised_start_prob
from zonkey_core.training.losses import (
    existence_loss,
    expected_segment_loss,
    overlong_penalty,
    rate_penalty,
    uncertainty_penalty,
)
from zonkey_core.training.processes import mean_over, over_all

NOISED_ROWS = 2
"""One row in so many is noised where a splitter is held to the same cuts under noise."""
WARMEST, COOLEST = 1.0, 0.4
"""Temperatures at which starts are drawn at the beginning of a splitter's stage and at its end."""
DECODER_NOISE = 0.5
"""Largest noise-to-signal ratio that the autoencoder's decoder is trained to undo."""


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
    masked = mean_over(told.sum(), len(told))
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
    counts = over_all(torch.bincount(sequence.values[sequence.exists_mask], minlength=BYTE_VALUES).float())
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
    nothing, no_windows = start_prob.new_zeros(0), start_prob.new_zeros(0, level.config.window)
    losses, log_existences, drawn = [no_windows], [no_windows], [nothing]
    asked, starts, start_logits = [nothing], [nothing], [nothing]
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
    positions = expected_segment_loss(torch.cat(losses), torch.cat(log_existences), torch.cat(drawn))
    return positions, existence_loss(torch.cat(start_logits), torch.cat(starts), torch.cat(asked))


def autoencoder_losses(
    level: Level, sequence: PositionSequence, segmentation: Segmentation, generator: torch.Generator
) -> dict[str, Tensor]:
    """Compress every segment and decode it from its latent, half of them under a little noise."""
    start_prob = segmentation.start_prob.gather(1, segmentation.starts)[segmentation.slot_mask]
    parts = []
    for windows in level.windows(sequence, segmentation):
        clean = level.compress(windows.values, windows.log_existence)
        ratio = DECODER_NOISE * torch.rand(len(clean), generator=generator).mul(2).sub(1).clamp(min=0)
        noise = torch.randn(clean.shape, generator=generator) * ratio.unsqueeze(-1)
        parts.append((windows, level.decode(clean + noise.to(clean.device), windows.values.shape[1])))
    positions, existence = window_losses(level, parts, start_prob)
    return {"positions": positions, "existence": existence}
