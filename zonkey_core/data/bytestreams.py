"""Bytes of files and of standard input, read in pieces of bounded size from any offset."""

from __future__ import annotations

import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from zonkey_core.errors import DataError

PIECE_BYTES = 256 * 1024
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class ByteStream(Protocol):
    """Bytes that can be read more than once."""

    @property
    def label(self) -> str:
        """Name for messages."""

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes from offset `start` on, `PIECE_BYTES` or fewer at a time."""


class FileBytes(NamedTuple):
    """The bytes of a file; `.gz` and `.zst` are decompressed, and offsets count decompressed bytes."""

    path: Path

    @property
    def label(self) -> str:
        return str(self.path)

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        compression = COMPRESSIONS.get(self.path.suffix.lower())
        try:
            if compression is None:
                with self.path.open("rb") as file:
                    file.seek(start)
                    while piece := file.read(PIECE_BYTES):
                        yield piece
            else:
                yield from _skip(self._decompressed(compression), start)
        except OSError as error:
            reason = error.strerror or f"{error}; is it whole, and compressed as its name says?"
            raise DataError(f"{self.path}: cannot read this file ({reason})") from error

    def _decompressed(self, compression: str) -> Iterator[bytes]:
        import pyarrow  # a fifth of a second, spared to those who read no such file

        with self.path.open("rb") as file, pyarrow.input_stream(file, compression=compression) as stream:
            while piece := stream.read_buffer(PIECE_BYTES).to_pybytes():  # `read` loses a piece with every error
                yield piece


def _skip(pieces: Iterator[bytes], start: int) -> Iterator[bytes]:
    """Drop the first `start` bytes of a stream that cannot seek."""
    for piece in pieces:
        if start < len(piece):
            yield piece[start:]
        start = max(0, start - len(piece))


class StandardInput:
    """Standard input, kept in a temporary file as it is read, so that every stream over it sees the same bytes."""

    label = "standard input"

    def __init__(self, source: IO[bytes]) -> None:
        self._source = weakref.ref(source)
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        weakref.finalize(self, self._copy.close)
        self._lock = threading.Lock()

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        while piece := self._read(start):
            yield piece
            start += len(piece)

    def _read(self, offset: int) -> bytes:
        """Read a piece at `offset`, which lies in the copy or at its end."""
        with self._lock:
            self._copy.seek(offset)
            if piece := self._copy.read(PIECE_BYTES):
                return piece
            source = self._source()
            piece = b"" if source is None else source.read(PIECE_BYTES)
            self._copy.write(piece)
            return piece


_standard_inputs: weakref.WeakKeyDictionary[IO[bytes], StandardInput] = weakref.WeakKeyDictionary()


def standard_input() -> StandardInput:
    """The one `StandardInput` over the present `sys.stdin`; raises `DataError` where it is closed."""
    if sys.stdin is None:
        raise DataError("standard input: it is closed; name a file, or pipe the text in")
    source = sys.stdin.buffer
    if source not in _standard_inputs:
        _standard_inputs[source] = StandardInput(source)
    return _standard_inputs[source]
