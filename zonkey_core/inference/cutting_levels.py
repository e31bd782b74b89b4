"""The levels of a model that text is cut with: in numpy on a CPU, where torch is not even imported, else in torch."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

from zonkey_core.checkpoint import MODEL, read_model_card, reading
from zonkey_core.inference.level_cutter import CuttingLevel
from zonkey_core.inference.model_arrays import read_model_arrays
from zonkey_core.numpy_model.level import numpy_levels

if TYPE_CHECKING:
    from zonkey_core.model.model import Zonkey


def load_cutting_levels(
    directory: Path, *, level: int, device: str = "cpu", executor: Executor | None = None
) -> list[CuttingLevel]:
    """The levels of a checkpoint up to `level`; on a CPU, `executor` reads pieces of text side by side.

    Raises `CheckpointError`, or `DeviceError` for a device that is not there.
    """
    prefixes = splitting_tensors(level)
    if device != "cpu":
        return _load_torch_levels(directory, device, prefixes)[: level + 1]
    configs = read_model_card(directory).config.model.levels[: level + 1]
    with reading(directory, MODEL):
        return [*numpy_levels(read_model_arrays(directory, prefixes), configs, executor, feeding=True)]


def cutting_levels(model: Zonkey, executor: Executor | None = None) -> list[CuttingLevel]:
    """The levels of a model that is in memory, with its weights as they are now."""
    if model.device.type != "cpu":
        from zonkey_core.inference.torch_levels import TorchLevel

        return [TorchLevel(level) for level in model.levels]
    prefixes = splitting_tensors(len(model.levels) - 1)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name.startswith(prefixes)}
    return [*numpy_levels(tensors, model.config.levels, executor)]


def splitting_tensors(level: int) -> tuple[str, ...]:
    """How the names of the tensors begin that cutting up to `level` needs; a model may leave the others unread."""
    return tuple(
        f"bottom.{'above.' * index}{part}."
        for index in range(level + 1)
        for part in (("splitter",) if index == level else ("splitter", "embedding", "compressor"))
    )


def _load_torch_levels(directory: Path, device: str, prefixes: tuple[str, ...]) -> list[CuttingLevel]:
    """The levels of a checkpoint on a device that torch computes on."""
    from zonkey_core.checkpoint import load_model
    from zonkey_core.devices import choose_device
    from zonkey_core.inference.torch_levels import TorchLevel

    model = load_model(directory, device=choose_device(device), prefixes=prefixes)
    return [TorchLevel(level) for level in model.levels]
