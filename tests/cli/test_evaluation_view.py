"""The tables and the progress of an evaluation."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console

from zonkey_cli.evaluation_view import ProgressView, part_table, standing
from zonkey_cli.streams import Streams
from zonkey_core.evaluation.results import Better, Measure

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
TOKENIZERS = {
    f"{kind}_{size}k": value
    for kind, values in (("bpe", (0.5, 0.53, 0.56, 0.59)), ("unigram", (0.62, 0.65, 0.68, 0.71)))
    for size, value in zip((1, 2, 4, 8), values, strict=True)
}
SEGMENT = [
    Measure(
        name="segment.word_f1", value=0.7, low=0.69, high=0.72, floor=0.25, ceiling=1.0,
        rivals={**TOKENIZERS, "entropy_monotone": 0.5625}, n=10, seconds=1.0,
    ),
    Measure(
        name="segment.sentence_f1_without_punctuation", value=0.2, low=0.17, high=0.22, floor=0.25, ceiling=1.0,
        n=10, seconds=1.0,
    ),
    Measure(name="segment.bytes_per_segment", value=5.43, n=9, seconds=1.0, better="neither", rivals={"bpe_4k": 4.5}),
]
SPEED = [
    Measure(
        name="speed.segment", value=231_543.2, low=200_543.2, high=331_543.2, rivals={"bpe_4k": 1e5}, n=4,
        seconds=1.0, unit="bytes/s",
    ),
    Measure(name="speed.start_up", value=2.25, n=4, seconds=1.0, unit="s", better="lower", rivals={"torch": 1.5}),
]


def streams(*, terminal: bool = False, colour: bool = True, verbosity: int = 0) -> tuple[Streams, io.StringIO]:
    errors = io.StringIO()
    own = Streams(
        stdin=None, stdout=None, stderr=errors, stdout_is_terminal=terminal, stderr_is_terminal=terminal,
        colour=colour, verbosity=verbosity,
    )
    return own, errors


def measure(value: float, better: Better = "higher", floor: float | None = None, **rivals: float) -> Measure:
    return Measure(name="p.m", value=value, floor=floor, rivals=rivals, n=1, seconds=0.0, better=better)


@pytest.mark.parametrize(
    ("given", "sign"),
    [
        (measure(0.5), ""),
        (measure(0.5, "neither", 0.9, r=0.9), ""),
        (measure(0.5, floor=0.4), "✓"),
        (measure(0.5, floor=0.5), "✗"),
        (measure(0.5, floor=0.6, r=0.1), "✗"),
        (measure(0.5, floor=0.4, r=0.4, s=0.3), "✓"),
        (measure(0.5, floor=0.4, r=0.4, s=0.5), "~"),
        (measure(0.5, r=0.6), "~"),
        (measure(0.5, "lower", 0.6, r=0.7), "✓"),
        (measure(0.5, "lower", 0.6, r=0.4), "~"),
        (measure(0.5, "lower", 0.4), "✗"),
        (measure(math.nan, floor=0.1), "✗"),
    ],
)
def test_the_sign_says_what_was_beaten(given: Measure, sign: str) -> None:
    assert standing(given) == sign


def test_plain_text_has_a_line_for_each_metric() -> None:
    own, _ = streams()
    text = part_table(own, "segment", SEGMENT, width=40).decode()
    assert text.splitlines() == [
        "segment",
        "metric                              value   low\N{EN DASH}high       floor   ceiling",
        "word_f1                          ~  0.7000  0.6900\N{EN DASH}0.7200  0.2500  1",
        "sentence_f1_without_punctuation  ✗  0.2000  0.1700\N{EN DASH}0.2200  0.2500  1",
        "bytes_per_segment                   5.4300",
        "rivals",
        "word_f1            bpe_1k 0.5000  bpe_2k 0.5300  bpe_4k 0.5600  bpe_8k 0.5900  unigram_1k 0.6200  "
        "unigram_2k 0.6500  unigram_4k 0.6800  unigram_8k 0.7100▲  entropy_monotone 0.5625",
        "bytes_per_segment  bpe_4k 4.5000",
        "",
    ]


def test_units_are_shown_and_empty_columns_are_not() -> None:
    own, _ = streams()
    assert part_table(own, "speed", SPEED).decode().splitlines() == [
        "speed",
        "metric           value       low\N{EN DASH}high",
        "segment       ✓  231.5 kB/s  200.5 kB/s\N{EN DASH}331.5 kB/s",
        "start_up [s]  ~  2.2500",
        "rivals",
        "segment       bpe_4k 100.0 kB/s",
        "start_up [s]  torch 1.5000▲",
        "",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (1.0, "1"), (999.0, "999"), (1000.0, "1,000"), (12345.6, "12,346"), (0.12345, "0.1235"),
        (12.345, "12.35"), (0.00012, "1.2e-04"), (-3.25, "-3.2500"), (math.nan, "nan"), (math.inf, "inf"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    own, _ = streams()
    (_, _, line) = part_table(own, "p", [measure(value)]).decode().rstrip("\n").splitlines()
    assert line.split() == ["m", shown]


@pytest.mark.parametrize(("value", "shown"), [(1.26, "1.3 B/s"), (999.0, "999.0 B/s"), (1260.0, "1.3 kB/s")])
def test_slow_speeds_keep_their_digits(value: float, shown: str) -> None:
    own, _ = streams()
    given = Measure(name="speed.infill", value=value, n=1, seconds=0.0, unit="bytes/s")
    assert part_table(own, "speed", [given]).decode().splitlines()[2].endswith(shown)


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_everything_within_its_width(width: int) -> None:
    own, _ = streams(terminal=True)
    coloured = part_table(own, "segment", SEGMENT, width=width).decode()
    text = ESCAPE.sub("", coloured)
    assert max(map(len, text.splitlines())) <= width
    rows = [line.split() for line in text.splitlines()]
    assert ["word_f1", "~", "0.7000", "0.6900\N{EN DASH}0.7200", "0.2500", "1"] in rows
    assert ["sentence_f1_without_punctuation", "✗", "0.2000", "0.1700\N{EN DASH}0.2200", "0.2500", "1"] in rows
    words = " ".join(text.split())
    for name, value in {**TOKENIZERS, "entropy_monotone": 0.5625}.items():
        assert f"{name} {value:.4f}" in words
    assert "unigram_8k 0.7100▲" in words
    assert "~ not better than every rival" in words
    assert "✓" not in words
    assert "\x1b[31m0.2000" in coloured
    assert "\x1b[33munigram_8k 0.7100▲" in coloured


def test_a_terminal_without_colour_shows_the_same() -> None:
    with_colour, _ = streams(terminal=True)
    without, _ = streams(terminal=True, colour=False)
    text = part_table(without, "segment", SEGMENT, width=80).decode()
    assert "\x1b" not in text
    assert text == ESCAPE.sub("", part_table(with_colour, "segment", SEGMENT, width=80).decode())


def test_log_lines_come_every_ten_seconds() -> None:
    own, errors = streams()
    times = iter([0.0, 0.0, 4.0, 10.0, 10.0, 15.0, 60.0, 60.0])
    view = ProgressView(own, clock=lambda: next(times))
    with view.part("segment", 2, 5):
        view("training the splitter", 0.0)
        view("training the splitter", 0.2)
        view("scoring\n", None)
        view("scoring", None)
    assert errors.getvalue().splitlines() == [
        "segment (2 of 5)",
        "segment (2 of 5)  training the splitter  20%  0:10 gone  0:24 left",
        "segment (2 of 5)  scoring  1:00 gone",
    ]


def test_quiet_says_nothing() -> None:
    own, errors = streams(verbosity=-1)
    times = iter(range(0, 1000, 20))
    view = ProgressView(own, clock=lambda: float(next(times)))
    with view.part("segment", 1, 1):
        view("training", 0.5)
    assert errors.getvalue() == ""


def test_the_live_view_shows_part_task_share_and_times() -> None:
    own, errors = streams(terminal=True)
    console = Console(file=errors, width=100, force_terminal=True, color_system=None)
    now = [0.0]
    view = ProgressView(own, clock=lambda: now[0], console=console)

    def shown() -> str:
        other = Console(file=io.StringIO(), width=100)
        with other.capture() as capture:
            other.print(view.render())
        return " ".join(capture.get().split())

    with view.part("generate", 3, 5):
        assert "generate (3 of 5) getting ready" in shown()
        assert "left" not in shown()
        view("writing", 0.1)
        now[0] = 30.0
        view("writing", 0.4)  # 0.3 in 30 s, so 0.6 in 60 s
        assert "generate (3 of 5) writing" in shown()
        assert shown().endswith("40% 0:30 gone 1:00 left")
        now[0] = 40.0
        view("judging", 0.0)  # a new task, whose pace is not known yet
        assert shown().endswith("0% 0:40 gone")
        now[0] = 41.0
        view("judging", 0.5)
        assert shown().endswith("50% 0:41 gone 0:01 left")
    assert "\x1b[?25h" in errors.getvalue()  # the cursor is back
