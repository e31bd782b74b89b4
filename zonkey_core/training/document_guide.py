"""Where segments above words begin, as the ends of documents tell it: a *guide* made of counts alone.

Where a document ends, a sentence does; `Dr.` and `www.` never end one. So the ends of documents are positive examples,
all other places unlabelled, and the share of positives among these is known, the level's own rate (learning from
positive and unlabelled examples; Elkan and Noto 2008). A place between units is judged from both sides by the n-grams
there, each of which is weighed against the one that is shorter by a unit. What stands before it is counted at the ends
of documents. What stands behind it learns from what the left side expects (co-training; Blum and Mitchell 1998), and
leaves out of its counts all places with the same unit before them, or it would repeat what the left side knows of that
unit. Behind a unit that ends segments often, it learns also from these places which of them do: what stands behind
`Dr.` and within `3.5` stands seldom behind what ends a document. Then the left side learns from both, while a part of
its weight stays on the ends themselves.

Nothing here knows a character. Only numpy is used. Shapes: T units; a line of T' symbols, with places before each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zonkey_core.model.ngram_tables import SPREAD

LEFT_UNITS, RIGHT_UNITS = 6, 4
"""Units before and behind a place that judge it."""
BEFORE, BEHIND = range(-1, -LEFT_UNITS - 1, -1), range(RIGHT_UNITS)
"""Distances of these units from a place, the nearest first."""
GAP = max(LEFT_UNITS, RIGHT_UNITS)
"""Symbols that are no units before, between and behind texts in a line."""
NOTHING = -1
"""That symbol."""
BACKED = 30.0
"""Occurrences by which an n-gram's share of starts is weighed against that of the next shorter one."""
EXPECTED = 1.0
"""Starts, by that shorter one's share, by which it is too: ends are so few that a sign may well have met none."""
ROUNDS = 3
"""Times that the right side learns from the left one, which learns from both between them."""
ENDS_SHARE = 0.4
"""Weight of the ends of documents, in logits, beside what both sides teach the left one."""
ENDING = 2.0
"""How much what stands behind a place counts by places with the same unit before them, for each start that there is
behind such a unit."""
LEAST_ENDS = 16
"""Ends of documents below which nothing can be learned from them."""
LEAST_ROWS, MOST_ROWS = 1 << 12, 1 << 21
"""Rows of a table of n-grams of one order: as many as there are symbols, within these bounds."""
TOGETHER = 1 << 20
"""Places that are counted or judged at once."""
LEAST_PROB = np.float32(1e-7)

Symbols = NDArray[np.int64]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Line(NamedTuple):
    """Texts of units in one line, parted by `GAP` symbols that are none."""

    symbols: Symbols
    """[T']"""
    places: Symbols
    """[T] where each unit stands, and so the place before it."""
    inner: Symbols
    """The places that have a unit on both sides."""
    ends: Symbols
    """The places behind documents' last units."""


def line_of(keys: Symbols, fresh_mask: Mask, last_mask: Mask) -> Line:
    """Units [T] in a line: of texts that begin where `fresh_mask` does, and documents that end with `last_mask`."""
    places = np.arange(len(keys)) + GAP * np.cumsum(fresh_mask)
    symbols = np.full((int(places[-1]) + 1 if len(keys) else 0) + GAP, NOTHING, np.int64)
    symbols[places] = keys
    return Line(symbols, places, places[~fresh_mask], places[last_mask] + 1)


class NgramCounts:
    """How often n-grams of orders 0 to `longest` were met, and how often a segment began there, by hash."""

    def __init__(self, longest: int, rows: int) -> None:
        self._counts = np.zeros((longest + 1, rows), np.float32)
        self._starts = np.zeros((longest + 1, rows), np.float32)

    def add(self, order: int, hashes: Symbols, starts: Floats) -> None:
        """Count n-grams of one order with the probabilities of starts there, all [n]."""
        rows = self._counts.shape[1]
        index = table_rows(hashes, rows)
        self._counts[order] += np.bincount(index, minlength=rows)
        self._starts[order] += np.bincount(index, weights=starts, minlength=rows)

    def of(self, order: int, hashes: Symbols) -> tuple[Floats, Floats]:
        """Counts and starts [n] of n-grams."""
        index = table_rows(hashes, self._counts.shape[1])
        return self._counts[order][index], self._starts[order][index]


