"""`zonkey segment` on real pipes: formats, the way back, and text that arrives slowly."""

from __future__ import annotations

import json
import os
import select
from pathlib import Path

import pytest

from tests.conftest import Zonkey

TEXT = (
    "The town lies by the river.\r\nIt has a café,\ta mill and C:\\dir.\n\n".encode()
    + b"Bad bytes \xff\xfe\x80 and a NUL \0 too.\n" + b"a" * 300
)


@pytest.fixture
def text(zonkey: Zonkey) -> Path:
    path = zonkey.folder / "text"
    path.write_bytes(TEXT)
    return path


def test_lines_and_back(zonkey: Zonkey, tiny_model: Path, text: Path) -> None:
    done = zonkey.run("segment", "-m", tiny_model, text)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") > 10
    assert b"\t" not in done.stdout
    assert b"\r" not in done.stdout
    back = zonkey.run("segment", "--undo", stdin=done.stdout)
    assert (back.returncode, back.stdout, back.stderr) == (0, TEXT, b"")


def test_null_records_and_back(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("segment", "-m", tiny_model, "-0", stdin=TEXT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\0")
    assert b"\n" in done.stdout
    assert zonkey.run("segment", "--undo", "-0", stdin=done.stdout).stdout == TEXT


def test_formats_agree(zonkey: Zonkey, tiny_model: Path, text: Path) -> None:
    records = zonkey.run("segment", "-m", tiny_model, "-0", text).stdout.split(b"\0")[:-1]
    segments = [record.replace(b"\\0", b"\0").replace(b"\\\\", b"\\") for record in records]
    joined = zonkey.run("segment", "-m", tiny_model, "--join", "<é>", text).stdout
    assert joined == "<é>".encode().join(segments)
    objects = [json.loads(line) for line in zonkey.run("segment", "-m", tiny_model, "--json", text).stdout.splitlines()]
    assert [TEXT[each["start"] : each["end"]] for each in objects] == segments
    assert [each["text"] for each in objects] == [segment.decode("utf-8", "replace") for segment in segments]
    assert {each["file"] for each in objects} == {str(text)}
    assert {each["level"] for each in objects} == {0}
    assert all(0 <= each["prob"] <= 1 for each in objects)


def test_levels_cut_the_same_text(zonkey: Zonkey, tiny_model: Path, text: Path) -> None:
    lower = zonkey.run("segment", "-m", tiny_model, "--join", "", text)
    upper = zonkey.run("segment", "-m", tiny_model, "--level", "1", "--join", "", text)
    assert lower.stdout == upper.stdout == TEXT
    lines = zonkey.run("segment", "-m", tiny_model, "--level", "1", text).stdout
    assert 0 < lines.count(b"\n") < zonkey.run("segment", "-m", tiny_model, text).stdout.count(b"\n")


def test_a_level_that_is_not_there(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("segment", "-m", tiny_model, "--level", "9")
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("zonkey: --level 9: ")


def test_failing_files_are_named_and_the_rest_goes_on(zonkey: Zonkey, tiny_model: Path, text: Path) -> None:
    done = zonkey.run("segment", "-m", tiny_model, "none", zonkey.folder, text, "-", "--join", "", stdin=b"last")
    assert (done.returncode, done.stdout) == (1, TEXT + b"last")
    assert done.stderr.decode().splitlines() == [
        "zonkey: none: No such file or directory", f"zonkey: {zonkey.folder}: Is a directory",
    ]


def test_nothing_in_nothing_out(zonkey: Zonkey, tiny_model: Path) -> None:
    (zonkey.folder / "empty").touch()
    for arguments in ([], ["empty"], ["--json"], ["--undo"]):
        done = zonkey.run("segment", "-m", tiny_model, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_segments_come_before_the_text_ends(zonkey: Zonkey, tiny_model: Path) -> None:
    process = zonkey.start("segment", "-m", tiny_model)
    assert process.stdin is not None
    assert process.stdout is not None
    sent = b"These words come first and more of them come later.\n" * 200
    process.stdin.write(sent)
    process.stdin.flush()
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready, "no segment within a minute, though the first of the text is long there"
    first = os.read(process.stdout.fileno(), 1 << 16)
    assert first
    rest, errors = process.communicate(b"The end.", timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert zonkey.run("segment", "--undo", stdin=first + rest).stdout == sent + b"The end."


def test_undo_refuses_other_text(zonkey: Zonkey) -> None:
    good = zonkey.folder / "good"
    good.write_bytes(b"a \nb\\n\n")
    done = zonkey.run("segment", "--undo", "-", good, stdin=b"what\\ever\n")
    assert (done.returncode, done.stdout) == (1, b"a b\n")
    assert done.stderr.decode().splitlines() == ["zonkey: -: '\\e' is no escape that segment writes"]
