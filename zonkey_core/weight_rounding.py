"""Weights in a byte each: the large matrices of denoisers, vocabularies, decoders and n-grams, rounded row by row.

A row w is kept as whole numbers q from -127 to 127 and one float16 s, so that `w = s q` to within `s / 2`, where
`s = max |w| / 127` (symmetric absolute-maximum quantisation, Dettmers et al. 2022, "LLM.int8()"). In a file they are
two tensors, `NAME` and `NAME.scale`. All other weights, what else cuts and what compresses among them, are in float16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zonkey_core.weights_file import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

SCALE = ".scale"
"""What the name of the scales of a rounded matrix ends with."""
LARGEST = 127
OWNERS = (".denoiser.", ".vocabulary.", ".decoder.", ".ngrams.table")
"""One of these is in the name of every matrix that is rounded."""
LEAST_SIZE = 4096
"""Numbers of the smallest of them."""


def round_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model as they are released: rounded matrices with their scales, other floats in float16."""
    import torch

    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        large = tensor.dim() > 1 and tensor.numel() >= LEAST_SIZE and tensor.is_floating_point()
        if large and any(owner in name for owner in OWNERS):
            wide = tensor.float()
            scale = (wide.abs().amax(-1) / LARGEST).to(torch.float16)
            divisor = scale.float().where(scale > 0, 1.0).unsqueeze(-1)
            result[name] = (wide / divisor).round().clamp(-LARGEST, LARGEST).to(torch.int8)
            result[name + SCALE] = scale
        else:
            result[name] = tensor.to(torch.float16) if tensor.is_floating_point() else tensor
    return result


def restore_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that those of a file stand for: float32 in place of rounded matrices, the others as they are."""
    return _restored(tensors, lambda tensor, scale: tensor.float() * scale.float().unsqueeze(-1))


def restore_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The same for arrays of numpy."""
    return _restored(arrays, lambda array, scale: np.multiply(array, scale[..., None], dtype=np.float32))


def _restored(stored: Mapping[str, T], widen: Callable[[T, T], T]) -> dict[str, T]:
    """What is stored without scales, each rounded matrix widened by its own."""
    return {
        name: widen(each, stored[name + SCALE]) if name + SCALE in stored else each
        for name, each in stored.items()
        if not name.endswith(SCALE)
    }


def restored_entries(entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The same for a file's header; raises `ValueError` where a scale does not fit its matrix."""
    result = {name: entry for name, entry in entries.items() if not name.endswith(SCALE)}
    for name in (name for name in entries if name.endswith(SCALE)):
        owner, scale = entries.get(name.removesuffix(SCALE)), entries[name]
        if owner is None or owner.dtype != "I8" or not scale.floats or owner.shape[:-1] != scale.shape:
            raise ValueError(f"{name} is no scale of a rounded matrix")
        result[name.removesuffix(SCALE)] = TensorEntry("F32", owner.shape, owner.data_offsets)
    return result
