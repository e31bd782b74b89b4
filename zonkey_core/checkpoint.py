"""Checkpoints: a folder that another program can read, written so that a crash at any moment leaves it whole.

    config.json            format number and configuration
    model.safetensors      averaged weights, the ones to use, rounded (`zonkey_core.weight_rounding`)
    training.json          what it was trained on, how far, random states, measured figures
    optimizer.safetensors  live and averaged weights in float32 and optimiser states, to go on from
    checksums.json         the CRC-32 of each of these, compared whenever one is read
    checkpoints/STEP/      earlier checkpoints of the run, each a whole one (`zonkey_core.kept_checkpoints`)

A folder may come from a stranger: every file is looked at before it is opened, and sizes and shapes are compared with
each other and with the machine before anything is made for them. A folder without checksums is read, too.

Where processes share out their state, optimizer.safetensors is in parts, optimizer-00001-of-00002.safetensors and so on
(`zonkey_core.weight_parts`). So is model.safetensors beyond `SHARD_BYTES`, with the index that other programs expect,
model.safetensors.index.json. How files are replaced as one is in `zonkey_core.committed_files`. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from zonkey_core.committed_files import INDEX, ReadyFile, complete_files, file_path, file_paths, present_files
from zonkey_core.config import Config, check_model_config, check_training_config
from zonkey_core.errors import CheckpointError, ConfigError
from zonkey_core.safe_files import decode_json, read_bounded
from zonkey_core.weight_rounding import restore_weights, round_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zonkey_core.model.model import Zonkey

FORMAT = 6
CONFIG, MODEL, TRAINING, OPTIMIZER = "config.json", "model.safetensors", "training.json", "optimizer.safetensors"
CHECKSUMS = "checksums.json"
SHARD_BYTES = 4_000_000_000
"""The most bytes of weights in a file of a released model."""
KEPT = "checkpoints"
"""The folder of the earlier checkpoints."""
JSON_BYTES = 16 * 1024 * 1024
"""The most that a JSON file of a checkpoint may hold."""
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e30)]


class GuideOrigin(msgspec.Struct, frozen=True):
    """What a guide that a run follows was fitted to (`zonkey_core.training.guides`)."""

    data_state: dict[str, Any]
    """Where in the data its text begins."""
    rate: Amount
    """Starts a unit of text."""


class TrainingRecord(msgspec.Struct, kw_only=True):
    """What `training.json` holds."""

    data: dict[str, Any]
    """The source of the text, as `SourceSpec` fields."""
    options: dict[str, Any]
    """Seed, budget, device and precision."""
    stage: Count = 0
    """Index of the current stage in the curriculum; the number of stages when training is over."""
    stage_step: Count = 0
    stage_seconds: Amount = 0.0
    steps: Count = 0
    bytes_seen: Count = 0
    seconds: Amount = 0.0
    gradient_norm: Amount = 0.0
    """Running mean over the steps of the stage."""
    faults_in_row: Count = 0
    """Steps that were left out just now, one after another."""
    skipped_steps: Count = 0
    """Steps that were left out in all."""
    parent: str | None = None
    """Name of the model that training started from."""
    data_state: dict[str, Any] = {}
    guides: dict[str, GuideOrigin] = {}
    """Those that were fitted so far, by level."""
    random_state: str = ""
    """State of the random generator, in base 64."""
    figures: dict[str, float] = {}
    torch_version: str = ""


class ModelCard(msgspec.Struct, kw_only=True):
    """What can be said of a model without loading it."""

    format: int
    config: Config
    parameters: int
    training: TrainingRecord | None


def with_checksums(files: Mapping[str, bytes | ReadyFile]) -> dict[str, bytes | ReadyFile]:
    """The files of a checkpoint, and the file of their checksums."""
    sums = {
        name: f"{file.crc32 if isinstance(file, ReadyFile) else zlib.crc32(file):08x}" for name, file in files.items()
    }
    return {**files, CHECKSUMS: msgspec.json.format(msgspec.json.encode({"crc32": sums}), indent=2) + b"\n"}


def read_model_card(directory: Path) -> ModelCard:
    """Read configuration and training record; raises `CheckpointError` when they cannot be used."""
    tree = _read_json(directory, CONFIG)
    found = tree.get("format") if isinstance(tree, dict) else None
    if not isinstance(found, int):
        raise CheckpointError(f"{directory / CONFIG}: not a zonkey model (no format number)")
    if found != FORMAT:
        advice = "update zonkey" if found > FORMAT else "train it again"
        raise CheckpointError(f"{directory}: written in format {found}, this version reads format {FORMAT}; {advice}")
    training: TrainingRecord | None = None
    name = CONFIG
    try:
        config = msgspec.convert(tree["config"], Config)
        check_model_config(config.model, origin=CONFIG)
        check_training_config(config.training, origin=CONFIG)
        parameters = msgspec.convert(tree["parameters"], Count)
        name = TRAINING
        if os.path.lexists(file_path(directory, TRAINING)):
            training = msgspec.convert(_read_json(directory, TRAINING), TrainingRecord)
    except (msgspec.ValidationError, ConfigError, KeyError, TypeError) as error:
        reason = str(error).removeprefix(f"{CONFIG}: ")
        raise CheckpointError(
            f"{file_path(directory, name)}: damaged model description ({reason}); {_way_out(directory)}"
        ) from error
    return ModelCard(format=found, config=config, parameters=parameters, training=training)


def _read_json(directory: Path, name: str) -> Any:
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such model folder; train one with 'zonkey train --out {directory}'")
    path = file_path(directory, name)
    if name == CONFIG and not os.path.lexists(path):
        raise CheckpointError(f"{directory}: not a zonkey model ({name} is missing)")
    with reading(directory, name):
        content = read_bounded(path, JSON_BYTES)
        if name != CHECKSUMS:
            _compare(zlib.crc32(content), _checksum(directory, name))
        return decode_json(content)


@contextlib.contextmanager
def reading(directory: Path, name: str) -> Iterator[None]:
    """Turn what goes wrong with a file of a checkpoint into a `CheckpointError` that names it and a way out."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: {name} is missing; {_way_out(directory)}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"{file_path(directory, name)}: cannot be read ({reason}); {_way_out(directory)}"
        ) from error


