"""What the segments of a text are like: how many, how long, how varied, and which are the most frequent.

The same cells are drawn as tables on a terminal and aligned anywhere else.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from zonkey_cli.console import printable
from zonkey_cli.escaping import escape_line
from zonkey_cli.segment_formats import Format
from zonkey_cli.streams import json_line
from zonkey_core.inference.segments import Segments

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_MOST_BARS = 16
_BAR_CELLS = 40
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
"""Parts of a cell of a bar."""
_SPACES = np.isin(np.arange(256), np.frombuffer(b" \t\n\v\f\r", dtype=np.uint8))
"""[256] which bytes stand between words."""

Table = list[tuple[str, ...]]


class Stats(Format):
    """Counts the segments of all files and reports at the end; every distinct segment is held in memory."""

    def __init__(self, *, level: int, top: int, report: Callable[[Stats], bytes]) -> None:
        self.level = level
        self.styled = report is drawn_report
        self.texts: Counter[bytes] = Counter()
        """How often each segment occurs."""
        self.lengths: Counter[int] = Counter()
        """How many segments have each length in bytes."""
        self.words = 0
        """Runs of bytes between whitespace."""
        self._in_word = False
        self._top = top
        self._report = report

    @property
    def segments(self) -> int:
        """How many there are."""
        return self.lengths.total()

    @property
    def size(self) -> int:
        """Their bytes together."""
        return sum(length * count for length, count in self.lengths.items())

    def begin(self, name: str) -> bytes:
        """No word goes on in the next file."""
        self._in_word = False
        return b""

    def show(self, segments: Segments, *, first: bool) -> bytes:
        """Count a run; nothing is written yet."""
        texts = segments.texts()
        self.texts.update(texts)
        self.lengths.update(map(len, texts))
        in_word = ~_SPACES[np.frombuffer(segments.text, dtype=np.uint8)]
        self.words += int((in_word & ~np.append(self._in_word, in_word[:-1])).sum())
        self._in_word = bool(in_word[-1])
        return b""

    def end(self) -> bytes:
        """The report."""
        return self._report(self)

    def top(self) -> list[tuple[bytes, int]]:
        """The most frequent segments with their counts, in an order that depends on nothing else."""
        return sorted(self.texts.items(), key=lambda item: (-item[1], item[0]))[: self._top]


def json_report(stats: Stats) -> bytes:
    """The report as one object; a figure that nothing was there for is null."""
    return json_line(
        {
            "level": stats.level,
            "segments": stats.segments,
            "bytes": stats.size,
            "bytes_per_segment": _ratio(stats.size, stats.segments),
            "segments_per_word": _ratio(stats.segments, stats.words),
            "distinct": len(stats.texts),
            "distinct_share": _ratio(len(stats.texts), stats.segments),
            "lengths": {str(length): count for length, count in sorted(stats.lengths.items())},
            "top": [{"text": text.decode("utf-8", "replace"), "count": count} for text, count in stats.top()],
        }
    )


def plain_report(stats: Stats) -> bytes:
    """The report as aligned text."""
    blocks = [
        _aligned(_facts(stats), right=(1,)),
        _aligned(_histogram(stats), right=(0, 1, 2)),
        _aligned(_frequent(stats), right=(0, 1)),
    ]
    return "\n".join(filter(None, blocks)).encode("utf-8", "surrogateescape")


def drawn_report(stats: Stats, *, width: int | None = None) -> bytes:
    """The report as tables for a terminal; `width` replaces its own."""
    from rich.console import Console

    console = Console(force_terminal=True, highlight=False, width=width)
    with console.capture() as capture:
        console.print(_drawn([("", ""), *_facts(stats)], ("dim", ""), right=(1,)))
        for rows, styles, right in (
            (_histogram(stats), ("", "", "dim", "cyan"), (0, 1, 2)),
            (_frequent(stats), ("", "dim", "cyan underline"), (0, 1)),
        ):
            if rows:
                console.print()
                console.print(_drawn(rows, styles, right=right))
    return capture.get().encode()


def _facts(stats: Stats) -> Table:
    """Term and value."""
    facts: Table = [("segments", f"{stats.segments:,}"), ("bytes", f"{stats.size:,}")]
    if stats.segments:
        facts.append(("bytes per segment", f"{stats.size / stats.segments:.2f}"))
    if stats.words:
        facts.append(("segments per word", f"{stats.segments / stats.words:.2f}"))
    facts.append(("distinct segments", f"{len(stats.texts):,}"))
    if stats.segments:
        facts.append(("share of distinct ones", f"{len(stats.texts) / stats.segments:.1%}"))
    return facts


def _histogram(stats: Stats) -> Table:
    """Below the titles, lengths in at most `_MOST_BARS` steps of a round number of bytes, with what each holds."""
    if not stats.lengths:
        return []
    longest = max(stats.lengths)
    step = next(size for size in _round_numbers() if longest <= size * _MOST_BARS)
    counts = [0] * -(-longest // step)
    for length, count in stats.lengths.items():
        counts[(length - 1) // step] += count
    rows: Table = [("bytes", "segments", "share", "")]
    for index, count in enumerate(counts):
        low, high = index * step + 1, (index + 1) * step
        label = str(low) if step == 1 else f"{low}-{high}"
        rows.append((label, f"{count:,}", f"{count / stats.segments:.1%}", _bar(count / max(counts))))
    return rows


def _round_numbers() -> Iterator[int]:
    """1, 2, 5, 10, 20, 50 and so on."""
    for power in itertools.count():
        for digit in (1, 2, 5):
            yield digit * 10**power


def _bar(share: float) -> str:
    """A bar of `share` of the full length; what is there at all shows."""
    cells, eighths = divmod(math.ceil(share * _BAR_CELLS * len(_EIGHTHS)), len(_EIGHTHS))
    return "█" * cells + _EIGHTHS[eighths]


def _frequent(stats: Stats) -> Table:
    """Below the titles, the most frequent segments as records of lines."""
    if not stats.top():
        return []
    rows: Table = [("count", "share", "segment")]
    for text, count in stats.top():
        shown = escape_line(text).decode("utf-8", "surrogateescape")
        rows.append((f"{count:,}", f"{count / stats.segments:.1%}", shown))
    return rows


def _aligned(rows: Table, *, right: Collection[int]) -> str:
    """Rows whose columns line up, those in `right` at their ends; the last cell is as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            cell.rjust(width) if index in right else cell if index == len(row) - 1 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells if cells[-1] else cells[:-1]) + "\n"

    return "".join(map(line, rows))


def _drawn(rows: Table, styles: tuple[str, ...], *, right: Collection[int]) -> RichTable:
    """Rows below their titles as a table whose columns have `styles`."""
    from rich.table import Table as RichTable
    from rich.text import Text

    titles, *others = rows
    table = RichTable(box=None, show_header=any(titles), header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index in right else "left", overflow="fold")
    for row in others:
        table.add_row(*(Text.assemble((printable(cell), style)) for cell, style in zip(row, styles, strict=True)))
    return table


def _ratio(part: int, whole: int) -> float | None:
    """A share, or None where there is no whole."""
    return part / whole if whole else None
