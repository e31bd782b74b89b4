"""How a text forms from noise, on a terminal: what stands, what has just come, and what is still open."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

from zonkey_cli.console import error_console
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.inference.generation import Forming

OPEN = "\N{MIDDLE DOT}"
"""What a slot looks like that is still noise."""
FRAMES_PER_SECOND = 20


@contextlib.contextmanager
def forming_view(streams: Streams) -> Iterator[Callable[[Forming], None]]:
    """The function to call with every state of one text; nothing of it stays on the screen."""
    before: list[bytes | None] = []
    console = error_console(streams)
    with Live(console=console, transient=True, refresh_per_second=FRAMES_PER_SECOND, vertical_overflow="crop") as live:

        def show(forming: Forming) -> None:
            nonlocal before
            live.update(forming_text(forming, before), refresh=True)
            before = forming.pieces

        yield show


def forming_text(forming: Forming, before: list[bytes | None]) -> Text:
    """One state of a text: what has come since the state `before` stands out, and open slots are dots."""
    text = Text(f"level {forming.level}\n", style="dim")
    text.append(_shown(forming.before), style="not dim")
    same = len(before) == len(forming.pieces)
    for index, piece in enumerate(forming.pieces):
        if piece is None:
            text.append(OPEN)
        else:
            fresh = not same or before[index] is None
            text.append(_shown(piece), style="not dim bold cyan" if fresh else "not dim")
    return text


def _shown(text: bytes) -> str:
    """Text as a terminal may show it, with its lines."""
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"
        for character in text.decode("utf-8", "replace")
    )
