"""Which kinds of units give segments away, and how text looks without them, as a guide's counts tell it.

Kinds behind which segments often begin (full stops) are lost, and so are those whose likest other kind is one of them
(commas). A kind that stands near the beginnings of segments more often than others (capitals, line ends) gives way to
a commoner one that is followed by like units (small letters, spaces). Nothing here knows which these are.
Shapes: V kinds; a line of T' symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zonkey_core.training.document_guide import Floats, Line, Mask, Symbols, common_kinds, string_hashes, table_rows

MOST_KINDS = 192
"""The commonest kinds are looked at."""
AROUND = (-2, -1, 1, 2, 3)
"""Distances of the units that tell which other kind one is like."""
TELLING = 0.02
"""Share of the occurrences of a kind behind which a segment begins, above which it is lost."""
NEAR_STARTS = 1.5
"""How many times as often as units on the whole a kind stands near a start to give way, at least."""
BEFORE_BEHIND = 2.0
"""And how many times as often as starts stand behind it."""
FOLLOWING = 4
"""Units behind one that together tell which commoner kind it is like."""
STRING_ROWS = 1 << 15
"""Rows of the counts of such strings, by hash."""


class TellingUnits(NamedTuple):
    """What is lost from a text, and what stands in for it."""

    kinds: Symbols
    """[V] keys of kinds of units, in order."""
    lost_mask: Mask
    """[V] those that are lost."""
    stand_ins: Symbols
    """[V] the kind that each gives way to: itself, for most."""


def swapping_units(kinds: Symbols, stand_ins: Symbols) -> TellingUnits | None:
    """Units of which none is lost: kinds [K] and what stands in for them give way to each other; None for none."""
    if not len(kinds):
        return None
    both = np.concatenate([kinds, stand_ins])
    order = np.argsort(both)
    others = np.concatenate([stand_ins, kinds])[order]
    return TellingUnits(both[order], np.zeros(len(both), np.bool_), others)


def telling_units(line: Line, starts: Floats) -> TellingUnits:
    """What gives segments away in a line, by the probabilities of starts at its inner places."""
    kinds, counts, which = common_kinds(line.symbols, line.places, MOST_KINDS)
    probs = np.zeros(len(line.symbols), np.float32)
    probs[line.inner] = starts
    behind = _shares(which[line.inner - 1], starts, counts)
    near = _shares(which[line.places], probs[line.places] + probs[line.places - 1], counts)
    usual = np.average(near, weights=counts)
    beginning = (near > NEAR_STARTS * usual) & (near > BEFORE_BEHIND * behind) & (counts < counts.max())
    telling = (behind > TELLING) & ~beginning
    around = _likeness(which, line.places, AROUND, len(kinds))
    np.fill_diagonal(around, -1.0)
    lost = ~beginning & (telling | telling[around.argmax(1)])
    could = (counts > counts[:, None]) & ~beginning & ~lost
    likest = np.where(could, _likeness_behind(which, line, len(kinds)), -1.0).argmax(1)
    return TellingUnits(kinds, lost, np.where(beginning & could.any(1), kinds[likest], kinds))


def _shares(which: Symbols, starts: Floats, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[V] sums of probabilities [n] by kind, over how often it occurs."""
    sums = np.bincount(which, weights=starts, minlength=len(counts) + 1)[: len(counts)]
    found: NDArray[np.float64] = sums / counts
    return found


def _likeness(which: Symbols, places: Symbols, distances: Sequence[int], kinds: int) -> NDArray[np.float64]:
    """[V, V] how like the units are that stand so far from each kind, by the kinds [T'] in a line."""
    first = which[places] * (kinds + 1)
    parts = [np.bincount(first + which[places + each], minlength=(kinds + 1) ** 2) for each in distances]
    return _cosines(np.concatenate([part.reshape(kinds + 1, -1)[:kinds, :kinds] for part in parts], 1))


def _likeness_behind(which: Symbols, line: Line, kinds: int) -> NDArray[np.float64]:
    """[V, V] the same of the strings of `FOLLOWING` units that stand behind each kind."""
    *_, hashes = string_hashes(line.symbols, line.places, range(1, FOLLOWING + 1))
    index = which[line.places] * STRING_ROWS + table_rows(hashes, STRING_ROWS)
    return _cosines(np.bincount(index, minlength=(kinds + 1) * STRING_ROWS).reshape(kinds + 1, -1)[:kinds])


def _cosines(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[V, V] cosines between the roots of counts [V, N]."""
    roots = np.sqrt(counts)
    roots /= np.linalg.norm(roots, axis=1, keepdims=True).clip(1e-9)
    found: NDArray[np.float64] = roots @ roots.T
    return found
