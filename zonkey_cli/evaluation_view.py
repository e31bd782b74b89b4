"""What an evaluation looks like: a live view or log lines while it runs, and a table of each part that is done.

A table is drawn on a terminal; anywhere else the same cells are aligned text, a metric and its rivals on one line
each. A sign beside every value says how it stands:

    ✓  better than its floor and than every rival, where it has them
    ~  not better than every rival
    ✗  not better than its floor

and ▲ marks the rivals that are at least as good. This module imports Rich and is imported only by a run.
"""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zonkey_cli.console import error_console, human_bytes, human_seconds, printable
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.evaluation.results import Measure

LOG_SECONDS = 10.0
WINS, BEHIND, FAILS = "✓", "~", "✗"
AHEAD = "▲"
DASH = "\N{EN DASH}"
_MEANINGS = {
    WINS: "better than floor and rivals",
    BEHIND: "not better than every rival",
    FAILS: "not better than its floor",
    AHEAD: "a rival at least as good",
}
_STYLES = {WINS: "green", BEHIND: "yellow", FAILS: "red", AHEAD: "yellow", "": ""}
_COLUMNS = ("metric", "", "value", f"low{DASH}high", "floor", "ceiling")

Row = list[str]


class ProgressView:
    """Part, task, share done, time gone and time left: drawn in place on a terminal, else a line every ten seconds.

    It is called with what is being done and the share of it that is done, or None where that is not known.
    """

    def __init__(
        self, streams: Streams, *, clock: Callable[[], float] = time.monotonic, console: Console | None = None
    ) -> None:
        self._streams = streams
        self._clock = clock
        self._console = console or error_console(streams)
        self._part = self._task = ""
        self._share: float | None = None
        self._began = self._logged = clock()
        self._since = (self._began, 0.0)
        """When the share that is done began to grow, and from where."""

    @contextlib.contextmanager
    def part(self, name: str, number: int, count: int) -> Iterator[None]:
        """Show a part, one of `count`, while the body runs."""
        self._part = f"{name} ({number} of {count})"
        self._task, self._share = "getting ready", None
        self._began = self._logged = self._clock()
        if not self._streams.shows_progress:
            self._streams.note(self._part)
            yield
            return
        with Live(console=self._console, get_renderable=self.render, refresh_per_second=4, transient=True):
            yield

    def __call__(self, task: str, share: float | None) -> None:
        """Take in what is being done now."""
        now = self._clock()
        if share is not None and (self._share is None or share < self._share):
            self._since = (now, share)
        self._task, self._share = task, share
        if not self._streams.shows_progress and now - self._logged >= LOG_SECONDS:
            self._logged = now
            done = "" if share is None else f"  {share:.0%}"
            self._streams.note(f"{self._part}  {printable(task)}{done}  {'  '.join(self._times())}")

    def render(self) -> RenderableType:
        """The picture now."""
        headline = Text(self._part, style="bold")
        headline.append(f"  {printable(self._task)}", style="not bold")
        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=self._share or 0.0, width=30, pulse=self._share is None)
        grid.add_row(bar, "" if self._share is None else f"{self._share:.0%}", *self._times())
        return Group(headline, grid)

    def _times(self) -> list[str]:
        """Time since the part began, and what is left of the task where its pace is known."""
        now = self._clock()
        times = [f"{human_seconds(now - self._began)} gone"]
        if self._share is not None and self._share > self._since[1]:
            pace = (now - self._since[0]) / (self._share - self._since[1])
            times.append(f"{human_seconds(pace * (1 - self._share))} left")
        return times


def part_table(streams: Streams, part: str, measures: Sequence[Measure], *, width: int | None = None) -> bytes:
    """The measures of a part as standard output shows them; `width` replaces that of the terminal."""
    if streams.stdout_is_terminal:
        return _drawn(part, measures, colour=streams.colour, width=width)
    blocks = [_aligned([list(_COLUMNS), *(_cells(part, measure) for measure in measures)])]
    rivals = [[_name(part, each), *_rivals(each)] for each in measures if each.rivals]
    if rivals:
        longest = max(map(len, rivals))
        blocks.append(_aligned([["rivals"], *rivals], columns=longest))
    return f"{part}\n{''.join(blocks)}\n".encode()


