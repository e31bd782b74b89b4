"""Where to compute and how precisely."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from zonkey_core.errors import DeviceError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "bf16", "fp32")
_COPIES: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], nn.Module]] = WeakKeyDictionary()
"""Of modules, the copy in another precision that was asked for last, and of which weights it was made."""


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; raises `DeviceError` where the one asked for is missing."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind = name.partition(":")[0]
    if kind not in available:
        raise DeviceError(f"unknown device {name!r}; choose one of {', '.join(DEVICES)}")
    if not available[kind]:
        raise DeviceError(f"device {name!r} is not available here; use --device auto or --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}; choose one of {', '.join(DEVICES)}") from error


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: bfloat16 unless `fp32` is asked for."""
    if name not in PRECISIONS:
        raise DeviceError(f"unknown precision {name!r}; choose one of {', '.join(PRECISIONS)}")
    if name == "fp32" or (name == "auto" and device.type == "mps"):
        return torch.float32
    return torch.bfloat16


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """The context in which a model runs."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def in_precision(module: nn.Module, precision: torch.dtype) -> Callable[..., Any]:
    """A module as a function that computes with its weights in some precision; the module stays as it is.

    A copy in that precision is kept beside the module until its weights change.
    """
    weights = tuple(module.parameters())
    if all(weight.dtype == precision for weight in weights):
        return module
    state = tuple((weight.data_ptr(), weight._version) for weight in weights)
    kept = _COPIES.get(module)
    if kept is None or kept[0] != (precision, state):
        copied = copy.deepcopy(module).requires_grad_(False)
        for weight in copied.parameters():
            weight.data = weight.data.to(precision)
        kept = _COPIES[module] = ((precision, state), copied)
    return kept[1]
