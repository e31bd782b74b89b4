"""Vectors of n-grams in numpy: the hashing of `zonkey_core.model.hash_embeddings`, which must agree to the bit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zonkey_core.model.ngram_tables import PRINTS, SHARED, SPREAD
from zonkey_core.numpy_model.weights import Floats


class NgramTable(NamedTuple):
    """What was learned of n-grams."""

    vectors: Floats
    """[rows, D]"""
    owners: NDArray[np.uint8]
    """[rows] by their prints; all `SHARED` where nobody has claimed any."""
    unknown: Floats
    """[orders, D] what those have that own no row."""
    stand_ins: NDArray[np.int64]
    """[2, K] kinds of symbols, in order, and what stands in for each in n-grams of more than one."""


def ngram_vectors(keys: NDArray[np.int64], table: NgramTable, orders: tuple[int, ...], out: Floats) -> None:
    """Write to [n, D] the sum of the vectors of the n-grams of these orders that end at each symbol [n].

    What stands before the first symbol counts as a key of -1.
    """
    longest, rows = max(orders), len(table.owners)
    padded = np.zeros(len(keys) + longest - 1, dtype=np.int64)
    np.add(keys, 1, out=padded[longest - 1 :])
    out[:] = 0
    vectors = np.empty_like(out)
    hashes = np.zeros(len(keys), dtype=np.int64)
    told = _told(padded, table.stand_ins)
    for order in range(1, longest + 1):
        first = longest - order
        hashes += told[first : first + len(keys)]
        hashes *= SPREAD
        if order in orders:
            each = (padded[first:] * SPREAD if order == 1 else hashes) + order
            places = _rows(each, rows)
            np.take(table.vectors, places, axis=0, out=vectors, mode="wrap")
            owners = table.owners.take(places, mode="wrap")
            vectors[(owners != _prints(each)) & (owners != SHARED)] = table.unknown[orders.index(order)]
            out += vectors


def ngram_rows(keys: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """[n] which row of a table single symbols [n] have that are looked up without their order."""
    return _rows((keys + 1) * SPREAD, rows)


def _told(padded: NDArray[np.int64], stand_ins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Symbols, each more by one than its key, with what stands in for them."""
    kinds, others = stand_ins + 1
    place = np.searchsorted(kinds, padded)
    np.minimum(place, len(kinds) - 1, out=place)
    found: NDArray[np.int64] = np.where(kinds[place] == padded, others[place], padded)
    return found


def _prints(hashes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """By which n-grams that fall on one row are told apart."""
    some = (hashes >> 24).astype(np.uint8)
    some %= PRINTS
    some += 1
    return some


def _rows(hashes: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Which row a hash stands for; where their number is a power of two, a remainder is some of its bits."""
    places = hashes >> 32
    if rows & (rows - 1):
        return places % rows
    places &= rows - 1
    return places
