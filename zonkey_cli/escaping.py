r"""Segments as records: one a line, or one before each NUL, with an exact way back.

A record of a line writes newline, tab, carriage return and backslash as `\n`, `\t`, `\r` and `\\`; a record that NUL
ends writes NUL and backslash as `\0` and `\\`. Every other byte stands for itself, so the records of either kind sort
and count as the segments do, and `undo` turns them into the bytes they were made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LINE_ESCAPES = {b"\\": b"\\", b"\n": b"n", b"\t": b"t", b"\r": b"r"}
"""What stands after a backslash for each byte that a record of a line escapes."""
NULL_ESCAPES = {b"\\": b"\\", b"\0": b"0"}
"""The same for a record that NUL ends."""
_MEANINGS = {b"\\": b"\\", b"n": b"\n", b"t": b"\t", b"r": b"\r", b"0": b"\0"}
_LINE_PATTERN = re.compile(rb"[\\\n\t\r]")
_UNDO_PATTERNS = {b"\n": re.compile(rb"\\(.)|\n", re.DOTALL), b"\0": re.compile(rb"\\(.)|\0", re.DOTALL)}


class BadEscapeError(ValueError):
    """The input of `undo` holds a backslash that begins no known escape."""


def escape_line(segment: bytes) -> bytes:
    """`segment` as a record of a line, without its newline."""
    return _LINE_PATTERN.sub(lambda match: b"\\" + LINE_ESCAPES[match[0]], segment)


def undo(chunks: Iterable[bytes], *, end: bytes) -> Iterator[bytes]:
    """Turn records that `end` ends, a newline or NUL, back into the bytes they were made of, piece by piece."""
    pattern = _UNDO_PATTERNS[end]
    held = b""
    for chunk in chunks:
        piece = held + chunk
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        cut = len(piece) - backslashes % 2
        piece, held = piece[:cut], piece[cut:]
        yield pattern.sub(_meaning, piece)
    if held:
        raise BadEscapeError("the input ends in the middle of an escape")


def _meaning(match: re.Match[bytes]) -> bytes:
    """What an escape stands for; the end of a record stands for nothing."""
    escaped: bytes | None = match[1]
    if escaped is None:
        return b""
    if escaped not in _MEANINGS:
        shown = escaped.decode("latin-1").encode("unicode_escape").decode()  # a line end would split the message
        raise BadEscapeError(f"'\\{shown}' is no escape that segment writes")
    return _MEANINGS[escaped]
