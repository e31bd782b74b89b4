"""Every exit code of the program, in one place."""

from enum import IntEnum
from typing import ClassVar

import click


class ExitCode(IntEnum):
    """What the exit status says about a run."""

    DONE = 0
    """All was done; also when the reader of standard output went away."""
    SOFT_FAILURE = 1
    """Something failed, or there was nothing to do; what could be done was done."""
    USAGE = 2
    """The command line, the environment or a settings file is wrong."""
    INTERRUPTED = 130
    """Stopped by SIGINT, as Ctrl-C sends."""
    TERMINATED = 143
    """Stopped by SIGTERM."""


class BadValueError(click.ClickException):
    """A value on the command line, in the environment or in a settings file that cannot be used."""

    exit_code: ClassVar[int] = ExitCode.USAGE


MEANINGS: dict[ExitCode, str] = {
    ExitCode.DONE: "Done. A closed pipe on standard output counts as done.",
    ExitCode.SOFT_FAILURE: "A failure, such as an unreadable file or model, or nothing to do.",
    ExitCode.USAGE: "An error in the command line, in the environment or in a settings file.",
    ExitCode.INTERRUPTED: "Interrupted by Ctrl-C (SIGINT).",
    ExitCode.TERMINATED: "Terminated by SIGTERM.",
}
"""The exit statuses as the manual states them."""
