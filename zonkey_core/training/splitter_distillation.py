"""How a splitter above bytes learns from its guide where to cut, and to do so when what gives cuts away is lost.

The guide judges places between units of text (`zonkey_core.training.document_guide`). A position of the level is a
start where such a place at its beginning or inside it is one. One half of the rows is noised, and there the starts are
where the same text has them as it is.
Shapes: rows of bytes [B, L]; a level's positions of them [B, M].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import LocatedPositions, PositionSequence
from zonkey_core.model.unit_rows import UnitRows, unit_rows
from zonkey_core.training.augmentation import UPPER_KIND_SHARES, noise_rows, noised_start_prob
from zonkey_core.training.document_guide import DocumentGuide, Mask, line_of
from zonkey_core.training.processes import mean_over
from zonkey_core.training.telling_units import TellingUnits

CLEAN_WEIGHT, NOISED_WEIGHT = 1.2, 8.0
"""Weights of a start against that of its absence. Where starts can be told only a part of the time, as in noised text,
cuts agree best with them (F1) when they are made at a lower probability than one half."""


class Guide(NamedTuple):
    """What a level's splitter follows."""

    places: DocumentGuide
    """Where segments begin in text as it is."""
    telling: TellingUnits
    """What text that gives them away less is to be without."""


class FollowedRows(NamedTuple):
    """A level's positions of some rows, and what its splitter is to say of them."""

    located: LocatedPositions
    target: Tensor
    """[B, M] probabilities of starts."""
    start_weight: float


def last_of_documents(units: UnitRows) -> Mask:
    """[T] mask of the units that end documents; where a row ends, its document may go on."""
    rows, fresh = units.rows.cpu().numpy(), units.fresh_mask.cpu().numpy()
    last = np.zeros_like(fresh)
    last[:-1] = fresh[1:] & (rows[1:] == rows[:-1])
    return last


def place_probs(guide: DocumentGuide, rows: PositionSequence) -> Tensor:
    """[B, L] the probabilities, by a guide, that segments begin before the bytes of rows; 0 inside units."""
    units = unit_rows(rows)
    fresh = units.fresh_mask.cpu().numpy()
    line = line_of(units.keys.cpu().numpy(), fresh, np.zeros_like(fresh))
    found = torch.from_numpy(guide.start_probs(line.symbols, line.places)).to(rows.values.device)
    found = found.where(~units.fresh_mask, 1.0)
    return found.new_zeros(rows.values.numel()).index_copy(0, units.offsets, found).view(rows.values.shape)


def own_probs(level: Level, located: LocatedPositions, length: int) -> Tensor:
    """[B, length] what a level's splitter itself says, where its positions begin among the bytes of rows."""
    with torch.no_grad():
        start_prob = level.split(located.sequence).start_prob * located.sequence.exists_mask
    spread = start_prob.new_zeros(len(start_prob), length)
    return spread.scatter_reduce(1, located.offsets, start_prob, "amax")


def position_targets(of_bytes: Tensor, located: LocatedPositions) -> Tensor:
    """[B, M] the largest of the probabilities [B, L] of the bytes that each position stands for."""
    exists = located.sequence.exists_mask
    begins = torch.zeros_like(of_bytes).scatter_add(1, located.offsets, exists.to(of_bytes.dtype)) > 0
    which = (begins.long().cumsum(1) - 1).clamp(min=0)
    return of_bytes.new_zeros(exists.shape).scatter_reduce(1, which, of_bytes, "amax")


def following_loss(level: Level, parts: Iterable[FollowedRows]) -> Tensor:
    """Mean cross-entropy, over all positions that may be cut, of a splitter's starts against those it is to follow."""
    losses, asked_for = [], 0
    for located, target, start_weight in parts:
        asked = located.sequence.cut_open()
        logits = level.split(located.sequence).start_logits[asked]
        weight = torch.full_like(logits, start_weight)
        losses.append(
            functional.binary_cross_entropy_with_logits(logits, target[asked], pos_weight=weight, reduction="sum")
        )
        asked_for += len(logits)
    return mean_over(torch.stack(losses).sum(), asked_for)


def guided_loss(
    model: Zonkey, index: int, rows: PositionSequence, generator: torch.Generator, guide: Guide | None
) -> Tensor:
    """`following_loss` of level `index`, at least 1, for rows of bytes, of which one half is noised.

    Without a guide the splitter follows itself: its cuts of text as it is, also under noise.
    """
    level = model.levels[index]
    clean, changed = halves(rows)
    located = model.located_positions(clean, index)
    noised, origins = noise_rows(changed, generator, UPPER_KIND_SHARES, guide and guide.telling)
    located_noised = model.located_positions(noised, index)
    if guide is None:
        length = rows.values.shape[1]
        of_clean = own_probs(level, located, length)
        of_changed = own_probs(level, model.located_positions(changed, index), length)
    else:
        of_clean, of_changed = place_probs(guide.places, clean), place_probs(guide.places, changed)
    moved = noised_start_prob(of_changed, origins) * noised.exists_mask
    parts = (
        FollowedRows(located, position_targets(of_clean, located), CLEAN_WEIGHT),
        FollowedRows(located_noised, position_targets(moved, located_noised), NOISED_WEIGHT),
    )
    return following_loss(level, parts)


def halves(rows: PositionSequence) -> tuple[PositionSequence, PositionSequence]:
    """The rows that are read as they are, and those that are noised; one row alone is both."""
    half = len(rows.values) // 2
    first, second = slice(half or None), slice(half, None)
    return PositionSequence(*(part[first] for part in rows)), PositionSequence(*(part[second] for part in rows))
