"""Segmentation: where the model cuts, against the borders of words and sentences, under noise, and beside rivals.

Text is scored in passages, which are drawn anew for the intervals. Every rival learns from the same training text,
and is told the model's own bytes per segment where it can be told one. The floor is random cuts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zonkey_core.evaluation.baselines.byte_model import load_byte_model, save_byte_model
from zonkey_core.evaluation.baselines.byte_training import TRAINING, fit_byte_model
from zonkey_core.evaluation.baselines.cutters import (
    Cutter,
    ModelCutter,
    RandomCutter,
    RuleCutter,
    TokenizerCutter,
    cut_texts,
    fit_tokenizers,
)
from zonkey_core.evaluation.baselines.entropy_cutter import SHAPE, EntropyCutter, entropy_cutters
from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.evaluation.metrics.bootstrap import bootstrap_sums
from zonkey_core.evaluation.metrics.boundaries import (
    Offsets,
    calibration_counts,
    calibration_error_of_sums,
    contest_of,
    f1_of_sums,
    landing_probs,
    precision_of_sums,
    recall_of_sums,
    sentences_of,
    strip_spaces,
    word_starts,
)
from zonkey_core.evaluation.results import Better, LeftOut, Measure, Outcome
from zonkey_core.evaluation.store import fingerprint
from zonkey_core.evaluation.tasks.languages import measure_languages
from zonkey_core.evaluation.tasks.noises import NOISES, add_noise, stability_counts
from zonkey_core.evaluation.tasks.unspaced import splitter_alone, unspaced_model
from zonkey_core.evaluation.texts import passages
from zonkey_core.model.model import Zonkey

PASSAGE_BYTES = 4096
CHOOSING_BYTES = 50_000
"""Most bytes of training text on which a threshold is chosen."""
BYTE_MODEL_SHARE = 5
"""Bytes that the entropy cutters' byte model reads for each that is scored."""
COARSE_ENOUGH = 3.8
"""Bytes per segment below which cuts are stable for no merit."""
STABILITY_SIZES = ("4k", "2k", "1k")
OWN, FLOOR = "zonkey", "random"

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Counts = Mapping[str, NDArray[np.float64]]
"""Of each cutter by name, its counts [passages, K]."""


def measure_segmentation(context: EvaluationContext) -> Iterator[Outcome]:
    """All figures of the part `segment`."""
    yield from _Ordinary(context).measure()
    yield from _measure_sentences(context)
    yield from _measure_words(context)
    yield from measure_languages(context)


