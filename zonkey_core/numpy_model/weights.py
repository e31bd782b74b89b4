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
        return np.ascontiguousarray(self._found(name, "f", shape), dtype=np.float32)

    def take_bytes(self, name: str, *shape: int) -> NDArray[np.uint8]:
        """One of `shape` that holds numbers from 0 to 255; raises `ValueError` as above."""
        return np.ascontiguousarray(self._found(name, "u", shape), dtype=np.uint8)

    def take_integers(self, name: str, *shape: int) -> NDArray[np.int64]:
        """One of `shape` that holds integers; raises `ValueError` as above."""
        return np.ascontiguousarray(self._found(name, "i", shape), dtype=np.int64)

    def _found(self, name: str, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
        full = self._prefix + name
        tensor = self._tensors.get(full)
        if tensor is None:
            raise ValueError(f"its weights do not fit the configuration: it lacks {full}")
        if tensor.shape != shape or tensor.dtype.kind != kind:
            raise ValueError(
                f"its weights do not fit the configuration: {full} has the shape {list(tensor.shape)} "
                f"and should have {list(shape)}"
            )
        return tensor
