"""Models made for weights that are yet to come, within what those weights, or the machine, can hold.

A configuration may come from a stranger. What it asks for is counted while the model is made, before any memory is
taken for it, and its tensors are compared with those that the weights' own header describes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

from zonkey_core.config import Config
from zonkey_core.errors import ConfigError
from zonkey_core.model.model import Zonkey
from zonkey_core.weight_parts import whole_entries
from zonkey_core.weight_rounding import restored_entries
from zonkey_core.weights_file import TensorEntry, float32_bytes, read_weights_header

SPARE_BYTES = 16 * 1024 * 1024
"""What the making of a model may take beside its tensors."""
_DTYPES = {
    torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL",
}
_DRAWING = (init.normal_, init.uniform_, init.kaiming_uniform_)
_MAKING = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full)


class _Unfilled(TorchFunctionMode):
    """Lets no numbers be drawn or written, and no more than `limit` bytes be asked for in all.

    The meta device would do as much, but drawing numbers there loads torch's compiler, which takes longer than all
    the rest of loading a model.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Stand in for the functions that make and fill tensors."""
        named = kwargs or {}
        if func in _DRAWING:
            return named["tensor"] if "tensor" in named else args[0]
        if func not in _MAKING:
            return func(*args, **named)
        if func is torch.full:
            args = args[:1]
        sizes = args[0] if args and isinstance(args[0], Iterable) else args or named.get("size", ())
        self.left -= math.prod(sizes) * (named.get("dtype") or torch.get_default_dtype()).itemsize
        if self.left < 0:
            raise _TooLargeError
        return torch.empty(*args, **named)


class _TooLargeError(Exception):
    """A model asks for more memory than it may have."""


def unfilled_model(config: Config, limit: int) -> Zonkey | None:
    """A model whose parameters hold nothing in particular; None where they would take more than `limit` bytes."""
    try:
        with _Unfilled(limit):
            return Zonkey(config.model)
    except _TooLargeError:
        return None


def machine_memory() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_trainable(config: Config) -> None:
    """Raise `ConfigError` where a model and its average, in float32, are larger than this machine's memory."""
    memory = machine_memory()
    if unfilled_model(config, memory // 2) is None:
        raise ConfigError(
            f"a model of this configuration does not fit the {memory / 1e9:.1f} GB of memory of this machine; "
            "make its layers fewer or narrower"
        )


def fitting_model(config: Config, *paths: Path, prefix: str = "", anew: str | None = None) -> Zonkey:
    """An unfilled model whose tensors are those of a file of weights, or of its parts, with `prefix` to their names.

    Tensors whose names begin with `anew` may be others. Raises `OSError`, or `ValueError` where they differ, before
    memory is taken that the weights would not fill.
    """
    stored = restored_entries(read_weights_header(paths[0]) if len(paths) == 1 else whole_entries(paths))
    entries = {name.removeprefix(prefix): entry for name, entry in stored.items() if name.startswith(prefix)}
    need, memory = float32_bytes(entries), machine_memory()
    if need > memory:
        raise ValueError(f"its weights need {need / 1e9:,.1f} GB of memory, and there are {memory / 1e9:.1f}")
    model = unfilled_model(config, 2 * need + SPARE_BYTES)
    if model is None:
        raise ValueError("its weights do not fit the configuration, which asks for more of them")
    expected = model.state_dict()
    if anew is not None:
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith(anew)}
        entries = {name: entry for name, entry in entries.items() if not name.startswith(anew)}
    _compare_shapes(expected, entries)
    return model


def check_strings(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `ValueError` where a table of strings [K, S] says that one is longer than S, or shorter than nothing."""
    for name, strings in tensors.items():
        owner, _, field = name.rpartition(".")
        lengths = tensors.get(f"{owner}.lengths")
        if field != "strings" or lengths is None:
            continue
        if len(lengths) and (int(lengths.min()) < 0 or int(lengths.max()) > strings.shape[1]):
            raise ValueError(f"{owner}.lengths holds lengths that are no lengths of its strings")


def _compare_shapes(expected: dict[str, torch.Tensor], entries: dict[str, TensorEntry]) -> None:
    """Raise `ValueError` at the first tensor that is missing, too many, or of another shape or kind."""
    for name in [*expected, *(name for name in entries if name not in expected)]:
        if name not in entries or name not in expected:
            kind = "lacks" if name not in entries else "has no place for"
            raise ValueError(f"its weights do not fit the configuration: it {kind} {name}")
        tensor, entry = expected[name], entries[name]
        if tuple(tensor.shape) != entry.shape:
            raise ValueError(
                f"its weights do not fit the configuration: {name} has the shape {list(entry.shape)} "
                f"and should have {list(tensor.shape)}"
            )
        if entry.floats != tensor.is_floating_point() or (not entry.floats and _DTYPES[tensor.dtype] != entry.dtype):
            raise ValueError(f"its weights do not fit the configuration: {name} holds {entry.dtype}")
