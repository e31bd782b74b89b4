"""How texts compare with real ones: every figure that a list of generated texts is given.

A metric is a function of texts and a `Yardstick`, made once for an evaluation; the model, its rivals, the floors and
real held-out text all pass through the same one. It reads the texts once and returns a `Figure`, which gives the
value for any selection of them.

Intervals come from random halves of the texts, drawn without replacement: a figure of half the texts varies about its
own mean as that of all texts varies about the truth (the variance of a mean of n/2 out of n is s^2/n), and no text is
ever counted twice, which would look like repetition to distinct-n and like a different distribution to the n-gram
counts. The reference is held fixed.

A word is a run of characters other than white space, without the marks at its ends, in lower case: "co-op" and "3.5"
are words, and so is whatever junk a generator writes between two spaces. Nothing in the model knows of words.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zonkey_core.evaluation.metrics.bootstrap import Interval, interval
from zonkey_core.evaluation.metrics.embeddings import frechet_distance
from zonkey_core.evaluation.metrics.ngrams import byte_ngrams, jensen_shannon
from zonkey_core.evaluation.results import Better

HALVES = 200
"""Random halves from which an interval is made."""
PHRASE_WORDS = 8
"""Words of a phrase that counts as copied; a power of two."""
FEW_TRAINING_BYTES = 500_000
"""Training text below which a word that occurs once in it is known; above it, twice, since rare ones are often junk."""

_WORD = re.compile(r"[^\W_](?:\S*[^\W_])?")
_UNKNOWN = -1
_BETWEEN = 0
"""Number of the sign between two documents."""

Figure = Callable[[NDArray[np.intp]], float]
"""A metric's value for the texts with these indices; not a number where they hold nothing to measure."""


class PerText(Protocol):
    """Something said of each text by itself: nats per byte [T], or an embedding [T, C]."""

    def __call__(self, texts: Sequence[bytes], /) -> NDArray[np.floating]: ...


class Gains(NamedTuple):
    """What the second halves of texts gain from the first ones."""

    nats: NDArray[np.float64]
    """[T]"""
    sizes: NDArray[np.float64]
    """[T] bytes of the second halves; 0 where a text has no two halves with words."""


class Remembered:
    """Says of each text what `measure` says of it, and asks it once for each."""

    def __init__(self, measure: PerText) -> None:
        self._measure = measure
        self._known: dict[bytes, NDArray[np.floating]] = {}

    def __call__(self, texts: Sequence[bytes]) -> NDArray[np.floating]:
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, self._measure(fresh), strict=True))
        return np.array([self._known[text] for text in texts])


class TrainingWords:
    """The words and the phrases of training documents.

    Phrases are compared exactly: adjacent pairs of words are numbered, then adjacent pairs of pairs, and so on.
    """

    def __init__(self, documents: Sequence[bytes]) -> None:
        self._numbers: dict[str, int] = {}
        pieces = [np.full(PHRASE_WORDS, _BETWEEN)]
        for document in documents:
            numbers = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in words(document)]
            pieces.append(np.array([*numbers, _BETWEEN]))
        sequence = np.concatenate(pieces)
        least = 1 if sum(map(len, documents)) < FEW_TRAINING_BYTES else 2
        self._known_mask = np.bincount(sequence, minlength=len(self._numbers) + 1) >= least
        self._tables: list[NDArray[np.int64]] = []
        for span in _doublings():
            table, sequence = np.unique(_pairs(sequence, span), return_inverse=True)
            self._tables.append(table)

    def known_mask(self, text: Sequence[str]) -> NDArray[np.bool_]:
        """[W] words of a text that occur in training text; twice, unless there is little of it."""
        numbers = self._look_up(text)
        found: NDArray[np.bool_] = self._known_mask[numbers] & (numbers != _UNKNOWN)
        return found

    def copied_mask(self, text: Sequence[str]) -> NDArray[np.bool_]:
        """[max(0, W - 7)] phrases of 8 words that stand in a training document."""
        sequence = self._look_up(text)
        for span, table in zip(_doublings(), self._tables, strict=True):
            if len(sequence) <= span:
                return np.zeros(0, bool)
            pairs = _pairs(sequence, span)
            places = np.searchsorted(table, pairs).clip(max=len(table) - 1)
            sequence = np.where(table[places] == pairs, places, _UNKNOWN)
        copied: NDArray[np.bool_] = sequence != _UNKNOWN
        return copied

    def _look_up(self, text: Sequence[str]) -> NDArray[np.int64]:
        return np.array([self._numbers.get(word, _UNKNOWN) for word in text], np.int64)


