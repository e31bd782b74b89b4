"""Segment Splitter in numpy: `zonkey_core.model.segment_splitter` without gradients, for documents in a row.

Shapes: n positions, those of whole documents or of so much of them that no probability asked for hangs on the rest; at
level 0 K units of n bytes; D of them begin a document. Between documents lie blank places, which every layer leaves at
zero, as what stands around a text that is alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonkey_core.config import LevelConfig
from zonkey_core.model.ngram_tables import NGRAM_ORDERS, STAND_INS, TABLE_WIDTH
from zonkey_core.model.units import byte_reach, read_units
from zonkey_core.numpy_model.layers import Convolution, Linear, NormedLogit, half_silu, room
from zonkey_core.numpy_model.ngrams import NgramTable, ngram_vectors
from zonkey_core.numpy_model.weights import Floats, Weights

UNITS_TOGETHER, LATENTS_TOGETHER = 8192, 1024
"""Positions that one thread reads at once: what is computed of them stays in the cache of a core."""

BLANK = -1
"""What stands in a blank place: the key of no n-gram."""
LEAST_PROB = np.float32(1e-9)
"""The least probability where a segment may begin; 0 says that none may."""

Places = NDArray[np.int64]


class Network:
    """Convolutions over what `embed` gives of symbols, one start probability for each."""

    def __init__(
        self,
        weights: Weights,
        config: LevelConfig,
        embed: Callable[[NDArray[Any], slice | Places, Floats], None],
        embed_width: int,
        embed_reach: int,
        together: int,
    ) -> None:
        width, kernel = config.splitter_width, config.splitter_kernel
        self.width, self.kernel, self.embed_width = width, kernel, embed_width
        self.together = together
        self.embed = embed
        """Writes what symbols are to places of a line."""
        self.gap = max(embed_reach, kernel // 2)
        """Blank places between documents, so many that no layer sees across them."""
        self.convolutions = [
            Convolution(weights.part(f"convolutions.{index}"), width, width, kernel, scale=0.5)
            for index in range(config.splitter_layers)
        ]
        head = weights.part("head")
        self.logit = NormedLogit(
            weights.take("norm.weight", width), head.take("weight", 1, width)[0], head.take("bias", 1)[0]
        )
        self.reach = embed_reach + config.splitter_layers * (kernel // 2)
        """Symbols on either side that a probability depends on."""

    def __call__(
        self, symbols: NDArray[Any], begin: int, end: int, fresh: Places, executor: Executor | None
    ) -> Floats:
        """[end - begin] probabilities of those symbols among [n] or [n, C], of which `fresh` [D] begin documents."""
        if begin == end:
            return np.zeros(0, dtype=np.float32)
        begins = range(begin, end, self.together)
        read = partial(self._read, symbols, fresh, end)
        return np.concatenate([*(map(read, begins) if executor is None else executor.map(read, begins))])

    def _read(self, symbols: NDArray[Any], fresh: Places, end: int, begin: int) -> Floats:
        """The probabilities of `together` symbols from `begin` on, before `end`."""
        first = max(0, begin - self.reach)
        end = min(end, begin + self.together)
        some = symbols[first : end + self.reach]
        count = len(some)
        places: slice | Places = slice(count)
        asked: slice | Places = slice(begin - first, end - first)
        blank = fresh[:0]
        inner = fresh[np.searchsorted(fresh, first, side="right") : np.searchsorted(fresh, first + count)] - first
        if len(inner):
            places, blank = spaced_apart(count, inner, self.gap)
            asked = places[asked]
            count += len(blank)
        least = max(convolution.least for convolution in self.convolutions)
        padded, states = room(count, self.embed_width, self.kernel, least)
        self.embed(some, places, states)
        states[blank] = 0
        for index, convolution in enumerate(self.convolutions):
            halves = convolution(padded)[:count]
            padded, update = room(count, self.width, self.kernel, least)
            half_silu(halves, out=update)
            update[blank] = 0
            if index:
                update += states
            states = update
        logits = self.logit(states)[asked]
        probs: Floats = np.tanh(logits * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
        return np.maximum(probs, LEAST_PROB)


def spaced_apart(count: int, fresh: Places, gap: int) -> tuple[Places, Places]:
    """Where `count` symbols stand in a line with `gap` blank places before those at `fresh` [D], and [gap D] these."""
    before = gap * np.arange(len(fresh) + 1)
    places = np.arange(count) + np.repeat(before, np.diff(fresh, prepend=0, append=count))
    blank = (fresh + before[:-1])[:, None] + np.arange(gap)
    return places, blank.ravel()


class ByteSplitter:
    """The splitter of level 0, which reads the uncuttable units of bytes and what it learned of their n-grams."""

    def __init__(self, weights: Weights, config: LevelConfig) -> None:
        ngrams = weights.part("ngrams")
        rows = config.splitter_ngrams
        self.table = NgramTable(
            ngrams.take("table", 1, rows, TABLE_WIDTH)[0],
            ngrams.take_bytes("owners", rows),
            ngrams.take("unknown", len(NGRAM_ORDERS), TABLE_WIDTH),
            ngrams.take_integers("stand_ins", 2, STAND_INS),
        )
        self.network = Network(weights, config, self._embed, TABLE_WIDTH, max(NGRAM_ORDERS) - 1, UNITS_TOGETHER)
        self.network.convolutions[0].project(ngrams.take("linear.weight", config.splitter_width, TABLE_WIDTH))
        self.reach = byte_reach(self.network.reach)

    def __call__(
        self, values: NDArray[np.uint8], begin: int, end: int, fresh: Places, executor: Executor | None = None
    ) -> Floats:
        """[end - begin] probabilities of those bytes, of which `fresh` begin documents: 0 where no unit begins."""
        fresh_mask = np.zeros(len(values), dtype=np.bool_)
        fresh_mask[:1] = True
        fresh_mask[fresh] = True
        units = read_units(values, fresh_mask)
        first, last = np.searchsorted(units.offsets, (begin, end)).tolist()
        probs = np.zeros(end - begin, dtype=np.float32)
        documents = np.searchsorted(units.offsets, fresh)
        probs[units.offsets[first:last] - begin] = self.network(units.keys, first, last, documents, executor)
        return probs

    def _embed(self, keys: NDArray[np.int64], places: slice | Places, line: Floats) -> None:
        """Write the vectors of the n-grams that end at units [n]; none has units from across a blank place."""
        spaced = np.full(len(line), BLANK, dtype=np.int64)
        spaced[places] = keys
        ngram_vectors(spaced, self.table, NGRAM_ORDERS, out=line)


class LatentSplitter:
    """The splitter of a level above, which reads latents of `channels` numbers, or once it is `fed`, embedded ones."""

    def __init__(self, weights: Weights, config: LevelConfig, channels: int) -> None:
        self.linear = Linear(weights.part("embedding.linear"), channels, config.splitter_width)
        self.fed = False
        self.network = Network(weights, config, self._embed, config.splitter_width, 0, LATENTS_TOGETHER)
        self.reach = self.network.reach

    def __call__(
        self, values: Floats, begin: int, end: int, fresh: Places, executor: Executor | None = None
    ) -> Floats:
        """[end - begin] probabilities of those latents among [n, C], or [n, D], of which `fresh` begin documents."""
        return self.network(values, begin, end, fresh, executor)

    def _embed(self, latents: Floats, places: slice | Places, line: Floats) -> None:
        """Write embedded latents [n, C], or [n, D] that are embedded."""
        if self.fed:
            line[places] = latents
        elif isinstance(places, slice):
            self.linear(latents, out=line)
        else:
            line[places] = self.linear(latents)
