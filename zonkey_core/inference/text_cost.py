"""What a text costs by a model's own estimate, which says how long segments of so much information are.

In numpy, so that nobody waits for torch; a text's estimate is that of its pieces of `READ_TOGETHER` units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonkey_core.checkpoint import MODEL, read_model_card, reading
from zonkey_core.config import LevelConfig
from zonkey_core.inference.model_arrays import read_model_arrays
from zonkey_core.model.units import read_units
from zonkey_core.numpy_model.cost_estimator import CostEstimator
from zonkey_core.numpy_model.weights import Weights

READ_TOGETHER = 8192
"""Units whose cost is estimated at once, given which kinds of them there are: as many as in training, about."""
ESTIMATOR = "bottom.estimator."


def load_text_cost(directory: Path) -> Callable[[bytes], float]:
    """What tells the bits that a byte of a text costs on average, by a model in a folder; raises `CheckpointError`."""
    config = read_model_card(directory).config.model.levels[0]
    with reading(directory, MODEL):
        return text_cost(read_model_arrays(directory, (ESTIMATOR,)), config)


def text_cost(tensors: Mapping[str, NDArray[Any]], config: LevelConfig) -> Callable[[bytes], float]:
    """The same of a model's tensors by name; raises `ValueError` where one is missing or of another shape."""
    estimator = CostEstimator(Weights(tensors, ESTIMATOR), config)

    def bits_per_byte(text: bytes) -> float:
        values = np.frombuffer(text, dtype=np.uint8)
        keys = read_units(values, np.arange(len(values)) == 0).keys
        nats = sum(estimator(keys[first : first + READ_TOGETHER]) for first in range(0, len(keys), READ_TOGETHER))
        return nats / math.log(2) / max(1, len(text))

    return bits_per_byte
