"""Unified diffs: git applies them, whatever the bytes, the line ends and the name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zonkey_cli.unified_diff import Change, unified_diff

LINES = st.lists(st.sampled_from([b"a", b"b", b"\n", b"\r", b"\xff", b"\n\n"]), max_size=40).map(b"".join)


def changed(data: bytes, changes: list[Change]) -> bytes:
    """The text after the changes."""
    parts, position = [], 0
    for change in changes:
        parts += [data[position : change.start], change.text]
        position = change.end
    return b"".join([*parts, data[position:]])


def apply(folder: Path, name: str, data: bytes, diff: bytes) -> bytes:
    """What git makes of a file."""
    path = folder / name
    path.write_bytes(data)
    command = ["git", "apply", "--whitespace=nowarn", "-"]
    done = subprocess.run(command, input=diff, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, (data, diff, done.stderr)
    return path.read_bytes()


@st.composite
def cases(draw: st.DrawFn) -> tuple[bytes, list[Change]]:
    """A text and changes that do not overlap."""
    data = draw(LINES)
    borders = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    texts = st.lists(st.sampled_from([b"c", b"d", b"\n"]), max_size=4).map(b"".join)
    return data, [Change(first, last, draw(texts)) for first, last in zip(borders[::2], borders[1::2], strict=False)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_git_makes_the_new_text_of_the_old(tmp_path: Path, case: tuple[bytes, list[Change]]) -> None:
    data, changes = case
    new = changed(data, changes)
    diff = unified_diff("file", data, changes)
    assert (new == data) == (diff == b"")
    if diff:
        assert apply(tmp_path, "file", data, diff) == new


@pytest.mark.parametrize("name", ["plain", "two words", "é", 'quo"te', "back\\slash", "tab\there"])
def test_names_are_written_as_git_reads_them(tmp_path: Path, name: str) -> None:
    data = b"one\ntwo"
    assert apply(tmp_path, name, data, unified_diff(name, data, [Change(4, 7, b"2\n")])) == b"one\n2\n"


def test_changes_far_from_each_other_are_apart() -> None:
    data = b"".join(b"%d\n" % number for number in range(40))
    near, far = Change(10, 11, b"x"), Change(90, 91, b"y")
    assert unified_diff("/a/file", data, [near, far]).count(b"\n@@ ") == 2
    head = unified_diff("/a/file", data, [near]).splitlines()[:3]
    assert head == [b"--- a/a/file", b"+++ b/a/file", b"@@ -3,7 +3,7 @@"]
