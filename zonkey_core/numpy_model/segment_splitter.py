"""Segment Splitter in numpy: `zonkey_core.model.segment_splitter` without gradients, for one text at a time.

Shapes: n positions, those of a whole text or of so much of it that no probability asked for hangs on the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonkey_core.config import LevelConfig
from zonkey_core.numpy_model.layers import Convolution, Linear, half_silu, standardize
from zonkey_core.numpy_model.ngrams import NGRAM_ORDERS, NgramVectors
from zonkey_core.numpy_model.weights import Floats, Weights

READ_TOGETHER = 2048
"""Positions that one thread reads at once: what is computed of them stays in the cache of a core."""


class SegmentSplitter:
    """Convolutions over embedded positions, one start logit for each."""

    def __init__(self, weights: Weights, config: LevelConfig, channels: int | None) -> None:
        width = config.splitter_width
        self.embed: Callable[[NDArray[Any]], Floats]
        self.reach = config.splitter_layers * (config.splitter_kernel // 2)
        if channels is None:
            self.embed = ByteEmbedding(weights, config)
            self.reach += max(NGRAM_ORDERS) - 1
        else:
            self.embed = Linear(weights.part("embedding.linear"), channels, width)
        self.convolutions = [
            Convolution(weights.part(f"convolutions.{index}"), width, width, config.splitter_kernel, scale=0.5)
            for index in range(config.splitter_layers)
        ]
        head = weights.part("head")
        self.norm = weights.take("norm.weight", width) * head.take("weight", 1, width)[0]
        self.bias = head.take("bias", 1)[0]

    def __call__(self, values: NDArray[Any], executor: Executor | None = None) -> Floats:
        """The probability [n] of a start at each of the positions [n] or [n, C]."""
        begins = range(0, len(values), READ_TOGETHER)
        parts = map(self._piece, [values] * len(begins), begins) if executor is None else executor.map(
            self._piece, [values] * len(begins), begins
        )
        probs = np.concatenate([*parts])
        if values.ndim == 1:
            probs[inside_code_point(values)] = 0
        return probs

    def _piece(self, values: NDArray[Any], begin: int) -> Floats:
        """The probabilities of `READ_TOGETHER` positions from `begin` on."""
        first = max(0, begin - self.reach)
        states = self.embed(values[first : begin + READ_TOGETHER + self.reach])
        for index, convolution in enumerate(self.convolutions):
            update = half_silu(convolution(states))
            states = update + states if index else update
        states = states[begin - first : begin - first + READ_TOGETHER]
        logits = np.einsum("nd,d->n", standardize(states), self.norm) + self.bias
        return sigmoid(logits)


def inside_code_point(values: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[n] mask of the bytes 0x80-0xBF that a lead byte before them, near enough, still claims."""
    unbroken = (values & 0xC0) == 0x80
    inside = np.zeros(len(values), dtype=np.bool_)
    chain = unbroken.copy()
    for back, least in zip(range(1, 4), (0xC0, 0xE0, 0xF0), strict=True):
        inside[back:] |= chain[back:] & (values[:-back] >= least)
        chain[back:] &= unbroken[:-back]
        chain[:back] = False
    return inside


def sigmoid(logits: Floats) -> Floats:
    """`1 / (1 + exp(-x))`, where no large number overflows."""
    result: Floats = np.tanh(logits * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
    return result


class ByteEmbedding:
    """The vector of each byte and those of the n-grams that end at it."""

    def __init__(self, weights: Weights, config: LevelConfig) -> None:
        width = config.splitter_width
        self.table = weights.take("embedding.table.weight", 256, width)
        self.ngrams = NgramVectors(weights.part("ngrams"), config.splitter_ngrams)
        self.linear = Linear(weights.part("ngrams.linear"), 32, width, bias=False)

    def __call__(self, values: NDArray[Any]) -> Floats:
        """[n] to [n, width]."""
        states = self.linear(self.ngrams(values.astype(np.int64)))
        states += self.table[values]
        return states
