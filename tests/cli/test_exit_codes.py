"""Every way to end has its exit code, and none shows a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Feeder, Zonkey


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def run_into_closed_pipe(zonkey: Zonkey, *arguments: str | Path, stdin: bytes = b"") -> tuple[int, bytes]:
    writer = closed_pipe()
    done = zonkey.run(*arguments, stdin=stdin, stdout=writer)
    os.close(writer)
    return done.returncode, done.stderr


def test_no_command_is_a_usage_error_that_shows_the_help(zonkey: Zonkey) -> None:
    done = zonkey.run()
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Usage: zonkey" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segmnt"], "No such command 'segmnt'"),
        (["segment", "--lvel", "1"], "No such option"),
        (["segment", "--level", "x"], "'x' is not a valid integer"),
        (["segment", "--json", "--null"], "--json and --null exclude each other"),
        (["segment", "--undo", "--json"], "--json cannot be used with --undo"),
        (["generate", "-n", "0"], "0 is not in the range"),
        (["infill", "-i"], "--in-place needs files"),
        (["train", "--preset", "huge"], "'huge' is not one of"),
        (["train", "--resume", "--preset", "tiny"], "--preset cannot be used with --resume"),
    ],
)
def test_usage_errors(zonkey: Zonkey, arguments: list[str], message: str) -> None:
    done = zonkey.run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("zonkey: ")
    assert message in lines[0]
    assert lines[1].startswith("Try 'zonkey")


def test_unknown_model_is_one_line_that_names_the_known(zonkey: Zonkey) -> None:
    for arguments in (["segment", "-m", "nope"], ["info", "nope"], ["generate", "--model", "nope"]):
        done = zonkey.run(*arguments)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.decode().splitlines() == [
            "zonkey: unknown model 'nope'; give the folder of a model or one of: bundled"
        ]


def test_closed_pipe_is_a_quiet_zero_for_help(zonkey: Zonkey) -> None:
    for arguments in (["--help"], ["segment", "--help"]):
        assert run_into_closed_pipe(zonkey, *arguments) == (0, b"")


def test_closed_pipe_is_a_quiet_zero_for_verbs(zonkey: Zonkey, tiny_model: Path) -> None:
    gap = zonkey.folder / "gap.txt"
    gap.write_bytes(b"The ___ of the town.\n")
    for arguments in (
        ["segment", "-m", tiny_model],
        ["segment", "--undo"],
        ["generate", "-m", tiny_model, "--steps", "1", "--max-bytes", "40"],
        ["infill", "-m", tiny_model, "--steps", "1", "--candidates", "1", gap],
        ["info", tiny_model],
    ):
        assert run_into_closed_pipe(zonkey, *arguments, stdin=b"Some words here.\n" * 20) == (0, b""), arguments


def test_reader_that_leaves_early(zonkey: Zonkey, tiny_model: Path) -> None:
    text = zonkey.folder / "long.txt"
    text.write_bytes(b"One line after another goes on and on.\n" * 20_000)
    process = zonkey.start("segment", "-m", tiny_model, text)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(60), errors) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_is_one_line(zonkey: Zonkey, tiny_model: Path) -> None:
    for arguments in (["--help"], ["info", tiny_model], ["segment", "-m", tiny_model], ["segment", "--undo"]):
        with open("/dev/full", "wb") as full:
            done = zonkey.run(*arguments, stdin=b"Some text to write.\n", stdout=full)
        assert done.returncode == 1
        assert done.stderr.decode().splitlines() == ["zonkey: standard output: No space left on device"]


def test_closed_standard_output_is_one_line(zonkey: Zonkey, tiny_model: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *zonkey.command("info", tiny_model)], env=zonkey.environment(),
        cwd=zonkey.folder, stderr=subprocess.PIPE, check=False, timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["zonkey: standard output: Bad file descriptor"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(zonkey: Zonkey, tiny_model: Path, number: signal.Signals, code: int) -> None:
    process = zonkey.start("segment", "-m", tiny_model)
    assert process.stdout is not None
    assert process.stderr is not None
    feeder = Feeder(process, b"These words are here so that the first segments come out.\n" * 4000)
    assert process.stdout.readline()  # at work now, or waiting for more
    process.send_signal(number)
    process.stdout.read()
    errors = process.stderr.read()
    feeder.join()
    assert (process.wait(60), errors) == (code, b"")


def test_unexpected_error_is_one_line_unless_debugged(zonkey: Zonkey) -> None:
    broken = zonkey.folder / "sitecustomize.py"
    broken.write_text(
        "import zonkey_cli.escaping\n"
        "def fail(*arguments, **named):\n    raise RuntimeError('one\\ntwo')\n"
        "zonkey_cli.escaping.undo = fail\n"
    )
    path = os.pathsep.join([str(zonkey.folder), zonkey.environment()["PYTHONPATH"]])
    done = zonkey.run("segment", "--undo", environment={"PYTHONPATH": path})
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["zonkey: unexpected RuntimeError: one two (--debug shows where)"]
    debugged = zonkey.run("segment", "--undo", "--debug", environment={"PYTHONPATH": path})
    assert debugged.returncode == 1
    assert b"Traceback" in debugged.stderr


@pytest.mark.parametrize(("count", "several"), [("1", False), ("2", True), ("many", False), ("", False)])
def test_one_of_several_processes_leaves_without_being_taken_down(count: str, several: bool) -> None:
    code = (
        "import atexit; from zonkey_cli.threads import leave_with_threads; "
        "atexit.register(print, 'taken down'); print('done'); leave_with_threads(3)"
    )
    launched = {"WORLD_SIZE": count, "RANK": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, **launched}, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == ((3, "done\n") if several else (0, "done\ntaken down\n"))
