"""Cuts by entropy, as the Byte Latent Transformer makes its patches (arXiv 2412.09871, section 2.3).

A small causal byte model gives the entropy H_i of the distribution of byte i. A segment starts at i where

    H_i > threshold                 (`entropy_global`), or
    H_i - H_{i-1} > threshold       (`entropy_monotone`).

The thresholds are chosen on other text for the bytes per segment that are wanted. No cut falls inside a code point.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zonkey_core.evaluation.boundaries import Offsets, code_points
from zonkey_core.evaluation.byte_model import ByteModel, next_byte_entropies
from zonkey_core.evaluation.cutters import Cutter

RULES = ("global", "monotone")


class EntropyCutter:
    """Cuts where the next byte is hard to foretell."""

    def __init__(self, model: ByteModel, rule: str, threshold: float) -> None:
        self.model = model
        self.rule = rule
        self.threshold = threshold
        self.name = f"entropy_{rule}"

    def cut(self, text: bytes) -> Offsets:
        """The cuts of a text."""
        if not text:
            return np.zeros(0, dtype=np.int64)
        above = surprises(text, next_byte_entropies(self.model, [text])[0], self.rule) > self.threshold
        above[0] = True
        cuts: Offsets = np.flatnonzero(above)
        return cuts


def surprises(text: bytes, entropies: NDArray[np.float64], rule: str) -> NDArray[np.float64]:
    """[n] what the threshold of `rule` is laid on for each byte; minus infinity where no cut is allowed."""
    signal = entropies if rule == "global" else np.diff(entropies, prepend=entropies[:1])
    allowed = np.zeros(len(text), dtype=np.bool_)
    allowed[code_points(text).bounds[:-1]] = True
    return np.where(allowed, signal, -np.inf)


def entropy_cutters(model: ByteModel, texts: Sequence[bytes], *, bytes_per_segment: float) -> list[Cutter]:
    """A cutter of each rule, with the threshold that gives `texts` about so many bytes per segment."""
    texts = [text for text in texts if text]
    entropies = next_byte_entropies(model, texts)
    wanted = round(sum(map(len, texts)) / bytes_per_segment) - len(texts)
    cutters: list[Cutter] = []
    for rule in RULES:
        signals = [surprises(text, each, rule)[1:] for text, each in zip(texts, entropies, strict=True)]
        found = np.sort(np.concatenate(signals))
        place = min(max(len(found) - max(wanted, 0) - 1, 0), len(found) - 1)
        cutters.append(EntropyCutter(model, rule, float(found[place])))
    return cutters
