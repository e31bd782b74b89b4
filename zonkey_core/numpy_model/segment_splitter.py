"""Segment Splitter in numpy: `zonkey_core.model.segment_splitter` without gradients, for one text at a time.

Shapes: n positions, those of a whole text or of so much of it that no probability asked for hangs on the rest; at
level 0 K units of n bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonkey_core.config import LevelConfig
from zonkey_core.model.ngram_tables import NGRAM_ORDERS, TABLE_WIDTH
from zonkey_core.model.units import byte_reach, read_units
from zonkey_core.numpy_model.layers import Convolution, Linear, NormedLogit, half_silu
from zonkey_core.numpy_model.ngrams import ngram_vectors
from zonkey_core.numpy_model.weights import Floats, Weights

UNITS_TOGETHER, LATENTS_TOGETHER = 8192, 1024
"""Positions that one thread reads at once: what is computed of them stays in the cache of a core."""

LEAST_PROB = np.float32(1e-9)
"""The least probability where a segment may begin; 0 says that none may."""


class Network:
    """Convolutions over what `embed` gives of symbols, one start probability for each."""

    def __init__(
        self,
        weights: Weights,
        config: LevelConfig,
        embed: Callable[[NDArray[Any]], Floats],
        embed_reach: int,
        together: int,
    ) -> None:
        width = config.splitter_width
        self.together = together
        self.embed = embed
        self.convolutions = [
            Convolution(weights.part(f"convolutions.{index}"), width, width, config.splitter_kernel, scale=0.5)
            for index in range(config.splitter_layers)
        ]
        head = weights.part("head")
        self.logit = NormedLogit(
            weights.take("norm.weight", width), head.take("weight", 1, width)[0], head.take("bias", 1)[0]
        )
        self.reach = embed_reach + config.splitter_layers * (config.splitter_kernel // 2)
        """Symbols on either side that a probability depends on."""

    def __call__(self, symbols: NDArray[Any], begin: int, end: int, executor: Executor | None) -> Floats:
        """[end - begin] probabilities of those symbols among [n] or [n, C]."""
        if begin == end:
            return np.zeros(0, dtype=np.float32)
        begins = range(begin, end, self.together)
        read = partial(self._read, symbols, end)
        return np.concatenate([*(map(read, begins) if executor is None else executor.map(read, begins))])

    def _read(self, symbols: NDArray[Any], end: int, begin: int) -> Floats:
        """The probabilities of `together` symbols from `begin` on, before `end`."""
        first = max(0, begin - self.reach)
        end = min(end, begin + self.together)
        states = self.embed(symbols[first : end + self.reach])
        for index, convolution in enumerate(self.convolutions):
            update = half_silu(convolution(states))
            if index:
                update += states
            states = update
        logits = self.logit(states[begin - first : end - first])
        probs: Floats = np.tanh(logits * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
        return np.maximum(probs, LEAST_PROB)


class ByteSplitter:
    """The splitter of level 0, which reads the uncuttable units of bytes and what it learned of their n-grams."""

    def __init__(self, weights: Weights, config: LevelConfig) -> None:
        ngrams = weights.part("ngrams")
        table = ngrams.take("table", 1, config.splitter_ngrams, TABLE_WIDTH)[0]
        embed = partial(ngram_vectors, table=table, orders=NGRAM_ORDERS)
        self.network = Network(weights, config, embed, max(NGRAM_ORDERS) - 1, UNITS_TOGETHER)
        self.network.convolutions[0].project(ngrams.take("linear.weight", config.splitter_width, TABLE_WIDTH))
        self.reach = byte_reach(self.network.reach)

    def __call__(self, values: NDArray[np.uint8], begin: int, end: int, executor: Executor | None = None) -> Floats:
        """[end - begin] probabilities of those bytes: 0 where no unit begins."""
        fresh = np.zeros(len(values), dtype=np.bool_)
        fresh[:1] = True
        units = read_units(values, fresh)
        first, last = np.searchsorted(units.offsets, (begin, end)).tolist()
        probs = np.zeros(end - begin, dtype=np.float32)
        probs[units.offsets[first:last] - begin] = self.network(units.keys, first, last, executor)
        return probs


class LatentSplitter:
    """The splitter of a level above, which reads latents of `channels` numbers."""

    def __init__(self, weights: Weights, config: LevelConfig, channels: int) -> None:
        embed = Linear(weights.part("embedding.linear"), channels, config.splitter_width)
        self.network = Network(weights, config, embed, 0, LATENTS_TOGETHER)
        self.reach = self.network.reach

    def __call__(self, values: Floats, begin: int, end: int, executor: Executor | None = None) -> Floats:
        """[end - begin] probabilities of those latents among [n, C]."""
        return self.network(values, begin, end, executor)
