"""One level of the hierarchy along a stream: positions in, the starts of segments out, in bounded memory.

A stream holds documents one behind the other. Positions are gathered into blocks, whatever pieces they arrive in, and
each block is read with enough of its surroundings that every probability is the one that the whole document alone
would give. Cuts therefore depend neither on how the input arrives, nor on where a block ends, nor on other documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zonkey_core.model.window_limit import forced_starts

BYTE_BLOCK = (1 << 10, 1 << 17)
"""Positions in level 0's least block and in the largest. A block is at least as long as all before it since the stream
began or paused, up to the largest, so that the first segments of a slow stream come early."""
COMPRESSED_BLOCK = (1 << 10, 1 << 16)
"""The same where the segments of bytes are compressed for a level above, which takes memory."""
LATENT_BLOCK = (1 << 9, 1 << 13)
"""The same above level 0."""

Places = NDArray[np.int64]


class Positions(NamedTuple):
    """Further positions of a level."""

    values: NDArray[Any]
    """[n] bytes or [n, C] latents."""
    offsets: Places
    """[n] byte offset of each in the stream; of bytes [0], since they are counted."""
    fresh: Places
    """[D] those of them at which a document begins, ascending."""


class Cuts(NamedTuple):
    """Segment starts of one block of a level."""

    offsets: Places
    """[M] byte offset of each start in the stream."""
    probs: NDArray[np.float32]
    """[M] the probability of each; 1 at the beginning of a document."""
    positions: Positions | None
    """What they are to a level above, where there is one."""


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

    def start_probs(
        self, values: NDArray[Any], begin: int = 0, end: int | None = None, fresh: Places | None = None
    ) -> NDArray[np.float32]:
        """The probability of a start at each of the positions [n] or [n, C], or at those from `begin` to `end`; 0
        where no cut is allowed. Nothing depends on what stands across one of `fresh` [D], ascending positions at which
        documents begin."""

    def compress(self, values: NDArray[Any], bounds: Places) -> NDArray[np.float32]:
        """The latents [M, C] of the segments between consecutive `bounds` [M + 1] in positions [n] or [n, C]."""


class LevelCutter:
    """Finds the cuts of one level in a stream of its positions."""

    def __init__(self, level: CuttingLevel, *, keep_latents: bool, threshold: float) -> None:
        self.level = level
        self.keep_latents = keep_latents
        self.threshold = threshold
        of_bytes = COMPRESSED_BLOCK if keep_latents else BYTE_BLOCK
        self.least, self.largest = of_bytes if level.reads_bytes else LATENT_BLOCK
        self.ahead = level.window + level.reach
        """Positions behind a block that its cuts depend on."""
        self.held = Positions(np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))
        """Positions from `self.base` on, but for those that wait; `fresh` counts from the beginning of the stream."""
        self.waiting: list[Positions] = []
        """Positions behind those, in the pieces that they came in."""
        self.base = 0
        self.taken = 0
        """Positions that the stream has had."""
        self.done = 0
        """Positions before this one have been cut."""
        self.paused = 0
        """The one at which the stream began or went on after it was settled."""
        self.last_start = 0

    def full(self, taken: int) -> bool:
        """Whether so many positions of the stream are enough for the largest block."""
        return taken - self.done - self.ahead >= self.largest

    def enough(self, taken: int) -> bool:
        """Whether so many positions of the stream are enough for a block."""
        return taken - self.done - self.ahead >= min(self.largest, self.least + self.done - self.paused)

    def take(self, positions: Positions) -> None:
        """Further positions."""
        self.waiting.append(positions._replace(fresh=positions.fresh + self.taken))
        self.taken += len(positions.values)

    def advance(self) -> Iterator[Cuts]:
        """Yields the blocks of which enough is known."""
        while self.enough(self.taken):
            yield self._cut(min(self.taken - self.done - self.ahead, self.largest))

    def settle(self) -> Iterator[Cuts]:
        """All documents so far have ended; yields what is left of them."""
        while (left := self.taken - self.done) > 0:
            yield self._cut(min(left, self.largest))
        self._drop(self.taken - self.base)
        self.paused = self.taken

    def _cut(self, count: int) -> Cuts:
        """Cut the next `count` positions."""
        if self.waiting:
            self.held = _joined([self.held, *self.waiting] if len(self.held.values) else self.waiting)
            self.waiting = []
        values, begin = self.held.values, self.done - self.base
        values = values[: begin + count + self.ahead]
        end = min(len(values), begin + count + self.level.window)
        fresh = self.held.fresh[: np.searchsorted(self.held.fresh, self.base + len(values))] - self.base
        probs = self.level.start_probs(values, begin, end, fresh)
        first, behind, last = np.searchsorted(fresh, (begin, begin + count, end)).tolist()
        probs[fresh[first:last] - begin] = 1.0
        starts = self._limit((probs > self.threshold).nonzero()[0], probs)
        own = starts[: np.searchsorted(starts, count)]
        offsets = self.done + own if self.level.reads_bytes else self.held.offsets[begin:][own]
        positions = None
        if len(own):
            self.last_start = self.done + int(own[-1])
            if self.keep_latents:
                after = starts[len(own) : len(own) + 1] if len(starts) > len(own) else np.array([len(probs)])
                latents = self.level.compress(values[begin:end], np.append(own, after))
                positions = Positions(latents, offsets, np.searchsorted(own, fresh[first:behind] - begin))
        self.done += count
        self._drop(max(0, self.done - self.level.reach - self.base))
        return Cuts(offsets, probs[own], positions)

    def _limit(self, starts: Places, probs: NDArray[np.float32]) -> Places:
        """Add starts so that no segment outgrows the window; positions are counted from the first of this block.

        What is known of the next window of positions counts too, so that a segment that is still open at the end of
        the block is cut here exactly if it would be in the whole text. Where no cut is allowed, a probability is 0.
        """
        bounds = np.concatenate([[self.last_start - self.done], starts, [len(probs)]])
        forced = forced_starts(bounds, probs > 0, self.level.window)
        return np.sort(np.concatenate([starts, forced])) if len(forced) else starts

    def _drop(self, count: int) -> None:
        """Forget the first `count` positions."""
        self.base += count
        values, offsets, fresh = self.held
        self.held = Positions(values[count:], offsets[count:], fresh[np.searchsorted(fresh, self.base) :])


def _joined(parts: list[Positions]) -> Positions:
    """Positions in one piece."""
    return Positions(*map(np.concatenate, zip(*parts, strict=True))) if len(parts) > 1 else parts[0]