@dataclass(frozen=True)
class Yardstick:
    """What texts are measured by."""

    reference: Sequence[bytes]
    """Real held-out texts."""
    training: TrainingWords
    judge: PerText
    """An independent model's nats per byte of each text [T]."""
    embed: PerText | None = None
    """Sentence embeddings [T, C]; without them there is no Fréchet distance."""
    coherence: Callable[[Sequence[bytes]], Gains] | None = None
    """What the second half of each text gains from its own first half; without it there is no coherence."""


@dataclass(frozen=True)
class TextMetric:
    """One way to compare texts with real ones."""

    figure: Callable[[Sequence[bytes], Yardstick], Figure]
    better: Better
    unit: str = ""
    is_gap: bool = False
    """The figure has a sign, and the metric is its distance from 0."""
    most: float = np.inf
    """Highest value that is possible."""
    least: float = 0.0
    """The lowest."""


def words(text: bytes) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.decode(errors="replace").lower())


def length_distance(lengths: NDArray[np.int64], reference: NDArray[np.int64]) -> float:
    """Wasserstein-1 distance of two sets of lengths [T] and [R] as a share of the reference's mean.

    `integral |F(x) - G(x)| dx / mean`, F and G being the shares of texts that are at most x bytes long.
    """
    edges = np.unique(np.concatenate([lengths, reference]))
    shares = [np.searchsorted(np.sort(each), edges[:-1], side="right") / len(each) for each in (lengths, reference)]
    return float((np.abs(shares[0] - shares[1]) * np.diff(edges)).sum() / reference.mean())


def distinct_ratio(phrases: Sequence[tuple[str, ...]]) -> float:
    """Share of different ones among phrases; 0 without any."""
    return len(set(phrases)) / max(1, len(phrases))


def score_texts(texts: Sequence[bytes], yardstick: Yardstick, metrics: Iterable[str]) -> dict[str, float]:
    """The values of `metrics`, keys of `METRICS`, for texts; not a number where they hold nothing to measure."""
    everything = np.arange(len(texts))
    scores = {}
    for name in metrics:
        value = METRICS[name].figure(texts, yardstick)(everything)
        scores[name] = abs(value) if METRICS[name].is_gap else value
    return scores


