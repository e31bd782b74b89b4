"""A polite stop: the first signal asks, the second ends the process at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.streams import Streams

_SHOW_CURSOR = b"\x1b[?25h\n"
"""What a live display that cannot tidy up leaves undone."""


class StopRequest:
    """Within a `with` block, SIGINT and SIGTERM set `requested` once instead of ending the program."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._previous: dict[int, Any] = {}
        self._received: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that stands for the signal that came, or for none."""
        if self._received is None:
            return ExitCode.DONE
        return ExitCode.TERMINATED if self._received == signal.SIGTERM else ExitCode.INTERRUPTED

    def __enter__(self) -> StopRequest:
        """Take over the two signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; leave on the second, without a word that might block."""
        if self._received is not None:
            if self._streams.shows_progress:
                os.write(2, _SHOW_CURSOR)
            os._exit(128 + number)
        self._received = number
