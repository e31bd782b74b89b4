"""Noise on rows of text, with where each noised byte came from, to teach splitters the same cuts under it.

Noise knows no script: units are lost, written twice, or give way to others of their own row. Which of them are the
likelier to go follows from how often they occur, if from anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zonkey_core.model.existence import cumulative_log_continue
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.unit_rows import UnitRows, unit_rows
from zonkey_core.training.telling_units import TellingUnits

KIND_SHARES = (0.25, 0.15, 0.2, 0.4, 0.0)
"""How often a row loses units, has some twice, has others in place of some, has rare kinds of them changed for others,
or loses what gives segments away."""
SWAP_SHARES = (0.2, 0.15, 0.15, 0.25, 0.25)
"""The same where in the last place kinds and what stands in for them are changed for each other, as in another case."""
UPPER_KIND_SHARES = (0.04, 0.04, 0.04, 0.03, 0.85)
"""The same for what splitters above level 0 are taught with."""
LEAST_SHARE, MOST_SHARE = 0.05, 0.25
"""Of the units of a row that are dropped, written twice, or replaced by others of the row."""
CHANGED = 0.15
"""A row whose rare kinds are changed for others keeps those whose share of it is above a bound of at most this."""
LOST_WHOLLY = 0.7
"""Share of the rows that lose what gives segments away in which nothing of it is left."""


class NoisedRows(NamedTuple):
    """Noised rows of bytes."""

    sequence: PositionSequence
    """[B, L]; a row that has become shorter is padded, and one that has become longer is cut off."""
    origins: Tensor
    """[B, L] position in the clean row that each byte came from, or that the byte in whose place it is stood at."""


def noise_rows(
    sequence: PositionSequence,
    generator: torch.Generator,
    shares: Sequence[float] = KIND_SHARES,
    telling: TellingUnits | None = None,
) -> NoisedRows:
    """Noise each row in one of five ways, drawn at random with the odds `shares`.

    Units dropped, written twice, or replaced by units drawn from the same row; each rare kind of them changed for
    another rare one of the row, the same wherever it occurs, as a text in another alphabet; or what is `telling`, some
    kinds or all, lost wherever it occurs, or given way to what stands in for it.
    """
    clean = PositionSequence(*(part.cpu() for part in sequence))
    units = unit_rows(clean)
    batch = len(clean.values)
    kind = torch.multinomial(torch.tensor(shares), batch, replacement=True, generator=generator)
    share = LEAST_SHARE + (MOST_SHARE - LEAST_SHARE) * torch.rand(batch, generator=generator)
    kind, share = kind[units.rows], share[units.rows]
    struck = torch.rand(len(units.keys), generator=generator) < share
    copies = torch.ones_like(units.keys) - (struck & (kind == 0)).long() + (struck & (kind == 1)).long()
    sources = torch.arange(len(units.keys))
    if telling is not None:
        lost_mask, stand_ins = _untold(units, batch, telling, generator)
        copies -= (lost_mask & (kind == 4)).long()
        sources = torch.where(kind == 4, stand_ins, sources)
    sources = torch.where(struck & (kind == 2), _drawn_from_row(units, batch, generator), sources)
    sources = torch.where(kind == 3, _changed(units, batch, generator), sources)
    noised = _write(clean, units, _keep_one(copies, units, batch), sources)
    device = sequence.values.device
    rows = PositionSequence(*(part.to(device) for part in noised.sequence))
    return NoisedRows(rows, noised.origins.to(device))


def _keep_one(copies: Tensor, units: UnitRows, batch: int) -> Tensor:
    """[T] copies, with one of the first unit of a row that would be left with nothing."""
    left = torch.zeros(batch, dtype=torch.long).index_add_(0, units.rows, copies)
    first = torch.diff(units.rows, prepend=torch.full((1,), -1)) != 0
    return copies + (first & (left[units.rows] == 0)).long()


def _drawn_from_row(units: UnitRows, batch: int, generator: torch.Generator) -> Tensor:
    """[T] for each unit one of its row, drawn at random."""
    counts = torch.bincount(units.rows, minlength=batch)
    first = counts.cumsum(0) - counts
    chance = torch.rand(len(units.rows), generator=generator)
    return first[units.rows] + (chance * counts[units.rows]).long().clamp(max=counts.max() - 1)


def _changed(units: UnitRows, batch: int, generator: torch.Generator) -> Tensor:
    """[T] for each unit one of the kind that takes the place of its own in its row; itself, where that is frequent."""
    kinds, which = torch.unique(units.keys, return_inverse=True)
    here, index, count = torch.unique(units.rows * len(kinds) + which, return_inverse=True, return_counts=True)
    rows = here // max(1, len(kinds))
    bound = CHANGED * torch.rand(batch, generator=generator)
    rare = count / torch.bincount(units.rows, minlength=batch)[rows] < bound[rows]
    first = torch.full_like(here, len(index)).scatter_reduce_(0, index, torch.arange(len(index)), "amin")
    order = torch.argsort(rows + torch.rand(len(rows), generator=generator, dtype=torch.float64))
    first[rare.nonzero().flatten()] = first[order[rare[order]]]
    return first[index]


def _untold(
    units: UnitRows, batch: int, telling: TellingUnits, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What rows are that give segments away no more: [T] mask of the units that they lose, and [T] for each unit one,
    of any row, that is spelled in its place: itself, unless its kind gives way and the batch has a stand-in."""
    kinds, lost_mask, stand_ins = (torch.from_numpy(part) for part in telling)
    place = torch.searchsorted(kinds, units.keys).clamp(max=len(kinds) - 1)
    share = torch.rand(batch, 1, generator=generator) / (1 - LOST_WHOLLY)
    taken = (torch.rand(batch, len(kinds), generator=generator) < share)[units.rows, place]
    taken &= kinds[place] == units.keys
    everything, which = torch.unique(units.keys, return_inverse=True)
    first = torch.zeros_like(everything).scatter_(0, which, torch.arange(len(which)))
    wanted = torch.where(taken, stand_ins[place], units.keys)
    found = torch.searchsorted(everything, wanted).clamp(max=len(everything) - 1)
    there = everything[found] == wanted
    return taken & lost_mask[place], torch.where(there & taken, first[found], torch.arange(len(which)))


