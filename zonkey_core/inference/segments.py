"""What a text is cut into: segments one by one, and runs of them as arrays."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class Segment(msgspec.Struct, frozen=True):
    """One segment of a stream."""

    level: int
    start: int
    """Byte offset of its first byte."""
    end: int
    """Byte offset after its last."""
    prob: float
    """The splitter's probability of a cut at `start`; 1 at the beginning of a document."""
    text: bytes
    segments: tuple[Segment, ...] = ()
    """Those of the level below that it consists of, where they were asked for."""


class Starts(NamedTuple):
    """Segment starts of one level."""

    offsets: NDArray[np.int64]
    """[M] byte offset of each in the document."""
    probs: NDArray[np.float32]
    """[M] the splitter's probability of a cut there; 1 at the beginning of a document."""

    def split(self, offset: int) -> tuple[Starts, Starts]:
        """Those before byte `offset`, and the others."""
        count = int(np.searchsorted(self.offsets, offset))
        return Starts(self.offsets[:count], self.probs[:count]), Starts(self.offsets[count:], self.probs[count:])


class Segments(NamedTuple):
    """Consecutive whole segments of one level in a document, with those of every level below that they consist of."""

    start: int
    """Byte offset of the first."""
    text: bytes
    """Their text."""
    starts: tuple[Starts, ...]
    """Of each level, lowest first; those of the highest are the segments."""
    document: int = 0
    """Which of the documents of a stream, from 0 on."""

    @property
    def begins(self) -> NDArray[np.int64]:
        """[M] where in `text` each segment of the highest level begins."""
        return self.starts[-1].offsets - self.start

    @property
    def probs(self) -> NDArray[np.float32]:
        """[M] the probability of a cut at the start of each of them."""
        return self.starts[-1].probs

    def texts(self) -> list[bytes]:
        """The text of each segment of the highest level."""
        begins = self.begins.tolist()
        return [self.text[begin:end] for begin, end in zip(begins, [*begins[1:], len(self.text)], strict=True)]

    def flat(self) -> list[Segment]:
        """The segments of the highest level."""
        return self._of_level(len(self.starts) - 1, [])

    def nested(self) -> list[Segment]:
        """The segments of the highest level, each with those that it consists of, down to level 0."""
        segments: list[Segment] = []
        for level in range(len(self.starts)):
            segments = self._of_level(level, segments)
        return segments

    def _of_level(self, level: int, inner: list[Segment]) -> list[Segment]:
        """The segments of `level`, among which those of the level below are shared out."""
        offsets, probs = self.starts[level]
        edges = [*offsets.tolist(), self.start + len(self.text)]
        shares = [0] * len(edges)
        if inner:
            shares = [*np.searchsorted(self.starts[level - 1].offsets, offsets).tolist(), len(inner)]
        return [
            Segment(level, start, end, prob, self.text[start - self.start : end - self.start], tuple(inner[low:high]))
            for (start, end), (low, high), prob in zip(
                itertools.pairwise(edges), itertools.pairwise(shares), probs.tolist(), strict=True
            )
        ]
