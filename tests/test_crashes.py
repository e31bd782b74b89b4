"""A checkpoint is whole after a crash at any moment, in the middle of a write or of a run."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import kills
from tests.conftest import ROOT, clean_environment
from tests.training_helpers import SAMPLE, Run, small_config
from zonkey_core.checkpoint import CONFIG, MODEL, OPTIMIZER, TRAINING, load_model, read_model_card
from zonkey_core.committed_files import ReadyFile, file_path, part_name, present_files, write_files

OLD = {"a.json": b"old a", "b.bin": b"old b" * 1000, "c": b"old c"}
NEW = {"a.json": b"new a, and longer", "b.bin": b"", "c": b"new c"}
NEWEST = {name: content + b"!" for name, content in NEW.items()}


class Crash(BaseException):
    """Stands for the loss of power; no handler of errors sees it."""


def read_all(folder: Path) -> dict[str, bytes | None]:
    """What a reader finds."""
    paths = {name: file_path(folder, name) for name in OLD}
    return {name: path.read_bytes() if path.exists() else None for name, path in paths.items()}


class Operations:
    """Counts what `write_files` does to files, and crashes before the operation of a given number, or half way."""

    def __init__(self, patch: pytest.MonkeyPatch, crash_at: int | None) -> None:
        self.count = 0
        self.crash_at = crash_at
        for owner, name in ((os, "replace"), (Path, "unlink"), (Path, "mkdir")):
            self._watch(patch, owner, name)
        patch.setattr(os, "fsync", lambda descriptor: self.step())
        opened = Path.open

        def open_watched(path: Path, mode: str = "r", **options: Any) -> Any:
            if mode not in ("wb", "xb"):
                return opened(path, mode, **options)
            self.step()
            file = opened(path, mode, **options)
            write = file.write

            class Writer:
                """The file, but a crash while writing leaves the first half."""

                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *error: object) -> None:
                    file.close()

                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

                @staticmethod
                def write(content: bytes) -> int:
                    try:
                        operations.step()
                    except Crash:
                        write(content[: len(content) // 2])
                        raise
                    return int(write(content))

            operations = self
            return Writer()

        patch.setattr(Path, "open", open_watched)

    def _watch(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        sound = getattr(owner, name)

        def watched(*given: Any, **options: Any) -> Any:
            self.step()
            return sound(*given, **options)

        patch.setattr(owner, name, watched)

    def step(self) -> None:
        if self.count == self.crash_at:
            raise Crash
        self.count += 1


def written(folder: Path, files: Mapping[str, bytes | ReadyFile], crash_at: int | None) -> tuple[bool, int]:
    """Write files and crash; whether it came to that, and how many operations there were."""
    with pytest.MonkeyPatch.context() as patch:
        operations = Operations(patch, crash_at)
        try:
            write_files(folder, files)
        except Crash:
            return True, operations.count
        return False, operations.count


def every_crash(folder: Path, prepare: Callable[[Path], None]) -> Iterator[tuple[Path, int]]:
    """Folders in which a write of `NEW` was cut off at each of its operations."""
    for number in itertools.count():
        place = folder / str(number)
        prepare(place)
        crashed, _ = written(place, NEW, number)
        if not crashed:
            assert read_all(place) == NEW and number > 10
            return
        yield place, number


@pytest.mark.parametrize("before", [OLD, {}], ids=["over another", "the first"])
def test_a_crash_leaves_the_old_or_the_new(tmp_path: Path, before: dict[str, bytes]) -> None:
    old = {name: before.get(name) for name in OLD}
    states = []
    for place, _ in every_crash(tmp_path, lambda place: write_files(place, before) if before else None):
        found = read_all(place)
        assert found in (old, NEW)
        states.append(found == NEW)
        assert read_all(place) == found, "reading changes nothing"
        write_files(place, NEWEST)
        assert read_all(place) == NEWEST
        assert not [path for path in place.iterdir() if path.name.endswith((".next", ".committed"))]
    assert states == sorted(states) and {False, True} == set(states), "once new, always new"


def test_a_crash_while_mending_a_crash(tmp_path: Path) -> None:
    """A write that begins by completing another may be cut off anywhere, too."""
    for place, first in every_crash(tmp_path / "first", lambda place: write_files(place, OLD)):
        seen = read_all(place)
        for second in itertools.count():
            again = tmp_path / "second" / f"{first}-{second}"
            shutil.copytree(place, again)
            crashed, _ = written(again, NEWEST, second)
            assert read_all(again) in (seen, NEWEST)
            if not crashed:
                break
        assert read_all(again) == NEWEST


@pytest.mark.parametrize("to_parts", [True, False], ids=["to parts", "from parts"])
def test_a_crash_leaves_a_file_or_its_parts(tmp_path: Path, to_parts: bool) -> None:
    """What replaces a file by parts that lie ready, or parts by a file or fewer parts, is there as a whole, too."""
    parts = {part_name("b.bin", number, 2): b"part %d" % number for number in (1, 2)}
    old, new = {"a": b"old", "b.bin": b"old b"}, {"a": b"new", **parts}
    if not to_parts:
        old, new = new, old

    def seen(place: Path) -> dict[str, bytes]:
        names = ["a", *present_files(place, "b.bin")]
        return {name: file_path(place, name).read_bytes() for name in names}

    states = []
    for number in itertools.count():
        place = tmp_path / str(number)
        write_files(place, old)
        (place / "ready").mkdir()
        files: dict[str, bytes | ReadyFile] = {}
        for name, content in new.items():
            (place / "ready" / name).write_bytes(content)
            ready = to_parts and name in parts
            files[name] = ReadyFile(place / "ready" / name, zlib.crc32(content)) if ready else content
        crashed, _ = written(place, files, number)
        assert seen(place) in (old, new)
        states.append(seen(place) == new)
        if not crashed:
            break
        write_files(place, {"a": b"newest", "b.bin": b"newest b"})
        assert {path.name for path in place.iterdir()} == {"a", "b.bin", "ready"}
    assert number > 10 and states == sorted(states) and {False, True} == set(states)


def test_an_error_while_writing_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, OLD)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_files(tmp_path, NEW)
    assert read_all(tmp_path) == OLD
    write_files(tmp_path, NEW)
    assert read_all(tmp_path) == NEW
    assert {path.name for path in tmp_path.iterdir()} == set(NEW)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_files(tmp_path, {"a.json": b"1"})
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "a.json"}


# Killed


SCRIPT = """
import sys
from pathlib import Path
from tests.training_helpers import SAMPLE, small_config
from zonkey_core.training import TrainingOptions, resume, train

