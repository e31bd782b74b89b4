"""What a training run looks like: a live view on a terminal, log lines elsewhere, nothing with `-q`.

A view takes the events of `zonkey_core.training` one by one. This module imports Rich and is imported only by a run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zonkey_cli.console import error_console, human_bytes, human_seconds, printable
from zonkey_cli.signals import StopRequest
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.training import Event, GuideEvent, SkippedDataEvent, SkippedStepEvent, StageEvent, StepEvent

LOG_SECONDS = 10.0
_SPLIT_STYLES = ("cyan", "yellow")
_STOPPING = "stopping after this step, and saving; once more quits at once"
_SAMPLE_CHARACTERS = 600
SKIPS_TOLD = 5
"""Of each kind; metrics.jsonl has them all."""


@contextlib.contextmanager
def training_view(streams: Streams, stop: StopRequest) -> Iterator[Callable[[Event], None]]:
    """The function to call with each event, for as long as the run lasts."""
    if not streams.shows_progress:
        log = LogView(streams, stop)
        yield log
        log.finish()
        return
    with LiveView(streams, stop) as view:
        yield view
        view.finish()


def stage_name(stage: str, level: int | None) -> str:
    """A stage of the curriculum as people read it."""
    return stage if level is None else f"level {level} {stage}"


def split_text(segments: list[str], *, colour: bool) -> Text:
    """A line of text whose segments alternate in colour, or have a bar between them."""
    if not colour:
        return Text("|".join(printable(segment) for segment in segments))
    text = Text()
    for index, segment in enumerate(segments):
        text.append(printable(segment), style=_SPLIT_STYLES[index % 2])
    return text


def guide_line(event: GuideEvent) -> str:
    """What a level learns its starts from."""
    if event.fitted:
        return f"level {event.level} learns where segments begin from the ends of {event.documents:,} documents"
    return (
        f"level {event.level} keeps its own cuts: {event.documents:,} documents end in this text, "
        "too few to learn from where segments begin"
    )


class Skips:
    """What a run left out: each of the first few is told, and in the end how many there were."""

    def __init__(self) -> None:
        self._counts = {"steps": 0, "places of the data": 0}

    def take(self, event: SkippedStepEvent | SkippedDataEvent, say: Callable[[str], None]) -> None:
        """Count what was left out and tell of it, unless too many went before."""
        from zonkey_core.training import SkippedStepEvent

        if isinstance(event, SkippedStepEvent):
            kind, message = "steps", f"left out step {event.step}: {event.reason}"
        else:
            kind, message = "places of the data", f"left out: {event.reason}"
        self._counts[kind] += 1
        if self._counts[kind] <= SKIPS_TOLD:
            say(message)

    def sum_up(self, say: Callable[[str], None]) -> None:
        """Tell how many were left out, of each kind of which there were any."""
        for kind, count in self._counts.items():
            if count:
                say(f"{kind} left out in all: {count:,}")


class LogView:
    """One line for a stage, one about every ten seconds within it, and the figures at the end."""

    def __init__(self, streams: Streams, stop: StopRequest, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._streams = streams
        self._stop = stop
        self._clock = clock
        self._last = clock()
        self._told_stop = False
        self._skips = Skips()

    def __call__(self, event: Event) -> None:
        """Say what `event` brings, if it is time to."""
        from zonkey_core.training import (
            CheckpointEvent,
            FiguresEvent,
            GuideEvent,
            SampleEvent,
            SkippedDataEvent,
            SkippedStepEvent,
            SplitsEvent,
            StageEvent,
            StepEvent,
        )

        if self._stop.requested and not self._told_stop:
            self._told_stop = True
            self._streams.note(_STOPPING)
        if isinstance(event, StageEvent):
            self._streams.note(f"stage: {stage_name(event.stage, event.level)}")
        elif isinstance(event, StepEvent):
            self._log_step(event)
        elif isinstance(event, SplitsEvent):
            self._streams.detail("splits: " + "|".join(printable(segment) for segment in event.segments))
        elif isinstance(event, SampleEvent):
            self._streams.detail(f"sample: {printable(event.text)}")
        elif isinstance(event, FiguresEvent):
            for name, value in event.figures.items():
                self._streams.note(f"{name}: {value:.4g}")
        elif isinstance(event, CheckpointEvent):
            self._streams.detail(f"saved at step {event.step} in {event.path}")
        elif isinstance(event, GuideEvent):
            self._streams.note(guide_line(event))
        elif isinstance(event, SkippedStepEvent | SkippedDataEvent):
            self._skips.take(event, self._streams.note)

    def finish(self) -> None:
        """Say how much was left out."""
        self._skips.sum_up(self._streams.note)

    def _log_step(self, event: StepEvent) -> None:
        now = self._clock()
        if now - self._last < LOG_SECONDS:
            return
        self._last = now
        losses = "  ".join(f"{name} {value:.3f}" for name, value in sorted(event.losses.items()))
        self._streams.note(
            f"{event.fraction:4.0%}  {stage_name(event.stage, event.level)}  step {event.step}  {losses}  "
            f"{human_bytes(event.bytes_per_second)}/s  {human_seconds(event.seconds_left)} left"
        )


class LiveView:
    """Stage, progress, losses by level, splits and a sample, drawn in place; the end leaves only the figures."""

    def __init__(self, streams: Streams, stop: StopRequest, *, console: Console | None = None) -> None:
        self._stop = stop
        self._console = console or error_console(streams)
        self._stage: StageEvent | None = None
        self._step: StepEvent | None = None
        self._splits: list[str] = []
        self._sample = ""
        self._saved: int | None = None
        self._skips = Skips()
        self._losses: dict[str, float] = {}
        self._live = Live(console=self._console, get_renderable=self.render, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """Clear the view away."""
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take what `event` brings into the picture."""
        from zonkey_core.training import (
            CheckpointEvent,
            FiguresEvent,
            GuideEvent,
            SampleEvent,
            SkippedDataEvent,
            SkippedStepEvent,
            SplitsEvent,
            StageEvent,
            StepEvent,
        )

        if isinstance(event, StageEvent):
            self._stage = event
            self._live.refresh()  # a stage can be over before the next drawing is due
        elif isinstance(event, StepEvent):
            self._step = event
            self._losses = {**self._losses, **event.losses}  # a new one, since another thread may be drawing the old
        elif isinstance(event, SplitsEvent):
            self._splits = event.segments
        elif isinstance(event, SampleEvent):
            self._sample = event.text
        elif isinstance(event, FiguresEvent):
            self._console.print(figures_table(event.figures))
        elif isinstance(event, CheckpointEvent):
            self._saved = event.step
        elif isinstance(event, GuideEvent):
            self._say(guide_line(event))
        elif isinstance(event, SkippedStepEvent | SkippedDataEvent):
            self._skips.take(event, self._say)

    def finish(self) -> None:
        """Say how much was left out."""
        self._skips.sum_up(self._say)

    def _say(self, message: str) -> None:
        self._console.print(Text(printable(message)))

    def render(self) -> RenderableType:
        """The picture now."""
        parts: list[RenderableType] = [self._headline()]
        if self._step is not None:
            parts += [self._progress(self._step), self._loss_table()]
        if self._splits:
            parts += [Text("splits", style="dim"), split_text(self._splits, colour=not self._console.no_color)]
        if self._sample:
            parts += [Text("sample", style="dim"), Text(printable(self._sample)[:_SAMPLE_CHARACTERS])]
        if self._stop.requested:
            parts.append(Text(_STOPPING, style="bold"))
        return Group(*parts)

    def _headline(self) -> Text:
        """Stage, step, and when the run was last saved."""
        if self._stage is None:
            return Text("getting ready")
        text = Text(stage_name(self._stage.stage, self._stage.level), style="bold")
        if self._step is not None:
            text.append(f"  step {self._step.step}", style="not bold")
        if self._saved is not None:
            text.append(f"  saved at step {self._saved}", style="not bold dim")
        return text

    def _progress(self, step: StepEvent) -> Table:
        """A bar with speed and time."""
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            ProgressBar(total=1.0, completed=step.fraction, width=30),
            f"{step.fraction:.0%}",
            f"{human_bytes(step.bytes_per_second)}/s",
            f"{human_bytes(step.bytes_seen)} seen",
            f"{human_seconds(step.seconds)} gone",
            f"{human_seconds(step.seconds_left)} left",
        )
        return grid

    def _loss_table(self) -> Table:
        """The latest value of each loss: a row for each level, a column for each kind."""
        cells = {tuple(name.rpartition("/")[::2]): value for name, value in self._losses.items()}
        levels = sorted({level for level, _ in cells})
        kinds = sorted({kind for _, kind in cells})
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("loss")
        for kind in kinds:
            table.add_column(kind, justify="right")
        for level in levels:
            row = [f"{cells[level, kind]:.3f}" if (level, kind) in cells else "" for kind in kinds]
            table.add_row(f"level {level}" if level else "all", *row)
        return table


def figures_table(figures: dict[str, float]) -> Table:
    """The measured figures, a line each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    return table
