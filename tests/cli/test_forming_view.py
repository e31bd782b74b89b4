"""How a text forms from noise, as it is shown."""

from __future__ import annotations

from zonkey_cli.forming_view import OPEN, forming_text
from zonkey_core.inference.generation import Forming


def styles(pieces: list[bytes | None], before: list[bytes | None]) -> dict[str, str]:
    """The style of every piece that is shown."""
    text = forming_text(Forming(0, b"Begun", pieces), before)
    return {text.plain[span.start : span.end]: str(span.style) for span in text.spans}


def test_open_slots_are_dots_between_what_stands() -> None:
    text = forming_text(Forming(0, b"Begun", [None, b" the", None, b" cat\n"]), [None] * 4)
    assert text.plain == f"level 0\nBegun{OPEN} the{OPEN} cat\n"


def test_what_has_just_come_stands_out() -> None:
    shown = styles([b" old", b" new", None], [b" old", None, None])
    assert "bold" in shown[" new"] and "bold" not in shown[" old"]
    assert "bold" in styles([b" a"], [])[" a"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    text = forming_text(Forming(1, b"\x1b[31m", [b"\xff\x07", "\u202e".encode()]), [])
    assert text.plain == "level 1\n\ufffd[31m\ufffd\ufffd\ufffd"
