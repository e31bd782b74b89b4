"""What a person at a terminal sees, on a pseudo-terminal of the system."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
from pathlib import Path

from tests.conftest import QUICK_TRAINING, Zonkey

CYAN, YELLOW, RESET = b"\x1b[36m", b"\x1b[33m", b"\x1b[0m"


def read_all(terminal: int) -> bytes:
    """Everything that was written to the other side; Linux reports its end as an error."""
    seen = b""
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 1 << 16):
            seen += piece
    os.close(terminal)
    return seen


def on_terminal(zonkey: Zonkey, stream: str, *arguments: str | Path, stdin: bytes = b"", **environment: str) -> bytes:
    """What appears on a terminal that is the process's `stream`, "stdout" or "stderr"."""
    near, far = pty.openpty()
    process = zonkey.start(*arguments, environment=environment, **{stream: far})
    os.close(far)
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    seen = read_all(near)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.read()
            pipe.close()
    assert process.wait(60) == 0
    return seen.replace(b"\r\n", b"\n")


def test_segments_alternate_in_colour(zonkey: Zonkey, tiny_model: Path) -> None:
    text = b"The town lies by the river.\n"
    seen = on_terminal(zonkey, "stdout", "segment", "-m", tiny_model, stdin=text)
    assert seen.startswith(CYAN)
    assert YELLOW in seen
    assert seen.replace(CYAN, b"").replace(YELLOW, b"").replace(RESET, b"") == text


def test_no_colour_when_it_is_not_wanted_or_a_format_is(zonkey: Zonkey, tiny_model: Path) -> None:
    text = b"The town lies by the river.\n"
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        seen = on_terminal(zonkey, "stdout", "segment", "-m", tiny_model, stdin=text, **{variable: value})
        assert b"\x1b" not in seen
        assert seen.endswith(b"\\n\n")
    assert on_terminal(zonkey, "stdout", "segment", "-m", tiny_model, "--join", "", stdin=text) == text


def test_shades_of_probability_and_a_tree(zonkey: Zonkey, tiny_model: Path) -> None:
    text = b"The town lies by the river.\n"
    seen = on_terminal(zonkey, "stdout", "segment", "-m", tiny_model, "--prob", stdin=text)
    assert seen.startswith(b"\x1b[38;5;16;48;5;33mT\x1b[0m")
    assert re.sub(rb"\x1b\[[\d;]*m", b"", seen) == text
    seen = on_terminal(zonkey, "stdout", "segment", "-m", tiny_model, "--tree", stdin=text)
    assert "└── ".encode() in seen and b"\x1b[" in seen


def test_typed_lines_are_answered_at_once(zonkey: Zonkey, tiny_model: Path) -> None:
    near, far = pty.openpty()
    process = zonkey.start("segment", "-m", tiny_model, "-q", "--join", "", stdin=far)
    os.close(far)
    assert process.stdout is not None
    for line in (b"The town lies by the river.\n", b"It has a mill.\n"):
        os.write(near, line)
        ready, _, _ = select.select([process.stdout], [], [], 60)
        assert ready, "a typed line has no answer"
        assert process.stdout.readline() == line
    os.write(near, b"\x04")
    assert (process.stdout.read(), process.wait(60)) == (b"", 0)
    os.close(near)


def test_info_draws_tables(zonkey: Zonkey, tiny_model: Path) -> None:
    seen = on_terminal(zonkey, "stdout", "info", tiny_model)
    assert "┃".encode() in seen
    assert b"\x1b[" not in on_terminal(zonkey, "stdout", "info", tiny_model, NO_COLOR="1")


def test_progress_is_for_terminals_that_want_it(zonkey: Zonkey, tiny_model: Path) -> None:
    arguments = ("generate", "-m", tiny_model, "--steps", "1", "--max-bytes", "30", "--seed", "1")
    assert b"loading the model" in on_terminal(zonkey, "stderr", *arguments)
    assert on_terminal(zonkey, "stderr", *arguments, "-q") == b""


def test_live_view_of_training(zonkey: Zonkey) -> None:
    seen = on_terminal(
        zonkey, "stderr", "train", "--data", "sample", "--device", "cpu", *QUICK_TRAINING, "--steps", "7",
        "--out", "model",
    )
    assert b"level 0 splitter" in seen
    assert b"saved in model" in seen
    assert b"\x1b[?25h" in seen  # the cursor is back
    assert not (zonkey.folder / "zonkey-model").exists()


def test_a_text_is_watched_on_the_terminal_and_left_on_standard_output(zonkey: Zonkey, tiny_model: Path) -> None:
    arguments = ("generate", "-m", tiny_model, "--steps", "3", "--max-bytes", "60", "--seed", "3")
    seen = on_terminal(zonkey, "stderr", *arguments, "--watch")
    assert b"level 0" in seen and "\N{MIDDLE DOT}".encode() in seen
    upper = on_terminal(zonkey, "stderr", *arguments, "--watch", "--level", "1")
    assert b"level 1" in upper
    assert b"level 0" not in on_terminal(zonkey, "stderr", *arguments)
