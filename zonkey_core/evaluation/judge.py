"""The judge: an independent byte model that says how likely a text is.

It learns from `texts.judging` alone, which no contestant has seen, so that a model cannot please it by remembering
what both were taught. Its figures are cross-entropies in nats, and mean something beside those of real text only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zonkey_core.evaluation.byte_model import (
    ByteModel,
    ByteModelShape,
    byte_losses,
    load_byte_model,
    save_byte_model,
)
from zonkey_core.evaluation.byte_training import fit_byte_model
from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.evaluation.store import fingerprint

SHAPE = ByteModelShape(ngram_rows=32_768)
READ_SHARE, MOST_READ = 15, 30_000_000
"""Bytes that the judge reads for each that is scored, and at most."""


class Judge:
    """Says how likely texts are."""

    def __init__(self, model: ByteModel, report: Callable[[float], None] | None = None) -> None:
        self.model = model
        self.report = report

    def nats_per_byte(self, texts: Sequence[bytes]) -> NDArray[np.float64]:
        """[T] mean of -log p(byte | all before it) over each text, none of which may be empty."""
        return np.array([losses.mean() for losses in byte_losses(self.model, texts, report=self.report)])

    def conditional_nats(self, befores: Sequence[bytes], texts: Sequence[bytes]) -> NDArray[np.float64]:
        """[T] nats of each text as a whole, given what stands before it."""
        return np.array([losses.sum() for losses in byte_losses(self.model, texts, befores=befores)])


def get_judge(context: EvaluationContext) -> Judge:
    """The judge of an evaluation, from the store where it is kept, or else trained now."""
    texts, options = context.texts, context.options
    read_bytes = min(READ_SHARE * options.limit, MOST_READ)

    def make(folder: Path) -> None:
        model = fit_byte_model(
            texts.judging,
            read_bytes=read_bytes,
            seed=options.seed,
            shape=SHAPE,
            report=lambda share: context.report("training the judge", share),
        )
        save_byte_model(model, folder)

    place = context.store.entry("judge", fingerprint(texts.identity, read_bytes, options.seed, SHAPE), make)
    model = load_byte_model(place).to(context.model.device)
    return Judge(model, lambda share: context.report("judging", share))
