"""What level 0's splitter and a level's autoencoder minimise.

Both objectives share one shape: a level and a batch of rows in, named losses out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.model.decoder import DecodedWindows
from zonkey_core.model.existence import LOG_FLOOR, cumulative_log_continue
from zonkey_core.model.level import Level
from zonkey_core.model.positions import Choices, PositionSequence
from zonkey_core.model.readers import ContextReader, UnitKinds
from zonkey_core.model.segment_splitter import draw_relaxed, hide_units
from zonkey_core.model.segmentation import Segmentation, Windows
from zonkey_core.model.unit_rows import UnitRows, unit_rows
from zonkey_core.training.augmentation import KIND_SHARES, SWAP_SHARES, NoisedRows, noise_rows, noised_start_prob
from zonkey_core.training.losses import (
    existence_loss,
    existence_loss_at_rates,
    expected_segment_loss,
    rate_penalty,
    uncertainty_penalty,
)
from zonkey_core.training.processes import mean_over, over_all
from zonkey_core.training.telling_units import swapping_units

NOISED_ROWS = 2
"""One row in so many is noised where a splitter is held to the same cuts under noise."""
WARMEST, COOLEST = 1.0, 0.4
"""Temperatures at which starts are drawn at the beginning of a splitter's stage and at its end."""
ESTIMATED = 0.25
"""Share of the units of a batch by which its information is estimated."""
ROWS_APART = 5.0
"""Weight of the rate of each row; that of all rows together is 100."""
LARGEST_RATE = 0.9
"""Cuts a unit, at most, that a rate asks for."""
KEPT = 4.0
"""Weight of cuts that are to stay as they were."""
NOISED_LATENTS = 0.75
"""Share of the latents that the autoencoder's decoder is given with noise."""
LEAST_NOISE = 0.1
"""Smallest noise-to-signal ratio of these, unless the largest, a level's `decoder_noise`, is smaller."""


class RowOrigins(NamedTuple):
    """Where the rows of a batch are from."""

    sources: Tensor
    """[B] the number of each one's source."""
    kept_mask: Tensor
    """[B] rows whose cuts stay those that the run began with."""


def splitter_objective(
    level: Level,
    sequence: PositionSequence,
    generator: torch.Generator,
    *,
    certainty: float = 1.0,
    stability: float = 1.0,
    temperature: float = COOLEST,
    origins: RowOrigins | None = None,
) -> dict[str, Tensor]:
    """What teaches level 0's splitter to cut: leak-free masked modelling, or what segments cost in a lexicon.

    Of masked modelling, splitter and reader both see the masked sequence only, and the reader is given starts drawn at
    a `temperature` (`draw_relaxed`). `certainty` weighs the penalty on probabilities that are neither 0 nor 1, and
    `stability` that on cuts of bytes that change under noise. In rows whose cuts are kept nothing is learned but these;
    without `origins` all rows are of one source.
    """
    losses: dict[str, Tensor] = {}
    sources = torch.zeros(len(sequence.values), dtype=torch.long, device=sequence.values.device)
    if origins is not None:
        kept_mask, sources = origins.kept_mask, origins.sources[~origins.kept_mask]
        if kept_mask.any():
            kept = PositionSequence(*(part[kept_mask] for part in sequence))
            losses["kept"] = KEPT * kept_cuts_loss(level, kept, generator)
        sequence = PositionSequence(*(part[~kept_mask] for part in sequence))
    if len(sequence.values):
        losses |= unit_objective(level, sequence, sources, generator, certainty=certainty, temperature=temperature)
        if stability:
            losses["stability"] = stability * stability_loss(level, sequence, generator)
    return losses