def table_rows(hashes: Symbols, rows: int) -> Symbols:
    """[n] where hashes lie in a table of so many rows, a power of two."""
    return (hashes >> 32) & (rows - 1)


class LeftSide:
    """What stands before places: some [n] of a line are counted with the probabilities of starts there."""

    def __init__(self, symbols: Symbols, places: Symbols, starts: Floats, rows: int) -> None:
        self._seen = NgramCounts(LEFT_UNITS, rows)
        for part in _parts(places):
            for order, hashes in enumerate(string_hashes(symbols, places[part], BEFORE)):
                self._seen.add(order, hashes, starts[part])

    def logits(self, symbols: Symbols, places: Symbols) -> Floats:
        """[n] how likely places are starts."""
        prob = np.zeros(len(places), np.float32)
        for order, hashes in enumerate(string_hashes(symbols, places, BEFORE)):
            prob = _weighed(*self._seen.of(order, hashes), prob, order)
        return _logits(prob)


class RightSide:
    """What stands behind places, judged by those that have it and another unit before them.

    Those with the same unit before them count by how often something begins behind that one.
    """

    def __init__(self, symbols: Symbols, places: Symbols, starts: Floats, rows: int) -> None:
        self._seen = NgramCounts(RIGHT_UNITS, rows)
        self._same = NgramCounts(RIGHT_UNITS, rows)
        """Those with the same unit before them."""
        for part in _parts(places):
            before = _hashes_before(symbols, places[part])
            for order, hashes in enumerate(string_hashes(symbols, places[part], BEHIND)):
                self._seen.add(order, hashes, starts[part])
                self._same.add(order, hashes + before, starts[part])

    def logits(self, symbols: Symbols, places: Symbols) -> Floats:
        """[n] by how much what stands behind places makes starts likelier there."""
        before = _hashes_before(symbols, places)
        prob = least = own = own_least = np.zeros(len(places), np.float32)
        for order, hashes in enumerate(string_hashes(symbols, places, BEHIND)):
            seen, same = self._seen.of(order, hashes), self._same.of(order, hashes + before)
            counts, starts = (np.maximum(all_of - some, 0) for all_of, some in zip(seen, same, strict=True))
            prob, own = _weighed(counts, starts, prob, order), _weighed(*same, own, order)
            least, own_least = (least, own_least) if order else (prob, own)
        trusted = np.minimum(1, ENDING * own_least)
        found: Floats = _logits(prob) - _logits(least) + trusted * (_logits(own) - _logits(own_least))
        return found


class DocumentGuide:
    """Judges places between units, as the ends of documents in a line have taught it."""

    def __init__(self, line: Line, rate: float) -> None:
        """Learn from a line, in which documents end, so that `rate` of the places between its units are starts."""
        rows = min(MOST_ROWS, max(LEAST_ROWS, 1 << (len(line.symbols) - 1).bit_length()))
        places = np.concatenate([line.inner, line.ends])
        ended = (np.arange(len(places)) >= len(line.inner)).astype(np.float32)
        self._left = [(1.0, LeftSide(line.symbols, places, ended, rows))]
        for further in reversed(range(ROUNDS)):
            left = self._left_logits(line.symbols, line.inner)
            self._right = RightSide(line.symbols, line.inner, _at_rate(left, rate)[0], rows)
            starts, self._shift = _at_rate(left + self._right_logits(line.symbols, line.inner), rate)
            if further:
                taught = LeftSide(line.symbols, line.inner, starts, rows)
                self._left = [(ENDS_SHARE, self._left[0][1]), (1 - ENDS_SHARE, taught)]
        self.starts: Floats = starts
        """The probabilities of starts at the line's inner places."""

    def start_probs(self, symbols: Symbols, places: Symbols) -> Floats:
        """[n] the probabilities of starts at places between the symbols of a line."""
        logits = self._left_logits(symbols, places) + self._right_logits(symbols, places)
        return _probs(logits + np.float32(self._shift))

    def _left_logits(self, symbols: Symbols, places: Symbols) -> Floats:
        parts = [_by_parts(side.logits, symbols, places) * np.float32(share) for share, side in self._left]
        logits: Floats = np.sum(parts, 0, dtype=np.float32)
        return logits

    def _right_logits(self, symbols: Symbols, places: Symbols) -> Floats:
        return _by_parts(self._right.logits, symbols, places)


