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
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from zonkey_core.devices import autocast, choose_precision
from zonkey_core.errors import ConfigError
from zonkey_core.inference.segments import Segment, Segments, Starts
from zonkey_core.model.existence import forced_starts
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segmentation import Segmentation

BYTE_BLOCK = (32, 1024)
"""Most parts, and positions of each, of level 0's blocks. The first block is one part and each is twice the last, up to
that many, so that the first segments of a slow stream come early. All parts of one are one row, since what a row needs
of its surroundings is long where text is strange."""
LATENT_BLOCK = (4, 512)
"""The same above level 0, where each part is a row."""
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
    latents: Tensor | None
    """[M, C], where a level above needs them."""


class LevelCutter:
    """Finds the cuts of one level in a stream of its positions."""

    def __init__(self, level: Level, *, keep_latents: bool, threshold: float) -> None:
        self.level = level
        self.keep_latents = keep_latents
        self.threshold = threshold
        self.rows, self.row = BYTE_BLOCK if level.reads_bytes else LATENT_BLOCK
        self.halo = level.config.window + level.splitter.reach
        self.values: Tensor | None = None
        """Positions from `self.base` on."""
        self.offsets = np.zeros(0, dtype=np.int64)
        """Their byte offsets."""
        self.base = 0
        self.done = 0
        """Positions before this one have been cut."""
        self.blocks = 0
        """In this many blocks."""
        self.last_start = 0

    def push(self, values: Tensor, offsets: NDArray[np.int64]) -> Iterator[Cuts]:
        """Take further positions [n] or [n, C] with their byte offsets; yields the blocks that they complete."""
        self.values = values if self.values is None else torch.cat([self.values, values])
        self.offsets = np.concatenate([self.offsets, offsets])
        while self.base + len(self.values) >= self.done + self._block() + self.halo:
            yield self._cut(self._block())

    def finish(self) -> Iterator[Cuts]:
        """The stream has ended; yields what is left."""
        if self.values is not None:
            while (left := self.base + len(self.values) - self.done) > 0:
                yield self._cut(min(left, self._block()))

    def _block(self) -> int:
        """Positions in the next block, which depends only on where it begins."""
        return min(self.rows, 1 << self.blocks) * self.row

    @torch.no_grad()
    def _cut(self, count: int) -> Cuts:
        """Cut the next `count` positions."""
        assert self.values is not None
        sequence, middle = self._rows(count)
        start_prob = self.level.split(sequence).start_prob.float()
        inner = start_prob[:, self.halo : self.halo + middle].flatten()
        tail = start_prob[-1, self.halo + middle :]
        probs = torch.cat([inner, tail])[: count + self.level.config.window]
        if self.done == 0:
            probs[0] = 1.0
        known = probs.cpu().numpy().copy()
        starts = self._limit((known > self.threshold).nonzero()[0], known)
        certain = torch.zeros_like(probs)
        certain[torch.from_numpy(starts).to(probs.device)] = 1.0
        starts = starts[starts < count]
        if len(starts):
            self.last_start = self.done + int(starts[-1])
        latents = self._latents(certain, torch.from_numpy(starts)) if self.keep_latents and len(starts) else None
        cuts = Cuts(self.offsets[starts + self.done - self.base], known[starts], latents)
        self.done += count
        self.blocks += 1
        drop = max(0, self.done - self.halo - self.base)
        self.values, self.offsets, self.base = self.values[drop:], self.offsets[drop:], self.base + drop
        return cuts

    def _rows(self, count: int) -> tuple[PositionSequence, int]:
        """The next positions as rows that overlap by a halo, and how many of each row's are its own."""
        assert self.values is not None
        rows = 1 if self.level.reads_bytes else -(-count // self.row)
        middle = self.row if rows > 1 else count
        first = self.done - self.halo
        length = rows * middle + 2 * self.halo
        left = max(0, self.base - first)
        piece = self.values[max(0, first - self.base) : first + length - self.base]
        right = length - left - len(piece)
        present = functional.pad(torch.ones(len(piece), dtype=torch.bool, device=piece.device), (left, right))
        padded = functional.pad(piece, (left, right) if piece.dim() == 1 else (0, 0, left, right))
        span = middle + 2 * self.halo
        exists = present.unfold(0, span, middle)
        values = padded.unfold(0, span, middle)
        if piece.dim() == 2:
            values = values.transpose(1, 2)
        return PositionSequence(values.contiguous(), exists.contiguous(), torch.zeros_like(exists)), middle

    def _limit(self, starts: NDArray[np.int64], probs: NDArray[np.float32]) -> NDArray[np.int64]:
        """Add starts so that no segment outgrows the window; positions are counted from the first of this block.

        What is known of the next window of positions counts too, so that a segment that is still open at the end of
        the block is cut here exactly if it would be in the whole text. Where no cut is allowed, a probability is 0.
        """
        bounds = np.concatenate([[self.last_start - self.done], starts, [len(probs)]])
        return np.sort(np.concatenate([starts, forced_starts(bounds, probs > 0, self.level.config.window)]))

    def _latents(self, certain: Tensor, starts: Tensor) -> Tensor:
        """Latents of the segments that start in this block, given what is a start in it and in what follows it."""
        assert self.values is not None
        begin = self.done - self.base
        values = self.values[begin : begin + len(certain)]
        exists = torch.ones(1, len(values), dtype=torch.bool, device=values.device)
        sequence = PositionSequence(values[None], exists, torch.zeros_like(exists))
        starts = starts[None].to(values.device)
        mask = torch.ones_like(starts, dtype=torch.bool)
        segmentation = Segmentation(starts, mask, torch.zeros_like(mask), certain[None, : len(values)])
        return self.level.encode(sequence, segmentation).float()


def splitting_tensors(level: int) -> tuple[str, ...]:
    """How the names of the tensors begin that cutting up to `level` needs; a model may leave the others unread."""
    return tuple(
        f"bottom.{'above.' * index}{part}."
        for index in range(level + 1)
        for part in (("splitter",) if index == level else ("splitter", "embedding", "compressor"))
    )


def segment_stream(
    model: Zonkey, chunks: Iterable[bytes], *, level: int = 0, threshold: float = THRESHOLD
) -> Iterator[list[Segment]]:
    """Segments of a stream at one level, in lists as they become known; their texts add up to the input.

    Raises as `segment_levels`.
    """
    for segments in segment_levels(model, chunks, level=level, threshold=threshold):
        yield segments.flat()


def segment_levels(
    model: Zonkey, chunks: Iterable[bytes], *, level: int = 0, threshold: float = THRESHOLD, start: int = 0
) -> Iterator[Segments]:
    """Segments of a stream at `level` and all levels below, as they become known; their texts add up to the input.

    A cut of `level` is made where the probability is above `threshold`, in [0, 1), and of the levels below where it
    is above one half, as in training. `start` is the byte offset of the first byte. Raises `ConfigError` for a level
    that the model does not have, or a threshold out of range.
    """
    if not 0 <= level < len(model.levels):
        raise ConfigError(f"level must be between 0 and {len(model.levels) - 1}, not {level}")
    if not 0 <= threshold < 1:
        raise ConfigError(f"threshold must be at least 0 and below 1, not {threshold}")
    cutters = [
        LevelCutter(each, keep_latents=index < level, threshold=THRESHOLD if index < level else threshold)
        for index, each in enumerate(model.levels[: level + 1])
    ]
    gathered = _Gathered(level, start)
    precision = choose_precision("auto", model.device)
    offset = start
    for chunk in chunks:
        if not chunk:
            continue
        values = torch.from_numpy(np.frombuffer(chunk, dtype=np.uint8).astype(np.int64)).to(model.device)
        gathered.text += chunk
        places = np.arange(offset, offset + len(chunk), dtype=np.int64)
        offset += len(chunk)
        with autocast(model.device, precision):
            cuts = list(_climb(cutters, 0, cutters[0].push(values, places)))
        yield from gathered.add(cuts)
    for index, cutter in enumerate(cutters):
        with autocast(model.device, precision):
            cuts = list(_climb(cutters, index, cutter.finish()))
        yield from gathered.add(cuts)
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


def threshold_for_rate(model: Zonkey, text: bytes, *, level: int, bytes_per_segment: float) -> RateThreshold:
    """The threshold at which the segments of `text` at `level` are as near as can be to `bytes_per_segment` long.

    Found by bisection over the probabilities that occur: the number of segments, forced cuts included, never rises
    with the threshold.
    """
    if not text:
        return RateThreshold(THRESHOLD, 0.0, True)
    parts = [each.starts for each in segment_levels(model, [text], level=level, threshold=0.0)]
    probs = np.concatenate([starts[level].probs for starts in parts])
    positions = np.concatenate([starts[level].offsets for starts in parts])
    length = len(text)
    if level:
        below = np.concatenate([starts[level - 1].offsets for starts in parts])
        positions, length = np.searchsorted(below, positions), len(below)
    thresholds = _thresholds(probs)
    window = model.levels[level].config.window

    def rate(index: int) -> float:
        return len(text) / _count_segments(positions[probs > thresholds[index]], positions, length, window)

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


def _count_segments(starts: NDArray[np.int64], allowed: NDArray[np.int64], length: int, window: int) -> int:
    """How many segments `length` positions have that are cut at `starts` and, where they must be, at `allowed` ones."""
    allowed_mask = np.zeros(length, dtype=np.bool_)
    allowed_mask[allowed] = True
    return len(starts) + len(forced_starts(np.append(starts, length), allowed_mask, window))