def unit_objective(
    level: Level,
    sequence: PositionSequence,
    sources: Tensor,
    generator: torch.Generator,
    *,
    certainty: float,
    temperature: float,
) -> dict[str, Tensor]:
    """The objective of level 0's splitter, over the units of rows of bytes, which are of `sources` [B]."""
    units = unit_rows(sequence)
    kinds = UnitKinds(units.keys)
    losses: dict[str, Tensor] = {}
    if level.lexicon is not None:
        splits = level.splitter.split_units(units, generator)
        told, met = level.lexicon(units, splits)
        level.lexicon.learn(units.keys, met, over_all)
        losses["told"] = mean_over(told, len(units.keys))
    else:
        assert isinstance(level.reader, ContextReader)
        hidden, shown = hide_units(units, level.config.mask_rate, generator)
        splits = level.splitter.split_units(shown)
        drawn = draw_relaxed(splits, temperature, generator)
        guessed = level.reader.units.loss(level.reader(shown.keys, hidden, drawn), kinds, hidden.nonzero().flatten())
        alone = alone_in_segment(drawn)[hidden]
        told = (1 - alone) * guessed - alone * kinds.log_shares[kinds.which[hidden]]
        losses["masked"] = mean_over(told.sum(), len(told))
    cumulative = cumulative_log_continue(splits.start_prob)
    beyond = torch.searchsorted(units.offsets, units.offsets + level.config.window)
    inside = beyond < len(units.offsets)
    open_still = (cumulative[beyond[inside]] - cumulative[inside]).exp()
    losses |= {
        "overlong": mean_over(open_still.sum(), len(units.offsets)),
        "uncertainty": certainty * uncertainty_penalty(splits.start_prob, torch.ones_like(splits.start_prob)),
    }
    return losses | rate_losses(level, units, kinds, splits.start_prob, sources, generator)


def alone_in_segment(start_prob: Tensor) -> Tensor:
    """[T] probability that a unit is all of its segment: `p_i p_{i+1}`, and behind the last one another begins.

    Such a unit costs as much as it takes to tell it by its share of the batch. A reader would learn which units it
    finds alone, and the splitter, which has seen what surrounds a hidden one, could then tell it by cutting it off.
    """
    return start_prob * functional.pad(start_prob[1:], (0, 1), value=1.0)