def _parts(places: Symbols) -> Iterator[slice]:
    for first in range(0, len(places), TOGETHER):
        yield slice(first, first + TOGETHER)


def _by_parts(judge: Callable[[Symbols, Symbols], Floats], symbols: Symbols, places: Symbols) -> Floats:
    """[n] what is said of places, some of them at a time."""
    return np.concatenate([np.zeros(0, np.float32), *(judge(symbols, places[part]) for part in _parts(places))])


def string_hashes(symbols: Symbols, places: Symbols, distances: Iterable[int]) -> Iterator[Symbols]:
    """Hashes [n] of the strings of symbols so far from places: of none, of the first, and so on to all."""
    hashes = np.zeros(len(places), np.int64)
    yield hashes
    for distance in distances:
        hashes = (hashes + symbols[places + distance] + 2) * SPREAD
        yield hashes


def common_kinds(symbols: Symbols, places: Symbols, most: int) -> tuple[Symbols, Symbols, Symbols]:
    """The `most` commonest kinds of the symbols [T'] at some places, in order, how often each is there, and which of
    them all symbols are, as numbers [T']: the number of these kinds for all others."""
    everything, counts = np.unique(symbols[places], return_counts=True)
    common = np.sort(np.argsort(-counts, kind="stable")[:most])
    kinds, counts = everything[common], counts[common]
    which = np.searchsorted(kinds, symbols).clip(max=len(kinds) - 1)
    return kinds, counts, np.where(kinds[which] == symbols, which, len(kinds))


def _hashes_before(symbols: Symbols, places: Symbols) -> Symbols:
    """[n] what is added to hashes of what stands behind places for the units before them."""
    found: Symbols = (symbols[places - 1] + 2) * SPREAD * SPREAD
    return found


def _weighed(counts: Floats, starts: Floats, shorter: Floats, order: int) -> Floats:
    """[n] n-grams' shares of starts, weighed against those of the next shorter ones where there are any."""
    if not order:
        whole: Floats = starts / counts.clip(1)
        return whole
    shorter = shorter.clip(LEAST_PROB)
    backed = (BACKED + EXPECTED / shorter).astype(np.float32, copy=False)
    found: Floats = (starts + backed * shorter) / (counts + backed)
    return found


def _logits(prob: Floats) -> Floats:
    bounded = prob.clip(LEAST_PROB, 1 - LEAST_PROB)
    found: Floats = np.log(bounded / (1 - bounded))
    return found


def _probs(logits: Floats) -> Floats:
    found: Floats = np.tanh(logits * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
    return found


def _at_rate(logits: Floats, rate: float) -> tuple[Floats, float]:
    """[n] probabilities of logits that are moved so that their mean is `rate`, and by how much they are moved."""
    low, high = -60.0, 60.0
    for _ in range(30):
        shift = (low + high) / 2
        rare = _probs(logits + np.float32(shift)).mean(dtype=np.float64) < rate
        low, high = (shift, high) if rare else (low, shift)
    return _probs(logits + np.float32(high)), high
