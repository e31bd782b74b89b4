"""A model folder from a stranger: it is refused in a line that names the file, at once and in little memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model_helpers import fit_vocabulary, small_model
from tests.training_helpers import Run, seal, small_config
from zonkey_core import config as configuration
from zonkey_core.checkpoint import (
    CHECKSUMS,
    CONFIG,
    MODEL,
    OPTIMIZER,
    TRAINING,
    load_model,
    pack_tensors,
    read_model_card,
    read_tensors,
    with_checksums,
)
from zonkey_core.committed_files import write_files
from zonkey_core.config import PRESETS, LevelConfig, load_preset, override_keys, parse_toml
from zonkey_core.errors import CheckpointError, ConfigError
from zonkey_core.weight_rounding import SCALE, restored_entries
from zonkey_core.weights_file import read_weights_header, scan_weights

PRETRAINED = Path(configuration.__file__).parent / "pretrained"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint from the middle of a run; it must not be changed."""
    run = Run(tmp_path_factory.mktemp("hostile") / "model")
    run.train(small_config(1), steps=40, stop_at=2, keep=1)
    return run.out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """One to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


def refusal(action: Callable[[], object]) -> str:
    """The line that refuses; it comes within seconds, and without much memory."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        action()
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


def every_use(folder: Path) -> list[Callable[[], object]]:
    """The ways in which the core reads a model folder whole."""
    return [lambda: load_model(folder), lambda: load_model(folder, prefixes=("bottom.splitter.",))]


def tensors_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a file that is to be overwritten."""
    return {key: tensor.clone() for key, tensor in read_tensors(folder, name).items()}


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what `config.json` asks for, with checksums that fit."""
    tree = json.loads((folder / CONFIG).read_bytes())
    change(tree)
    (folder / CONFIG).write_text(json.dumps(tree))
    seal(folder)


# What the configuration asks for


@pytest.mark.parametrize("key", [name for name in LevelConfig.__struct_fields__ if name != "mask_rate"])
def test_huge_values_are_refused_by_key(copy: Path, key: str) -> None:
    for value in (10**9, 10**30, 10**400):
        change_config(copy, lambda tree, value=value: (  # type: ignore[misc]
            tree["config"]["model"]["levels"][0].update({key: value})
        ))
        text = refusal(lambda: read_model_card(copy))
        assert str(copy / CONFIG) in text and key in text


def test_values_up_to_their_limits_meet_the_weights_header(copy: Path) -> None:
    """The largest model that the limits allow is refused for its weights, before anything is made for it."""
    for key in ("width", "denoiser_width", "denoiser_layers", "vocabulary", "splitter_ngrams", "decoder_layers"):
        largest = configuration.LARGEST.get(key.rpartition("_")[2], configuration.LARGEST_COUNT)
        folder = copy.with_name(key)
        shutil.copytree(copy, folder)
        change_config(folder, lambda tree, key=key, largest=largest: (  # type: ignore[misc]
            tree["config"]["model"]["levels"][0].update({key: largest})
        ))
        text = refusal(lambda folder=folder: load_model(folder))  # type: ignore[misc]
        assert str(folder / MODEL) in text and "do not fit" in text
        text = refusal(lambda folder=folder: Run(folder).resume(stop_at=0))  # type: ignore[misc]
        assert str(folder / OPTIMIZER) in text and "do not fit" in text


@pytest.mark.parametrize("count", [9, 10_000])
def test_too_many_levels_are_refused(copy: Path, count: int) -> None:
    change_config(copy, lambda tree: tree["config"]["model"].update(levels=tree["config"]["model"]["levels"] * count))
    text = refusal(lambda: load_model(copy))
    assert str(copy / CONFIG) in text and "model.levels" in text


