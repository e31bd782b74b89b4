"""Segmentation: the learned cuts of streams and texts of any length, in bounded memory, and thresholds for them.

Cuts of a level are cuts of every level below, so `segment_levels` gives all levels in one pass: whole segments of the
highest, as arrays, with those that they consist of.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zonkey_core.inference.document_cutter import THRESHOLD, DocumentCutter
from zonkey_core.inference.level_cutter import CuttingLevel
from zonkey_core.inference.segments import Segment, Segments, Starts
from zonkey_core.model.window_limit import forced_starts

RATE_BYTES = 1 << 16
"""Bytes at the beginning of a stream that a threshold for a rate is chosen on."""


class RateThreshold(NamedTuple):
    """The threshold that comes nearest to a rate."""

    threshold: float
    bytes_per_segment: float
    """What it gives on the text that it was chosen on."""
    within_reach: bool
    """False where every threshold gives longer segments, or every one shorter; the whole text as one does not count."""


def segment_stream(
    levels: Sequence[CuttingLevel], chunks: Iterable[bytes], *, level: int = 0, threshold: float = THRESHOLD
) -> Iterator[list[Segment]]:
    """Segments of a stream at one level, in lists as they become known; their texts add up to the input.

    Raises as `segment_levels`.
    """
    for segments in segment_levels(levels, chunks, level=level, threshold=threshold):
        yield segments.flat()


def segment_levels(
    levels: Sequence[CuttingLevel],
    chunks: Iterable[bytes],
    *,
    level: int = 0,
    threshold: float = THRESHOLD,
    start: int = 0,
) -> Iterator[Segments]:
    """Segments of a stream at `level` and all levels below, as they become known; their texts add up to the input.

    A cut of `level` is made where the probability is above `threshold`, in [0, 1), and of the levels below where it
    is above one half, as in training. `start` is the byte offset of the first byte. Raises `ConfigError` for a level
    that the model does not have, or a threshold out of range.
    """
    cutter = DocumentCutter(levels, level=level, threshold=threshold)
    cutter.begin(start)
    for chunk in chunks:
        cutter.take(chunk)
        yield from cutter.advance()
    yield from cutter.settle()


def segment_texts(
    levels: Sequence[CuttingLevel], texts: Iterable[bytes], *, level: int = 0, threshold: float = THRESHOLD
) -> Iterator[Segments]:
    """The same of many documents, each of which is at hand as a whole; a run of segments is of one of them.

    As many are taken at once as are cut together. Raises as `segment_levels`.
    """
    cutter = DocumentCutter(levels, level=level, threshold=threshold)
    for text in texts:
        cutter.begin()
        cutter.take(text)
        if cutter.full:
            yield from cutter.advance()
    yield from cutter.settle()


def take_head(chunks: Iterable[bytes], size: int = RATE_BYTES) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes of a stream, or all of a shorter one, and the whole stream again."""
    rest = iter(chunks)
    held = bytearray()
    while len(held) < size and (chunk := next(rest, None)) is not None:
        held += chunk
    return bytes(held[:size]), itertools.chain([bytes(held)], rest)


def position_probs(levels: Sequence[CuttingLevel], texts: Sequence[bytes], *, level: int) -> list[Starts]:
    """For each text, the byte offset of each position of `level` and the probability of a cut there, 0 where none may
    be.

    Positions are bytes at level 0 and the segments of the level below above it.
    """
    parts: list[list[tuple[Starts, ...]]] = [[] for _ in texts]
    for segments in segment_texts(levels, texts, level=level, threshold=0.0):
        parts[segments.document].append(segments.starts)
    return [_of_positions(each, len(text), level) for each, text in zip(parts, texts, strict=True)]


def _of_positions(parts: Sequence[tuple[Starts, ...]], size: int, level: int) -> Starts:
    """The positions of a text of `size` bytes, from the starts of its segments at every level."""
    found, below = (
        np.concatenate([np.zeros(0, dtype=np.int64), *(starts[index].offsets for starts in parts)])
        for index in (level, max(level - 1, 0))
    )
    offsets = below if level else np.arange(size, dtype=np.int64)
    probs = np.zeros(len(offsets), dtype=np.float32)
    probs[np.searchsorted(offsets, found)] = np.concatenate([probs[:0], *(starts[level].probs for starts in parts)])
    return Starts(offsets, probs)


def threshold_for_rate(
    levels: Sequence[CuttingLevel], text: bytes, *, level: int, bytes_per_segment: float
) -> RateThreshold:
    """The threshold at which the segments of `text` at `level` are as near as can be to `bytes_per_segment` long.

    Found by bisection over the probabilities that occur: the number of segments, forced cuts included, never rises
    with the threshold.
    """
    if not text:
        return RateThreshold(THRESHOLD, 0.0, True)
    probs = position_probs(levels, [text], level=level)[0].probs
    thresholds = _thresholds(probs[probs > 0])
    window = levels[level].window

    def rate(index: int) -> float:
        return len(text) / _count_segments(probs, float(thresholds[index]), window)

    above = bisect.bisect_left(range(len(thresholds)), bytes_per_segment, key=rate)
    near = range(max(above - 1, 0), min(above + 1, len(thresholds)))
    best = min(near, key=lambda index: abs(rate(index) - bytes_per_segment))
    longest = rate(len(thresholds) - 1)
    within_reach = rate(0) <= bytes_per_segment and (bytes_per_segment <= longest or longest == len(text))
    return RateThreshold(float(thresholds[best]), rate(best), within_reach)


def _thresholds(probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every threshold that makes a difference to starts of these probabilities, ascending: 0, then between them."""
    values = np.unique(np.append(probs, np.float32(1)))
    middles = values[:-1] + (values[1:] - values[:-1]) / 2
    return np.append(np.float32(0), np.where(middles < values[1:], middles, values[:-1]))


def _count_segments(probs: NDArray[np.float32], threshold: float, window: int) -> int:
    """How many segments positions have that are cut above a threshold and where no segment may go on."""
    starts = np.flatnonzero(probs > threshold)
    return len(starts) + len(forced_starts(np.append(starts, len(probs)), probs > 0, window))
