"""Segmenting a stream: the learned cuts of text of any length, in bounded memory.

Positions are gathered into blocks at fixed offsets of the stream, whatever pieces it arrives in, and each block is
read with enough of its surroundings that every probability is the one that the whole text would give. Cuts therefore
depend neither on how the input arrives nor on where a block ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from zonkey_core.bytes import LONGEST_CODE_POINT
from zonkey_core.devices import autocast, choose_precision
from zonkey_core.errors import ConfigError
from zonkey_core.existence import forced_starts
from zonkey_core.level import Level, Segmentation
from zonkey_core.model import Zonkey
from zonkey_core.positions import PositionSequence

BYTE_BLOCK = (8, 4096)
"""Most rows, and positions per row, of level 0's blocks. The first block is one row and each is twice the last, up to
that many, so that the first segments of a slow stream come early."""
LATENT_BLOCK = (4, 512)
"""The same above level 0."""


class Segment(msgspec.Struct, frozen=True):
    """One segment of a stream."""

    level: int
    start: int
    """Byte offset of its first byte."""
    end: int
    """Byte offset after its last."""
    prob: float
    """The splitter's probability of a cut at `start`; 1 at the beginning of the stream."""
    text: bytes


class Cuts(NamedTuple):
    """Segment starts of one block of a level."""

    offsets: NDArray[np.int64]
    """Byte offset of each start."""
    probs: NDArray[np.float32]
    latents: Tensor | None
    """[M, C], where a level above needs them."""


class LevelCutter:
    """Finds the cuts of one level in a stream of its positions."""

    def __init__(self, level: Level, *, keep_latents: bool) -> None:
        self.level = level
        self.keep_latents = keep_latents
        self.is_bytes = level.readout.channels is None
        self.rows, self.row = BYTE_BLOCK if self.is_bytes else LATENT_BLOCK
        self.halo = level.config.window + max(level.splitter.reach, LONGEST_CODE_POINT - 1)
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
        starts = self._limit((known > 0.5).nonzero()[0], known)
        probs[torch.from_numpy(starts[known[starts] <= 0.5]).to(probs.device)] = 1.0
        starts = starts[starts < count]
        if len(starts):
            self.last_start = self.done + int(starts[-1])
        latents = self._latents(probs, torch.from_numpy(starts)) if self.keep_latents and len(starts) else None
        cuts = Cuts(self.offsets[starts + self.done - self.base], known[starts], latents)
        self.done += count
        self.blocks += 1
        drop = max(0, self.done - self.halo - self.base)
        self.values, self.offsets, self.base = self.values[drop:], self.offsets[drop:], self.base + drop
        return cuts

    def _rows(self, count: int) -> tuple[PositionSequence, int]:
        """The next positions as rows that overlap by a halo, and how many of each row's are its own."""
        assert self.values is not None
        rows = -(-count // self.row)
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

    def _latents(self, probs: Tensor, starts: Tensor) -> Tensor:
        """Latents of the segments that start in this block, read with what follows them."""
        assert self.values is not None
        begin = self.done - self.base
        values = self.values[begin : begin + len(probs)]
        exists = torch.ones(1, len(values), dtype=torch.bool, device=values.device)
        sequence = PositionSequence(values[None], exists, torch.zeros_like(exists))
        starts = starts[None].to(values.device)
        mask = torch.ones_like(starts, dtype=torch.bool)
        segmentation = Segmentation(starts, mask, torch.zeros_like(mask), probs[None, : len(values)])
        return self.level.encode(sequence, segmentation).float()


def segment_stream(model: Zonkey, chunks: Iterable[bytes], *, level: int = 0) -> Iterator[list[Segment]]:
    """Segments of a stream at one level, in lists as they become known; their texts add up to the input.

    Raises `ConfigError` for a level that the model does not have.
    """
    if not 0 <= level < len(model.levels):
        raise ConfigError(f"level must be between 0 and {len(model.levels) - 1}, not {level}")
    cutters = [LevelCutter(each, keep_latents=index < level) for index, each in enumerate(model.levels[: level + 1])]
    writer = _SegmentWriter(level)
    precision = choose_precision("auto", model.device)
    offset = 0
    for chunk in chunks:
        if not chunk:
            continue
        values = torch.from_numpy(np.frombuffer(chunk, dtype=np.uint8).astype(np.int64)).to(model.device)
        writer.text += chunk
        places = np.arange(offset, offset + len(chunk), dtype=np.int64)
        offset += len(chunk)
        with autocast(model.device, precision):
            cuts = list(_climb(cutters, 0, cutters[0].push(values, places)))
        for cut in cuts:
            yield writer.segments(cut)
    for index, cutter in enumerate(cutters):
        with autocast(model.device, precision):
            cuts = list(_climb(cutters, index, cutter.finish()))
        for cut in cuts:
            yield writer.segments(cut)
    yield writer.rest(offset)


def _climb(cutters: list[LevelCutter], index: int, cuts: Iterator[Cuts]) -> Iterator[Cuts]:
    """Pass a level's cuts up to the last cutter, and yield that one's."""
    for cut in cuts:
        if index + 1 == len(cutters):
            yield cut
        elif cut.latents is not None:
            yield from _climb(cutters, index + 1, cutters[index + 1].push(cut.latents, cut.offsets))


class _SegmentWriter:
    """Turns starts into segments: one is complete when the next is known."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.text = bytearray()
        """The stream from `self.start` on."""
        self.start = 0
        self.prob = 1.0

    def segments(self, cuts: Cuts) -> list[Segment]:
        """The segments that a further block of starts completes."""
        result = []
        begin = self.start
        for offset, prob in zip(cuts.offsets.tolist(), cuts.probs.tolist(), strict=True):
            if offset > self.start:
                text = bytes(self.text[self.start - begin : offset - begin])
                result.append(Segment(self.level, self.start, offset, self.prob, text))
            self.start, self.prob = offset, prob
        del self.text[: self.start - begin]
        return result

    def rest(self, end: int) -> list[Segment]:
        """The last segment."""
        if end == self.start:
            return []
        return [Segment(self.level, self.start, end, self.prob, bytes(self.text))]
