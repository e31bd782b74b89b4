"""Segmentation of a stream: the learned cuts of text of any length, in bounded memory.

Positions are gathered into blocks at fixed offsets of the stream, whatever pieces it arrives in, and each block is
read with enough of its surroundings that every probability is the one that the whole text would give. Cuts therefore
depend neither on how the input arrives nor on where a block ends.

Cuts of a level are cuts of every level below, so `segment_levels` gives all levels in one pass: whole segments of the
highest, as arrays, with those that they consist of.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zonkey_core.errors import ConfigError
from zonkey_core.inference.segments import Segment, Segments, Starts
from zonkey_core.model.window_limit import forced_starts

BYTE_BLOCK = (1 << 10, 1 << 17)
"""Positions in level 0's first block and in the largest. Each block is twice the last, up to that, so that the first
segments of a slow stream come early."""
COMPRESSED_BLOCK = (1 << 10, 1 << 16)
"""The same where the segments of bytes are compressed for a level above, which takes memory."""
LATENT_BLOCK = (1 << 9, 1 << 13)
"""The same above level 0."""
THRESHOLD = 0.5
"""The probability above which a cut is made, unless a caller chooses another for the highest level."""
RATE_BYTES = 1 << 16
"""Bytes at the beginning of a stream that a threshold for a rate is chosen on."""


class RateThreshold(NamedTuple):
    """The threshold that comes nearest to a rate."""

    threshold: float
    bytes_per_segment: float
    """What it gives on the text that it was chosen on."""
    within_reach: bool
    """False where every threshold gives longer segments, or every one shorter; the whole text as one does not count."""


class Cuts(NamedTuple):
    """Segment starts of one block of a level."""

    offsets: NDArray[np.int64]
    """Byte offset of each start."""
    probs: NDArray[np.float32]
    latents: NDArray[np.float32] | None
    """[M, C], where a level above needs them."""


class CuttingLevel(Protocol):
    """A level as far as cutting needs it, on whatever it computes."""

    @property
    def reads_bytes(self) -> bool:
        """Whether its positions are bytes; else they are latents of the level below."""

    @property
    def window(self) -> int:
        """The most positions that a segment holds."""

    @property
    def reach(self) -> int:
        """Positions on either side that a probability depends on."""

    def start_probs(self, values: NDArray[Any], begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """The probability of a start at each of the positions [n] or [n, C], or at those from `begin` to `end`; 0
        where no cut is allowed."""

    def compress(self, values: NDArray[Any], bounds: NDArray[np.int64]) -> NDArray[np.float32]:
        """The latents [M, C] of the segments between consecutive `bounds` [M + 1] in positions [n] or [n, C]."""


class LevelCutter:
    """Finds the cuts of one level in a stream of its positions."""

    def __init__(self, level: CuttingLevel, *, keep_latents: bool, threshold: float) -> None:
        self.level = level
        self.keep_latents = keep_latents
        self.threshold = threshold
        of_bytes = COMPRESSED_BLOCK if keep_latents else BYTE_BLOCK
        self.first, self.largest = of_bytes if level.reads_bytes else LATENT_BLOCK
        self.ahead = level.window + level.reach
        """Positions behind a block that its cuts depend on."""
        self.values: NDArray[Any] = np.zeros(0, dtype=np.uint8)
        """Positions from `self.base` on."""
        self.offsets = np.zeros(0, dtype=np.int64)
        """Their byte offsets."""
        self.base = 0
        self.done = 0
        """Positions before this one have been cut."""
        self.blocks = 0
        """In this many blocks."""
        self.last_start = 0

    def push(self, values: NDArray[Any], offsets: NDArray[np.int64]) -> Iterator[Cuts]:
        """Take further positions [n] or [n, C] with their byte offsets; yields the blocks that they complete."""
        self.values = np.concatenate([self.values, values]) if len(self.values) else values
        self.offsets = np.concatenate([self.offsets, offsets])
        while self.base + len(self.values) >= self.done + self._block() + self.ahead:
            yield self._cut(self._block())

    def finish(self) -> Iterator[Cuts]:
        """The stream has ended; yields what is left."""
        while (left := self.base + len(self.values) - self.done) > 0:
            yield self._cut(min(left, self._block()))

    def _block(self) -> int:
        """Positions in the next block, which depends only on where it begins."""
        return min(self.largest, self.first << self.blocks)

    def _cut(self, count: int) -> Cuts:
        """Cut the next `count` positions."""
        begin = self.done - self.base
        values = self.values[: begin + count + self.ahead]
        probs = self.level.start_probs(values, begin, min(len(values), begin + count + self.level.window))
        if self.done == 0:
            probs[0] = 1.0
        starts = self._limit((probs > self.threshold).nonzero()[0], probs)
        own = starts[starts < count]
        latents = None
        if len(own):
            self.last_start = self.done + int(own[-1])
            if self.keep_latents:
                after = starts[len(own) : len(own) + 1] if len(starts) > len(own) else np.array([len(probs)])
                latents = self.level.compress(self.values[begin : begin + len(probs)], np.append(own, after))
        cuts = Cuts(self.offsets[begin:][own], probs[own], latents)
        self.done += count
        self.blocks += 1
        drop = max(0, self.done - self.level.reach - self.base)
        self.values, self.offsets, self.base = self.values[drop:], self.offsets[drop:], self.base + drop
        return cuts

    def _limit(self, starts: NDArray[np.int64], probs: NDArray[np.float32]) -> NDArray[np.int64]:
        """Add starts so that no segment outgrows the window; positions are counted from the first of this block.

        What is known of the next window of positions counts too, so that a segment that is still open at the end of
        the block is cut here exactly if it would be in the whole text. Where no cut is allowed, a probability is 0.
        """
        bounds = np.concatenate([[self.last_start - self.done], starts, [len(probs)]])
        return np.sort(np.concatenate([starts, forced_starts(bounds, probs > 0, self.level.window)]))


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
    if not 0 <= level < len(levels):
        raise ConfigError(f"level must be between 0 and {len(levels) - 1}, not {level}")
    if not 0 <= threshold < 1:
        raise ConfigError(f"threshold must be at least 0 and below 1, not {threshold}")
    cutters = [
        LevelCutter(each, keep_latents=index < level, threshold=THRESHOLD if index < level else threshold)
        for index, each in enumerate(levels[: level + 1])
    ]
    gathered = _Gathered(level, start)
    offset = start
    for chunk in chunks:
        if not chunk:
            continue
        values = np.frombuffer(chunk, dtype=np.uint8)
        gathered.text += chunk
        places = np.arange(offset, offset + len(chunk), dtype=np.int64)
        offset += len(chunk)
        yield from gathered.add(_climb(cutters, 0, cutters[0].push(values, places)))
    for index, cutter in enumerate(cutters):
        yield from gathered.add(_climb(cutters, index, cutter.finish()))
    yield from gathered.rest()


def _climb(cutters: list[LevelCutter], index: int, cuts: Iterator[Cuts]) -> Iterator[tuple[int, Cuts]]:
    """Pass the cuts of a level up through the levels above; yields every level's, with its index."""
    for cut in cuts:
        yield index, cut
        if cut.latents is not None:
            yield from _climb(cutters, index + 1, cutters[index + 1].push(cut.latents, cut.offsets))