def _way_out(directory: Path) -> str:
    """What to do about a damaged checkpoint: go back to the one before, where one is kept."""
    for step in reversed(kept_steps(directory)):
        before = directory / KEPT / str(step)
        weights = present_files(directory, MODEL)[0]
        with contextlib.suppress(OSError):
            if os.path.samefile(before / weights, directory / weights):  # a crash came just before it was replaced
                continue
        return (
            f"the checkpoint before is {before}, and "
            f"'zonkey train --resume --out {directory} --back-to {step}' goes on from it"
        )
    return "copy or train the model again"


def kept_steps(directory: Path) -> list[int]:
    """The steps of the earlier checkpoints that a run keeps, the oldest first."""
    if (directory / KEPT).is_symlink():
        return []
    try:
        names = os.listdir(directory / KEPT)
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and len(name) < 20)


def _checksum(directory: Path, name: str) -> int | None:
    """The CRC-32 that a file of a checkpoint should have; None where that is not known."""
    if not os.path.lexists(file_path(directory, CHECKSUMS)):
        return None
    tree = _read_json(directory, CHECKSUMS)
    with reading(directory, CHECKSUMS):
        sums = tree.get("crc32") if isinstance(tree, dict) else None
        if not isinstance(sums, dict):
            raise ValueError("it holds no checksums")
        return int(str(sums[name]), 16) if name in sums else None


def _compare(found: int, expected: int | None) -> None:
    """Raise `ValueError` where a checksum is another than it should be."""
    if expected not in (None, found):
        raise ValueError(f"damaged: its checksum is {found:08x} and should be {expected:08x}")


def check_weights(directory: Path, name: str = MODEL) -> None:
    """Read a file of weights, or its parts, once; raises `CheckpointError` where it is damaged or holds no numbers."""
    from zonkey_core.weight_parts import check_index, whole_entries
    from zonkey_core.weights_file import scan_weights

    with reading(directory, name):
        paths = file_paths(directory, name)
    for path in paths:
        each = path.name.removesuffix(".next")
        expected = _checksum(directory, each)
        with reading(directory, each):
            found = scan_weights(path, with_checksum=expected is not None, finite=name == MODEL)
            if found is not None:
                _compare(found, expected)
    if len(paths) == 1:
        return
    with reading(directory, name):
        whole_entries(paths)
    if os.path.lexists(file_path(directory, name + INDEX)):
        index = _read_json(directory, name + INDEX)
        with reading(directory, name + INDEX):
            check_index(index, paths)