def test_too_many_layers_in_all_are_refused(copy: Path) -> None:
    layers = {"compressor_layers": 128, "decoder_layers": 128, "denoiser_layers": 128, "splitter_layers": 128}

    def change(tree: dict[str, Any]) -> None:
        tree["config"]["model"]["levels"] = [{**tree["config"]["model"]["levels"][0], **layers}] * 4

    change_config(copy, change)
    assert "add up to" in refusal(lambda: load_model(copy))


def test_the_limits_leave_room_for_every_preset() -> None:
    for name in PRESETS:
        for level in load_preset(name).model.levels:
            for key in LevelConfig.__struct_fields__:
                largest = configuration.LARGEST.get(key.rpartition("_")[2], configuration.LARGEST_COUNT)
                assert getattr(level, key) * 4 <= largest, key


@pytest.mark.parametrize("key", [key for key in override_keys(1) if "shares" not in key])
def test_a_training_configuration_is_held_to_limits_too(key: str) -> None:
    for value in ("nan", "-1", "inf"):
        with pytest.raises(ConfigError) as caught:
            load_preset("tiny", [f"{key}={value}"])
        assert "\n" not in str(caught.value)


def test_a_model_that_fits_no_machine_is_not_begun(tmp_path: Path) -> None:
    large = load_preset("tiny", [
        "level.0.width=16384", "level.0.heads=8", "level.0.denoiser_width=16384", "level.0.denoiser_layers=128",
        "level.0.decoder_layers=128",
    ])
    assert "memory" in refusal(lambda: Run(tmp_path / "model").train(large, steps=1))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = 2021-13-41"])
def test_toml_that_breaks_its_parser_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_toml(text)


# What kind of file it is


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has to be short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "socket": make_socket,
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "loop": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [CONFIG, TRAINING, MODEL, OPTIMIZER, CHECKSUMS])
def test_what_is_no_file_is_refused_at_once(copy: Path, name: str, kind: str) -> None:
    (copy / name).unlink()
    KINDS[kind](copy / name)
    uses = [lambda: Run(copy).resume(stop_at=0)] if name == OPTIMIZER else every_use(copy)
    for use in uses:
        assert str(copy / name) in refusal(use)


@pytest.mark.parametrize("name", [CONFIG, TRAINING, CHECKSUMS])
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff" * 100, b"NaN", b"", b"1e999", b"7"])
def test_json_that_is_none_is_refused(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    if name != CHECKSUMS:
        seal(copy)
    assert str(copy / name) in refusal(lambda: load_model(copy))


def test_json_of_any_length_is_not_read(copy: Path) -> None:
    with (copy / CONFIG).open("wb") as file:
        file.truncate(1 << 40)
    assert "larger than" in refusal(lambda: read_model_card(copy))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1}, {"steps": 10**400}, {"seconds": 1e300}, {"bytes_seen": 2**63}, {"data": []}, {"options": None},
        {"figures": {"a": "b"}}, {"stage_step": 1.5},
    ],
    ids=str,
)
def test_a_record_that_makes_no_sense_is_refused(copy: Path, change: dict[str, Any]) -> None:
    (copy / TRAINING).write_text(json.dumps(json.loads((copy / TRAINING).read_bytes()) | change))
    seal(copy)
    assert str(copy / TRAINING) in refusal(lambda: read_model_card(copy))


@pytest.mark.parametrize(
    "options",
    [{"seed": -1}, {"seed": 10**30}, {"steps": 0}, {"minutes": -1.0}, {"keep": 0}, {"save_every": -1.0}, {"out": 3}],
    ids=str,
)
def test_options_of_a_run_that_make_no_sense_are_refused(copy: Path, options: dict[str, Any]) -> None:
    record = json.loads((copy / TRAINING).read_bytes())
    record["options"] |= options
    (copy / TRAINING).write_text(json.dumps(record))
    seal(copy)
    if "out" in options:  # a folder knows best where it is
        assert Run(copy).resume(stop_at=1).path == copy
    else:
        refusal(lambda: Run(copy).resume(stop_at=0))