class _Gathered:
    """Gathers starts into whole segments of the highest level: one is whole when the start of the next is known.

    By then the starts of the levels below are known up to there, since they are what it was found among.
    """

    def __init__(self, level: int, start: int) -> None:
        self.text = bytearray()
        """The stream from `self.start` on."""
        self.start = start
        self.starts = [Starts(np.zeros(0, np.int64), np.zeros(0, np.float32))] * (level + 1)
        """Those that are known from there on."""

    def add(self, found: Iterable[tuple[int, Cuts]]) -> Iterator[Segments]:
        """Take further cuts, each with its level; yields the segments that they complete."""
        for level, cuts in found:
            offsets, probs = self.starts[level]
            self.starts[level] = Starts(np.append(offsets, cuts.offsets), np.append(probs, cuts.probs))
            if level == len(self.starts) - 1 and len(self.starts[level].offsets) > 1:
                yield self._take(int(self.starts[level].offsets[-1]))

    def rest(self) -> Iterator[Segments]:
        """The last segment, where there is one."""
        if self.text:
            yield self._take(self.start + len(self.text))

    def _take(self, end: int) -> Segments:
        """Everything before byte offset `end`, a start of the highest level or the end of the stream."""
        halves = [each.split(end) for each in self.starts]
        size = end - self.start
        taken = Segments(self.start, bytes(self.text[:size]), tuple(before for before, _ in halves))
        self.starts = [after for _, after in halves]
        self.start = end
        del self.text[:size]
        return taken


def take_head(chunks: Iterable[bytes], size: int = RATE_BYTES) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes of a stream, or all of a shorter one, and the whole stream again."""
    rest = iter(chunks)
    held = bytearray()
    while len(held) < size and (chunk := next(rest, None)) is not None:
        held += chunk
    return bytes(held[:size]), itertools.chain([bytes(held)], rest)


def position_probs(levels: Sequence[CuttingLevel], text: bytes, *, level: int) -> Starts:
    """The byte offset of each position of `level` in a text, and the probability of a cut there: 0 where none may be.

    Positions are bytes at level 0 and the segments of the level below above it.
    """
    parts = [each.starts for each in segment_levels(levels, [text], level=level, threshold=0.0)]
    found, below = (
        np.concatenate([np.zeros(0, dtype=np.int64), *(starts[index].offsets for starts in parts)])
        for index in (level, max(level - 1, 0))
    )
    offsets = below if level else np.arange(len(text), dtype=np.int64)
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
    probs = position_probs(levels, text, level=level).probs
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