out = Path(sys.argv[1])
quiet = dict(on_event=lambda event: None, should_stop=lambda: False)
if (out / "config.json").exists() or (out / ".committed").exists():
    result = resume(out, **quiet)
else:
    options = TrainingOptions(out=str(out), steps=int(sys.argv[2]), device="cpu", save_every=0.0)
    result = train(small_config(), SAMPLE, options, **quiet)
print(result.steps, result.stopped)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_survives_being_killed(tmp_path: Path) -> None:
    """A run that saves after every step is killed at random moments and always goes on, to the very same end."""
    chance = random.Random(5)
    out, steps = tmp_path / "model", 60

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(out), str(steps)], cwd=ROOT, env=clean_environment(tmp_path),
            stdout=subprocess.PIPE,
        )

    reached = [0]
    for _ in range(6):
        process = start()
        deadline = time.monotonic() + 60
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        before = (out / OPTIMIZER).stat().st_mtime_ns if (out / OPTIMIZER).exists() else 0
        while time.monotonic() < deadline and process.poll() is None:
            if (out / OPTIMIZER).exists() and (out / OPTIMIZER).stat().st_mtime_ns != before:
                break
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if file_path(out, CONFIG).exists():
            load_model(out)
            card = read_model_card(out)
            assert card.training is not None and card.training.steps >= reached[-1]
            reached.append(card.training.steps)
    assert len(reached) > 3 and reached[-1] > reached[1]
    process = start()
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and printed.split() == [str(steps).encode(), b"False"]
    straight = Run(tmp_path / "straight")
    assert straight.train(small_config(), spec=SAMPLE, steps=steps).steps == steps
    assert (out / MODEL).read_bytes() == (straight.out / MODEL).read_bytes()
    record = msgspec.json.decode((out / TRAINING).read_bytes())
    assert record["steps"] == steps


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kill_while_a_run_starts_changes_nothing(tmp_path: Path) -> None:
    """Killed while it imports, reads and takes its first steps, or takes up a run; the next start goes on."""
    moments = (0.4, 1.2, 2.0)
    out, begun = tmp_path / "model", Run(tmp_path / "begun")
    for seconds in moments:
        assert kills.killed(kills.command(out, 60), seconds)
        if file_path(out, CONFIG).exists():
            load_model(out)
    assert not kills.killed(kills.command(out, 60), 200), "it comes to its end"
    assert load_model(out) is not None
    begun.train(small_config(), steps=40, stop_at=2)
    before = kills.checkpoint(begun.out)
    for seconds in moments:
        assert kills.killed(kills.command(begun.out, 40), seconds)
        assert kills.checkpoint(begun.out) == before
    assert begun.resume(stop_at=4).steps > 2
