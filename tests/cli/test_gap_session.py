"""A session at a terminal: what each answer does, and that everything can be undone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from zonkey_cli.gap_session import GapSession, NoTerminalError, Terminal
from zonkey_core.inference.gap_windows import Gap
from zonkey_core.inference.infilling import Candidate

DATA = b"a __ b __ c"
GAPS = [Gap(2, 4), Gap(7, 9)]


class Scripted(Terminal):
    """A terminal at which somebody gives these answers, and then no more."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.shown = ""

    def say(self, text: str) -> None:
        self.shown += text

    def ask(self, question: str) -> str | None:
        self.shown += question
        return self.answers.pop(0) if self.answers else None


def decide(*answers: str, candidates: int = 2) -> tuple[list[bytes] | None, list[tuple[bytes, int, int]], str]:
    """What goes where, what was drawn for, and what was shown."""
    asked: list[tuple[bytes, int, int]] = []

    def draw(text: bytes, gaps: Sequence[Gap], draws: int) -> list[Candidate]:
        asked.append((text, gaps[0].start, draws))
        assert text[gaps[0].start : gaps[0].end] == b"__"
        return [Candidate(b"%d%c" % (draws, 120 + which), -1.0, -2.0) for which in range(candidates)]

    terminal = Scripted(*answers)
    chosen = GapSession(terminal, "text", DATA, GAPS, draw).run()
    assert chosen is None or [gap for gap, _ in chosen] == [gap for gap in GAPS if gap in dict(chosen)]
    return None if chosen is None else [text for _, text in chosen], asked, terminal.shown


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("", "", "y"), [b"0x", b"0x"]),
        (("1", "2", "y"), [b"0x", b"0y"]),
        (("n", "n", "2", "1", "y"), [b"2y", b"0x"]),
        (("t", " own text ", "s", "y"), [b" own text "]),
        (("s", "s", "y"), []),
        (("1", "u", "2", "1", "y"), [b"0y", b"0x"]),
        (("1", "1", "u", "2", "y"), [b"0x", b"0y"]),
        (("1", "q", "y"), [b"0x"]),
        (("1", "q", "u", "2", "2", "y"), [b"0y", b"0y"]),
        (("1", "1", "n"), None),
        (("q",), None),
        (("1", "1"), None),
        (("1",), None),
        ((), None),
        (("3", "0", "x", "u", "?", "2", "1", "y"), [b"0y", b"0x"]),
        (("t",), None),
    ],
)  # fmt: skip
def test_answers_decide(answers: tuple[str, ...], expected: list[bytes] | None) -> None:
    assert decide(*answers)[0] == expected


def test_what_was_decided_is_there_when_the_next_gap_is_drawn_for() -> None:
    _, asked, _ = decide("t", "word", "n", "s", "y")
    assert asked == [(DATA, 2, 0), (b"a word b __ c", 9, 0), (b"a word b __ c", 9, 1)]
    _, asked, _ = decide("s", "1", "y")
    assert asked[1] == (DATA, 7, 0)


def test_without_candidates_there_is_still_something_to_do() -> None:
    chosen, _, shown = decide("", "t", "own", "s", "y", candidates=0)
    assert chosen == [b"own"] and "no fill of the length asked for" in shown


def test_what_is_shown_cannot_steer_the_terminal() -> None:
    terminal = Scripted("q")
    data = b"\x1b[2J \xff __ \x07"
    GapSession(terminal, "na\x1bme", data, [Gap(6, 8)], lambda *given: [Candidate(b"\x1bc", 0.0, 0.0)]).run()
    assert not any(ord(character) < 32 and character != "\n" for character in terminal.shown)


def test_a_terminal_that_is_not_there_is_told() -> None:
    with pytest.raises(NoTerminalError):
        Terminal("/nowhere/tty")