def _write(clean: PositionSequence, units: UnitRows, copies: Tensor, sources: Tensor) -> NoisedRows:
    """Rows with so many copies of each unit [T], spelled as another unit [T] of the row."""
    batch, length = clean.values.shape
    written = torch.repeat_interleave(torch.arange(len(copies)), copies)
    sizes = units.sizes[sources[written]]
    each = torch.repeat_interleave(torch.arange(len(written)), sizes)
    within = torch.arange(len(each)) - (sizes.cumsum(0) - sizes)[each]
    unit = written[each]
    row = units.rows[unit]
    ends = torch.bincount(row, minlength=batch).cumsum(0)
    place = torch.arange(len(each)) - torch.cat([ends.new_zeros(1), ends[:-1]])[row]
    kept = place < length
    at = row[kept] * length + place[kept]
    spelled = clean.values.flatten()[units.offsets[sources[unit]] + within][kept]
    origin = units.offsets[unit] - row * length + torch.minimum(within, units.sizes[unit] - 1)
    values = torch.zeros_like(clean.values).flatten().index_copy(0, at, spelled).view(batch, length)
    origins = torch.zeros_like(clean.values).flatten().index_copy(0, at, origin[kept]).view(batch, length)
    exists = torch.arange(length).expand(batch, length) < torch.bincount(row[kept], minlength=batch).unsqueeze(1)
    last = origins.gather(1, (exists.sum(1, keepdim=True) - 1).clamp(min=0))
    origins = origins.where(exists, last)
    begins = clean.document_mask.long().cumsum(1).gather(1, origins)
    documents = torch.diff(begins, dim=1, prepend=torch.zeros(batch, 1, dtype=torch.long)) > 0
    return NoisedRows(PositionSequence(values, exists, documents & exists), origins)


def noised_start_prob(start_prob: Tensor, origins: Tensor) -> Tensor:
    """Starts of clean rows [B, L] as starts of the noised ones, by where their bytes came from.

    A byte begins a segment if it, or a byte that was dropped since the one before it, did so; a second copy does not:
    `1 - exp(C_{o_j} - C_{o_{j-1}})`. The first of a row always does.
    """
    cumulative = cumulative_log_continue(start_prob).gather(1, origins)
    began = -torch.expm1(torch.diff(cumulative, dim=1))
    return torch.cat([torch.ones_like(cumulative[:, :1]), began], 1)
