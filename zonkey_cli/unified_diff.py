"""A unified diff of a text in which known stretches are replaced, as git and patch understand it."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

CONTEXT_LINES = 3
"""Unchanged lines around each change."""
_NO_NEWLINE = b"\n\\ No newline at end of file\n"
_NAMED = {b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r", b'"': b'\\"', b"\\": b"\\\\"}


class Change(NamedTuple):
    """Bytes from `start` up to `end` of the old text become `text`."""

    start: int
    end: int
    text: bytes


class _Block(NamedTuple):
    """Lines of the old text, from `first` up to `last`, and what they become."""

    first: int
    last: int
    new: list[bytes]


def unified_diff(name: str, data: bytes, changes: Sequence[Change]) -> bytes:
    """The diff of the file `name`; nothing where no line changes. Changes must be in order and must not overlap."""
    old = _split(data)
    blocks = [block for block in _blocks(data, old, changes) if old[block.first : block.last] != block.new]
    if not blocks:
        return b""
    path = name.lstrip("/").encode("utf-8", "surrogateescape")
    parts = [b"--- " + _quoted(b"a/" + path) + b"\n", b"+++ " + _quoted(b"b/" + path) + b"\n"]
    grown = 0
    for hunk in _hunks(blocks):
        begin, end = max(0, hunk[0].first - CONTEXT_LINES), min(len(old), hunk[-1].last + CONTEXT_LINES)
        body, position, more = [], begin, 0
        for block in hunk:
            body += [_line(b" ", line) for line in old[position : block.first]]
            body += [_line(b"-", line) for line in old[block.first : block.last]]
            body += [_line(b"+", line) for line in block.new]
            position, more = block.last, more + len(block.new) - (block.last - block.first)
        body += [_line(b" ", line) for line in old[position:end]]
        parts.append(
            b"@@ -%s +%s @@\n" % (_range(begin, end - begin), _range(begin + grown, end - begin + more))
        )
        parts += body
        grown += more
    return b"".join(parts)


def _split(data: bytes) -> list[bytes]:
    """Lines with their newlines, the last of which may lack it."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _blocks(data: bytes, old: Sequence[bytes], changes: Sequence[Change]) -> Iterator[_Block]:
    """The lines that changes lie in; changes that share a line make one block."""
    begins = [0, *itertools.accumulate(map(len, old))]
    groups: list[tuple[int, int, list[Change]]] = []
    for change in changes:
        first = max(0, min(bisect.bisect_right(begins, change.start) - 1, len(old) - 1))
        last = min(len(old), max(first + 1, bisect.bisect_left(begins, change.end)))
        if groups and first < groups[-1][1]:
            first, end, some = groups[-1]
            groups[-1] = first, max(end, last), [*some, change]
        else:
            groups.append((first, last, [change]))
    for first, last, some in groups:
        position, pieces = begins[first], []
        for change in some:
            pieces += [data[position : change.start], change.text]
            position = change.end
        yield _Block(first, last, _split(b"".join([*pieces, data[position : begins[last]]])))


def _line(sign: bytes, line: bytes) -> bytes:
    return sign + line + (b"" if line.endswith(b"\n") else _NO_NEWLINE)


def _range(begin: int, count: int) -> bytes:
    """The lines of a hunk: the first, counted from 1, and how many; before the first where there are none."""
    return b"%d,%d" % (begin + (count > 0), count)


def _hunks(blocks: Sequence[_Block]) -> Iterator[list[_Block]]:
    """Blocks whose surroundings touch are shown together."""
    hunk = [blocks[0]]
    for block in blocks[1:]:
        if block.first - hunk[-1].last <= 2 * CONTEXT_LINES:
            hunk.append(block)
        else:
            yield hunk
            hunk = [block]
    yield hunk


def _quoted(path: bytes) -> bytes:
    """A path as git writes it: between quotes, with escapes, where it holds what is not printable."""
    if all(32 <= byte < 127 and byte not in b'"\\' for byte in path):
        return path
    return b'"' + b"".join(
        _NAMED.get(bytes([byte]), bytes([byte]) if 32 <= byte < 127 else b"\\%03o" % byte) for byte in path
    ) + b'"'
