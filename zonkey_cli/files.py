"""Input files with soft errors, and files replaced whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from zonkey_cli.streams import Streams

CHUNK_BYTES = 1 << 16


class Inputs:
    """The files of a command line, opened one after the other.

    No file, or `-`, is standard input. A file that cannot be opened or read is named on standard error, the rest goes
    on, and `failed` stays true.
    """

    def __init__(self, streams: Streams, names: Sequence[str]) -> None:
        self.streams = streams
        self.names = tuple(names) or ("-",)
        self.failed = False
        self._next = 0

    def __iter__(self) -> Iterator[tuple[str, BinaryIO]]:
        """Yield each file's name and its open stream."""
        for number, name in enumerate(self.names, 1):
            self._next = number
            try:
                if name != "-":
                    with open(name, "rb") as file:
                        yield name, file
                elif self.streams.stdin is not None:
                    yield name, self._standard_input(self.streams.stdin)
                else:
                    self.fail("standard input", "it is closed; name a file, or pipe the text in")
            except OSError as error:
                self.fail(name, error)

    def fail(self, name: str, reason: OSError | str) -> None:
        """Report a soft error with file `name`."""
        self.failed = True
        self.streams.error(f"{name}: {reason if isinstance(reason, str) else describe(reason)}")

    def chunks(self, name: str, file: BinaryIO) -> Iterator[bytes]:
        """Yield what can be read at once, so that slow input is used as it arrives; a read error is soft."""
        read = file.read1 if isinstance(file, io.BufferedReader) else file.read
        try:
            while chunk := read(CHUNK_BYTES):
                yield chunk
        except OSError as error:
            self.fail(name, error)

    def at_hand(self, name: str) -> bool:
        """Whether a file can be opened and read without waiting for anybody."""
        return name != "-" and os.path.isfile(name) and os.access(name, os.R_OK)

    def next_at_hand(self) -> bool:
        """Whether the one behind the file that is read now can."""
        return self._next < len(self.names) and self.at_hand(self.names[self._next])

    def status(self, name: str) -> os.stat_result:
        """What the system knows of a file; raises `OSError`, or `ValueError` where standard input is closed."""
        if name != "-":
            return os.stat(name)
        if self.streams.stdin is None:
            raise ValueError("standard input is closed")
        return os.fstat(self.streams.stdin.fileno())

    def _standard_input(self, stdin: BinaryIO) -> BinaryIO:
        if self.streams.stdin_is_terminal:
            self.streams.note("reading from the terminal; Ctrl-D ends the text")
        return stdin


def describe(error: OSError) -> str:
    """The system's words for `error`, without its number."""
    return error.strerror or str(error)


def replace_file(path: str, data: bytes, *, mode: int) -> None:
    """Make `path` a file that holds `data`, with permission bits `mode`, in one step.

    A reader, or a crash at any moment, meets the old file or the new one and nothing in between.
    """
    with _replacement(path, mode) as file:
        file.write(data)


@contextlib.contextmanager
def written_whole(name: str) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of the file `name` when the body ends well, and else leaves no trace.

    A symbolic link stays one, and permissions are kept. What is no regular file, such as a pipe, is written to as it
    is. An `OSError` names `name`.
    """
    try:
        if os.path.exists(name) and not os.path.isfile(name):
            with open(name, "wb") as file:
                yield file
        else:
            path = os.path.realpath(name)
            with _replacement(path, _mode(path)) as file:
                yield file
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


@contextlib.contextmanager
def _replacement(path: str, mode: int) -> Iterator[BinaryIO]:
    """A temporary file in the folder of `path` that is moved there in the end, unless the body raises."""
    descriptor, temporary = tempfile.mkstemp(prefix=".zonkey-", dir=os.path.dirname(path) or ".")
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _mode(path: str) -> int:
    """The permission bits of the file `path`, or of a new one."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(os.stat(path).st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def edit_in_place(name: str, old: bytes, new: bytes, *, suffix: str) -> None:
    """Replace the file `name`, which holds `old`, by `new`; a `suffix` keeps `old` under the name with it appended.

    A symbolic link stays one: the file that it points to is replaced.
    """
    path = os.path.realpath(name)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if suffix:
        replace_file(name + suffix, old, mode=mode)
    replace_file(path, new, mode=mode)