# What the weights say


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def entry(shape: list[int], begin: int, end: int, dtype: str = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD_WEIGHTS = {
    "empty": b"",
    "short": b"\x01\x00",
    "length beyond the end": struct.pack("<Q", 1 << 62) + b"{}",
    "not JSON": with_header(b"\xff" * 20),
    "deep": with_header(b'{"a":' + b"[" * 100_000),
    "no tensor": with_header(b'{"a": 3}'),
    "unknown type": with_header(json.dumps({"a": entry([1], 0, 1, "X9")}).encode(), b"\0"),
    "overlap": with_header(json.dumps({"a": entry([2], 0, 4), "b": entry([2], 2, 6)}).encode(), bytes(6)),
    "gap": with_header(json.dumps({"a": entry([2], 0, 4), "b": entry([2], 6, 10)}).encode(), bytes(10)),
    "beyond the end": with_header(json.dumps({"a": entry([2], 0, 4)}).encode(), bytes(3)),
    "left over": with_header(json.dumps({"a": entry([2], 0, 4)}).encode(), bytes(5)),
    "another size": with_header(json.dumps({"a": entry([3], 0, 4)}).encode(), bytes(4)),
    "negative": with_header(json.dumps({"a": entry([-2, -1], 0, 4)}).encode(), bytes(4)),
    "backwards": with_header(json.dumps({"a": entry([2], 4, 0)}).encode(), bytes(4)),
    "overflowing": with_header(json.dumps({"a": entry([1 << 40] * 8, 0, 4)}).encode(), bytes(4)),
    "many dimensions": with_header(json.dumps({"a": entry([1] * 1000, 0, 2)}).encode(), bytes(2)),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_headers_that_lie_are_refused(copy: Path, kind: str, name: str) -> None:
    (copy / name).write_bytes(BAD_WEIGHTS[kind])
    seal(copy)
    for use in [lambda: Run(copy).resume(stop_at=0)] if name == OPTIMIZER else every_use(copy):
        assert str(copy / name) in refusal(use)


def test_a_file_with_holes_is_not_read_into_memory(copy: Path) -> None:
    """A header may promise a tensor of a terabyte, and a file system a file of that size."""
    header = json.dumps({"bottom.x": entry([1 << 39], 0, 1 << 40)}).encode()
    with (copy / MODEL).open("wb") as file:
        file.write(with_header(header))
        file.truncate(8 + len(header) + (1 << 40))
    assert str(copy / MODEL) in refusal(lambda: load_model(copy))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["bottom.splitter.head.weight", "bottom.compressor"])
@pytest.mark.parametrize("half", [True, False])
def test_weights_that_are_no_numbers_are_refused_whatever_is_read(
    copy: Path, value: float, name: str, half: bool
) -> None:
    tensors = tensors_of(copy, MODEL)
    chosen = next(key for key in tensors if key.startswith(name))
    tensors[chosen].view(-1)[-1] = value
    (copy / MODEL).write_bytes(pack_tensors({k: t if half else t.float() for k, t in tensors.items()}, half=half))
    seal(copy)
    texts = {refusal(use) for use in every_use(copy)}
    assert len(texts) == 1 and str(copy / MODEL) in texts.pop()


def test_other_kinds_of_numbers_are_refused(copy: Path) -> None:
    tensors = tensors_of(copy, MODEL)
    for name, kind in (("bottom.splitter.head.weight", torch.int32), ("bottom.vocabulary.strings", torch.float16)):
        (copy / MODEL).write_bytes(pack_tensors({**tensors, name: tensors[name].to(kind)}))
        seal(copy)
        assert "do not fit" in refusal(lambda: load_model(copy))


@pytest.mark.parametrize("change", ["no scale", "no matrix", "short scale", "whole scale", "float matrix"])
def test_rounded_matrices_without_fitting_scales_are_refused(copy: Path, change: str) -> None:
    tensors = load_file(copy / MODEL)
    scale = next(name for name in tensors if name.endswith(SCALE))
    matrix = scale.removesuffix(SCALE)
    if change == "no scale":
        del tensors[scale]
    elif change == "no matrix":
        del tensors[matrix]
    elif change == "short scale":
        tensors[scale] = tensors[scale][:-1].clone()
    elif change == "whole scale":
        tensors[scale] = tensors[scale].int()
    else:
        tensors[matrix] = tensors[matrix].half()
    save_file(tensors, copy / MODEL)
    seal(copy)
    texts = {refusal(use) for use in every_use(copy)}
    assert all(str(copy / MODEL) in text and matrix in text for text in texts)


@pytest.mark.parametrize("length", [-1, 9, 32000])
def test_strings_of_impossible_lengths_are_refused(copy: Path, length: int) -> None:
    tensors = tensors_of(copy, MODEL)
    tensors["bottom.vocabulary.lengths"][-1] = length
    (copy / MODEL).write_bytes(pack_tensors(tensors))
    seal(copy)
    assert "lengths" in refusal(lambda: load_model(copy))


def test_optimizer_states_of_another_model_are_refused(copy: Path) -> None:
    tensors = tensors_of(copy, OPTIMIZER)
    moments = [name for name in tensors if name.endswith(".exp_avg")]
    for changed in (
        {name: tensor for name, tensor in tensors.items() if name != moments[0]},
        {**tensors, moments[0]: torch.zeros(3)},
        {**tensors, moments[0]: tensors[moments[0]].int()},
        {**tensors, "state.0.99999.momentum_buffer": torch.zeros(3)},
        {**tensors, "state.x": torch.zeros(3)},
    ):
        (copy / OPTIMIZER).write_bytes(pack_tensors(changed))
        seal(copy)
        assert str(copy / OPTIMIZER) in refusal(lambda: Run(copy).resume(stop_at=0))


def test_every_number_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for kind in kinds:
        for place in (0, 1 << 17, (1 << 17) + 5):
            tensors = {f"{each}": torch.zeros((1 << 17) + 6, dtype=each) for each in kinds}
            path.write_bytes(pack_tensors(tensors))
            assert scan_weights(path, with_checksum=False, finite=True) is None
            tensors[f"{kind}"][place] = torch.inf
            path.write_bytes(pack_tensors(tensors))
            with pytest.raises(ValueError, match=str(kind)):
                scan_weights(path, with_checksum=False, finite=True)


def test_a_header_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    model = small_model(2)
    fit_vocabulary(model)
    (tmp_path / MODEL).write_bytes(pack_tensors(model.state_dict(), half=True))
    found = {name: found.shape for name, found in restored_entries(read_weights_header(tmp_path / MODEL)).items()}
    assert found == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_what_a_model_holds_and_does_not_save_is_empty(copy: Path) -> None:
    """A buffer that is not saved has no content of its own when a model is loaded: training fills it."""
    unsaved = load_model(copy).unsaved()
    assert list(unsaved) == ["bottom.vocabulary.compressed"] and not any(bool(each.any()) for each in unsaved.values())


# What is written


def test_writing_follows_no_links(copy: Path, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text("mine")
    (copy / "metrics.jsonl").unlink()
    (copy / "metrics.jsonl").symlink_to(treasure)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        Run(copy).resume(stop_at=1)
    (copy / "metrics.jsonl").unlink()
    for name in (CONFIG, MODEL, TRAINING, OPTIMIZER, CHECKSUMS, ".committed"):
        (copy / f"{name}.next.partial").symlink_to(treasure)
        (copy / f"{name}.partial").symlink_to(treasure)
    Run(copy).resume(stop_at=1)
    assert treasure.read_text() == "mine"


def test_a_marker_moves_nothing_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "treasure.next").write_text("new")
    (tmp_path / "treasure").write_text("old")
    (folder / ".committed").write_text(f"../treasure {tmp_path / 'treasure'}")
    write_files(folder, with_checksums({CONFIG: b"{}"}))
    assert (tmp_path / "treasure").read_text() == "old"
