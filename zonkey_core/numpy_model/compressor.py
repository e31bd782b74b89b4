"""Compressor in numpy: `zonkey_core.model.compressor` for windows whose positions exist for certain.

Where cuts are certain, a position behind a segment counts as much as `exp(LOG_FLOOR)`, which is nothing in float32; so
windows are as long as their segments, and Probabilistic Attention is plain attention.
Shapes: K windows of S positions, N queries before them, width D, latents [K, N * D].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonkey_core.config import LevelConfig
from zonkey_core.numpy_model.layers import Linear, half_silu, standardize, to_sphere
from zonkey_core.numpy_model.weights import Floats, Weights

ROWS_TOGETHER = 2048
"""Rows of states that are best computed at once."""


class Block:
    """One pre-normalised layer of a Transformer, for the first rows of each window or all of them."""

    def __init__(self, weights: Weights, width: int, heads: int) -> None:
        self.heads = heads
        norm = weights.take("attention_norm.weight", width)
        self.attention_in = Linear(weights.part("attention_in"), width, 3 * width, bias=False).after(norm)
        self.attention_out = Linear(weights.part("attention_out"), width, width, bias=False)
        norm = weights.take("feedforward_norm.weight", width)
        wide = weights.take("feedforward_in.weight", 4 * width, width).shape[0]
        self.feedforward_in = Linear(weights.part("feedforward_in"), width, wide, scale=0.5).after(norm)
        self.feedforward_out = Linear(weights.part("feedforward_out"), wide, width)

    def joint(self, states: Floats) -> Floats:
        """[n, D] to [n, 3 D]: queries, keys and values of rows."""
        return self.attention_in(standardize(states))

    def __call__(self, states: Floats, joint: Floats, first: int) -> Floats:
        """[K, T, D], with what is `joint` [K T, 3 D], to [K, first, D]: the rows that are needed."""
        windows, length, width = states.shape
        queries, keys, values = joint.reshape(windows, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        logits = queries[:, :, :first] @ keys.transpose(0, 1, 3, 2)
        logits *= np.float32((width // self.heads) ** -0.5)
        logits -= logits.max(-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(-1, keepdims=True)
        mixed = (logits @ values).transpose(0, 2, 1, 3).reshape(-1, width)
        rows = self.attention_out(mixed)
        rows += states[:, :first].reshape(-1, width)
        rows += self.feedforward_out(half_silu(self.feedforward_in(standardize(rows))))
        return rows.reshape(windows, first, width)


class Compressor:
    """Windows of embedded positions to latents on the sphere.

    With a `table` [V, D] of embedded symbols, windows are of symbols. What the first block makes of each of them at
    each place of a window is computed once then.
    """

    def __init__(self, weights: Weights, config: LevelConfig, table: Floats | None = None) -> None:
        width, self.latents = config.width, config.latents
        self.channels = config.latents * config.width
        self.queries = weights.take("queries", config.latents, width)
        self.offsets = weights.take("offsets", config.window, width)
        blocks = weights.part("transformer.blocks")
        self.blocks = [Block(blocks.part(str(index)), width, config.heads) for index in range(config.compressor_layers)]
        self.out = Linear(weights.part("out"), width, width).after(weights.take("norm.weight", width))
        self.symbols: Floats | None = None
        if table is not None:
            self.symbols = table[:, None] + self.offsets
            joint = self.blocks[0].joint(self.symbols.reshape(-1, width))
            self.joint_symbols = joint.reshape(*self.symbols.shape[:2], -1)
            self.joint_queries = self.blocks[0].joint(self.queries)

    def together(self, length: int) -> int:
        """How many windows of `length` positions are best compressed at once."""
        return max(1, ROWS_TOGETHER // (length + self.latents))

    def __call__(self, windows: NDArray[Any]) -> Floats:
        """Embedded positions [K, S, D], or symbols [K, S], to [K, C]."""
        count, length = windows.shape[:2]
        width = self.queries.shape[1]
        states = np.empty((count, self.latents + length, width), dtype=np.float32)
        states[:, : self.latents] = self.queries
        joint: Floats | None = None
        if self.symbols is None:
            np.add(windows, self.offsets[:length], out=states[:, self.latents :])
        else:
            places = np.arange(length)
            states[:, self.latents :] = self.symbols[windows, places]
            joint = np.empty((*states.shape[:2], 3 * width), dtype=np.float32)
            joint[:, : self.latents] = self.joint_queries
            joint[:, self.latents :] = self.joint_symbols[windows, places]
        for index, block in enumerate(self.blocks, 1):
            if joint is None:
                joint = block.joint(states.reshape(-1, width))
            states = block(states, joint, self.latents if index == len(self.blocks) else states.shape[1])
            joint = None
        return to_sphere(self.out(standardize(states.reshape(-1, width))).reshape(count, -1))
