"""Where to compute and how precisely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from zonkey_core.errors import DeviceError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "bf16", "fp32")


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
    """A module as a function that computes with its weights in some precision; the module stays as it is."""
    weights = {name: parameter.detach().to(precision) for name, parameter in module.named_parameters()}
    return lambda *inputs: functional_call(module, weights, inputs)
