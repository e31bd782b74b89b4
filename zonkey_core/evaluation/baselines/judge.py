"""The judge: a byte model that has learned from documents which no contestant has seen, and rates their texts.

It is a judge of how text looks from near: it sees at most `SHAPE.window` bytes at once. Text that is too easy to
foresee is as suspicious as text that is too hard, so figures are compared with those of real text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zonkey_core.evaluation.baselines.byte_model import (
    ByteModel,
    ByteModelShape,
    byte_losses,
    load_byte_model,
    save_byte_model,
)
from zonkey_core.evaluation.baselines.byte_training import TRAINING, fit_byte_model
from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.evaluation.metrics.bootstrap import bootstrap_sums
from zonkey_core.evaluation.results import Measure
from zonkey_core.evaluation.store import fingerprint
from zonkey_core.model.bytes import BYTE_VALUES

SHAPE = ByteModelShape(width=128, layers=2, heads=4, window=128, ngram_rows=32_768)
READ_SHARE = 15
"""Bytes that the judge reads in training for each that is scored."""
MOST_READ = 30_000_000
MOST_PASSES = 5
"""Passes over the judge's documents after which it would learn them by heart."""


class Judge:
    """Rates texts; lower is likelier. `report` is called with the share of a rating that is done."""

    def __init__(self, model: ByteModel, report: Callable[[float], None]) -> None:
        self.model = model
        self.report = report

    def nats_per_byte(self, texts: Sequence[bytes]) -> NDArray[np.float64]:
        """[n] mean of -log p(byte | the bytes before it) over each text, from its beginning; NaN for an empty one."""
        return _means(byte_losses(self.model, texts, report=self.report))

    def conditional_nats(self, befores: Sequence[bytes], texts: Sequence[bytes]) -> NDArray[np.float64]:
        """[n] the same of texts of which each goes on where one of `befores`, from its beginning on, stopped."""
        return _means(byte_losses(self.model, texts, befores=befores, report=self.report))


def get_judge(context: EvaluationContext) -> Judge:
    """The judge of an evaluation, trained when it is first needed."""
    judging, seed = context.texts.judging, context.options.seed
    read_bytes = min(READ_SHARE * context.options.limit, MOST_READ, MOST_PASSES * sum(map(len, judging)))

    def make(folder: Path) -> None:
        def report(share: float) -> None:
            context.report("training the judge", share)

        model = fit_byte_model(judging, read_bytes=read_bytes, seed=seed, shape=SHAPE, report=report)
        save_byte_model(model, folder)

    key = fingerprint(SHAPE, TRAINING, read_bytes, seed, *judging)
    model = load_byte_model(context.store.entry("judge", key, make))
    return Judge(model, lambda share: context.report("judging", share))


def measure_judge(context: EvaluationContext, judge: Judge) -> Measure:
    """How well the judge itself foresees the scored documents: nats per byte over all of them.

    The floor knows how often each byte value stands in the judge's documents, and nothing else.
    """
    began = time.perf_counter()
    texts = [text for text in context.texts.reference if text]
    sizes = np.array([len(text) for text in texts], dtype=np.float64)
    counts = np.stack([judge.nats_per_byte(texts) * sizes, sizes], 1)
    found = bootstrap_sums(counts, lambda sums: sums[:, 0] / sums[:, 1], seed=context.options.seed)
    return Measure(
        name="generate.judge_itself.nats_per_byte",
        value=found.value,
        low=found.low,
        high=found.high,
        floor=_frequency_nats(context.texts.judging, texts),
        n=len(texts),
        seconds=time.perf_counter() - began,
        better="lower",
        unit="nats/byte",
    )


def _frequency_nats(learned: Sequence[bytes], texts: Sequence[bytes]) -> float:
    """Nats per byte of texts from the frequencies of byte values in others, each counted once more than it occurs."""
    seen, asked = (
        np.bincount(np.frombuffer(b"".join(each), dtype=np.uint8), minlength=BYTE_VALUES) for each in (learned, texts)
    )
    probs = (seen + 1) / (seen + 1).sum()
    return float(-(asked * np.log(probs)).sum() / asked.sum())


def _means(losses: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.array([each.mean() if len(each) else np.nan for each in losses])
