"""How well the model writes: its samples beside rivals', those of trivial methods, and real held-out text.

Real documents are parted in two: every set of texts is compared with the one half, and the other half, which passes
for samples, is the ceiling. Texts have at most `sample_bytes` bytes and begin where documents begin; where there are
too few documents, passages from further in help out. The metrics are in `text_metrics`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import msgspec
import numpy as np

from zonkey_core.errors import ConfigError
from zonkey_core.evaluation.baselines.coherence_judge import get_coherence_judge, measure_coherence_judge
from zonkey_core.evaluation.baselines.judge import get_judge, measure_judge
from zonkey_core.evaluation.context import Contestant, EvaluationContext
from zonkey_core.evaluation.metrics.embeddings import SentenceEmbedder
from zonkey_core.evaluation.metrics.ngrams import HIGHEST_ORDER, ByteNgramModel
from zonkey_core.evaluation.metrics.text_metrics import (
    METRICS,
    Remembered,
    TrainingWords,
    Yardstick,
    score_texts,
    score_with_interval,
)
from zonkey_core.evaluation.results import LeftOut, Measure, Outcome
from zonkey_core.evaluation.texts import passages
from zonkey_core.inference.generation import SamplingOptions, generate

KEPT_TOGETHER = 16
"""Samples that are kept at once, so that sampling which was stopped goes on from there."""
SAME_LENGTHS = 0.02
"""Length distance of texts of one length below which the lengths of real ones say nothing."""
TRIVIAL_RIVALS = ("byte_3gram", "byte_6gram", "shuffled_words")
FLOORS: Mapping[str, tuple[str, ...]] = {
    "known_words": ("byte_3gram",),
    "jsd_1": ("uniform_bytes",),
    **{f"jsd_{n}": (f"byte_{n - 1}gram",) for n in range(2, 7)},
    **{f"distinct_gap_{n}": ("repeated_word",) for n in (1, 2, 3)},
    "copied_8grams": ("training_text",),
    "length_distance": ("repeated_word",),
    "judge_nats_per_byte": (),
    "judge_gap": ("byte_3gram", "shuffled_words"),
    "coherence": ("byte_6gram", "lowest_level_alone"),
    "frechet": ("byte_3gram", "byte_6gram"),
}
"""The trivial methods that a metric exists to tell from real text; its floor is the best of their values.

Sentence embeddings take little notice of the order of words, so shuffled ones are no floor of the Fréchet distance. A
6-gram model of little text copies long stretches of it, which a judge of little text takes for real; it is a rival.
What the model writes with its lowest level alone, where it has more than one, is a floor of coherence: it is what the
levels above are for.
"""
LOWEST_ALONE = "lowest_level_alone"


@dataclass(frozen=True)
class Comparison:
    """Sets of texts, and what they are measured by."""

    samples: Sequence[bytes]
    """The model's."""
    held_out: Sequence[bytes]
    """Real ones that pass for samples."""
    rivals: Mapping[str, Sequence[bytes]]
    trivial: Mapping[str, Sequence[bytes]]
    yardstick: Yardstick

    def measure(self, metric: str, *, seed: int) -> Outcome:
        """One metric of every set; the time is filled in by the caller."""
        name = f"generate.{metric}"
        floor = self._floor(metric)
        if metric == "length_distance" and floor is not None and floor < SAME_LENGTHS:
            return LeftOut(name=name, reason="nearly all real texts are as long as the longest sample may be")
        found = score_with_interval(self.samples, self.yardstick, metric, seed=seed)
        if not math.isfinite(found.value):
            return LeftOut(name=name, reason="there is nothing in the model's samples to measure it on")
        rivals = {rival: self._score(texts, metric) for rival, texts in self.rivals.items()}
        ceiling = self._score(self.held_out, metric)
        return Measure(
            name=name,
            value=found.value,
            low=found.low,
            high=found.high,
            floor=floor,
            ceiling=ceiling if math.isfinite(ceiling) else None,
            rivals={rival: value for rival, value in rivals.items() if math.isfinite(value)},
            n=len(self.samples),
            seconds=0.0,
            better=METRICS[metric].better,
            unit=METRICS[metric].unit,
        )

    def _score(self, texts: Sequence[bytes], metric: str) -> float:
        return score_texts(texts, self.yardstick, [metric])[metric]

    def _floor(self, metric: str) -> float | None:
        methods = (method for method in FLOORS[metric] if method in self.trivial)
        values = [self._score(self.trivial[method], metric) for method in methods]
        finite = [value for value in values if math.isfinite(value)]
        best = max if METRICS[metric].better == "higher" else min
        return best(finite) if finite else None