class _Clock:
    """Time since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or since the beginning."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


class _Ordinary:
    """What is measured on ordinary text."""

    def __init__(self, context: EvaluationContext) -> None:
        self.context = context
        self.clock = _Clock()
        texts = passages(context.texts.reference, PASSAGE_BYTES)
        self.contest = contest_of([(text, word_starts(text)) for text in texts])
        self.training = _beginning(context.texts.training)
        self.own = ModelCutter(context.model, name=OWN)

    def measure(self) -> Iterator[Outcome]:
        """The figures, those that need no rival first."""
        texts, context = self.contest.texts, self.context
        yield self._calibration()
        own_rate = bytes_per_segment(self.training, _cuts(context, self.own, self.training))
        tokenizers, missing = _tokenizers(context, context.texts.training, "segment.rivals")
        yield from missing
        entropy = _entropy_cutters(context, context.texts.training, own_rate)
        untrained = ModelCutter(_untrained(context), name="untrained").with_rate(self.training, own_rate)
        floor = RandomCutter(self.contest.rate, context.options.seed)
        cutters: list[Cutter] = [self.own, *tokenizers, *entropy, untrained, floor]
        cuts = {cutter.name: _cuts(context, cutter, texts) for cutter in cutters}
        counts = {name: self.contest.counts(found) for name, found in cuts.items()}
        yield _measure(context, "segment.whitespace_f1", f1_of_sums, counts, self.clock.lap())
        yield from self._rates(cuts)
        coarse = _coarsest(tokenizers)
        finest = [bytes_per_segment(self.training, _cuts(context, each, self.training)) for each in coarse[:1]]
        target = max([COARSE_ENOUGH, *finest])
        yield from self._stability([*coarse, *(each.with_rate(self.training, target) for each in entropy)], target)

    def _calibration(self) -> Measure:
        """How far the probabilities of cuts are from the share of word starts among the places that they lead to."""
        context, contest = self.context, self.contest
        context.report("probabilities of cuts", 0)
        found = self.own.start_probs(contest.texts)
        cuts = sum(len(self.own.cut_at(each, self.own.threshold)) for each in found)
        floor = RandomCutter(cuts / sum(map(len, contest.texts)), context.options.seed)
        forecasts = {
            OWN: [each.probs for each in found],
            FLOOR: [_certain(floor.cut(text), len(text)) for text in contest.texts],
        }
        counts = {
            name: np.stack([
                calibration_counts(landing_probs(probs, signs), borders)
                for probs, signs, borders in zip(each, contest.signs, contest.borders, strict=True)
            ])
            for name, each in forecasts.items()
        }
        return _measure(
            context, "segment.calibration_error", calibration_error_of_sums, counts, self.clock.lap(),
            ceiling=0.0, better="lower",
        )

    def _rates(self, cuts: Mapping[str, Sequence[Offsets]]) -> Iterator[Measure]:
        """Bytes per segment and its inverse."""
        texts = self.contest.texts
        counts = {
            name: np.array([[len(text), len(each)] for text, each in zip(texts, found, strict=True)], dtype=np.float64)
            for name, found in cuts.items() if name != FLOOR
        }
        for name, unit, above, below in (("bytes_per_segment", "bytes", 0, 1), ("cuts_per_byte", "", 1, 0)):
            yield _measure(
                self.context, f"segment.{name}", lambda sums, a=above, b=below: sums[:, a] / sums[:, b],  # type: ignore[misc]
                counts, self.clock.lap(), ceiling=None, better="neither", unit=unit,
            )

    def _stability(self, rivals: Sequence[Cutter], target: float) -> Iterator[Measure]:
        """Agreement of the cuts of clean and of noised text, at `target` bytes per segment where it can be chosen."""
        context, texts = self.context, self.contest.texts
        context.report("choosing thresholds", None)
        cutters: list[Cutter] = [
            self.own.with_rate(self.training, target),
            *rivals,
            RandomCutter(1 / target, context.options.seed),
        ]
        clean = {cutter.name: _cuts(context, cutter, texts) for cutter in cutters}
        rates = {name: bytes_per_segment(texts, cuts) for name, cuts in clean.items()}
        yield Measure(
            name="segment.stability.bytes_per_segment",
            value=rates.pop(OWN),
            rivals={name: rate for name, rate in rates.items() if name != FLOOR},
            n=len(texts),
            seconds=self.clock.lap(),
            better="neither",
            unit="bytes",
        )
        for noise in NOISES:
            noised = [add_noise(text, noise, context.options.seed + index) for index, text in enumerate(texts)]
            counts = {
                cutter.name: np.stack([
                    stability_counts(before, after, each, len(text)) for before, after, each, text in zip(
                        clean[cutter.name], _cuts(context, cutter, [each.text for each in noised]), noised, texts,
                        strict=True,
                    )
                ])
                for cutter in cutters
            }
            yield _measure(context, f"segment.stability.{noise}", f1_of_sums, counts, self.clock.lap())


def _measure_sentences(context: EvaluationContext) -> Iterator[Outcome]:
    """Agreement of level 1's cuts with gold sentences."""
    clock = _Clock()
    for name, bare in (("segment.sentence_f1", False), ("segment.sentence_f1_without_punctuation", True)):
        if not context.gold:
            yield LeftOut(name=name, reason="no text with known sentences; name some with --gold")
        elif len(context.model.levels) < 2:
            yield LeftOut(name=name, reason="this model has no level 1; train one that has")
        else:
            contest = contest_of([sentences_of(paragraph, bare=bare) for paragraph in context.gold])
            floor = RandomCutter(contest.rate, context.options.seed)
            cutters = (ModelCutter(context.model, level=1, name=OWN), RuleCutter(), floor)
            counts = {cutter.name: contest.counts(_cuts(context, cutter, contest.texts)) for cutter in cutters}
            yield _measure(context, name, f1_of_sums, counts, clock.lap())


def _measure_words(context: EvaluationContext) -> Iterator[Outcome]:
    """Words found in text without spaces, by a splitter and by rivals that have learned from such text."""
    clock = _Clock()
    contest = contest_of([strip_spaces(text) for text in passages(context.texts.reference, PASSAGE_BYTES)])
    training = [strip_spaces(text)[0] for text in context.texts.training]
    own = ModelCutter(unspaced_model(context, training), name=OWN)
    sample = _beginning(training)
    own_rate = bytes_per_segment(sample, _cuts(context, own, sample))
    tokenizers, missing = _tokenizers(context, training, "segment.word_f1.rivals")
    yield from missing
    entropy = _entropy_cutters(context, training, own_rate)
    cutters: list[Cutter] = [own, *tokenizers, *entropy, RandomCutter(contest.rate, context.options.seed)]
    counts = {cutter.name: contest.counts(_cuts(context, cutter, contest.texts)) for cutter in cutters}
    for name, statistic in (("f1", f1_of_sums), ("precision", precision_of_sums), ("recall", recall_of_sums)):
        yield _measure(context, f"segment.word_{name}", statistic, counts, clock.lap())


