"""`zonkey infill`: bytes outside the gaps stay, files are replaced safely."""

from __future__ import annotations

import json
from pathlib import Path

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
