"""Entropy cutters in the manner of the Byte Latent Transformer: a segment begins where a byte is hard to foresee.

With H_i the entropy of a byte model's forecast of byte i from the bytes before it, there is a cut before byte i

    entropy_global:    where H_i > threshold
    entropy_monotone:  where H_i - H_(i-1) > threshold

and never inside a code point. The threshold is one for all text, and is chosen for a number of bytes per segment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from zonkey_core.evaluation.baselines.byte_model import ByteModel, ByteModelShape, next_byte_entropies
from zonkey_core.evaluation.metrics.boundaries import Offsets
from zonkey_core.model.bytes import cut_allowed_mask

SHAPE = ByteModelShape(width=128, layers=1, heads=4, window=128, ngram_rows=16_384)
"""Of the byte model; a second layer is hardly better for the same time."""
GLOBAL, MONOTONE = "entropy_global", "entropy_monotone"


class EntropyReader:
    """Entropies of texts, in nats, which are remembered, since every threshold asks for the same."""

    def __init__(self, model: ByteModel) -> None:
        self.model = model
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def read(self, text: bytes) -> NDArray[np.float32]:
        """[n] entropy of the forecast of every byte."""
        if text not in self._known:
            self._known[text] = next_byte_entropies(self.model, [text])[0].astype(np.float32)
        return self._known[text]


class EntropyCutter:
    """Cuts where the signal of a reader, the entropy or how much it has risen, exceeds a threshold."""

    def __init__(self, name: str, reader: EntropyReader, threshold: float = np.inf) -> None:
        self.name = name
        self.reader = reader
        self.threshold = threshold

    def cut(self, text: bytes) -> Offsets:
        """Offsets at which segments start; 0 is one, unless the text is empty."""
        if not text:
            return np.zeros(0, dtype=np.int64)
        cuts: Offsets = np.append(0, np.flatnonzero(self._signal(text) > self.threshold))
        return cuts

    def with_rate(self, texts: Sequence[bytes], bytes_per_segment: float) -> EntropyCutter:
        """The same with the threshold at which segments of these texts have so many bytes on average.

        Where that would take cuts where none are allowed, they have more.
        """
        signals = -np.sort(-np.concatenate([self._signal(text) for text in texts]))
        cuts = round(len(signals) / bytes_per_segment) - sum(map(bool, texts))
        threshold = float(signals[min(max(cuts, 0), len(signals) - 1)])
        return EntropyCutter(self.name, self.reader, threshold)

    def _signal(self, text: bytes) -> NDArray[np.float32]:
        """[n] what is compared with the threshold before every byte; minus infinity where no cut is to be found."""
        signal = self.reader.read(text).copy()
        if self.name == MONOTONE:
            signal[1:] -= self.reader.read(text)[:-1]
        values = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
        signal[~cut_allowed_mask(values).numpy()] = -np.inf
        signal[:1] = -np.inf  # every text begins with a segment
        return signal


def entropy_cutters(model: ByteModel, texts: Sequence[bytes], *, bytes_per_segment: float) -> list[EntropyCutter]:
    """Both cutters, with thresholds chosen on some texts."""
    reader = EntropyReader(model)
    return [EntropyCutter(name, reader).with_rate(texts, bytes_per_segment) for name in (GLOBAL, MONOTONE)]
