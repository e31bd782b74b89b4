"""Records of segments: one a line, sortable, and exactly reversible."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonkey_cli.escaping import BadEscapeError, escape_line, undo

TRICKY = st.sampled_from([b"\\", b"\n", b"\t", b"\r", b"\0", b"n", b"\\n", b"\\\\", b" ", b"\xff", "é".encode()])
TEXTS = st.lists(st.one_of(TRICKY, st.binary(max_size=5)), max_size=20).map(b"".join)
SEGMENTS = st.lists(TEXTS.filter(len), max_size=12)
CUTS = st.lists(st.integers(0, 200), max_size=12)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in chunks, some of them empty."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(SEGMENTS, CUTS)
def test_undo_gives_lines_back_however_they_arrive(segments: list[bytes], places: list[int]) -> None:
    lines = b"".join(escape_line(segment) + b"\n" for segment in segments)
    assert lines.count(b"\n") == len(segments)
    assert b"".join(undo(cut(lines, places), end=b"\n")) == b"".join(segments)


@given(TEXTS, TEXTS)
def test_different_segments_have_different_lines(one: bytes, other: bytes) -> None:
    assert (escape_line(one) == escape_line(other)) == (one == other)


def test_only_what_must_be_is_escaped() -> None:
    assert escape_line(b"a\tb\n\r\\ \x00\xff") == b"a\\tb\\n\\r\\\\ \x00\xff"


@pytest.mark.parametrize("bad", [b"a\\x\n", b"a\\", b"\\\\\\"])
def test_undo_refuses_what_segment_never_writes(bad: bytes) -> None:
    with pytest.raises(BadEscapeError):
        list(undo([bad], end=b"\n"))