def score_with_interval(texts: Sequence[bytes], yardstick: Yardstick, metric: str, *, seed: int) -> Interval:
    """A metric's value for texts with its 95 % interval; see above for how it is made."""
    rule = METRICS[metric]
    figure = rule.figure(texts, yardstick)
    value = figure(np.arange(len(texts)))
    generator = np.random.default_rng(seed)
    half = max(1, len(texts) // 2)
    drawn = np.array([figure(np.sort(generator.permutation(len(texts))[:half])) for _ in range(HALVES)])
    finite = drawn[np.isfinite(drawn)]
    found = interval(value, value + finite - finite.mean() if len(finite) else finite)
    low, high = min(value, found.low), max(value, found.high)
    if rule.is_gap:
        nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        return Interval(abs(value), nearest, max(abs(low), abs(high)))
    return Interval(value, max(rule.least, low), min(rule.most, high))


def _known_words(texts: Sequence[bytes], yardstick: Yardstick) -> Figure:
    """Known words of all words; 0 without words."""
    masks = [yardstick.training.known_mask(words(text)) for text in texts]
    return _share(masks)


def _copied(texts: Sequence[bytes], yardstick: Yardstick) -> Figure:
    """Copied phrases of all phrases of 8 words; 0 without any."""
    masks = [yardstick.training.copied_mask(words(text)) for text in texts]
    return _share(masks)


def _share(masks: Sequence[NDArray[np.bool_]]) -> Figure:
    hits = np.array([mask.sum() for mask in masks], np.float64)
    sizes = np.array([len(mask) for mask in masks], np.float64)
    return lambda chosen: float(hits[chosen].sum() / max(1.0, sizes[chosen].sum()))


def _divergence(texts: Sequence[bytes], yardstick: Yardstick, *, n: int) -> Figure:
    """Jensen-Shannon divergence of the byte n-grams from the reference's, those of all texts together."""
    grams = [byte_ngrams(text, n) for text in texts]
    real = [byte_ngrams(text, n) for text in yardstick.reference]
    owners = np.repeat(np.arange(len(texts)), [len(each) for each in grams])
    kinds, numbers = np.unique(np.concatenate([*grams, *real]), return_inverse=True)
    own, reference = numbers[: len(owners)], np.bincount(numbers[len(owners) :], minlength=len(kinds))

    def figure(chosen: NDArray[np.intp]) -> float:
        kept_mask = np.zeros(len(texts), bool)
        kept_mask[chosen] = True
        return jensen_shannon(np.bincount(own[kept_mask[owners]], minlength=len(kinds)), reference)

    return figure


def _distinct_gap(texts: Sequence[bytes], yardstick: Yardstick, *, n: int) -> Figure:
    """`d / d_real - 1` with the share d of different n-grams of words, over as many n-grams of both."""
    own = [_phrases(text, n) for text in texts]
    real = [phrase for text in yardstick.reference for phrase in _phrases(text, n)]

    def figure(chosen: NDArray[np.intp]) -> float:
        pooled = list(itertools.chain.from_iterable(own[index] for index in chosen))
        size = min(len(pooled), len(real)) or len(real)
        return distinct_ratio(pooled[:size]) / distinct_ratio(real[:size]) - 1 if real else np.nan

    return figure


def _phrases(text: bytes, n: int) -> list[tuple[str, ...]]:
    found = words(text)
    return list(zip(*(found[start:] for start in range(n)), strict=False))


def _lengths(texts: Sequence[bytes], yardstick: Yardstick) -> Figure:
    own, real = (np.array([len(text) for text in each]) for each in (texts, yardstick.reference))
    return lambda chosen: length_distance(own[chosen], real)


def _judged(texts: Sequence[bytes], yardstick: Yardstick) -> Figure:
    """Nats per byte of all texts together under the judge."""
    sizes = np.array([len(text) for text in texts], np.float64)
    filled = [text for text in texts if text]
    nats = np.zeros(len(texts))
    if filled:
        nats[sizes > 0] = yardstick.judge(filled)

    def figure(chosen: NDArray[np.intp]) -> float:
        size = sizes[chosen].sum()
        return float((nats * sizes)[chosen].sum() / size) if size else np.nan

    return figure


def _judge_gap(texts: Sequence[bytes], yardstick: Yardstick) -> Figure:
    """Nats per byte above those of the reference."""
    judged = _judged(texts, yardstick)
    real = _judged(yardstick.reference, yardstick)(np.arange(len(yardstick.reference)))
    return lambda chosen: judged(chosen) - real


def _coherence(texts: Sequence[bytes], yardstick: Yardstick) -> Figure:
    """Nats per byte that all second halves together gain from their own first halves."""
    if yardstick.coherence is None:
        raise ValueError("coherence needs a yardstick with a judge of it")
    gains = yardstick.coherence(texts)

    def figure(chosen: NDArray[np.intp]) -> float:
        size = gains.sizes[chosen].sum()
        return float(gains.nats[chosen].sum() / size) if size else np.nan

    return figure


def _frechet(texts: Sequence[bytes], yardstick: Yardstick) -> Figure:
    """Fréchet distance of sentence embeddings from as many of the reference's."""
    if yardstick.embed is None:
        raise ValueError("a Fréchet distance needs a yardstick with embeddings")
    own = yardstick.embed(texts)
    real = yardstick.embed(yardstick.reference[: len(texts)])
    return lambda chosen: frechet_distance(own[chosen], real)


METRICS: Mapping[str, TextMetric] = {
    "known_words": TextMetric(_known_words, "higher", most=1.0),
    **{
        f"jsd_{n}": TextMetric(partial(_divergence, n=n), "lower", unit="bits", most=1.0)
        for n in range(1, 7)
    },
    **{f"distinct_gap_{n}": TextMetric(partial(_distinct_gap, n=n), "lower", is_gap=True) for n in (1, 2, 3)},
    "copied_8grams": TextMetric(_copied, "lower", most=1.0),
    "length_distance": TextMetric(_lengths, "lower"),
    "judge_nats_per_byte": TextMetric(_judged, "neither", unit="nats/byte"),
    "judge_gap": TextMetric(_judge_gap, "lower", unit="nats/byte", is_gap=True),
    "coherence": TextMetric(_coherence, "higher", unit="nats/byte", least=-np.inf),
    "frechet": TextMetric(_frechet, "lower"),
}
"""Every metric by its name, the cheap ones first."""


def _doublings() -> list[int]:
    """Distances at which pairs are joined until a pair spans a phrase: 1, 2, 4."""
    return [1 << power for power in range(PHRASE_WORDS.bit_length() - 1)]


def _pairs(sequence: NDArray[np.int64], span: int) -> NDArray[np.int64]:
    """Each number, below 2^31, and the one `span` places on, as one; negative where either is unknown."""
    return sequence[:-span] << 32 | sequence[span:]
