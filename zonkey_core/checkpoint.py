"""Checkpoints: a folder that another program can read, written so that a crash at any moment leaves it whole.

    config.json            format number and configuration
    model.safetensors      averaged weights, the ones to use, in float16
    training.json          what it was trained on, how far, random states, measured figures
    optimizer.safetensors  live and averaged weights in float32 and optimiser states, to go on from

New files are first written beside the old ones as `NAME.next`; a marker file then commits them, and the renames
that follow can be repeated. A reader that finds the marker takes the `.next` files. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zonkey_core.config import Config, check_model_config, check_training_config
from zonkey_core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zonkey_core.model.model import Zonkey

FORMAT = 2
CONFIG, MODEL, TRAINING, OPTIMIZER = "config.json", "model.safetensors", "training.json", "optimizer.safetensors"
_COMMITTED = ".committed"
_NEXT = ".next"


class TrainingRecord(msgspec.Struct, kw_only=True):
    """What `training.json` holds."""

    data: dict[str, Any]
    """The source of the text, as `SourceSpec` fields."""
    options: dict[str, Any]
    """Seed, budget, device and precision."""
    stage: int = 0
    """Index of the current stage in the curriculum; the number of stages when training is over."""
    stage_step: int = 0
    stage_seconds: float = 0.0
    steps: int = 0
    bytes_seen: int = 0
    seconds: float = 0.0
    parent: str | None = None
    """Name of the model that training started from."""
    data_state: dict[str, Any] = {}
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


def file_path(directory: Path, name: str) -> Path:
    """Where the current version of a checkpoint's file is."""
    pending = directory / (name + _NEXT)
    if (directory / _COMMITTED).exists() and pending.exists():
        return pending
    return directory / name


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Replace several files of a checkpoint as one: after a crash, a reader sees all the old or all the new ones."""
    directory.mkdir(parents=True, exist_ok=True)
    _finish_pending(directory)
    for name, content in files.items():
        _write_durably(directory / (name + _NEXT), content)
    _write_durably(directory / _COMMITTED, "\n".join(files).encode())
    _finish_pending(directory)


def _finish_pending(directory: Path) -> None:
    """Complete the renames of a committed write; drop the leftovers of one that was not."""
    if (directory / _COMMITTED).exists():
        for name in (directory / _COMMITTED).read_text("utf-8").split():
            with contextlib.suppress(FileNotFoundError):
                os.replace(directory / (name + _NEXT), directory / name)
        _sync_directory(directory)
        (directory / _COMMITTED).unlink()
    for leftover in directory.glob(f"*{_NEXT}"):
        leftover.unlink()


def _write_durably(path: Path, content: bytes) -> None:
    """Write and flush to the disk; the marker itself is moved into place whole."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make renames durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
    try:
        config = msgspec.convert(tree["config"], Config)
        check_model_config(config.model, origin=CONFIG)
        check_training_config(config.training, origin=CONFIG)
        if file_path(directory, TRAINING).exists():
            training = msgspec.convert(_read_json(directory, TRAINING), TrainingRecord)
        parameters = int(tree["parameters"])
    except (msgspec.ValidationError, ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}: damaged model description ({error}); copy the model again") from error
    return ModelCard(format=found, config=config, parameters=parameters, training=training)


def _read_json(directory: Path, name: str) -> Any:
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such model folder; train one with 'zonkey train --out {directory}'")
    path = file_path(directory, name)
    try:
        return msgspec.json.decode(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: not a zonkey model ({name} is missing)") from error
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy or train the model again") from error


def describe(config: Config, parameters: int) -> bytes:
    """The content of `config.json`."""
    body = {"format": FORMAT, "parameters": parameters, "config": msgspec.to_builtins(config)}
    return msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"


def pack_tensors(tensors: Mapping[str, Tensor], *, half: bool = False) -> bytes:
    """Tensors as the bytes of a safetensors file; with `half`, floats in float16."""
    import torch
    from safetensors.torch import save

    def ready(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        return tensor.to(torch.float16).contiguous() if half and tensor.is_floating_point() else tensor.contiguous()

    return save({name: ready(tensor) for name, tensor in tensors.items()})


def read_tensors(directory: Path, name: str, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file whose keys begin with one of `prefixes`; raises `CheckpointError`."""
    from safetensors import SafetensorError, safe_open

    path = file_path(directory, name)
    try:
        with safe_open(path, framework="pt") as file:
            keys: list[str] = file.keys()
            return {key: file.get_tensor(key) for key in keys if key.startswith(prefixes)}
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: {name} is missing; copy or train the model again") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy or train the model again") from error


def load_model(
    directory: Path, *, device: torch.device | str = "cpu", prefixes: tuple[str, ...] = ("",)
) -> Zonkey:
    """The averaged model of a checkpoint in float32, in evaluation mode, on `device`; raises `CheckpointError`.

    With `prefixes`, only the tensors whose names begin with one of them are read; the others are on the meta device.
    """
    import torch

    card = read_model_card(directory)
    model = _unfilled_model(card.config)
    tensors: dict[str, Tensor] = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in model.state_dict().items() if not name.startswith(prefixes)
    }
    for name, tensor in read_tensors(directory, MODEL, prefixes).items():
        tensors[name] = tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)
    fill_model(model, tensors, origin=directory / MODEL)
    return model.eval().requires_grad_(False)


def _unfilled_model(config: Config) -> Zonkey:
    """A model whose parameters hold nothing in particular; its making draws no numbers and writes to no memory.

    It is not made on the meta device, where drawing numbers loads torch's compiler, which takes longer than all the
    rest of loading a model.
    """
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    from zonkey_core.model.model import Zonkey

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named = kwargs or {}
            if func in (init.normal_, init.uniform_, init.kaiming_uniform_):
                return named["tensor"]
            return (torch.empty if func in (torch.randn, torch.zeros) else func)(*args, **named)

    with Unfilled():
        return Zonkey(config.model)


def fill_model(model: Zonkey, tensors: dict[str, Tensor], *, origin: Path) -> None:
    """Put tensors in place of a model's parameters; raises `CheckpointError` where they do not fit."""
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{origin}: weights do not fit the configuration ({reason})") from error

