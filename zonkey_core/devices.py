"""Where to compute and how precisely."""

from __future__ import annotations

import torch

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
