"""How well the model foresees held-out text, in bits a byte, and what it gains from text that stands before.

A text's probability is the product of the probabilities of the strings that the model cuts it into, each given those
before it: the chain rule, from left to right, in one stream. That is one spelling of many, so the figure is an upper
bound of the model's bits. Where a text ends is not counted, for the model or for anyone else: every prediction is
given that the text goes on.

Passages with `BEFORE_BYTES` of their document before them show whether context pays. They begin where a block of the
level above does; nothing else of their blocks is told (`inference.context_scoring`). Documents are drawn anew for the
intervals, and those of gains are paired.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.evaluation.metrics.bootstrap import bootstrap_sums
from zonkey_core.evaluation.metrics.ngrams import HIGHEST_ORDER, ByteNgramModel
from zonkey_core.evaluation.results import Better, LeftOut, Measure, Outcome
from zonkey_core.inference.context_scoring import Passage, Reading, closed_bytes, passage_likelihoods
from zonkey_core.inference.scoring import ROWS_TOGETHER, Question, log_likelihoods
from zonkey_core.model.model import Zonkey

T = TypeVar("T")
DOCUMENT_BYTES = 2_048
"""Of each document, the beginning that is scored."""
BEFORE_BYTES = 2_048
"""What stands before a passage; less by the part of a block that is left open there."""
PASSAGE_BYTES = 512
LEAST_BEFORE = BEFORE_BYTES // 2
"""Where so much is not left, as a model cuts hardly at all, there is no passage."""
GAINS: Mapping[str, tuple[Reading, Reading]] = {
    "latents": (Reading.NOTHING, Reading.LATENTS),
    "slots": (Reading.NOTHING, Reading.SLOTS),
    "latents_beside_slots": (Reading.SLOTS, Reading.BOTH),
}
"""What is read more of the text before, against what."""


def measure_likelihood(context: EvaluationContext) -> Iterator[Outcome]:
    """Bits a byte of documents' beginnings, then of passages with more and more of the text before them."""
    yield from _measure_documents(context)
    began = time.perf_counter()
    passages = find_passages(context.model, context.texts.reference, context.options.samples, context.report)
    if len(passages) < 2:
        yield LeftOut(
            name="likelihood.gain",
            reason=f"too few documents of more than {BEFORE_BYTES + PASSAGE_BYTES} bytes; measure on longer ones",
        )
        return
    yield from _measure_passages(context, passages, began)


def _measure_documents(context: EvaluationContext) -> Iterator[Outcome]:
    """Of documents from their beginnings, beside n-grams and contestants."""
    began = time.perf_counter()
    beginnings = (document[: _whole(document, DOCUMENT_BYTES)] for document in context.texts.reference)
    texts = sorted(filter(None, beginnings), key=len)
    sizes = np.array([len(text) for text in texts], np.float64)
    nats_in_all = math.log(2) * float(sizes.sum())  # at one bit a byte

    def score(some: Sequence[bytes]) -> list[float]:
        return [found.total for found in log_likelihoods(context.model, [Question(x, [(0, len(x))]) for x in some])]

    bits = _bits(_in_turn(texts, score, context, "scoring documents"))
    context.report("scoring documents by n-grams", None)
    nats = ByteNgramModel(HIGHEST_ORDER).fit(context.texts.training).nats(texts)
    rivals: dict[str, float] = {}
    for contestant in context.contestants:
        context.report(f"scoring documents by {contestant.name}", None)
        found = contestant.nats(texts)
        if found is None:
            reason = "it gives no more than a bound of its own bits"
            yield LeftOut(name=f"likelihood.bits_per_byte.{contestant.name}", reason=reason)
        else:
            rivals[contestant.name] = sum(found) / nats_in_all
    yield _measure(
        context, "bits_per_byte", np.stack([bits, sizes], 1), lambda sums: sums[:, 0] / sums[:, 1], began,
        floor=float(np.concatenate(nats).sum()) / nats_in_all, rivals=rivals, better="lower",
        unit="bits/byte",
    )  # fmt: skip