def rate_losses(
    level: Level,
    units: UnitRows,
    kinds: UnitKinds,
    start_prob: Tensor,
    sources: Tensor,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """How far the cuts of units are from their rate: that of their information, where one is set.

    The batch is held to its rate firmly and each row loosely, since what a row costs is known but roughly, and a firm
    hold would drown in that noise what the reader has to say. A lexicon holds all of them to their mean rate by the
    price of a cut, where a compressor has said what a unit of each of `sources` [B] costs. What the units of a row cost
    is told from some of them, in the same graph as what teaches that to the estimator.
    """
    assert level.estimator is not None
    asked = (torch.rand(units.keys.shape, generator=generator) < ESTIMATED).to(units.keys.device).nonzero().flatten()
    cost = level.estimator(units, kinds, asked)
    losses = {"cost": mean_over(cost.sum(), len(cost))}
    bits = row_means(cost.detach(), units.rows[asked], len(sources)) / math.log(2)
    if level.lexicon is not None:
        known = level.lexicon.information[sources]
        bits = known.where(known > 0, bits)
    found = row_means(start_prob, units.rows, len(sources))
    if level.config.bits_per_segment:
        rates = (bits / level.config.bits_per_segment).clamp(max=LARGEST_RATE)
    else:
        bytes_each = mean_over(units.sizes.sum().float(), len(units.sizes))
        rates = (bytes_each / level.config.segment_length).clamp(max=LARGEST_RATE).expand_as(bits)
    if level.lexicon is not None:
        price = level.lexicon.price(found.detach() - rates, over_all)
        return losses | {"price": mean_over((price * start_prob).sum(), len(units.rows))}
    wanted = mean_over(rates[units.rows].sum(), len(units.rows))
    losses["rate"] = rate_penalty(start_prob, torch.ones_like(start_prob), wanted)
    if level.config.bits_per_segment:
        losses["rate"] = losses["rate"] + ROWS_APART * mean_over((found - rates).square().sum(), len(rates))
    return losses


def row_means(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """[count] mean of the values [K] of each row, of which `rows` [K] tells the number; 0 where there are none."""
    sums = torch.zeros(count, device=values.device).index_add(0, rows, values)
    return sums / torch.bincount(rows, minlength=count).clamp(min=1)


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
    noised, origins = noise_units(level, clean, generator)
    splits = level.split(noised)
    return existence_loss(splits.start_logits, noised_start_prob(target, origins), noised.cut_open().float())


def noise_units(level: Level, clean: PositionSequence, generator: torch.Generator) -> NoisedRows:
    """Rows for level 0's splitter, noised also by what stands in for kinds of units where it knows of any."""
    assert level.splitter.ngrams is not None
    kinds, others = (each.cpu().numpy() for each in level.splitter.ngrams.pairs())
    swaps = swapping_units(kinds, others)
    return noise_rows(clean, generator, KIND_SHARES if swaps is None else SWAP_SHARES, swaps)


def kept_cuts_loss(level: Level, clean: PositionSequence, generator: torch.Generator) -> Tensor:
    """Cross-entropy at all rates of the starts of rows, and of the same rows noised, against the former splitter's.

    So what a splitter knows of other text stays while it learns (learning without forgetting; Li and Hoiem 2016).
    """
    assert level.former is not None
    with torch.no_grad():
        target = level.former(clean).start_prob
    noised, origins = noise_units(level, clean, generator)
    wanted = noised_start_prob(target, origins)
    parts = ((clean, target), (noised, wanted))
    losses = [
        existence_loss_at_rates(level.split(rows).start_logits, starts, rows.cut_open().float())
        for rows, starts in parts
    ]
    return torch.stack(losses).sum()


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
        choices = windows.choices
        if choices is not None:
            choices = choices._replace(entries=choices.entries[possible])
        loss = torch.zeros_like(windows.log_existence).masked_scatter(
            possible, level.readout.loss(decoded.states[possible], windows.values[possible], choices)
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
    level: Level,
    sequence: PositionSequence,
    segmentation: Segmentation,
    generator: torch.Generator,
    *,
    choices: Choices | None = None,
    share: float = 1.0,
) -> dict[str, Tensor]:
    """Compress segments, all or a `share` of them, and decode each from its latent, most of them noised.

    `choices` are those of the positions, where a level with a vocabulary tells them.
    """
    start_prob = segmentation.start_prob.gather(1, segmentation.starts)[segmentation.slot_mask]
    chosen = None
    if share < 1:
        chosen = (torch.rand(len(start_prob), generator=generator) < share).to(start_prob.device)
    parts = []
    for windows in level.windows(sequence, segmentation, chosen, choices):
        clean = level.compress(windows.values, windows.log_existence)
        noised = noised_latents(clean, level.config.decoder_noise, generator)
        parts.append((windows, level.decode(noised, windows.values.shape[1])))
    positions, existence = window_losses(level, parts, start_prob)
    return {"positions": positions, "existence": existence}


def noised_latents(clean: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """[K, C] latents, `NOISED_LATENTS` of them with noise, of length as before.

    Ratios of noise to signal are spread evenly by their logarithm up to the `largest`. So what matters most in a latent
    outlasts the noise under which a denoiser forms it, and is what it can foresee.
    """
    chance, noised_mask = torch.rand(2, len(clean), 1, generator=generator)
    least = min(LEAST_NOISE, largest)
    ratio = least * (largest / least) ** chance * (noised_mask < NOISED_LATENTS)
    noise = torch.randn(clean.shape, generator=generator) * ratio
    noised: Tensor = (clean + noise.to(clean.device)) * (1 + ratio.square()).rsqrt().to(clean.device)
    return noised
