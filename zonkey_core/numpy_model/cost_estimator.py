"""CostEstimator in numpy: `zonkey_core.model.readers.CostEstimator`, in float32, for one text.

Shapes: T units, V kinds of them, width D.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zonkey_core.config import LevelConfig
from zonkey_core.model.ngram_tables import ESTIMATE_ORDERS, NO_SYMBOL, SHARED, TABLE_WIDTH
from zonkey_core.numpy_model.layers import Linear, half_silu, standardize
from zonkey_core.numpy_model.ngrams import NgramTable, ngram_rows, ngram_vectors
from zonkey_core.numpy_model.weights import Floats, Weights

MOST_LOGITS = 1 << 17
"""Numbers that are made at once where a unit is told from all kinds; as many stay in the cache."""
ROWS_TOGETHER = 1024
"""Units that are estimated at once, at most."""


class CostEstimator:
    """Nats of every unit of a text, told from the few before it."""

    def __init__(self, weights: Weights, config: LevelConfig) -> None:
        width, rows = config.reader_width, config.reader_units
        self.units = weights.take("units.table", 1, rows, width)[0]
        ngrams = weights.part("ngrams")
        vectors = ngrams.take("table", 1, rows, TABLE_WIDTH)[0]
        owners = np.full(rows, SHARED, dtype=np.uint8)
        stand_ins = np.full((2, 1), NO_SYMBOL, dtype=np.int64)
        self.ngrams = NgramTable(vectors, owners, np.zeros((len(ESTIMATE_ORDERS), TABLE_WIDTH), np.float32), stand_ins)
        self.project = Linear(ngrams.part("linear"), TABLE_WIDTH, width, bias=False)
        network = weights.part("network")
        self.norms = [(network.take(f"{each}.weight", width), network.take(f"{each}.bias", width)) for each in (0, 4)]
        self.inner = Linear(network.part("1"), width, 2 * width, scale=0.5)
        self.outer = Linear(network.part("3"), 2 * width, width)

    def __call__(self, keys: NDArray[np.int64]) -> float:
        """The nats of all units [T], of which each is told from the kinds that there are."""
        if not len(keys):
            return 0.0
        before = np.empty_like(keys)
        before[0], before[1:] = NO_SYMBOL, keys[:-1]
        summed = np.empty((len(keys), TABLE_WIDTH), dtype=np.float32)
        ngram_vectors(before, self.ngrams, ESTIMATE_ORDERS, summed)
        kinds, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
        table = np.ascontiguousarray(self.units[ngram_rows(kinds, len(self.units))].T)
        log_shares = np.log(counts / len(keys)).astype(np.float32)
        together = min(ROWS_TOGETHER, max(1, MOST_LOGITS // len(kinds)))
        nats = 0.0
        for first in range(0, len(keys), together):
            part = slice(first, first + together)
            logits = self._states(summed[part]) @ table
            logits += log_shares
            right = logits[np.arange(len(logits)), which[part]]
            most = logits.max(1)
            logits -= most[:, None]
            np.exp(logits, out=logits)
            nats += float((np.log(logits.sum(1)) + most - right).sum(dtype=np.float64))
        return nats

    def _states(self, summed: Floats) -> Floats:
        """[n, TABLE_WIDTH] to [n, D]."""
        (weight, bias), (last_weight, last_bias) = self.norms
        states = standardize(self.project(summed)) * weight + bias
        return standardize(self.outer(half_silu(self.inner(states)))) * last_weight + last_bias
