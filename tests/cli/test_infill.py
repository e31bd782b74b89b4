"""`zonkey infill`: bytes outside the gaps stay, files are replaced safely."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import subprocess
import termios
from pathlib import Path

import pytest

from tests.cli.test_terminal import on_terminal, read_all
from tests.conftest import Zonkey

QUICK = ("--steps", "2", "--candidates", "1", "--seed", "5")
BEFORE, BETWEEN, AFTER = b"The town \xff of ", "é\r\n has a ".encode(), b" and no__more.\0\n"
TEXT = BEFORE + b"___" + BETWEEN + b"_____" + AFTER


def pieces_outside(result: bytes) -> bool:
    """Whether `result` is `TEXT` with something in place of its two gaps."""
    inner = result.removeprefix(BEFORE).removesuffix(AFTER)
    return len(inner) == len(result) - len(BEFORE) - len(AFTER) and BETWEEN in inner


def test_every_byte_outside_the_gaps_stays(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, stdin=TEXT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout != TEXT
    assert pieces_outside(done.stdout)


def test_json_tells_what_went_where(zonkey: Zonkey, tiny_model: Path) -> None:
    path = zonkey.folder / "text"
    path.write_bytes(TEXT)
    filled = zonkey.run("infill", "-m", tiny_model, *QUICK, path).stdout
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, "--json", path)
    assert (done.returncode, done.stderr) == (0, b"")
    told = json.loads(done.stdout)
    assert told["file"] == str(path)
    assert [TEXT[fill["start"] : fill["end"]] for fill in told["fills"]] == [b"___", b"_____"]
    first, second = (fill["text"] for fill in told["fills"])
    whole = BEFORE + first.encode() + BETWEEN + second.encode() + AFTER
    assert whole.decode("utf-8", "replace") == filled.decode("utf-8", "replace")
    assert all(isinstance(fill["score"], float) for fill in told["fills"])


def test_a_text_without_end_is_refused(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, "/dev/zero")
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line == "zonkey: /dev/zero: longer than 268,435,456 bytes, which is the most that is held at once; divide it"


def test_another_mask(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, "--mask", "[?]", stdin=b"An ___ is a [?] here.\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"An ___ is a ")
    assert done.stdout.endswith(b" here.\n")
    assert b"[?]" not in done.stdout


def test_in_place_with_and_without_a_copy(zonkey: Zonkey, tiny_model: Path) -> None:
    plain, kept, without = (zonkey.folder / name for name in ("plain", "kept", "without"))
    for path in (plain, kept):
        path.write_bytes(TEXT)
        path.chmod(0o600)
    without.write_bytes(b"no gap\n")
    before = without.stat()
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, "-qi", plain, without)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, "-i.orig", kept)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert pieces_outside(plain.read_bytes())
    assert plain.read_bytes() == kept.read_bytes() != TEXT
    assert (zonkey.folder / "kept.orig").read_bytes() == TEXT
    assert plain.stat().st_mode & 0o777 == 0o600
    assert (without.stat().st_ino, without.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in zonkey.folder.iterdir()) == ["kept", "kept.orig", "plain", "without"]


def test_no_gap_is_nothing_to_do(zonkey: Zonkey) -> None:
    (zonkey.folder / "empty").touch()
    done = zonkey.run("infill", "-", "empty", stdin=b"No gap here, only __ two.\n")
    assert (done.returncode, done.stdout) == (1, b"No gap here, only __ two.\n")
    assert done.stderr.decode().splitlines() == ["no gap found; mark one with ___"]


def test_failing_files_are_named_and_the_rest_goes_on(zonkey: Zonkey, tiny_model: Path) -> None:
    path = zonkey.folder / "text"
    path.write_bytes(TEXT)
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, "none", zonkey.folder, path)
    assert done.returncode == 1
    assert pieces_outside(done.stdout)
    assert done.stderr.decode().splitlines() == [
        "zonkey: none: No such file or directory", f"zonkey: {zonkey.folder}: Is a directory",
    ]


def test_a_suffix_cannot_lead_elsewhere(zonkey: Zonkey) -> None:
    done = zonkey.run("infill", "-i/../x", "text")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'/../x' holds a '/'" in done.stderr


def test_candidates_are_listed_the_best_first(zonkey: Zonkey, tiny_model: Path) -> None:
    options = ("--steps", "2", "-k", "4", "--seed", "5")
    listed = zonkey.run("infill", "-m", tiny_model, *options, "--all", stdin=TEXT)
    told = json.loads(zonkey.run("infill", "-m", tiny_model, *options, "--json", stdin=TEXT).stdout)
    assert (listed.returncode, listed.stderr) == (0, b"")
    lines = [line.split(b"\t") for line in listed.stdout.splitlines()]
    expected = [(fill["start"], each) for fill in told["fills"] for each in fill["candidates"]]
    assert len(lines) == len(expected) >= len(told["fills"]) == 2 and all(len(line) == 3 for line in lines)
    for (start, score, text), (offset, each) in zip(lines, expected, strict=True):
        assert int(start) == offset and float(score) == pytest.approx(each["score"], abs=1e-3)
        assert each["log_prob"] < 0
        assert text.decode(errors="replace") == each["text"] or not each["text"].isprintable(), "the rest is escaped"
    for fill in told["fills"]:
        scores = [each["score"] for each in fill["candidates"]]
        assert scores == sorted(scores, reverse=True) and fill["text"] == fill["candidates"][0]["text"]


def test_a_diff_is_what_git_applies(zonkey: Zonkey, tiny_model: Path) -> None:
    path = zonkey.folder / "a text"
    path.write_bytes(b"one\n" * 9 + TEXT + b"two\n" * 9 + b"and ___ so")
    filled = zonkey.run("infill", "-m", tiny_model, *QUICK, path.name).stdout
    diff = zonkey.run("infill", "-m", tiny_model, *QUICK, "--diff", path.name)
    assert (diff.returncode, diff.stderr) == (0, b"")
    assert diff.stdout.startswith(b"--- a/a text\n+++ b/a text\n@@ ") and diff.stdout.count(b"\n@@ ") == 2
    done = subprocess.run(["git", "apply", "-"], input=diff.stdout, cwd=zonkey.folder, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == filled


def test_masks_by_regular_expression(zonkey: Zonkey, tiny_model: Path) -> None:
    text = b"A <gap/> or <hole />.\n"
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, "--mask-regex", r"<(gap|hole)\s?/>|q*", stdin=text)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"A ") and done.stdout.endswith(b".\n") and b"<" not in done.stdout
    done = zonkey.run("infill", "--mask-regex", "x*", stdin=b"none\n")
    assert (done.returncode, done.stdout) == (1, b"none\n")
    assert done.stderr == b"no gap found; --mask-regex x* matches nothing\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mask-regex", "(a"), "Invalid value for '--mask-regex': '(a': missing ), unterminated subpattern"),
        (("--mask-regex", "a{99999999999}"), "Invalid value for '--mask-regex'"),
        (("--mask-regex", ""), "Invalid value for '--mask-regex': a mask needs at least one character."),
        (("--mask", "a", "--mask-regex", "b"), "--mask and --mask-regex exclude each other."),
        (("--json", "--all"), "--json and --all exclude each other."),
        (("--all", "--interactive"), "--all and --interactive exclude each other."),
        (("--min-bytes", "9", "--max-bytes", "3"), "Invalid value for '--max-bytes': it is less than --min-bytes 9."),
        (("--interactive",), "--interactive asks at a terminal, and there is none."),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_options_are_named(zonkey: Zonkey, options: tuple[str, ...], message: str) -> None:
    done = zonkey.run("infill", *options, stdin=b"a ___ b", start_new_session=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr.decode()


def test_a_gap_that_cannot_be_filled_stays(zonkey: Zonkey, tiny_model: Path) -> None:
    path = zonkey.folder / "text"
    path.write_bytes(TEXT)
    before = path.stat()
    bounds = ("--min-bytes", "9000")
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, *bounds, path)
    assert (done.returncode, done.stdout) == (1, TEXT)
    first, second = (TEXT.index(mask, begin) for mask, begin in ((b"___", 0), (b"_____", len(BEFORE) + 3)))
    expected = f"zonkey: {path}: no fill of the length asked for at byte {first}, {second};"
    assert done.stderr.decode().startswith(expected)
    done = zonkey.run("infill", "-m", tiny_model, *QUICK, *bounds, "-i", path)
    assert (done.returncode, path.read_bytes()) == (1, TEXT)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    told = json.loads(zonkey.run("infill", "-m", tiny_model, *QUICK, *bounds, "--json", path).stdout)
    assert [fill["text"] for fill in told["fills"]] == [None, None]


def test_fills_have_the_bytes_that_are_allowed(zonkey: Zonkey, tiny_model: Path) -> None:
    bounds = ("--min-bytes", "6", "--max-bytes", "40")
    done = zonkey.run("infill", "-m", tiny_model, "--seed", "1", *bounds, "--all", stdin=TEXT)
    sizes = [len(re.sub(rb"\\(.)", rb"\1", line.split(b"\t")[2])) for line in done.stdout.splitlines()]
    assert sizes and all(6 <= size <= 40 for size in sizes)


def test_fills_are_green_on_a_terminal(zonkey: Zonkey, tiny_model: Path) -> None:
    text = b"The town \x1b[2J of ___ lies.\n"
    seen = on_terminal(zonkey, "stdout", "infill", "-m", tiny_model, *QUICK, stdin=text)
    assert re.fullmatch(rb"The town \xef\xbf\xbd\[2J of \x1b\[32m[^\x1b]*\x1b\[0m lies\.\n", seen, re.DOTALL)
    plain = on_terminal(zonkey, "stdout", "infill", "-m", tiny_model, *QUICK, stdin=text, NO_COLOR="1")
    assert plain == re.sub(rb"\x1b\[\d+m", b"", seen)


def answered(zonkey: Zonkey, answers: bytes, *arguments: str | Path, stdin: bytes) -> tuple[int, bytes, bytes]:
    """Exit status, standard output and what a terminal shows of a process that is controlled from it."""
    near, far = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(far, termios.TIOCSCTTY, 0)

    process = zonkey.start(*arguments, preexec_fn=take_terminal)
    os.close(far)
    os.write(near, answers)
    output, errors = process.communicate(stdin, timeout=120)
    assert errors == b""
    return process.returncode, output, read_all(near)


def test_gaps_are_decided_one_by_one_at_the_terminal_while_text_comes_by_pipe(zonkey: Zonkey, tiny_model: Path) -> None:
    options = ("infill", "-m", tiny_model, "--steps", "2", "-k", "3", "--seed", "5", "-q", "--interactive")
    code, output, shown = answered(zonkey, b"t\nmine\ns\nu\nt\nyours\ny\n", *options, stdin=TEXT)
    assert (code, output) == (0, BEFORE + b"mine" + BETWEEN + b"yours" + AFTER)
    assert b"1/2" in shown and b"2/2" in shown and b"write 2 of 2?" in shown
    code, output, _ = answered(zonkey, b"\x04", *options, stdin=TEXT)
    assert (code, output) == (1, TEXT)


def test_nothing_is_written_before_the_last_answer(zonkey: Zonkey, tiny_model: Path) -> None:
    path = zonkey.folder / "text"
    path.write_bytes(TEXT)
    options = ("infill", "-m", tiny_model, "--steps", "2", "-k", "2", "-q", "--interactive", "-i", path)
    assert answered(zonkey, b"t\nmine\nq\nn\n", *options, stdin=b"")[:2] == (1, b"")
    assert path.read_bytes() == TEXT
    assert answered(zonkey, b"t\nmine\nq\ny\n", *options, stdin=b"")[:2] == (0, b"")
    assert path.read_bytes() == BEFORE + b"mine" + BETWEEN + b"_____" + AFTER
