"""How well the model fills gaps of unknown length in held-out text whose true words are known.

Trivial methods fill the same gaps, and so do rivals. Like the model they are not told how long a gap is, unless a
rival's name says otherwise. The metrics are in `infilling_metrics`; that the context stays as it is, is checked too.
"""

from __future__ import annotations

import functools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from zonkey_core import __version__
from zonkey_core.evaluation.baselines.judge import get_judge
from zonkey_core.evaluation.context import Contestant, EvaluationContext
from zonkey_core.evaluation.metrics.bootstrap import Interval, bootstrap_mean, bootstrap_median
from zonkey_core.evaluation.metrics.infilling_metrics import (
    GapTask,
    Rating,
    choose_gaps,
    context_gain,
    context_preserved,
    edit_similarity,
    first_words,
    is_exact,
    length_error,
    rouge_2,
    seam_gain,
    words_of,
)
from zonkey_core.evaluation.metrics.ngrams import HIGHEST_ORDER, ByteNgramModel
from zonkey_core.evaluation.results import Better, LeftOut, Measure, Outcome
from zonkey_core.inference.gap_windows import GappedDocument
from zonkey_core.inference.infilling import Fill, InfillingOptions, apply_fills, infill_documents

GAP_WORDS = (1, 3, 8)
"""Sizes of the gaps."""
KEPT_TOGETHER = 20
"""Fills that are kept at once, so that filling which was stopped goes on from there."""
CONSTANT_WORDS = 3
CONSTANT_BYTES = 1_000_000
"""Training text in which the constant is looked for."""
NGRAM_BYTES = 200
"""Most bytes that the n-gram model writes into a gap."""
SENTENCE_END = re.compile(rb"[.!?]+\s+")

Filler = Callable[[GapTask, int], bytes]
"""Fills the gap of a task, given a seed."""
CANDIDATES = 10
"""Fills that the model draws for each gap; the first is compared with others', and all count where one may be exact."""
PER_GAP: Mapping[str, tuple[Callable[[GapTask, bytes], float], Better]] = {
    "edit_similarity": (lambda task, fill: edit_similarity(fill, task.answer), "higher"),
    "rouge_2": (rouge_2, "higher"),
    "exact": (lambda task, fill: float(is_exact(fill, task.answer)), "higher"),
    "word_count": (lambda task, fill: float(len(words_of(fill)) == len(words_of(task.answer))), "higher"),
    "length_error": (lambda task, fill: length_error(fill, task.answer), "lower"),
}
"""Metrics that are means over gaps."""
JUDGED = {"context_gain": context_gain, "seam_gain": seam_gain}
METRICS: Mapping[str, Better] = {
    **{name: better for name, (_, better) in PER_GAP.items()},
    "length_median": "lower",
    **dict.fromkeys(JUDGED, "higher"),
}


@dataclass(frozen=True)
class Comparison:
    """Gaps of one size, as the model, rivals and trivial methods filled them."""

    tasks: Sequence[GapTask]
    fills: Sequence[bytes]
    """The model's."""
    rivals: Mapping[str, Sequence[bytes]]
    trivial: Mapping[str, Sequence[bytes]]
    rate: Rating
    seed: int

    def measure(self, metric: str, name: str) -> Measure:
        """One of `METRICS` of all fills; the time is filled in by the caller."""
        found = self._score(metric, self.fills)
        trivial = {method: self._score(metric, fills).value for method, fills in self.trivial.items()}
        best = max if METRICS[metric] == "higher" else min
        return Measure(
            name=name,
            value=found.value,
            low=found.low,
            high=found.high,
            floor=best(trivial.values()),
            ceiling=self._score(metric, [task.answer for task in self.tasks]).value,
            rivals={rival: self._score(metric, fills).value for rival, fills in self.rivals.items()} | trivial,
            n=len(self.tasks),
            seconds=0.0,
            better=METRICS[metric],
            unit="nats" if metric in JUDGED else "",
        )

    def _score(self, metric: str, fills: Sequence[bytes]) -> Interval:
        if metric in JUDGED:
            return JUDGED[metric](self.rate, self.tasks, fills, seed=self.seed)
        if metric == "length_median":
            errors = [length_error(fill, task.answer) for task, fill in zip(self.tasks, fills, strict=True)]
            return bootstrap_median(np.array(errors, np.float64), seed=self.seed)
        score = PER_GAP[metric][0]
        values = [score(task, fill) for task, fill in zip(self.tasks, fills, strict=True)]
        return bootstrap_mean(np.array(values, np.float64), seed=self.seed)


