"""A released model beyond the size of one file: written in several with an index, read whole, refused when damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Zonkey
from tests.test_hostile_models import every_use, refusal
from tests.training_helpers import Run, assert_same_tensors, seal, small_config
from zonkey_core import checkpoint
from zonkey_core.checkpoint import MODEL, check_weights, kept_steps, load_model, read_tensors
from zonkey_core.committed_files import INDEX, present_files
from zonkey_core.inference.cutting_levels import load_cutting_levels
from zonkey_core.weight_parts import in_shards, tensor_bytes
from zonkey_core.weight_rounding import SCALE

LIMIT = 60_000
BOTH = small_config(2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run, its model in one file and in several."""
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in (("one", checkpoint.SHARD_BYTES), ("several", LIMIT)):
            patch.setattr(checkpoint, "SHARD_BYTES", limit)
            Run(folder / name).train(BOTH, steps=40, stop_at=2, keep=2, save_every=0.0)
    return folder / "one", folder / "several"


@pytest.fixture
def copy(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """The one in several files, to be spoilt."""
    return Path(shutil.copytree(runs[1], tmp_path / "model"))


def shard(folder: Path, number: int = 1) -> Path:
    """One of its files, counted from 0."""
    return folder / present_files(folder, MODEL)[number]


def test_files_are_small_enough_and_the_index_says_where_all_is(runs: tuple[Path, Path]) -> None:
    one, several = runs
    assert present_files(one, MODEL) == [MODEL] and not (one / (MODEL + INDEX)).exists()
    names = present_files(several, MODEL)
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    held = {name: load_file(several / name) for name in names}
    assert all(tensor_bytes(tensors) <= LIMIT or len(tensors) == 1 for tensors in held.values())
    index = json.loads((several / (MODEL + INDEX)).read_bytes())
    assert index["weight_map"] == {tensor: name for name, tensors in held.items() for tensor in tensors}
    assert index["metadata"]["total_size"] == sum(map(tensor_bytes, held.values()))
    assert not (several / MODEL).exists()


def test_a_model_in_several_files_is_the_same_model(runs: tuple[Path, Path]) -> None:
    one, several = runs
    assert_same_tensors(load_model(several).state_dict(), load_model(one).state_dict())
    assert_same_tensors(read_tensors(several, MODEL), read_tensors(one, MODEL))
    check_weights(several)


def test_a_rounded_matrix_and_its_scale_may_stand_in_two_files(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text is cut without torch, which reads the files itself."""
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 1)
    apart = Run(tmp_path / "apart")
    apart.train(BOTH, steps=40, stop_at=2)
    table = "bottom.splitter.ngrams.table"
    where = json.loads((apart.out / (MODEL + INDEX)).read_bytes())["weight_map"]
    assert where[table] != where[table + SCALE]
    text = np.frombuffer(b"The sea is deep and blue, and so is the sky.", dtype=np.uint8)
    found = [load_cutting_levels(folder, level=0)[0].start_probs(text).tolist() for folder in (runs[0], apart.out)]
    assert found[0] == found[1]


def test_earlier_checkpoints_have_all_files_and_others_leave_none(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = runs[1]
    (step, *_) = kept_steps(several)
    kept = several / checkpoint.KEPT / str(step)
    assert present_files(kept, MODEL) == present_files(several, MODEL) and (kept / (MODEL + INDEX)).is_file()
    load_model(kept)
    out = Path(shutil.copytree(several, tmp_path / "model"))
    Run(out).resume(stop_at=1)
    assert present_files(out, MODEL) == [MODEL] and not (out / (MODEL + INDEX)).exists()
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", LIMIT)
    Run(out).resume(stop_at=1)
    assert len(present_files(out, MODEL)) > 2 and not (out / MODEL).exists()
    load_model(out)


def test_training_starts_from_it(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in runs:
        Run(tmp_path / folder.name).train(BOTH, steps=40, stop_at=1, start_from=folder)
    found = [read_tensors(tmp_path / folder.name, MODEL) for folder in runs]
    assert_same_tensors(*found)


def test_every_verb_uses_it(runs: tuple[Path, Path], zonkey: Zonkey, copy: Path) -> None:
    text = b"The sea is deep and blue.\n"
    for arguments in (["segment"], ["segment", "--level", "1"], ["generate", "--max-bytes", "20", "--seed", "1"]):
        outputs = [zonkey.run(*arguments, "--model", str(folder), stdin=text).stdout for folder in runs]
        assert outputs[0] == outputs[1] and outputs[0]
    shown = [zonkey.run("info", str(folder)).stdout.splitlines() for folder in runs]
    assert len(shown[0]) == len(shown[1]) > 5
    path = shard(copy)
    path.write_bytes(path.read_bytes()[:-1] + b"\0" if path.read_bytes()[-1:] != b"\0" else b"\1")
    for arguments in (["segment", "--model", str(copy)], ["info", str(copy)], ["generate", "--model", str(copy)]):
        done = zonkey.run(*arguments, stdin=text)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and str(path).encode() in done.stderr


def spoil_by(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of the index's places, with checksums that fit."""

    def spoil(folder: Path) -> None:
        index = json.loads((folder / (MODEL + INDEX)).read_bytes())
        change(index["weight_map"])
        (folder / (MODEL + INDEX)).write_text(json.dumps(index))

    return spoil


def change_tensors(change: Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A change of the tensors of two of the files."""

    def spoil(folder: Path) -> None:
        (folder / (MODEL + INDEX)).unlink()
        paths = shard(folder, 0), shard(folder, 1)
        first, second = ({name: each.clone() for name, each in load_file(path).items()} for path in paths)
        change(first, second)
        for path, tensors in zip(paths, (first, second), strict=True):
            save_file(tensors, path)

    return spoil


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in place of a file."""

    def spoil(folder: Path) -> None:
        path = shard(folder)
        path.unlink()
        make(path)

    return spoil


SPOILT: dict[str, Callable[[Path], None]] = {
    "missing": lambda folder: shard(folder).unlink(),
    "pipe": replace_by(os.mkfifo),
    "folder": replace_by(lambda path: path.mkdir()),
    "device": replace_by(lambda path: path.symlink_to("/dev/zero")),
    "empty": replace_by(lambda path: path.write_bytes(b"")),
    "half": lambda folder: os.truncate(shard(folder), shard(folder).stat().st_size // 2),
    "index names a file outside": spoil_by(lambda places: places.update(dict.fromkeys(places, "../../etc/passwd"))),
    "index names another file": spoil_by(lambda places: places.update({next(iter(places)): places.popitem()[1]})),
    "index lacks a tensor": spoil_by(lambda places: places.popitem()),
    "index is no index": lambda folder: (folder / (MODEL + INDEX)).write_text("[7]") and None,
    "index is a pipe": lambda folder: ((folder / (MODEL + INDEX)).unlink(), os.mkfifo(folder / (MODEL + INDEX)))[0],
    "a tensor twice": change_tensors(lambda first, second: second.update([next(iter(first.items()))])),
    "a tensor nowhere": change_tensors(lambda first, second: second.popitem()),
    "a tensor of another shape": change_tensors(lambda first, _: first.update({next(iter(first)): torch.zeros(3)})),
    "no number": change_tensors(
        lambda first, _: first.update({n: t + float("nan") for n, t in first.items() if t.is_floating_point()})
    ),
}


@pytest.mark.parametrize("sealed", [False, True], ids=["checksums of before", "checksums that fit"])
@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_damaged_is_refused_in_a_line(copy: Path, kind: str, sealed: bool) -> None:
    shutil.rmtree(copy / checkpoint.KEPT)
    SPOILT[kind](copy)
    if sealed and kind not in ("missing", "pipe", "folder", "device", "index is a pipe"):
        seal(copy)
    uses = every_use(copy)
    if kind not in ("a tensor nowhere", "a tensor of another shape"):  # which the configuration alone tells
        uses.append(lambda: check_weights(copy))
    for use in uses:
        assert str(copy) in refusal(use)


def test_tensors_are_divided_in_their_order() -> None:
    tensors = {name: torch.zeros(size, dtype=torch.uint8) for name, size in zip("abcde", (3, 3, 9, 1, 2), strict=True)}
    divided = in_shards(tensors, 6, MODEL)
    assert [list(each) for each in divided.values()] == [["a", "b"], ["c"], ["d", "e"]]
    assert list(divided) == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert {name: list(each) for name, each in in_shards(tensors, 100, MODEL).items()} == {MODEL: list("abcde")}
    assert in_shards({}, 6, MODEL) == {MODEL: {}}