def find_passages(
    model: Zonkey, documents: Sequence[bytes], count: int, report: Callable[[str, float | None], None]
) -> list[tuple[int, Passage]]:
    """Up to `count` passages, each with the number of its document: the first of every one, then the second ones.

    Every passage has about `BEFORE_BYTES` before it and `PASSAGE_BYTES` of its own.
    """
    rows = [_places(document) for document in documents]
    turns = itertools.chain.from_iterable(
        ((number, row[turn]) for number, row in enumerate(rows) if turn < len(row))
        for turn in range(max(map(len, rows), default=0))
    )
    found: list[tuple[int, Passage]] = []
    for number, place in turns:
        if len(found) == count:
            break
        report("looking for passages", len(found) / count)
        document = documents[number]
        first = _whole(document, place - BEFORE_BYTES)
        before = document[first : _whole(document, place)]
        begin = first + closed_bytes(model, before) if len(model.levels) > 1 else first + len(before)
        if begin - first >= LEAST_BEFORE:
            text = document[begin : _whole(document, begin + PASSAGE_BYTES)]
            found.append((number, Passage(document[first:begin], text, first == 0)))
    return found


def _places(document: bytes) -> range:
    """Where passages of a document may begin."""
    return range(BEFORE_BYTES, len(document) - PASSAGE_BYTES + 1, PASSAGE_BYTES)


def _measure_passages(
    context: EvaluationContext, passages: Sequence[tuple[int, Passage]], began: float
) -> Iterator[Outcome]:
    """Of passages by what is read of the text before them, and the gains."""
    sizes = np.array([len(passage.text) for _, passage in passages], np.float64)
    _, owners = np.unique([number for number, _ in passages], return_inverse=True)
    bits: dict[Reading, NDArray[np.float64]] = {}
    for reading in Reading:
        if reading in (Reading.LATENTS, Reading.BOTH) and len(context.model.levels) < 2:
            yield LeftOut(name=f"likelihood.passage.{reading.value}", reason="the model has no level above the lowest")
            continue

        def score(some: Sequence[Passage], reading: Reading = reading) -> list[float]:
            return [found.total for found in passage_likelihoods(context.model, some, reading)]

        chosen = [passage for _, passage in passages]
        bits[reading] = _bits(_in_turn(chosen, score, context, f"scoring passages: {reading.value}"))
        counts = _by_document(owners, bits[reading], sizes)
        yield _measure(
            context, f"passage.{reading.value}", counts, lambda sums: sums[:, 0] / sums[:, 1], began,
            better="lower", unit="bits/byte",
        )  # fmt: skip
        began = time.perf_counter()
    for name, (without, given) in GAINS.items():
        if without in bits and given in bits:
            counts = _by_document(owners, bits[given], bits[without])
            yield _measure(
                context, f"gain.{name}", counts, lambda sums: 1 - sums[:, 0] / sums[:, 1], began, floor=0.0
            )


def _in_turn(
    units: Sequence[T], score: Callable[[Sequence[T]], list[float]], context: EvaluationContext, doing: str
) -> list[float]:
    """What is said of every unit, with word of how far that is."""
    found: list[float] = []
    for first in range(0, len(units), ROWS_TOGETHER):
        found += score(units[first : first + ROWS_TOGETHER])
        context.report(doing, len(found) / len(units))
    return found


def _bits(log_likelihoods: Sequence[float]) -> NDArray[np.float64]:
    """[n] bits of log-probabilities in nats."""
    return -np.array(log_likelihoods) / math.log(2)


def _by_document(owners: NDArray[np.intp], *values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[D, K] sums of values [n] over the passages of each document."""
    return np.stack([np.bincount(owners, weights=each) for each in values], 1)


def _measure(
    context: EvaluationContext,
    name: str,
    counts: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    began: float,
    *,
    floor: float | None = None,
    rivals: Mapping[str, float] | None = None,
    better: Better = "higher",
    unit: str = "",
) -> Measure:
    """A figure of sums over documents [D, K]."""
    found = bootstrap_sums(counts, statistic, seed=context.options.seed)
    return Measure(
        name=f"likelihood.{name}", value=found.value, low=found.low, high=found.high, floor=floor,
        rivals=dict(rivals or {}), n=len(counts), seconds=time.perf_counter() - began, better=better, unit=unit,
    )  # fmt: skip


def _whole(document: bytes, place: int) -> int:
    """The nearest place at or before another that is not inside a code point of UTF-8, or the document's end."""
    if place >= len(document):
        return len(document)
    first = next((start for start in range(place, max(0, place - 4), -1) if document[start] & 0xC0 != 0x80), place)
    return max(0, first)
