"""Parts of a checkpoint's weights in numpy, for what needs no torch."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from zonkey_core.checkpoint import MODEL, check_weights, reading
from zonkey_core.committed_files import file_paths
from zonkey_core.weight_rounding import restore_arrays
from zonkey_core.weights_file import read_arrays


def read_model_arrays(directory: Path, prefixes: tuple[str, ...]) -> Mapping[str, NDArray[Any]]:
    """The tensors whose names begin with one of `prefixes`, of weights that are whole; raises `CheckpointError`."""
    check_weights(directory)
    with reading(directory, MODEL):
        return restore_arrays(ChainMap(*(read_arrays(path, prefixes) for path in file_paths(directory, MODEL))))