def bytes_per_segment(texts: Sequence[bytes], cuts: Sequence[Offsets]) -> float:
    """Mean bytes per segment over all texts."""
    return sum(map(len, texts)) / max(1, sum(map(len, cuts)))


def _cuts(context: EvaluationContext, cutter: Cutter, texts: Sequence[bytes]) -> list[Offsets]:
    """A cutter's cuts of every text, with progress."""
    return cut_texts(cutter, texts, partial(context.report, f"cutting: {cutter.name}"))


def _certain(cuts: Offsets, length: int) -> NDArray[np.float64]:
    """Cuts as probabilities of 1."""
    probs = np.zeros(length)
    probs[cuts] = 1.0
    return probs


def _beginning(documents: Sequence[bytes]) -> list[bytes]:
    """The first passages of some documents, on which thresholds are chosen."""
    return passages([b"".join(documents)[:CHOOSING_BYTES]], PASSAGE_BYTES)


def _untrained(context: EvaluationContext) -> Zonkey:
    """The splitter of level 0 with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.options.seed)
        model = Zonkey(splitter_alone(context.model.config.levels[0]))
    return model.to(context.model.device).eval().requires_grad_(False)


def _entropy_cutters(context: EvaluationContext, training: Sequence[bytes], wanted: float) -> list[EntropyCutter]:
    """Entropy cutters with `wanted` bytes per segment; their byte model is fitted once for a text and kept."""
    read_bytes = BYTE_MODEL_SHARE * context.options.limit
    key = fingerprint(_identity(context, training), read_bytes, context.options.seed, SHAPE, TRAINING)

    def make(folder: Path) -> None:
        model = fit_byte_model(
            training,
            read_bytes=read_bytes,
            seed=context.options.seed,
            shape=SHAPE,
            report=lambda share: context.report("training the byte model of entropy cutters", share),
        )
        save_byte_model(model, folder)

    model = load_byte_model(context.store.entry("entropy-model", key, make)).to(context.model.device)
    return entropy_cutters(model, _beginning(training), bytes_per_segment=wanted)


def _identity(context: EvaluationContext, training: Sequence[bytes]) -> str:
    """What stands for a training text, with or without its spaces, among the things that are kept."""
    return context.texts.identity + ("" if training is context.texts.training else " without spaces")


def _tokenizers(
    context: EvaluationContext, training: Sequence[bytes], name: str
) -> tuple[list[TokenizerCutter], list[LeftOut]]:
    """The tokenizers that can be trained, and why others cannot; figures that lack them are called `name`."""
    try:
        found = fit_tokenizers(
            training, store=context.store, identity=_identity(context, training), report=context.report
        )
    except ImportError:
        return [], [LeftOut(name=name, reason='sentencepiece is missing; pip install "zonkey[eval]"')]
    missing = [
        LeftOut(name=f"{name}.{each}", reason=f"too little text for this many pieces; raise --limit ({reason})")
        for each, reason in found.failed.items()
    ]
    return list(found.fitted.values()), missing


def _coarsest(tokenizers: Sequence[TokenizerCutter]) -> list[TokenizerCutter]:
    """BPE and Unigram of the largest size up to 4k that there is of each."""
    by_name = {each.name: each for each in tokenizers}
    chosen = []
    for kind in ("bpe", "unigram"):
        names = [name for size in STABILITY_SIZES if (name := f"{kind}_{size}") in by_name]
        chosen += [by_name[name] for name in names[:1]]
    return chosen


def _measure(
    context: EvaluationContext,
    name: str,
    statistic: Statistic,
    counts: Counts,
    seconds: float,
    *,
    ceiling: float | None = 1.0,
    better: Better = "higher",
    unit: str = "",
) -> Measure:
    """The model's figure beside the floor's and the rivals', all from their counts."""
    found = bootstrap_sums(counts[OWN], statistic, seed=context.options.seed)
    values = {other: float(statistic(each.sum(0, keepdims=True))[0]) for other, each in counts.items()}
    return Measure(
        name=name,
        value=found.value,
        low=found.low,
        high=found.high,
        floor=values.get(FLOOR),
        ceiling=ceiling,
        rivals={other: value for other, value in values.items() if other not in (OWN, FLOOR)},
        n=len(counts[OWN]),
        seconds=seconds,
        better=better,
        unit=unit,
    )
