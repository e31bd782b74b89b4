"""One level of the hierarchy as far as cutting needs it: its splitter and, below another level, its Compressor.

Shapes: n positions, M segments, latents [M, C].
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonkey_core.config import LevelConfig
from zonkey_core.numpy_model.compressor import Compressor
from zonkey_core.numpy_model.layers import Linear
from zonkey_core.numpy_model.segment_splitter import ByteSplitter, LatentSplitter
from zonkey_core.numpy_model.weights import Floats, Weights

KEPT_LATENTS = 1 << 16
"""Strings whose latents are kept, since a text says most of them again and again."""
BYTE_VALUES = 256


class NumpyLevel:
    """Splits positions and compresses the segments; those below a level that is asked for `compress`."""

    def __init__(
        self,
        weights: Weights,
        config: LevelConfig,
        channels: int | None,
        *,
        compresses: bool,
        executor: Executor | None,
    ) -> None:
        self.reads_bytes = channels is None
        self.window = config.window
        part = weights.part("splitter")
        self.splitter: ByteSplitter | LatentSplitter
        self.splitter = ByteSplitter(part, config) if channels is None else LatentSplitter(part, config, channels)
        self.reach = self.splitter.reach
        self._executor = executor
        self._kept: dict[bytes, int] = {}
        self._keeping = Lock()
        if compresses:
            embedding, table = weights.part("embedding"), None
            if channels is None:
                table = embedding.take("table.weight", BYTE_VALUES, config.width)
            else:
                self.linear = Linear(embedding.part("linear"), channels, config.width)
            self.compressor = Compressor(weights.part("compressor"), config, table)
            self._embedding: Linear | None = None
            self._keep_room(self.compressor.channels)

    def feed(self, above: NumpyLevel) -> None:
        """From now on `compress` gives latents as the splitter of a level above, which alone reads them, embeds them.

        These are fewer numbers, and of a string that comes again they are made once.
        """
        assert isinstance(above.splitter, LatentSplitter)
        above.splitter.fed = True
        self._embedding = above.splitter.linear
        self._keep_room(self._embedding.weight.shape[1])

    def _keep_room(self, width: int) -> None:
        """Room for what is kept of strings, so many numbers each."""
        self._latents = np.empty((KEPT_LATENTS if self.reads_bytes else 0, width), np.float32)

    def start_probs(
        self,
        values: NDArray[Any],
        begin: int = 0,
        end: int | None = None,
        fresh: NDArray[np.int64] | None = None,
    ) -> Floats:
        """The probability of a start at each of the positions [n] or [n, C], or at those from `begin` to `end`.

        Documents begin at `fresh` [D], ascending, and at the first position in any case.
        """
        fresh = np.zeros(0, dtype=np.int64) if fresh is None else fresh
        return self.splitter(values, begin, len(values) if end is None else end, fresh, self._executor)

    def compress(self, values: NDArray[Any], bounds: NDArray[np.int64]) -> Floats:
        """The latents of the segments between consecutive `bounds` [M + 1] in positions [n] or [n, C]."""
        if not self.reads_bytes:
            return self._compress(self.linear(values), bounds[:-1], np.diff(bounds))
        text = values.tobytes()
        edges = bounds.tolist()
        segments = [*map(text.__getitem__, map(slice, edges, edges[1:]))]
        with self._keeping:
            return self._look_up(segments)

    def _look_up(self, segments: Sequence[bytes]) -> Floats:
        """The latents of strings, of which those that were compressed before are kept."""
        kept = self._kept
        new = [*dict.fromkeys(itertools.filterfalse(kept.__contains__, segments))]
        if len(kept) + len(new) > len(self._latents):
            kept.clear()
            new = [*dict.fromkeys(segments)]
        if len(new) > len(self._latents):
            self._latents = np.empty((len(new), self._latents.shape[1]), dtype=np.float32)
        if new:
            self._keep(new)
        return self._latents[np.fromiter(map(kept.__getitem__, segments), np.int64, len(segments))]

    def _keep(self, segments: Sequence[bytes]) -> None:
        """Compress distinct strings and keep what comes of them."""
        lengths = np.array([len(segment) for segment in segments])
        begins = np.cumsum(lengths) - lengths
        places = np.arange(len(self._kept), len(self._kept) + len(segments))
        text = np.frombuffer(b"".join(segments), dtype=np.uint8)
        self._latents[places] = self._compress(text, begins, lengths)
        self._kept.update(zip(segments, places.tolist(), strict=True))

    def _compress(self, values: NDArray[Any], begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> Floats:
        """Latents of segments of bytes [n] or embedded positions [n, D], some of one length together."""
        latents = np.empty((len(begins), self._latents.shape[1]), dtype=np.float32)
        parts: list[NDArray[np.intp]] = []
        for length in np.unique(lengths).tolist():
            chosen = np.flatnonzero(lengths == length)
            together = self.compressor.together(length)
            parts += [chosen[first : first + together] for first in range(0, len(chosen), together)]

        def compress(part: NDArray[np.intp]) -> None:
            found = self.compressor(values[begins[part, None] + np.arange(lengths[part[0]])])
            latents[part] = found if self._embedding is None else self._embedding(found)

        for _ in map(compress, parts) if self._executor is None else self._executor.map(compress, parts):
            pass
        return latents


def numpy_levels(
    tensors: Mapping[str, NDArray[Any]],
    configs: Sequence[LevelConfig],
    executor: Executor | None = None,
    *,
    feeding: bool = False,
) -> list[NumpyLevel]:
    """Levels from the lowest to the one that is cut, of a model's tensors by name.

    With `feeding`, latents that nothing but the highest level reads are given to it as its splitter embeds them.
    Raises `ValueError` where a tensor that they need is missing or of another shape.
    """
    levels: list[NumpyLevel] = []
    channels: int | None = None
    for index, config in enumerate(configs):
        weights = Weights(tensors, f"bottom.{'above.' * index}")
        compresses = index + 1 < len(configs)
        levels.append(NumpyLevel(weights, config, channels, compresses=compresses, executor=executor))
        channels = config.latents * config.width
    if feeding and len(levels) > 1:
        levels[-2].feed(levels[-1])
    return levels
