"""Tensors in parts: put together, reported where they do not make a whole, and never unpickled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.training_helpers import Run, assert_same_tensors, small_config
from zonkey_core.checkpoint import CHECKSUMS, OPTIMIZER, read_tensors
from zonkey_core.committed_files import part_name
from zonkey_core.errors import CheckpointError
from zonkey_core.weight_parts import OFFSETS, join_parts, whole_entries

WHOLE = {
    "matrix": torch.arange(12.0).reshape(4, 3), "vector": torch.arange(5), "scalar": torch.tensor(2.5),
    "none": torch.zeros(0, 3), "alone": torch.ones(2, 2),
}  # fmt: skip


def write_part(path: Path, tensors: dict[str, Tensor], offsets: dict[str, Any], **metadata: str) -> Path:
    """A file as the engine writes it."""
    places = json.dumps({name: {"saved_offsets": each} for name, each in offsets.items()})
    save_file({name: each.contiguous() for name, each in tensors.items()}, path, {OFFSETS: places, **metadata})
    return path


def some_parts(folder: Path, **changes: Any) -> list[Path]:
    """`WHOLE` in two files, the second with other offsets where `changes` says so."""
    first = {"matrix": WHOLE["matrix"][:1], "vector": WHOLE["vector"], "scalar": WHOLE["scalar"], "none": WHOLE["none"]}
    second = {"matrix": WHOLE["matrix"][1:], "alone": WHOLE["alone"], "vector": WHOLE["vector"][:0]}
    offsets = {"matrix": [1, 0], "alone": [0, 0], "vector": [5]}
    return [
        write_part(folder / "1", first, {"matrix": [0, 0], "vector": [0], "scalar": [], "none": [0, 0]}),
        write_part(folder / "2", second, {**offsets, **changes}),
    ]


def test_parts_are_put_together(tmp_path: Path) -> None:
    paths = some_parts(tmp_path)
    assert_same_tensors(join_parts(paths, ("",)), WHOLE)
    assert_same_tensors(join_parts(paths[::-1], ("m", "v")), {name: WHOLE[name] for name in ("matrix", "vector")})
    assert {name: entry.shape for name, entry in whole_entries(paths).items()} == {
        name: tuple(tensor.shape) for name, tensor in WHOLE.items()
    }


@pytest.mark.parametrize("offset", [[0, 0], [2, 0], [1, 1], [1], [], [-1, 0], [1 << 60, 0]], ids=str)
def test_parts_that_do_not_make_a_whole_are_refused(tmp_path: Path, offset: list[int]) -> None:
    """Gaps, overlaps and places outside, before memory is taken for them."""
    for action in (whole_entries, lambda paths: join_parts(paths, ("",))):
        with pytest.raises(ValueError, match=r"the parts of matrix do not make|which rows of matrix"):
            action(some_parts(tmp_path, matrix=offset))


def test_parts_of_different_kinds_are_refused(tmp_path: Path) -> None:
    paths = some_parts(tmp_path)
    for other in (torch.ones(3, 4), torch.ones(3, 3, dtype=torch.float64), torch.tensor(1.0)):
        write_part(paths[1], {"matrix": other}, {"matrix": [1, 0][: other.dim()]})
        with pytest.raises(ValueError, match="the parts of matrix do not make a whole"):
            whole_entries(paths)


@pytest.mark.parametrize("said", ["", "[" * 100_000, '{"matrix": 3}', '{"matrix": {"saved_offsets": ["a"]}}'], ids=len)
def test_places_that_cannot_be_read_are_refused(tmp_path: Path, said: str) -> None:
    save_file({"matrix": WHOLE["matrix"]}, tmp_path / "1", {OFFSETS: said})
    with pytest.raises(ValueError, match="does not say where its parts begin"):
        whole_entries([tmp_path / "1"])


def test_files_that_say_nothing_of_parts_have_whole_tensors(tmp_path: Path) -> None:
    paths = [tmp_path / "1", tmp_path / "2"]
    for path, names in zip(paths, (("matrix", "scalar"), ("vector", "none")), strict=True):
        save_file({name: WHOLE[name] for name in names}, path)
    assert_same_tensors(join_parts(paths, ("",)), {name: each for name, each in WHOLE.items() if name != "alone"})
    save_file({"matrix": WHOLE["matrix"]}, paths[1])
    for action in (whole_entries, lambda paths: join_parts(paths, ("",))):
        with pytest.raises(ValueError, match="the parts of matrix do not make a whole"):
            action(paths)


def in_parts(run: Run, *, rows_first: int) -> None:
    """Let a checkpoint be as of two processes, the first with so many rows of each tensor."""
    tensors = run.tensors()
    (run.out / OPTIMIZER).unlink()
    heads = {name: each[:rows_first] if each.dim() else each for name, each in tensors.items()}
    tails = {name: each[rows_first:] for name, each in tensors.items() if each.dim()}
    for number, part, first in ((1, heads, 0), (2, tails, rows_first)):
        offsets = {name: [first, *[0] * (each.dim() - 1)][: each.dim()] for name, each in part.items()}
        write_part(run.out / part_name(OPTIMIZER, number, 2), part, offsets)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was stopped; it must not be changed."""
    run = Run(tmp_path_factory.mktemp("parts") / "model")
    run.train(small_config(1), steps=8, stage="splitter", stop_at=3)
    return run


def test_a_run_goes_on_from_parts_to_the_same_bits(stopped: Run, tmp_path: Path) -> None:
    whole, parted = (Run(Path(shutil.copytree(stopped.out, tmp_path / name))) for name in ("whole", "parted"))
    in_parts(parted, rows_first=3)
    assert_same_tensors(parted.tensors(), stopped.tensors())
    for run in (whole, parted):
        assert run.resume().steps == 8
    assert_same_tensors(parted.tensors(), whole.tensors())
    assert {path.name for path in parted.out.iterdir()} == {path.name for path in whole.out.iterdir()}


def test_faults_of_parts_are_a_line(stopped: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(stopped.out, tmp_path / "model")))
    in_parts(run, rows_first=3)
    second = run.out / part_name(OPTIMIZER, 2, 2)
    content = second.read_bytes()
    for spoil, said in (
        (lambda: second.write_bytes(content[:-5]), "overlap, leave gaps"),
        (lambda: second.write_bytes(b"\x80\x04pickle"), "header"),
        (lambda: (second.unlink(), second.mkdir()), "directory"),
        (lambda: second.rmdir(), "not all of its parts are there"),
    ):
        spoil()
        with pytest.raises(CheckpointError, match=said) as caught:
            run.resume()
        assert "\n" not in str(caught.value)


def test_parts_of_which_the_last_is_missing_by_its_name_too_do_not_fit(stopped: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(stopped.out, tmp_path / "model")))
    in_parts(run, rows_first=3)
    (run.out / CHECKSUMS).unlink()
    (run.out / part_name(OPTIMIZER, 2, 2)).unlink()
    (run.out / part_name(OPTIMIZER, 1, 2)).rename(run.out / part_name(OPTIMIZER, 1, 1))
    with pytest.raises(CheckpointError, match="do not fit the configuration"):
        run.resume()
    assert read_tensors(run.out, OPTIMIZER).keys() == stopped.tensors().keys()
