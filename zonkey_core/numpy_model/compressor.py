"""Compressor in numpy: `zonkey_core.model.compressor` for windows whose positions exist for certain.

Where cuts are certain, a position behind a segment counts as much as `exp(LOG_FLOOR)`, which is nothing in float32; so
windows are as long as their segments, and Probabilistic Attention is plain attention.
Shapes: K windows of S positions, N queries before them, width D, latents [K, N * D].
"""

from __future__ import annotations

import numpy as np

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

    def __call__(self, states: Floats, first: int) -> Floats:
        """[K, T, D] to [K, first, D]: the rows that are needed."""
        windows, length, width = states.shape
        joint = self.attention_in(standardize(states.reshape(-1, width)))
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
    """Windows of embedded positions to latents on the sphere."""

    def __init__(self, weights: Weights, config: LevelConfig) -> None:
        width, self.latents = config.width, config.latents
        self.channels = config.latents * config.width
        self.queries = weights.take("queries", config.latents, width)
        self.offsets = weights.take("offsets", config.window, width)
        blocks = weights.part("transformer.blocks")
        self.blocks = [Block(blocks.part(str(index)), width, config.heads) for index in range(config.compressor_layers)]
        self.out = Linear(weights.part("out"), width, width).after(weights.take("norm.weight", width))

    def together(self, length: int) -> int:
        """How many windows of `length` positions are best compressed at once."""
        return max(1, ROWS_TOGETHER // (length + self.latents))

    def __call__(self, windows: Floats) -> Floats:
        """[K, S, D] to [K, C]."""
        count, length, width = windows.shape
        states = np.empty((count, self.latents + length, width), dtype=np.float32)
        states[:, : self.latents] = self.queries
        np.add(windows, self.offsets[:length], out=states[:, self.latents :])
        for index, block in enumerate(self.blocks, 1):
            states = block(states, self.latents if index == len(self.blocks) else states.shape[1])
        return to_sphere(self.out(standardize(states.reshape(-1, width))).reshape(count, -1))
