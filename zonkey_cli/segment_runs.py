"""The texts of files, cut into segments and shown in the order of the files, whatever is cut together.

A text is a whole file or a line. Nothing is held back while input is awaited.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from zonkey_cli.files import Inputs
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_cli.segment_formats import Format
    from zonkey_core.inference.document_cutter import DocumentCutter
    from zonkey_core.inference.level_cutter import CuttingLevel
    from zonkey_core.inference.segments import Segments

LEAST_BITS = 1e-3
"""Bits of a byte that is as good as known."""


@dataclass(frozen=True)
class Cutting:
    """How text is cut."""

    level: int
    threshold: float | None
    bytes_per_segment: float | None
    bits_per_segment: float | None
    line_buffered: bool | None
    """Whether each line is a text of its own; None stands for input from a terminal alone."""


class Shown:
    """Writes the segments of files in order, each file's own beginning before them."""

    def __init__(self, form: Format, write: Callable[[bytes], object]) -> None:
        self._form = form
        self._write = write
        self._files: deque[tuple[int, str]] = deque()
        """Files whose beginning is not written yet, each with the number of its first text."""
        self._last = -1
        """The text that was written last."""

    def announce(self, text: int, name: str) -> None:
        """A file follows; its first text has this number."""
        self._files.append((text, name))

    def begin_files(self, text: float = math.inf) -> None:
        """Write the beginnings of the files up to the one that has this text."""
        while self._files and self._files[0][0] <= text:
            self._write(self._form.begin(self._files.popleft()[1]))

    def show(self, segments: Segments) -> None:
        """Write a run of segments."""
        self.begin_files(segments.document)
        self._write(self._form.show(segments, first=segments.document != self._last))
        self._last = segments.document


def runs(
    streams: Streams,
    inputs: Inputs,
    files: Iterable[tuple[str, BinaryIO]],
    levels: Sequence[CuttingLevel],
    estimate: Callable[[bytes], float] | None,
    cutting: Cutting,
    shown: Shown,
) -> Iterator[Segments]:
    """The segments of the files, in runs of one text each; files that can be read at once are cut together."""
    from zonkey_core.inference.document_cutter import THRESHOLD, DocumentCutter
    from zonkey_core.inference.segmentation import take_head

    threshold = THRESHOLD if cutting.threshold is None else cutting.threshold
    cutter = DocumentCutter(levels, level=cutting.level, threshold=threshold)
    of_rate = cutting.bytes_per_segment is not None or estimate is not None
    for name, file in files:
        shown.announce(cutter.documents, name)
        if not cutter.holds_text:
            shown.begin_files()
        chunks: Iterable[bytes] = inputs.chunks(name, file)
        if of_rate:
            head, chunks = take_head(chunks)
            cutter.set_threshold(_threshold(streams, levels, estimate, cutting, name, head))
        typed = name == "-" and streams.stdin_is_terminal
        if cutting.line_buffered or (cutting.line_buffered is None and typed):
            yield from _line_runs(cutter, chunks)
        else:
            cutter.begin()
            awaited = not inputs.at_hand(name)
            for chunk in chunks:
                cutter.take(chunk)
                if awaited or cutter.full:
                    yield from cutter.advance()
        if of_rate or not inputs.next_at_hand():
            yield from cutter.settle()


def _line_runs(cutter: DocumentCutter, chunks: Iterable[bytes]) -> Iterator[Segments]:
    """The segments of each line as a text of its own; of a chunk, those of all lines that end in it together."""
    start, fresh = 0, True
    for chunk in chunks:
        for piece in io.BytesIO(chunk):
            ends = piece.endswith(b"\n")
            if fresh:
                if not ends:
                    yield from cutter.settle()
                cutter.begin(start)
            cutter.take(piece)
            start, fresh = start + len(piece), ends
        yield from cutter.settle() if fresh else cutter.advance()


def _threshold(
    streams: Streams,
    levels: Sequence[CuttingLevel],
    estimate: Callable[[bytes], float] | None,
    cutting: Cutting,
    name: str,
    head: bytes,
) -> float:
    """The threshold for the rate asked for on the head of a file, whose bits a byte `estimate` tells."""
    from zonkey_core.inference.segmentation import threshold_for_rate

    wanted = cutting.bytes_per_segment
    if cutting.bits_per_segment is not None and estimate is not None:
        wanted = cutting.bits_per_segment / max(estimate(head), LEAST_BITS)
        streams.detail(f"{name}: {cutting.bits_per_segment:g} bits are {wanted:.4g} bytes")
    assert wanted is not None
    found = threshold_for_rate(levels, head, level=cutting.level, bytes_per_segment=wanted)
    streams.detail(f"{name}: threshold {found.threshold:.6g}, {found.bytes_per_segment:.4g} bytes a segment")
    if not found.within_reach:
        streams.note(
            f"{name}: {wanted:.6g} bytes a segment cannot be reached at level {cutting.level}; "
            f"the nearest is {found.bytes_per_segment:.4g}"
        )
    return found.threshold