def _weight_paths(directory: Path, name: str) -> list[Path]:
    """The file of weights, or its parts, in whose names a damaged header is told; raises `CheckpointError`."""
    from zonkey_core.weights_file import read_weights_header

    with reading(directory, name):
        names = complete_files(directory, name)
    for each in names if len(names) > 1 else ():
        with reading(directory, each):
            read_weights_header(file_path(directory, each))
    return [file_path(directory, each) for each in names]


def describe(config: Config, parameters: int) -> bytes:
    """The content of `config.json`."""
    body = {"format": FORMAT, "parameters": parameters, "config": msgspec.to_builtins(config)}
    return msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"


def pack_tensors(tensors: Mapping[str, Tensor], *, half: bool = False) -> bytes:
    """Tensors as the bytes of a safetensors file; with `half`, as they are released (`weight_rounding`)."""
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    return save({name: tensor.contiguous() for name, tensor in (round_weights(ready) if half else ready).items()})


def pack_model(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The files of a model's weights as they are released: one, or beyond `SHARD_BYTES` several and their index."""
    from zonkey_core.weight_parts import in_shards, shard_index, tensor_bytes

    if tensor_bytes(tensors) <= SHARD_BYTES:
        return {MODEL: pack_tensors(tensors, half=True)}
    rounded = round_weights({name: tensor.detach().cpu() for name, tensor in tensors.items()})
    shards = in_shards(rounded, SHARD_BYTES, MODEL)
    files = {name: pack_tensors(shard) for name, shard in shards.items()}
    return {**files, MODEL + INDEX: shard_index(shards)} if len(shards) > 1 else files


def read_tensors(directory: Path, name: str, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Read the tensors of a file, whole or in parts, whose keys begin with one of `prefixes`.

    Raises `CheckpointError`.
    """
    check_weights(directory, name)
    return _tensors(directory, name, prefixes)


def require_fit(
    config: Config, directory: Path, name: str = MODEL, *, prefix: str = "", anew: str | None = None
) -> None:
    """Raise `CheckpointError` unless the tensors of a file whose names begin with `prefix` are those of a model.

    Those whose names go on with `anew` may be others. The file may be there in parts.
    """
    from zonkey_core.model_building import fitting_model

    paths = _weight_paths(directory, name)
    with reading(directory, name):
        fitting_model(config, *paths, prefix=prefix, anew=anew)


def _tensors(directory: Path, name: str, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a file, or of its parts, that was found to be whole."""
    from safetensors import SafetensorError, safe_open

    from zonkey_core.weight_parts import join_parts

    with reading(directory, name):
        path, *others = file_paths(directory, name)
        if others:
            return restore_weights(join_parts([path, *others], prefixes))
        try:
            with safe_open(path, framework="pt") as file:
                keys: list[str] = file.keys()
                # Copies are aligned. Products round by where numbers lie, and a run that goes on has the same bits.
                return restore_weights({key: file.get_tensor(key).clone() for key in keys if key.startswith(prefixes)})
        except SafetensorError as error:
            raise ValueError(str(error)) from error


def load_model(
    directory: Path, *, device: torch.device | str = "cpu", prefixes: tuple[str, ...] = ("",)
) -> Zonkey:
    """The averaged model of a checkpoint in float32, in evaluation mode, on `device`; raises `CheckpointError`.

    With `prefixes`, only the tensors whose names begin with one of them are kept; the others are on the meta device,
    and so are the buffers that are never saved.
    """
    import torch

    from zonkey_core.model_building import check_strings, fitting_model

    card = read_model_card(directory)
    paths = _weight_paths(directory, MODEL)
    with reading(directory, MODEL):
        model = fitting_model(card.config, *paths)
    check_weights(directory)
    tensors: dict[str, Tensor] = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in model.state_dict().items() if not name.startswith(prefixes)
    }
    found = _tensors(directory, MODEL, prefixes)
    with reading(directory, MODEL):
        check_strings(found)
    for name, tensor in found.items():
        tensors[name] = tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)
    fill_model(model, tensors, origin=directory / MODEL)
    model.clear_unsaved(keep="" in prefixes)
    return model.eval().requires_grad_(False)


def fill_model(model: Zonkey, tensors: dict[str, Tensor], *, origin: Path) -> None:
    """Put tensors in place of a model's parameters; raises `CheckpointError` where they do not fit."""
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{origin}: weights do not fit the configuration ({reason})") from error