def measure_infilling(context: EvaluationContext) -> Iterator[Outcome]:
    """Fill gaps of every size and compare; the first figure of a size includes the time that the filling took.

    The floor of a figure is the best of the trivial methods, whose values stand among the rivals'. Where no byte
    outside a gap may change, it is a method that writes the whole text anew.
    """
    trivial = trivial_fillers(context.texts.training)
    for words in GAP_WORDS:
        began = time.perf_counter()
        tasks = choose_gaps(context.texts.reference, words, context.options.gaps, context.options.seed)
        if len(tasks) < 2:
            reason = f"fewer than two runs of {words} words within a line to leave out; measure on more text"
            yield LeftOut(name=f"infill.{words}", reason=reason)
            continue
        texts = _model_texts(context, tasks, words)
        yield _preserved(context, tasks, [each.text for each in texts], words, time.perf_counter() - began)
        comparison = _compare(context, tasks, [each.text for each in texts], trivial, words)
        for metric in METRICS:
            began = time.perf_counter()
            context.report(f"comparing fills of {words} words: {metric}", None)
            figure = comparison.measure(metric, f"infill.{words}.{metric}")
            yield msgspec.structs.replace(figure, seconds=time.perf_counter() - began)
        yield _exact_among(context, tasks, [each.candidates for each in texts], comparison, words)


def trivial_fillers(training: Sequence[bytes]) -> dict[str, Filler]:
    """The methods that any model has to beat, by their names.

    `nothing` closes the gap. `previous_sentence` copies the last sentence that ended before the gap, or all that
    stands there. `constant` is the commonest run of `CONSTANT_WORDS` words of the training text. `ngram` goes on from
    the text before the gap by a byte n-gram model, for as many words as one of `GAP_WORDS`, drawn anew for each gap.
    """
    model = ByteNgramModel(HIGHEST_ORDER).fit(training)
    constant = _commonest_run(training)

    def write(task: GapTask, seed: int) -> bytes:
        count = int(np.random.default_rng(seed).choice(GAP_WORDS))
        written = model.continue_text(
            task.before, stop=lambda text: len(words_of(text)) > count, max_bytes=NGRAM_BYTES, seed=seed
        )
        return first_words(written, count)

    return {
        "nothing": lambda task, seed: b"",
        "previous_sentence": lambda task, seed: previous_sentence(task.before),
        "constant": lambda task, seed: constant,
        "ngram": write,
    }


def previous_sentence(before: bytes) -> bytes:
    """The last sentence of a text that a full stop or the like and whitespace end; the whole text if none does."""
    ends = [match.end() for match in SENTENCE_END.finditer(before)]
    if not ends:
        return before.strip()
    return before[ends[-2] if len(ends) > 1 else 0 : ends[-1]].strip()


def _commonest_run(training: Sequence[bytes]) -> bytes:
    runs: Counter[tuple[str, ...]] = Counter()
    left = CONSTANT_BYTES
    for document in training:
        words = words_of(document[:left])
        runs.update(zip(*(words[offset:] for offset in range(CONSTANT_WORDS)), strict=False))
        left -= len(document)
        if left <= 0:
            break
    return " ".join(runs.most_common(1)[0][0]).encode() if runs else b"the"


def _compare(
    context: EvaluationContext,
    tasks: Sequence[GapTask],
    texts: Sequence[bytes],
    trivial: Mapping[str, Filler],
    words: int,
) -> Comparison:
    """Let everyone else fill the gaps too."""
    seed = context.options.seed
    return Comparison(
        tasks,
        [text[task.gap.start : len(text) - len(task.after)] for task, text in zip(tasks, texts, strict=True)],
        {rival.name: _contestant_fills(context, rival, tasks, words) for rival in context.contestants},
        {
            name: [filler(task, seed + index) for index, task in enumerate(tasks)]
            for name, filler in trivial.items()
        },
        get_judge(context).conditional_nats,
        seed,
    )


