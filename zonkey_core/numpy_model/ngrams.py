"""Vectors of n-grams in numpy: the hashing of `zonkey_core.model.hash_embeddings`, which must agree to the bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zonkey_core.numpy_model.weights import Floats, Weights

NGRAM_ORDERS = (2, 3, 4, 5, 6)
SPREAD = np.int64(0x9E3779B97F4A7C15 - (1 << 64))
NO_BYTE = 256
TABLE_WIDTH = 32


class NgramVectors:
    """The sum of the vectors of the n-grams that end at each symbol."""

    def __init__(self, weights: Weights, rows: int) -> None:
        self.rows = rows
        self.table = weights.take("table", 1, rows, TABLE_WIDTH)[0]

    def __call__(self, symbols: NDArray[np.int64]) -> Floats:
        """[n] symbols to [n, TABLE_WIDTH]."""
        longest = max(NGRAM_ORDERS)
        padded = np.full(len(symbols) + longest - 1, NO_BYTE + 1, dtype=np.int64)
        np.add(symbols, 1, out=padded[longest - 1 :])
        summed = np.zeros((len(symbols), TABLE_WIDTH), dtype=np.float32)
        keys = np.zeros(len(symbols), dtype=np.int64)
        vectors = np.empty_like(summed)
        for order in range(1, longest + 1):
            first = longest - order
            keys += padded[first : first + len(symbols)]
            keys *= SPREAD
            if order in NGRAM_ORDERS:
                np.take(self.table, self._rows(keys + order), axis=0, out=vectors, mode="wrap")
                summed += vectors
        return summed

    def _rows(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which row a hash stands for; a remainder is slow, and the same bits where the number is a power of two."""
        places = keys >> 32
        if self.rows & (self.rows - 1):
            return places % self.rows
        places &= self.rows - 1
        return places
