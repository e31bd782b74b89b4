"""The tensors of a model by name, compared with the shapes that its configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Weights:
    """Tensors whose names begin with `prefix`."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    def part(self, name: str) -> Weights:
        """Those of a part of the model."""
        return Weights(self._tensors, f"{self._prefix}{name}.")

    def take(self, name: str, *shape: int) -> Floats:
        """One of `shape` in float32; raises `ValueError` where it is missing or another."""
        full = self._prefix + name
        tensor = self._tensors.get(full)
        if tensor is None:
            raise ValueError(f"its weights do not fit the configuration: it lacks {full}")
        if tensor.shape != shape or tensor.dtype.kind != "f":
            raise ValueError(
                f"its weights do not fit the configuration: {full} has the shape {list(tensor.shape)} "
                f"and should have {list(shape)}"
            )
        return np.ascontiguousarray(tensor, dtype=np.float32)
