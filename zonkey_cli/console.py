"""Rich on standard error, and text that is safe to show on a terminal; Rich is imported only when it draws."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from rich.console import Console

_BYTE_UNITS = {"": 1, "b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000}


def error_console(streams: Streams) -> Console:
    """A Rich console on standard error."""
    from rich.console import Console

    return Console(file=streams.stderr, highlight=False, no_color=not streams.colour)


@contextlib.contextmanager
def working(streams: Streams, message: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with `message` while the body runs, when standard error is a terminal; the body may change it."""
    if not streams.shows_progress:
        yield lambda message: None
        return
    with error_console(streams).status(message) as status:
        yield status.update


@contextlib.contextmanager
def progress(streams: Streams, message: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` things are done, when standard error is a terminal; the body tells that number."""
    if not streams.shows_progress:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console(streams), transient=True) as bar:
        task = bar.add_task(message, total=total)
        yield lambda done: bar.update(task, completed=done)


def printable(text: str) -> str:
    """`text` for one line of a terminal: control characters are replaced, line ends become spaces."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def human_bytes(count: float) -> str:
    """A number of bytes in the largest decimal unit that keeps it at 1 or above."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def parse_bytes(text: str) -> int:
    """A number of bytes, as 500000, 200kB or 1.5 MB, units being decimal; raises `ValueError` for anything else."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _BYTE_UNITS:
        raise ValueError(f"{text!r} is not a number of bytes, as 500000, 200kB or 1MB")
    return round(float(match[1]) * _BYTE_UNITS[match[2]])


def human_seconds(seconds: float) -> str:
    """A duration as M:SS or H:MM:SS."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text whose columns line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