def _preserved(
    context: EvaluationContext, tasks: Sequence[GapTask], texts: Sequence[bytes], words: int, seconds: float
) -> Measure:
    """The share of filled texts in which every byte outside the gap stayed."""
    kept = [context_preserved(task, text) for task, text in zip(tasks, texts, strict=True)]
    found = bootstrap_mean(np.array(kept, np.float64), seed=context.options.seed)
    return Measure(
        name=f"infill.{words}.context_preserved",
        value=found.value,
        low=found.low,
        high=found.high,
        floor=0.0,
        ceiling=1.0,
        n=len(tasks),
        seconds=seconds,
    )


class _Filled(msgspec.Struct):
    """A task as the model filled it."""

    text: bytes
    candidates: list[bytes]
    """All different ones, the best first."""


def _model_texts(context: EvaluationContext, tasks: Sequence[GapTask], words: int) -> list[_Filled]:
    """The tasks as the model filled them, with default options but for the number of candidates; task i with the seed
    `seed + i`."""
    settings = InfillingOptions(candidates=CANDIDATES)

    def fill(some: Sequence[GapTask], seed: int) -> list[bytes]:
        documents = [GappedDocument(task.text, [task.gap], seed + number) for number, task in enumerate(some)]
        found: list[Fill | None] = [None] * len(some)
        for number, (drawn,) in infill_documents(context.model, documents, options=settings):
            found[number] = drawn
        return [msgspec.msgpack.encode(_as_filled(task, each)) for task, each in zip(some, found, strict=True)]

    made_of = [context.model_identity, settings]
    kept = _kept(context, made_of, fill, tasks, f"filling gaps of {words} words")
    return [msgspec.msgpack.decode(each, type=_Filled) for each in kept]


def _as_filled(task: GapTask, fill: Fill | None) -> _Filled:
    """A gap without a fill stays as it is."""
    if fill is None:
        return _Filled(task.text, [])
    return _Filled(apply_fills(task.text, [fill]), [candidate.text for candidate in fill.candidates])


def _exact_among(
    context: EvaluationContext,
    tasks: Sequence[GapTask],
    candidates: Sequence[Sequence[bytes]],
    comparison: Comparison,
    words: int,
) -> Measure:
    """The share of gaps with the true answer among the model's candidates; the n-gram model's one try is the floor."""
    hits = [
        any(is_exact(text, task.answer) for text in some) for task, some in zip(tasks, candidates, strict=True)
    ]
    found = bootstrap_mean(np.array(hits, np.float64), seed=context.options.seed)
    tries = zip(tasks, comparison.trivial["ngram"], strict=True)
    return Measure(
        name=f"infill.{words}.exact_in_{CANDIDATES}",
        value=found.value,
        low=found.low,
        high=found.high,
        floor=float(np.mean([is_exact(fill, task.answer) for task, fill in tries])),
        ceiling=1.0,
        n=len(tasks),
        seconds=0.0,
    )


def _contestant_fills(
    context: EvaluationContext, contestant: Contestant, tasks: Sequence[GapTask], words: int
) -> list[bytes]:
    def fill(some: Sequence[GapTask], seed: int) -> list[bytes]:
        return [
            contestant.infill(task.text, [task.gap], [task.answer], seed + number)[0]
            for number, task in enumerate(some)
        ]

    made_of = [contestant.name, contestant.identity, __version__]
    return _kept(context, made_of, fill, tasks, f"filling gaps of {words} words: {contestant.name}")


def _kept(
    context: EvaluationContext,
    made_of: Sequence[object],
    fill: Callable[[Sequence[GapTask], int], list[bytes]],
    tasks: Sequence[GapTask],
    doing: str,
) -> list[bytes]:
    """What `fill` makes of every task, given the seed of the first, from the store as far as it is there."""
    results: list[bytes] = []
    for begin in range(0, len(tasks), KEPT_TOGETHER):
        part, seed = tasks[begin : begin + KEPT_TOGETHER], context.options.seed + begin
        context.report(doing, begin / len(tasks))
        make = functools.partial(fill, part, seed)
        results += context.store.texts(["infill", *made_of, part, seed], make)
    context.report(doing, 1.0)
    return results
