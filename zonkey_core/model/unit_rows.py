"""Rows of bytes as the units that they consist of, for the network that reads these.

Shapes: B rows of L bytes; their T units in all, row after row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zonkey_core.model.ngram_tables import NO_SYMBOL
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.units import read_units

NO_UNIT = NO_SYMBOL
"""The key of what stands before the first unit of a row, and after its last."""


class UnitRows(NamedTuple):
    """The units of existing bytes of a batch of rows."""

    keys: Tensor
    """[T] a number for each, as `zonkey_core.model.units` has them."""
    offsets: Tensor
    """[T] the byte at which each begins, counted through all rows: `row * L + place`."""
    sizes: Tensor
    """[T] in bytes."""
    rows: Tensor
    """[T] the row of each."""
    fresh_mask: Tensor
    """[T] true where a row or a document begins."""


def unit_rows(sequence: PositionSequence) -> UnitRows:
    """The units of rows of bytes; none goes on across the beginning of a row, of a document, or of padding."""
    values = sequence.values.to(torch.uint8).cpu().numpy().reshape(-1)
    fresh = sequence.fresh_mask().cpu().numpy().reshape(-1)
    offsets, keys = read_units(values, fresh)
    sizes = np.diff(offsets, append=len(values))
    kept = sequence.exists_mask.cpu().numpy().reshape(-1)[offsets]
    offsets, keys, sizes = offsets[kept], keys[kept], sizes[kept]
    parts = keys, offsets, sizes, offsets // max(1, sequence.values.shape[1]), fresh[offsets]
    return UnitRows(*(torch.from_numpy(part).to(sequence.values.device) for part in parts))


def spaced_apart(units: UnitRows, gap: int) -> tuple[Tensor, Tensor]:
    """Keys in one line [T'] with `gap` places of `NO_UNIT` around every row, and [T] where each unit stands there."""
    places = torch.arange(len(units.keys), device=units.keys.device)
    if len(places):
        new_row = torch.diff(units.rows, prepend=units.rows[:1]) != 0
        places = places + gap * (1 + new_row.long().cumsum(0))
    length = (int(places[-1]) if len(places) else 0) + 1 + gap
    line = units.keys.new_full((length,), NO_UNIT)
    return line.index_copy(0, places, units.keys), places
