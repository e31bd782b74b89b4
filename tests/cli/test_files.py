"""Files are replaced whole or not at all, and inputs that fail do not stop the others."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest

from zonkey_cli.files import Inputs, edit_in_place, replace_file, written_whole
from zonkey_cli.streams import Streams


def streams(stdin: bytes = b"") -> tuple[Streams, io.StringIO]:
    errors = io.StringIO()
    return Streams(stdin=io.BytesIO(stdin), stdout=io.BytesIO(), stderr=errors), errors


def test_inputs_are_read_in_order_and_failures_are_soft(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    own, errors = streams(b"two")
    inputs = Inputs(own, [str(tmp_path / "a"), str(tmp_path), str(tmp_path / "none"), "-"])
    read = [(name, b"".join(inputs.chunks(name, file))) for name, file in inputs]
    assert read == [(str(tmp_path / "a"), b"one"), ("-", b"two")]
    assert inputs.failed
    assert errors.getvalue().splitlines() == [
        f"zonkey: {tmp_path}: Is a directory", f"zonkey: {tmp_path / 'none'}: No such file or directory",
    ]


def test_no_name_is_standard_input() -> None:
    own, _ = streams(b"text")
    inputs = Inputs(own, [])
    assert [(name, b"".join(inputs.chunks(name, file))) for name, file in inputs] == [("-", b"text")]
    assert not inputs.failed


def test_what_can_be_read_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    Path("b").touch()
    os.mkfifo("pipe")
    own, _ = streams(b"text")
    inputs = Inputs(own, ["a", "none", "b", "a", "-", "b"])
    assert [(name, inputs.next_at_hand()) for name, _ in inputs] == [
        ("a", False), ("b", True), ("a", False), ("-", True), ("b", False),
    ]
    assert [inputs.at_hand(name) for name in ("a", "-", "pipe", ".", "none")] == [True, False, False, False, False]


def test_read_error_is_soft() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    own, errors = streams()
    inputs = Inputs(own, ["disk"])
    assert list(inputs.chunks("disk", Failing())) == []
    assert inputs.failed
    assert errors.getvalue() == "zonkey: disk: Input/output error\n"


def test_replacing_keeps_the_mode_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"old")
    path.chmod(0o640)
    edit_in_place(str(path), b"old", b"new", suffix=".orig")
    assert path.read_bytes() == b"new"
    assert (tmp_path / "text.orig").read_bytes() == b"old"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "text.orig").stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["text", "text.orig"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    path, link = tmp_path / "text", tmp_path / "link"
    path.write_bytes(b"old")
    link.symlink_to("text")
    edit_in_place(str(link), b"old", b"new", suffix="")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_before_the_end_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(descriptor: int) -> None:
        raise error

    path = tmp_path / "text"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        replace_file(str(path), b"new", mode=0o600)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["text"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, link = tmp_path / "text", tmp_path / "link"
    link.symlink_to("text")
    with written_whole(str(link)) as file:
        file.write(b"new")
        assert not path.exists()
    assert link.is_symlink() and path.read_bytes() == b"new"
    path.chmod(0o640)
    with pytest.raises(KeyboardInterrupt), written_whole(str(path)) as file:
        file.write(b"newer")
        raise KeyboardInterrupt
    with written_whole(str(path)) as file:
        file.write(b"newest")
    assert path.read_bytes() == b"newest" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "text"]


def test_what_is_no_regular_file_is_written_to_as_it_is() -> None:
    with written_whole(os.devnull) as file:
        file.write(b"new")
    assert not Path(os.devnull).is_file()


def test_an_error_of_writing_names_the_file(tmp_path: Path) -> None:
    for name in ("none/text", "."):
        with pytest.raises(OSError) as failure, written_whole(str(tmp_path / name)):
            pass
        assert failure.value.filename == str(tmp_path / name)


def test_the_status_of_inputs(tmp_path: Path) -> None:
    own, _ = streams(b"")
    inputs = Inputs(own, [])
    assert os.path.samestat(inputs.status(str(tmp_path)), tmp_path.stat())
    own.stdin = None
    with pytest.raises(ValueError, match="closed"):
        inputs.status("-")
