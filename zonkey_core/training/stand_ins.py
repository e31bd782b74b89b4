"""Which kinds of units are told apart by their place alone, as a text shows it: capitals, and what stands in for them.

A kind that often stands behind the commonest of all (a space), and a commoner one that is found between the same units,
spell the same words. With it in place of the first, n-grams of a splitter are the same in either case. Nothing here
knows which these are, and no two kinds share a stand-in.
Shapes: a line of T' symbols, T of which are units; V kinds; C of them that may give way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zonkey_core.model.ngram_tables import STAND_INS
from zonkey_core.model.unit_rows import NO_UNIT
from zonkey_core.training.document_guide import Symbols, common_kinds, string_hashes

MOST_KINDS = 1024
"""The commonest kinds are looked at."""
LEAST_MET = 200
"""Occurrences of a kind below which too little is known of it to give way."""
BEHIND_COMMONEST = 0.45
"""Share of a kind's occurrences behind the commonest one, from which on it may give way."""
AROUND = (-1, 1, 2, 3, 4)
"""Distances of the units that two kinds must share."""
REACH = max(map(abs, AROUND))
"""Places without a unit that a line needs around each text."""
ALIKE = 0.07
"""Cosine between the roots of how often two kinds are met between the same units, from which on one may stand in."""

Pairs = tuple[Symbols, Symbols]
Floats = NDArray[np.float64]


def stand_ins(symbols: Symbols) -> Pairs:
    """Kinds, in order, and what stands in for each, from a line with `REACH` places of `NO_UNIT` around each text.

    What stands between two units of one kind, as a word of one letter does, is left out: nearly anything may.
    """
    places = np.flatnonzero(symbols != NO_UNIT)
    places = places[symbols[places - 1] != symbols[places + 1]]
    if not len(places):
        return places, places
    kinds, counts, which = common_kinds(symbols, places, MOST_KINDS)
    asked = np.flatnonzero((_share_behind_commonest(which, places, counts) > BEHIND_COMMONEST) & (counts >= LEAST_MET))
    alike = _likeness(symbols, places, which[places], asked, counts)
    found = _matched(np.where(counts > counts[asked, None], alike, 0.0), asked)
    first = np.array(sorted(found), dtype=np.int64)
    return kinds[first], kinds[[found[each] for each in first.tolist()]]


def _share_behind_commonest(which: Symbols, places: Symbols, counts: NDArray[np.int64]) -> Floats:
    """[V] the share of each kind's occurrences behind the commonest kind."""
    behind = which[places[which[places - 1] == counts.argmax()]]
    shares: Floats = np.bincount(behind, minlength=len(counts) + 1)[:-1] / counts
    return shares


def _likeness(
    symbols: Symbols, places: Symbols, which: Symbols, asked: Symbols, counts: NDArray[np.int64]
) -> Floats:
    """[C, V] how like the kinds `asked` [C] are to all, by the units around [T] places with these kinds."""
    size = len(counts) + 1
    *_, around = string_hashes(symbols, places, AROUND)
    contexts = np.unique(around[np.isin(which, asked)])
    index = np.searchsorted(contexts, around).clip(max=max(0, len(contexts) - 1))
    shared = contexts[index] == around if len(contexts) else np.zeros(len(around), np.bool_)
    codes, times = np.unique(index[shared] * size + which[shared], return_counts=True)
    context, kind = np.divmod(codes, size)
    roots = np.sqrt(times)
    mine = np.flatnonzero(np.isin(kind, asked))
    first, last = (np.searchsorted(context, context[mine], side=side) for side in ("left", "right"))
    sizes = last - first
    other = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes - first, sizes)
    own = np.repeat(mine, sizes)
    cells = np.searchsorted(asked, kind[own]) * size + kind[other]
    sums = np.bincount(cells, weights=roots[own] * roots[other], minlength=len(asked) * size)
    alike: Floats = sums.reshape(len(asked), size)[:, :-1] / np.sqrt(counts[asked, None] * counts)
    return alike


def _matched(alike: Floats, asked: Symbols) -> dict[int, int]:
    """For kinds that give way what stands in for them, the most alike first; what does so does not give way itself."""
    rows, others = np.nonzero(alike >= ALIKE)
    found: dict[int, int] = {}
    used: set[int] = set()
    for place in np.argsort(-alike[rows, others], kind="stable").tolist():
        kind, other = int(asked[rows[place]]), int(others[place])
        if not {kind, other} & (found.keys() | used) and len(found) < STAND_INS:
            found[kind] = other
            used.add(other)
    return found
