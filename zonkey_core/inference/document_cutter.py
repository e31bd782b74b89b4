"""Documents one behind the other, cut in one stream: many short ones cost what a long one costs.

Cuts of a level are cuts of every level below, so one pass gives all levels: whole segments of the highest, as arrays,
with those that they consist of.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from zonkey_core.errors import ConfigError
from zonkey_core.inference.level_cutter import Cuts, CuttingLevel, LevelCutter, Positions
from zonkey_core.inference.segments import Segments, Starts

THRESHOLD = 0.5
"""The probability above which a cut is made, unless a caller chooses another for the highest level."""
_NONE = np.zeros(0, dtype=np.int64)


class DocumentCutter:
    """Cuts documents at `level` and all levels below; every document as if it was alone.

    A cut of `level` is made where the probability is above `threshold`, in [0, 1), and of the levels below where it
    is above one half, as in training. Raises `ConfigError` for a level that the model does not have, or a threshold
    out of range.
    """

    def __init__(self, levels: Sequence[CuttingLevel], *, level: int = 0, threshold: float = THRESHOLD) -> None:
        if not 0 <= level < len(levels):
            raise ConfigError(f"level must be between 0 and {len(levels) - 1}, not {level}")
        self._cutters = [
            LevelCutter(each, keep_latents=index < level, threshold=THRESHOLD)
            for index, each in enumerate(levels[: level + 1])
        ]
        self.set_threshold(threshold)
        self._gathered = _Gathered(level)
        self.documents = 0
        """How many have begun."""
        self._fresh: list[int] = []
        """Where in the stream documents begin that no level has seen yet."""

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing is gained by waiting for more before `advance`."""
        return self._cutters[0].full(self._gathered.end)

    @property
    def holds_text(self) -> bool:
        """Whether there is text whose segments have not been given yet."""
        return bool(self._gathered.text)

    def set_threshold(self, threshold: float) -> None:
        """Another threshold from here on, where no text is held; raises `ConfigError` for one out of range."""
        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold must be at least 0 and below 1, not {threshold}")
        self._cutters[-1].threshold = threshold

    def begin(self, start: int = 0) -> None:
        """A document begins, and the one before it has ended. `start` is the offset by which its first byte goes."""
        self._gathered.begins.append((self._gathered.end, start))
        self._fresh.append(self._gathered.end)
        self.documents += 1

    def take(self, text: bytes) -> None:
        """Further bytes of the document that has begun."""
        self._gathered.text += text

    def advance(self) -> Iterator[Segments]:
        """Yields the segments that are known by now, in runs of one document each."""
        while self._cutters[0].enough(self._gathered.end) and self._pass_on():
            yield from self._gathered.add(self._climb(0, self._cutters[0].advance()))

    def settle(self) -> Iterator[Segments]:
        """The document that has begun has ended, and no other is awaited; yields the segments that are left."""
        while self._pass_on():
            if self._cutters[0].full(self._cutters[0].taken):
                yield from self._gathered.add(self._climb(0, self._cutters[0].advance()))
        for index, cutter in enumerate(self._cutters):
            yield from self._gathered.add(self._climb(index, cutter.settle()))
        yield from self._gathered.rest()

    def _pass_on(self) -> bool:
        """Pass on text that level 0 has not seen, up to a block of it; false where there is none."""
        cutter = self._cutters[0]
        text = self._gathered.after(cutter.taken, cutter.largest)
        if not text:
            return False
        begun = bisect.bisect_left(self._fresh, cutter.taken + len(text))
        places = np.array(self._fresh[:begun], dtype=np.int64) - cutter.taken
        del self._fresh[:begun]
        cutter.take(Positions(np.frombuffer(text, dtype=np.uint8), _NONE, np.unique(places)))
        return True

    def _climb(self, index: int, cuts: Iterator[Cuts]) -> Iterator[tuple[int, Cuts]]:
        """Pass the cuts of a level up through the levels above; yields every level's, with its index."""
        for cut in cuts:
            yield index, cut
            if cut.positions is not None:
                self._cutters[index + 1].take(cut.positions)
                yield from self._climb(index + 1, self._cutters[index + 1].advance())


class _Gathered:
    """Gathers starts into whole segments of the highest level: one is whole when the start of the next is known.

    By then the starts of the levels below are known up to there, since they are what it was found among.
    """

    def __init__(self, level: int) -> None:
        self.text = bytearray()
        """The stream from `self.start` on."""
        self.start = 0
        self.starts = [Starts(_NONE, np.zeros(0, np.float32))] * (level + 1)
        """Those that are known from there on."""
        self.begins: list[tuple[int, int]] = []
        """Where in the stream each document begins that is not given whole yet, and the offset that its caller says."""
        self.document = 0
        """Which the first of these is."""

    @property
    def end(self) -> int:
        """The end of the stream by now."""
        return self.start + len(self.text)

    def after(self, place: int, size: int) -> bytes:
        """Text from this byte of the stream on, at most so much of it."""
        return bytes(self.text[place - self.start : place - self.start + size])

    def add(self, found: Iterable[tuple[int, Cuts]]) -> Iterator[Segments]:
        """Take further cuts, each with its level; yields the segments that they complete."""
        for level, cuts in found:
            offsets, probs = self.starts[level]
            self.starts[level] = Starts(np.append(offsets, cuts.offsets), np.append(probs, cuts.probs))
            if level == len(self.starts) - 1 and len(self.starts[level].offsets) > 1:
                yield from self._take(int(self.starts[level].offsets[-1]))

    def rest(self) -> Iterator[Segments]:
        """The last segments, where there are some."""
        if self.text:
            yield from self._take(self.end)

    def _take(self, end: int) -> Iterator[Segments]:
        """Everything before byte offset `end`, a start of the highest level or the end of the stream."""
        halves = [each.split(end) for each in self.starts]
        size, start = end - self.start, self.start
        text = bytes(self.text[:size])
        self.starts = [after for _, after in halves]
        self.start = end
        del self.text[:size]
        begins, document = self.begins, self.document
        whole = max(0, sum(1 for begin, _ in begins if begin < end) - 1)
        self.begins, self.document = begins[whole:], document + whole
        yield from _documents(text, start, [before for before, _ in halves], begins[: whole + 1], document)


def _documents(
    text: bytes, start: int, levels: list[Starts], begins: list[tuple[int, int]], document: int
) -> Iterator[Segments]:
    """Text of a stream from byte `start` on, as a run of segments for each document that has some of it.

    begins: where each of them begins, the first of which is number `document`, and the offset that its caller says.
    """
    edges = np.array([*(max(begin, start) for begin, _ in begins), start + len(text)])
    bounds = [np.searchsorted(each.offsets, edges).tolist() for each in levels]
    ends = edges.tolist()
    for index, (begin, own_start) in enumerate(begins):
        if ends[index] < ends[index + 1]:
            moved = own_start - begin
            starts = (
                Starts(offsets[bound[index] : bound[index + 1]] + moved, probs[bound[index] : bound[index + 1]])
                for (offsets, probs), bound in zip(levels, bounds, strict=True)
            )
            piece = text[ends[index] - start : ends[index + 1] - start]
            yield Segments(ends[index] + moved, piece, tuple(starts), document + index)