def measure_generation(context: EvaluationContext) -> Iterator[Outcome]:
    """Sample texts and compare them with real ones; the first figure's `seconds` include the sampling."""
    began = time.perf_counter()
    options, texts = context.options, context.texts
    count, size = options.samples, options.sample_bytes
    reference, held_out = real_texts(texts.reference, count, size)
    samples = _model_samples(context, level=None)
    rivals = {contestant.name: _contestant_samples(context, contestant) for contestant in context.contestants}
    context.report("writing by trivial methods", None)
    trivial = trivial_texts(texts.training, count, size, options.seed)
    if len(context.model.levels) > 1:
        trivial[LOWEST_ALONE] = _model_samples(context, level=0)
    context.report("reading the words of training text", None)
    find_judge = cache(partial(get_judge, context))
    coherence = get_coherence_judge(context)
    yardstick = Yardstick(
        reference=reference,
        training=TrainingWords(texts.training),
        judge=Remembered(lambda passed: find_judge().nats_per_byte(passed)),
        coherence=coherence.gains,
    )
    rivals |= {name: trivial[name] for name in TRIVIAL_RIVALS}
    comparison = Comparison(samples, held_out, rivals, trivial, yardstick)
    yield measure_judge(context, find_judge())
    yield measure_coherence_judge(coherence, held_out, seed=options.seed)
    began = time.perf_counter()
    for metric in METRICS:
        context.report(f"comparing: {metric}", None)
        if metric == "frechet":
            try:
                embed = Remembered(SentenceEmbedder(context.report))
            except ConfigError as error:
                yield LeftOut(name="generate.frechet", reason=str(error))
                continue
            comparison = replace(comparison, yardstick=replace(yardstick, embed=embed))
        outcome = comparison.measure(metric, seed=options.seed)
        if isinstance(outcome, Measure):
            outcome = msgspec.structs.replace(outcome, seconds=time.perf_counter() - began)
        yield outcome
        began = time.perf_counter()


def real_texts(documents: Sequence[bytes], count: int, size: int) -> tuple[list[bytes], list[bytes]]:
    """Beginnings of real documents, up to `2 * count` as the reference, and up to `count` of other documents."""
    if len(documents) == 1:
        documents = passages(documents, size)
    compared, held_out = documents[0::2], documents[1::2]
    wanted = max(count, min(2 * count, len(compared)))
    return beginnings(compared, wanted, size), beginnings(held_out, count, size)


def beginnings(documents: Sequence[bytes], count: int, size: int) -> list[bytes]:
    """Up to `count` passages of at most `size` bytes: the first of every document, then the second ones, and so on."""
    rows = [passages([document], size) for document in documents[:count]]
    columns = itertools.chain.from_iterable(itertools.zip_longest(*rows))
    return list(itertools.islice((passage for passage in columns if passage), count))


def trivial_texts(training: Sequence[bytes], count: int, size: int, seed: int) -> dict[str, list[bytes]]:
    """`count` texts of each trivial method, by its name.

    `uniform_bytes`: bytes drawn with equal chance. `byte_{n}gram`: a model of training text. `shuffled_words`: the
    beginning of a training document, its words in random order. `repeated_word`: the commonest word, over and over.
    `training_text`: beginnings of training documents.
    """
    generator = np.random.default_rng(seed)
    model = ByteNgramModel(HIGHEST_ORDER).fit(training)
    copies = beginnings(training, count, size)
    split = [text.split() for text in copies]
    commonest = Counter(itertools.chain.from_iterable(split)).most_common(1)
    word = commonest[0][0] if commonest else b"the"
    return {
        "uniform_bytes": [generator.bytes(size) for _ in range(count)],
        **{
            f"byte_{order}gram": model.sample(count, size, seed, order=order)
            for order in range(1, HIGHEST_ORDER + 1)
        },
        "shuffled_words": [b" ".join(generator.permuted(np.array(each, object))) for each in split],
        "repeated_word": [((word + b" ") * size)[:size]] * count,
        "training_text": copies,
    }


def _model_samples(context: EvaluationContext, *, level: int | None) -> list[bytes]:
    """The model's texts from this level down, with its default options; sample i has the seed `seed + i`."""
    settings = SamplingOptions(max_bytes=context.options.sample_bytes, level=level)
    doing = "sampling from the model" if level is None else "sampling from its lowest level alone"
    count, first = context.options.samples, context.options.seed
    samples: list[bytes] = []
    for start in range(0, count, KEPT_TOGETHER):
        seeds = range(first + start, first + min(count, start + KEPT_TOGETHER))

        def draw(seeds: range = seeds) -> list[bytes]:
            texts = []
            for sample in generate(context.model, seeds=seeds, options=settings):
                texts.append(sample.text)
                context.report(doing, (sample.seed + 1 - first) / count)
            return texts

        samples += context.store.texts([context.model_identity, settings, list(seeds)], draw)
    return samples


def _contestant_samples(context: EvaluationContext, contestant: Contestant) -> list[bytes]:
    options = context.options
    settings = [options.samples, options.sample_bytes, options.seed]
    context.report(f"sampling from {contestant.name}", None)
    made_of = [contestant.name, contestant.identity, settings]
    return context.store.texts(made_of, lambda: contestant.generate(*settings))
