"""`zonkey segment` on real pipes: formats, the way back, and text that arrives slowly."""

from __future__ import annotations

import json
import os
import select
from pathlib import Path

import pytest

from tests.conftest import Feeder, Zonkey

TEXT = (
    "The town lies by the river.\r\nIt has a café,\ta mill and C:\\dir.\n\n".encode()
    + b"Bad bytes \xff\xfe\x80 and a NUL \0 too.\n" + b"a" * 300
)


@pytest.fixture
def text(zonkey: Zonkey) -> Path:
    path = zonkey.folder / "text"
    path.write_bytes(TEXT)
    return path


def undone(zonkey: Zonkey, records: bytes, *arguments: str) -> bytes:
    done = zonkey.run("segment", "--undo", *arguments, stdin=records)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize("level", ["0", "1"])
def test_lines_and_back(zonkey: Zonkey, tiny_model: Path, text: Path, level: str) -> None:
    done = zonkey.run("segment", "-m", tiny_model, "--level", level, text)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\n")
    assert b"\t" not in done.stdout
    assert b"\r" not in done.stdout
    assert undone(zonkey, done.stdout) == TEXT


def test_formats_agree(zonkey: Zonkey, tiny_model: Path, text: Path) -> None:
    records = zonkey.run("segment", "-m", tiny_model, "-0", stdin=TEXT).stdout
    assert undone(zonkey, records, "-0") == TEXT
    segments = [undone(zonkey, record, "-0") for record in records.split(b"\0")[:3]]
    joined = zonkey.run("segment", "-m", tiny_model, "--join", "<é>", text).stdout
    assert joined.startswith("<é>".encode().join(segments))
    assert joined.replace("<é>".encode(), b"") == TEXT
    assert joined.count("<é>".encode()) == records.count(b"\0") - 1
    objects = [json.loads(line) for line in zonkey.run("segment", "-m", tiny_model, "--json", text).stdout.splitlines()]
    pieces = [TEXT[each["start"] : each["end"]] for each in objects]
    assert b"".join(pieces) == TEXT
    assert "<é>".encode().join(pieces) == joined
    assert [each["text"] for each in objects] == [piece.decode("utf-8", "replace") for piece in pieces]
    assert {each["file"] for each in objects} == {str(text)}
    assert {each["level"] for each in objects} == {0}
    assert all(0 <= each["prob"] <= 1 for each in objects)


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
    for arguments in (["--undo"], ["--undo", "empty"], ["-m", tiny_model, "empty", "-", "--json"]):
        done = zonkey.run("segment", *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_segments_come_before_the_text_ends(zonkey: Zonkey, tiny_model: Path) -> None:
    process = zonkey.start("segment", "-m", tiny_model)
    assert process.stdout is not None
    assert process.stderr is not None
    sent = b"These words come first and more of them come later.\n" * 4000
    feeder = Feeder(process, sent)
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready, "no segment within a minute, though the beginning of the text is long there"
    first = os.read(process.stdout.fileno(), 1 << 16)
    assert first
    feeder.end(b"The end.")
    rest, errors = process.stdout.read(), process.stderr.read()
    feeder.join()
    assert (process.wait(60), errors) == (0, b"")
    assert zonkey.run("segment", "--undo", stdin=first + rest).stdout == sent + b"The end."


def test_lines_are_cut_before_the_next_is_there(zonkey: Zonkey, tiny_model: Path) -> None:
    process = zonkey.start("segment", "-m", tiny_model, "--line-buffered", "--join", "|")
    assert process.stdin is not None
    assert process.stdout is not None
    for line in (b"These words come first.\n", b"\n", b"More of them come later.\n"):
        process.stdin.write(line)
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], 60)
        assert ready, "no segment of a line within a minute"
        assert process.stdout.readline().replace(b"|", b"") == line
    process.stdin.close()
    assert (process.stdout.read(), process.wait(60)) == (b"", 0)


def test_undo_refuses_other_text(zonkey: Zonkey) -> None:
    good = zonkey.folder / "good"
    good.write_bytes(b"a \nb\\n\n")
    done = zonkey.run("segment", "--undo", "-", good, stdin=b"what\\ever\n")
    assert (done.returncode, done.stdout) == (1, b"a b\n")
    assert done.stderr.decode().splitlines() == ["zonkey: -: '\\e' is no escape that segment writes"]