def standing(measure: Measure) -> str:
    """The sign beside a value; none where there is nothing to beat."""
    if measure.better == "neither" or (measure.floor is None and not measure.rivals):
        return ""
    if measure.floor is not None and not _is_better(measure, measure.floor):
        return FAILS
    return BEHIND if any(not _is_better(measure, rival) for rival in measure.rivals.values()) else WINS


def _is_better(measure: Measure, other: float) -> bool:
    return measure.value < other if measure.better == "lower" else measure.value > other


def _name(part: str, measure: Measure) -> str:
    """A metric within its part, with the unit where neither the name nor the values show it."""
    name = printable(measure.name.removeprefix(f"{part}."))
    shown = ("", "bytes/s", *re.split("[._]", name))
    return name if measure.unit in shown else f"{name} [{measure.unit}]"


def _cells(part: str, measure: Measure) -> Row:
    """A measure as the columns show it."""
    unit = measure.unit
    between = "" if measure.low is None or measure.high is None else (
        f"{_number(measure.low, unit)}{DASH}{_number(measure.high, unit)}"
    )
    ends = ("" if end is None else _number(end, unit) for end in (measure.floor, measure.ceiling))
    return [_name(part, measure), standing(measure), _number(measure.value, unit), between, *ends]


def _rivals(measure: Measure) -> Row:
    """Names and values of the rivals, those that are at least as good marked."""
    marked = measure.better != "neither"
    return [
        f"{printable(name)} {_number(value, measure.unit)}{AHEAD if marked and not _is_better(measure, value) else ''}"
        for name, value in measure.rivals.items()
    ]


def _number(value: float, unit: str) -> str:
    """A value in about four digits."""
    if unit == "bytes/s":
        return f"{value:.1f} B/s" if value < 1000 else f"{human_bytes(value)}/s"
    size = abs(value)
    if size != size or (value == round(value, 0) and size < 1000):
        return f"{value:.0f}"
    if size < 0.001:
        return f"{value:.1e}"
    return f"{value:.4f}" if size < 10 else f"{value:.2f}" if size < 1000 else f"{value:,.0f}"


def _aligned(rows: Sequence[Row], *, columns: int = len(_COLUMNS)) -> str:
    """Rows whose columns line up; those that are empty in every row below the first are left out."""
    full = [row + [""] * (columns - len(row)) for row in rows]
    used = [index for index in range(columns) if any(row[index] for row in full[1:])]
    widths = {index: max(len(row[index]) for row in full) for index in used}
    return "".join("  ".join(row[index].ljust(widths[index]) for index in used).rstrip() + "\n" for row in full)


def _drawn(part: str, measures: Sequence[Measure], *, colour: bool, width: int | None) -> bytes:
    """The tables of a part for a terminal: the figures, and the rivals below them."""
    console = Console(
        file=io.StringIO(), force_terminal=True, highlight=False, width=width,
        color_system="auto" if colour else None,
    )
    console.print(_figures(part, measures))
    if rivals := [measure for measure in measures if measure.rivals]:
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        table.add_column("rivals", overflow="fold")
        table.add_column()
        for measure in rivals:
            values = [Text(value, style=_STYLES[AHEAD] if AHEAD in value else "") for value in _rivals(measure)]
            table.add_row(Text(_name(part, measure)), Columns(values, padding=(0, 2)))
        console.print(table)
    shown = {standing(measure) for measure in measures} | {AHEAD for each in rivals if AHEAD in "".join(_rivals(each))}
    legend = (f"{sign} {meaning}" for sign, meaning in _MEANINGS.items() if sign in shown)
    console.print(Text("  ".join(legend), style="dim"), end="\n\n")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().encode()


def _figures(part: str, measures: Sequence[Measure]) -> Table:
    """The table of values, without the columns that none of them fills."""
    rows = [_cells(part, measure) for measure in measures]
    used = [index for index in range(len(_COLUMNS)) if any(row[index] for row in rows)]
    table = Table(title=part, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for index in used:
        table.add_column(_COLUMNS[index], justify="left" if index < 2 else "right", overflow="fold", no_wrap=index > 0)
    for row in rows:
        table.add_row(*(Text(row[index], style=_STYLES[row[1]] if index in (1, 2) else "") for index in used))
    return table
