"""The one object that owns standard input, output and error, and knows which of them are terminals.

Standard output is binary and carries data only; messages go to standard error and never stop the program, even when
nobody reads them. Control characters, which could make a terminal do anything, reach no terminal, whatever text of
files, models or names they come with; what a program reads is left as it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO

_CONTROLS = re.compile(rb"[\0-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
"""Control characters in UTF-8, but for tab and newline."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f]")


@dataclass
class Streams:
    """Where the program reads and writes; tests pass their own."""

    stdin: BinaryIO | None
    stdout: BinaryIO | None
    stderr: TextIO | None
    stdin_is_terminal: bool = False
    stdout_is_terminal: bool = False
    stderr_is_terminal: bool = False
    colour: bool = True
    """Whether colour may be used on streams that are terminals."""
    verbosity: int = 0
    """-1 quiet, 0 normal, 1 and above verbose."""
    debug: bool = False
    """Whether an unexpected error shows its traceback."""

    @classmethod
    def system(cls) -> Streams:
        """The streams of this process; one that the caller closed is None."""
        return cls(
            stdin=sys.stdin.buffer if sys.stdin is not None else None,
            stdout=sys.stdout.buffer if sys.stdout is not None else None,
            stderr=sys.stderr,
            stdin_is_terminal=_is_terminal(sys.stdin),
            stdout_is_terminal=_is_terminal(sys.stdout),
            stderr_is_terminal=_is_terminal(sys.stderr),
            colour=not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        )

    def write(self, data: bytes, *, styled: bool = False, null: bool = False) -> None:
        """Write data to standard output; a terminal gets it without control characters unless they are our `styled`.

        With `null`, NUL parts what was asked for so and stays; terminals make nothing of it.
        """
        if self.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.stdout_is_terminal and not styled:
            data = b"\0".join(map(harmless, data.split(b"\0"))) if null else harmless(data)
        self.stdout.write(data)

    def write_json(self, value: Any) -> None:
        """Write one JSON document on a line of its own."""
        self.write(json_line(value))

    def flush(self) -> None:
        """Hand all data written so far to the reader of standard output."""
        if self.stdout is not None:
            self.stdout.flush()

    def discard_output(self) -> None:
        """Drop whatever standard output still holds, so that the interpreter's own flush at exit cannot fail."""
        if self.stdout is None:
            return
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stdout.fileno())
            os.close(null)

    def error(self, message: str) -> None:
        """Say what went wrong, whatever the verbosity."""
        self._say(f"zonkey: {message}")

    def note(self, message: str) -> None:
        """Say something useful, unless `-q` was given."""
        if self.verbosity >= 0:
            self._say(message)

    def detail(self, message: str) -> None:
        """Say something that only `-v` asks for."""
        if self.verbosity > 0:
            self._say(message)

    @property
    def shows_progress(self) -> bool:
        """Whether a live display on standard error is welcome."""
        return self.stderr_is_terminal and self.verbosity >= 0

    @property
    def colours_output(self) -> bool:
        """Whether data on standard output may be coloured."""
        return self.stdout_is_terminal and self.colour

    def _say(self, message: str) -> None:
        if self.stderr is None:
            return
        with contextlib.suppress(OSError, ValueError):
            self.stderr.write(harmless(message.encode("utf-8", "backslashreplace")).decode() + "\n")
            self.stderr.flush()


def harmless(data: bytes) -> bytes:
    """Text that a terminal may be given: each control character but tab and newline is replaced."""
    return _CONTROLS.sub(_REPLACEMENT, data)


def json_line(value: Any) -> bytes:
    """A JSON document on a line of its own, without control characters."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode("utf-8", "replace") + b"\n"


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether `stream` is open and a terminal."""
    return stream is not None and stream.isatty()
