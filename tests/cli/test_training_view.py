"""The log lines and the live view of training, from a stream of events."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from zonkey_cli.signals import StopRequest
from zonkey_cli.streams import Streams
from zonkey_cli.training_view import LiveView, LogView
from zonkey_core.training import (
    CheckpointEvent,
    Event,
    FiguresEvent,
    SampleEvent,
    SplitsEvent,
    StageEvent,
    StepEvent,
)


def step(number: int, fraction: float) -> StepEvent:
    return StepEvent(
        stage="denoiser", level=1, step=number, fraction=fraction, losses={"0/bytes": 0.5, "1/latents": 1.25},
        bytes_per_second=12_345.0, bytes_seen=2_000_000, seconds=61.0, seconds_left=3_723.0, learning_rate=0.001,
    )


EVENTS: list[Event] = [
    StageEvent(stage="denoiser", level=1),
    step(10, 0.125),
    SplitsEvent(segments=["The", " town\n", " \x1b[31m"]),
    SampleEvent(text="In the\nyear"),
    CheckpointEvent(path="model", step=10),
    step(11, 0.25),
    FiguresEvent(figures={"whitespace f1": 0.90123}),
]


class RequestedStop(StopRequest):
    """A stop that was asked for."""

    requested = True


def streams(verbosity: int) -> tuple[Streams, io.StringIO]:
    errors = io.StringIO()
    return Streams(stdin=None, stdout=io.BytesIO(), stderr=errors, verbosity=verbosity), errors


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (-1, []),
        (
            0,
            [
                "stage: level 1 denoiser",
                " 25%  level 1 denoiser  step 11  0/bytes 0.500  1/latents 1.250  12.3 kB/s  1:02:03 left",
                "whitespace f1: 0.9012",
            ],
        ),
        (
            1,
            [
                "stage: level 1 denoiser",
                "splits: The| town | �[31m",
                "sample: In the year",
                "saved at step 10 in model",
                " 25%  level 1 denoiser  step 11  0/bytes 0.500  1/latents 1.250  12.3 kB/s  1:02:03 left",
                "whitespace f1: 0.9012",
            ],
        ),
    ],
)
def test_log(verbosity: int, expected: list[str]) -> None:
    own, errors = streams(verbosity)
    times = iter([0.0, 9.0, 10.5])
    view = LogView(own, StopRequest(own), clock=lambda: next(times))
    for event in EVENTS:
        view(event)
    assert errors.getvalue().splitlines() == expected


def test_log_tells_once_that_a_stop_was_asked_for() -> None:
    own, errors = streams(0)
    view = LogView(own, RequestedStop(own), clock=lambda: 0.0)
    view(step(1, 0.1))
    view(step(2, 0.2))
    assert errors.getvalue().splitlines() == ["stopping after this step, and saving; once more quits at once"]


def shown(stop_class: type[StopRequest], *, colour: bool) -> str:
    own, errors = streams(0)
    console = Console(file=errors, width=100, force_terminal=True, no_color=not colour, highlight=False)
    view = LiveView(own, stop_class(own), console=console)
    for event in EVENTS:
        view(event)
    with console.capture() as capture:
        console.print(view.render())
    return capture.get()


def test_live_view_shows_all_there_is() -> None:
    text = shown(StopRequest, colour=False)
    for part in ("level 1 denoiser", "step 11", "saved at step 10", "25%", "12.3 kB/s", "1:02:03 left", "In the year"):
        assert part in text
    assert "The| town | �[31m" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("loss", "level 0", "level 1 "))]
    assert ["level", "0", "0.500"] in rows
    assert ["level", "1", "1.250"] in rows
    assert "once more" not in text
    assert "once more quits" in shown(RequestedStop, colour=False)


def test_live_view_colours_segments_in_turn() -> None:
    assert "\x1b[36mThe\x1b[0m\x1b[33m town \x1b[0m\x1b[36m" in shown(StopRequest, colour=True)
