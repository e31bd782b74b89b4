"""Checkpoints: whole after a crash at any moment, refused with one line where damaged, and never pickled."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT, clean_environment
from tests.model_helpers import few, normal, small_model
from tests.training_helpers import SAMPLE, Run, small_config
from zonkey_core import checkpoint
from zonkey_core.checkpoint import (
    CONFIG,
    MODEL,
    OPTIMIZER,
    TRAINING,
    describe,
    file_path,
    load_model,
    pack_tensors,
    read_model_card,
    read_tensors,
    write_files,
)
from zonkey_core.errors import CheckpointError, ZonkeyError

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
        for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (Path, "mkdir")):
            self._watch(patch, owner, name)
        opened = Path.open

        def open_watched(path: Path, mode: str = "r", **options: Any) -> Any:
            if "w" not in mode:
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


def written(folder: Path, files: dict[str, bytes], crash_at: int | None) -> tuple[bool, int]:
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


# What is in the files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint from the middle of a run; it must not be changed."""
    run = Run(tmp_path_factory.mktemp("checkpoint") / "model")
    run.train(small_config(1), steps=40, stop_at=2)
    return run.out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """One to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


def test_the_files_are_json_and_safetensors(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {CONFIG, MODEL, TRAINING, OPTIMIZER, "metrics.jsonl"}
    for path in trained.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), "neither a pickle nor an archive of them"
        if path.suffix == ".safetensors":
            size = int.from_bytes(content[:8], "little")
            assert all("dtype" in entry for key, entry in json.loads(content[8 : 8 + size]).items() if key[:2] != "__")
        elif path.suffix == ".json":
            json.loads(content)


def test_weights_are_kept_in_half_and_used_in_full(trained: Path) -> None:
    assert {tensor.dtype for tensor in read_tensors(trained, MODEL).values()} == {torch.float16}
    model = load_model(trained)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())
    for name, tensor in read_tensors(trained, MODEL).items():
        assert torch.equal(model.state_dict()[name], tensor.float())


def test_tensors_come_back() -> None:
    tensors = {
        "transposed": normal(3, 4, seed=1, dtype=torch.float32).T, "scalar": torch.tensor(2.5),
        "whole": torch.arange(5), "none": torch.zeros(0, 3),
    }
    from safetensors.torch import load

    for half in (False, True):
        found = load(pack_tensors(tensors, half=half))
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            expected = tensor.half() if half and tensor.is_floating_point() else tensor
            assert found[name].dtype == expected.dtype and torch.equal(found[name], expected)


def test_a_card_is_read_without_weights(trained: Path, copy: Path) -> None:
    (copy / MODEL).unlink()
    (copy / OPTIMIZER).unlink()
    card = read_model_card(copy)
    assert card == read_model_card(trained)
    assert card.config == small_config(1) and card.training is not None and card.training.steps == 2
    (copy / TRAINING).unlink()
    assert read_model_card(copy).training is None


def message(action: Callable[[], object], *names: str | Path) -> str:
    """The one line of the error, which names what is at fault."""
    with pytest.raises(CheckpointError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text and all(str(name) in text for name in names), text
    return text


@pytest.mark.parametrize("name", [CONFIG, TRAINING, MODEL])
@pytest.mark.parametrize("spoil", ["cut", "empty", "noise", "folder"])
def test_damaged_files_are_refused(copy: Path, name: str, spoil: str) -> None:
    path = copy / name
    content = path.read_bytes()
    if spoil == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"\xff\x00{" * 50}[spoil])
    message(lambda: load_model(copy), path)


@pytest.mark.parametrize("name", [CONFIG, MODEL])
def test_missing_files_are_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    message(lambda: load_model(copy), copy, name)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "no such model folder" in message(lambda: load_model(tmp_path / "nowhere"), tmp_path / "nowhere")
    assert "not a zonkey model" in message(lambda: load_model(tmp_path), tmp_path, CONFIG)
    (tmp_path / "file").write_text("")
    message(lambda: load_model(tmp_path / "file"), tmp_path / "file")


def test_a_newer_format_is_refused(copy: Path) -> None:
    tree = json.loads((copy / CONFIG).read_bytes())
    (copy / CONFIG).write_text(json.dumps(tree | {"format": checkpoint.FORMAT + 1}))
    assert "update zonkey" in message(lambda: load_model(copy), copy)


@pytest.mark.parametrize(
    "change",
    [
        {"format": None}, {"format": "1"}, {"config": None}, {"config": {}}, {"config": {"model": {"levels": []}}},
        {"parameters": None}, {"parameters": "many"}, {"config": {"model": {"levels": [{"width": 63}]}}},
        {"config": {"model": {"levels": [{"heads": 0}]}}}, {"config": {"model": {"levels": [{"window": -3}]}}},
        {"config": {"model": {"levels": [{"wide": 3}]}}},
    ],
    ids=str,
)
def test_a_description_that_makes_no_sense_is_refused(copy: Path, change: dict[str, Any]) -> None:
    tree = json.loads((copy / CONFIG).read_bytes())
    (copy / CONFIG).write_text(json.dumps(tree | change))
    message(lambda: load_model(copy), copy)
    (copy / CONFIG).write_text(json.dumps([tree]))
    message(lambda: load_model(copy), copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    other = small_model(1, width=32)
    (copy / MODEL).write_bytes(pack_tensors(other.state_dict(), half=True))
    assert "do not fit" in message(lambda: load_model(copy), copy / MODEL)
    tensors = read_tensors(copy, OPTIMIZER)
    (copy / MODEL).write_bytes(pack_tensors(tensors))
    assert "do not fit" in message(lambda: load_model(copy), copy / MODEL)
    (copy / CONFIG).write_bytes(describe(small_config(2), 1))
    message(lambda: load_model(copy), copy / MODEL)


@pytest.mark.parametrize("name", [CONFIG, MODEL, OPTIMIZER, TRAINING])
def test_any_damage_is_an_error_of_ours(trained: Path, tmp_path: Path, name: str) -> None:
    """Bytes changed, lost or doubled anywhere: the model loads and resuming works, or one line says why not."""
    content = (trained / name).read_bytes()
    head = min(len(content), 4000)
    numbers = itertools.count()

    @settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
    @given(st.integers(0, head - 1), st.binary(max_size=3), st.integers(0, 20))
    def check(place: int, new: bytes, lost: int) -> None:
        folder = tmp_path / f"{next(numbers)}"
        shutil.copytree(trained, folder)
        (folder / name).write_bytes(content[:place] + new + content[place + lost :])
        for action in (lambda: load_model(folder), lambda: Run(folder).resume(stop_at=0)):
            try:
                action()
            except ZonkeyError as error:
                assert "\n" not in str(error)
        shutil.rmtree(folder)

    check()


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
    options = TrainingOptions(out=str(out), steps=int(sys.argv[2]), device="cpu", checkpoint_minutes=0.0)
    result = train(small_config(), SAMPLE, options, **quiet)
print(result.steps, result.stopped)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_survives_being_killed(tmp_path: Path) -> None:
    """A run that saves after every step is killed at random moments and always goes on, to the very same end."""
    chance = random.Random(5)
    out, steps = tmp_path / "model", 120

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
