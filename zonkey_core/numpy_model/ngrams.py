"""Vectors of n-grams in numpy: the hashing of `zonkey_core.model.hash_embeddings`, which must agree to the bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zonkey_core.model.ngram_tables import SPREAD
from zonkey_core.numpy_model.weights import Floats


def ngram_vectors(
    keys: NDArray[np.int64], table: Floats, orders: tuple[int, ...], out: Floats | None = None
) -> Floats:
    """[n, D] the sum of the vectors, in a table [rows, D], of the n-grams of these orders that end at each symbol [n].

    What stands before the first symbol counts as a key of -1.
    """
    longest = max(orders)
    padded = np.zeros(len(keys) + longest - 1, dtype=np.int64)
    np.add(keys, 1, out=padded[longest - 1 :])
    summed = np.empty((len(keys), table.shape[1]), dtype=np.float32) if out is None else out
    summed[:] = 0
    vectors = np.empty_like(summed)
    hashes = np.zeros(len(keys), dtype=np.int64)
    for order in range(1, longest + 1):
        first = longest - order
        hashes += padded[first : first + len(keys)]
        hashes *= SPREAD
        if order in orders:
            np.take(table, _rows(hashes + order, len(table)), axis=0, out=vectors, mode="wrap")
            summed += vectors
    return summed


def _rows(hashes: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Which row a hash stands for; where their number is a power of two, a remainder is some of its bits."""
    places = hashes >> 32
    if rows & (rows - 1):
        return places % rows
    places &= rows - 1
    return places
