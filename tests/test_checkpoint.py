"""Checkpoints: what they hold, that nothing is pickled, and that damage is refused with one line."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model_helpers import few, normal, small_model
from tests.training_helpers import Run, seal, small_config
from zonkey_core import checkpoint
from zonkey_core.checkpoint import (
    CHECKSUMS,
    CONFIG,
    MODEL,
    OPTIMIZER,
    TRAINING,
    describe,
    load_model,
    pack_tensors,
    read_model_card,
    read_tensors,
)
from zonkey_core.errors import CheckpointError, ZonkeyError
from zonkey_core.weight_rounding import SCALE
from zonkey_core.weights_file import read_weights_header


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint from the middle of a run; it must not be changed."""
    run = Run(tmp_path_factory.mktemp("checkpoint") / "model")
    run.train(small_config(1), steps=40, stop_at=2, keep=1)
    return run.out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """One to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


def test_the_files_are_json_and_safetensors(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        CONFIG, MODEL, TRAINING, OPTIMIZER, CHECKSUMS, "metrics.jsonl"
    }
    for path in trained.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), "neither a pickle nor an archive of them"
        if path.suffix == ".safetensors":
            size = int.from_bytes(content[:8], "little")
            assert all("dtype" in entry for key, entry in json.loads(content[8 : 8 + size]).items() if key[:2] != "__")
        elif path.suffix == ".json":
            json.loads(content)


def test_weights_are_kept_in_few_bytes_and_used_in_full(trained: Path) -> None:
    kept = read_tensors(trained, MODEL)
    strings = {
        "bottom.vocabulary.strings": torch.uint8,
        "bottom.vocabulary.lengths": torch.int16,
        "bottom.splitter.ngrams.owners": torch.uint8,
        "bottom.splitter.ngrams.stand_ins": torch.int64,
    }
    header = read_weights_header(trained / MODEL)
    rounded = [name for name in kept if name + SCALE in header]
    kinds = dict.fromkeys(kept, torch.float16) | strings | dict.fromkeys(rounded, torch.float32)
    assert rounded and {name: tensor.dtype for name, tensor in kept.items()} == kinds
    assert {header[name].dtype for name in rounded} == {"I8"}
    model = load_model(trained)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == strings.get(name, torch.float32)
        assert torch.equal(tensor, kept[name].to(tensor.dtype))


def test_a_part_of_the_weights_can_be_read_alone(trained: Path) -> None:
    whole = load_model(trained)
    part = load_model(trained, prefixes=("bottom.splitter.", "bottom.embedding."))
    for name, tensor in part.state_dict().items():
        read = name.startswith(("bottom.splitter.", "bottom.embedding."))
        assert tensor.is_meta != read
        assert not read or torch.equal(tensor, whole.state_dict()[name])
    assert read_tensors(trained, MODEL, ("bottom.splitter.",)).keys() < read_tensors(trained, MODEL).keys()


def test_loading_draws_no_numbers_and_loads_no_compiler(trained: Path) -> None:
    program = (
        "import sys, pathlib, torch\n"
        "from zonkey_core.checkpoint import load_model\n"
        "before = torch.get_rng_state()\n"
        "load_model(pathlib.Path(sys.argv[1]))\n"
        "assert torch.equal(torch.get_rng_state(), before)\n"
        "assert 'sympy' not in sys.modules, 'torch loads its compiler'\n"
    )
    subprocess.run([sys.executable, "-c", program, trained], check=True, timeout=60)


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
    seal(copy)
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
    for content in (tree | change, [tree]):
        (copy / CONFIG).write_text(json.dumps(content))
        assert "checksum" in message(lambda: load_model(copy), copy / CONFIG)
        seal(copy)
        assert "checksum" not in message(lambda: load_model(copy), copy / CONFIG)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    for other in (small_model(1, width=32).state_dict(), read_tensors(copy, OPTIMIZER)):
        (copy / MODEL).write_bytes(pack_tensors(other, half=True))
        seal(copy)
        assert "do not fit" in message(lambda: load_model(copy), copy / MODEL)
    (copy / CONFIG).write_bytes(describe(small_config(2), 1))
    seal(copy)
    assert "do not fit" in message(lambda: load_model(copy), copy / MODEL)


@pytest.mark.parametrize("name", [CONFIG, MODEL, OPTIMIZER, TRAINING])
def test_any_damage_is_an_error_of_ours(trained: Path, tmp_path: Path, name: str) -> None:
    """Bytes changed, lost or doubled anywhere: the model loads and resuming works, or one line says why not."""
    content = (trained / name).read_bytes()
    head = min(len(content), 4000)
    numbers = itertools.count()
    actions: list[Callable[[Path], object]] = [load_model, lambda folder: Run(folder).resume(stop_at=0)]

    @settings(few, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, head - 1), st.binary(max_size=3), st.integers(0, 20))
    def check(place: int, new: bytes, lost: int) -> None:
        folder = tmp_path / f"{next(numbers)}"
        shutil.copytree(trained, folder)
        (folder / name).write_bytes(content[:place] + new + content[place + lost :])
        seal(folder)  # as a stranger would who means harm
        for action in actions:
            try:
                action(folder)
            except ZonkeyError as error:
                assert "\n" not in str(error)
        shutil.rmtree(folder)

    check()
