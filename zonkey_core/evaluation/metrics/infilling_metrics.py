"""Gaps with known answers, and how near a fill comes to the answer.

A word is a run of letters and digits of any script, with apostrophes inside it. Bytes that are no UTF-8 are neither.
Every measure takes one fill; figures are means over gaps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from zonkey_core.evaluation.metrics.bootstrap import Interval, bootstrap_mean, draw_weights, interval
from zonkey_core.inference.gap_windows import Gap

MASK = b"____"
"""What stands in a gap, however long the answer."""
ENOUGH_CONTEXT = 200
"""Bytes of context on either side that a gap has where the documents allow it."""
BEFORE, AFTER = 272, ENOUGH_CONTEXT
"""Bytes of context that a task has at most; before the gap more than the model reads (`gap_windows.CONTEXT_BYTES`), so
that it takes the beginning of the task for the beginning of the document only where it is."""
WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
NEXT_BYTES = 32
"""Text after a gap that is judged along with the fill."""
SEAM_BYTES = 64
"""Text after a gap that is judged alone, given the fill."""
PARTNERS = 2
"""Other gaps in whose context a fill is judged."""
NEIGHBOUR_BYTES = 100
"""Text beside a gap in which a neighbouring word is looked for."""

Rating = Callable[[Sequence[bytes], Sequence[bytes]], NDArray[np.float64]]
"""From befores and texts: nats per byte of each text [n], given what stands before it; anything for an empty one."""


class GapTask(msgspec.Struct, frozen=True):
    """A text with a gap, and what stood there."""

    text: bytes
    """Context with `MASK` in the gap."""
    gap: Gap
    answer: bytes

    @property
    def before(self) -> bytes:
        """The text before the gap."""
        return self.text[: self.gap.start]

    @property
    def after(self) -> bytes:
        """The text after it."""
        return self.text[self.gap.end :]


class _Place(NamedTuple):
    """A run of words within a document, in bytes."""

    document: int
    start: int
    end: int

    def overlaps(self, other: _Place) -> bool:
        """Whether the two have a byte in common."""
        return self.document == other.document and self.start < other.end and other.start < self.end


def choose_gaps(documents: Sequence[bytes], words: int, count: int, seed: int) -> list[GapTask]:
    """At most `count` gaps of `words` words each, within one line, the same ones for the same seed.

    Every run of words is as likely as any other, but those with less than `ENOUGH_CONTEXT` bytes on a side come only
    when there are no others, and no two answers overlap.
    """
    places = [place for index, document in enumerate(documents) for place in _runs(index, document, words)]
    generator = np.random.default_rng(seed)
    room = np.array(
        [min(place.start, len(documents[place.document]) - place.end, ENOUGH_CONTEXT) for place in places], np.int64
    )
    order = generator.permutation(len(places))
    order = order[np.argsort(-room[order], kind="stable")]
    chosen: list[_Place] = []
    for index in order.tolist():
        if len(chosen) == count:
            break
        place = places[index]
        if not any(place.overlaps(other) for other in chosen):
            chosen.append(place)
    return [_task(documents[place.document], place) for place in chosen]


def edit_similarity(fill: bytes, answer: bytes) -> float:
    """`1 - d / max(|fill|, |answer|)` with the Levenshtein distance d in bytes: 1 for the answer, 0 for nothing."""
    return 1 - levenshtein(fill, answer) / max(len(fill), len(answer), 1)


def levenshtein(first: bytes, second: bytes) -> int:
    """Fewest bytes to insert, delete or replace between two texts.

    Row i of the table is found at once: each entry is the least of what lies above and above to the left, and then,
    for insertions, the running minimum of `row_j - j` plus j.
    """
    columns = np.arange(len(second) + 1)
    target = np.frombuffer(second, np.uint8)
    row = columns
    for count, value in enumerate(first, 1):
        ahead = np.minimum(row[1:] + 1, row[:-1] + (target != value))
        row = np.minimum.accumulate(np.concatenate([[count], ahead]) - columns) + columns
    return int(row[-1])


def rouge_2(task: GapTask, fill: bytes) -> float:
    """F1 of word pairs, each as often as it occurs, case ignored: `2 common / (pairs of fill + pairs of answer)`.

    The fill and the answer are read with the one word before and the one after the gap, so that a gap of one word has
    two pairs. Where it has none, for want of such words, only the answer itself scores, and it scores 1.
    """
    left, right = words_of(task.before[-NEIGHBOUR_BYTES:])[-1:], words_of(task.after[:NEIGHBOUR_BYTES])[:1]
    found, true = ([*left, *words_of(text), *right] for text in (fill, task.answer))
    if len(true) < 2:
        return float(found == true)
    found_pairs, true_pairs = Counter(pairwise(found)), Counter(pairwise(true))
    return 2 * (found_pairs & true_pairs).total() / (found_pairs.total() + true_pairs.total())


def length_error(fill: bytes, answer: bytes) -> float:
    """`| |fill| - |answer| | / |answer|` in bytes; 1 for an empty fill."""
    return abs(len(fill) - len(answer)) / len(answer)


def context_preserved(task: GapTask, filled: bytes) -> bool:
    """Whether a filled text still begins and ends with the bytes that stood around the gap."""
    outside = len(task.before) + len(task.after)
    return len(filled) >= outside and filled.startswith(task.before) and filled.endswith(task.after)


def context_gain(rate: Rating, tasks: Sequence[GapTask], fills: Sequence[bytes], *, seed: int) -> Interval:
    """By how many nats a fill suits its own context better than another gap's, with its interval over gaps.

    With `s(f, i)` the nats, all in all, of the fill f and the `NEXT_BYTES` bytes after gap i, given the text before
    gap i, two gaps gain

        (s(f_j, i) + s(f_i, j) - s(f_i, i) - s(f_j, j)) / 2,

    so that what makes a fill or a place easy in itself cancels, and fills that are the same everywhere gain nothing.
    Gaps are paired with the `PARTNERS` next ones, around a ring; a draw counts a pair as often as it has both gaps.
    There must be two tasks at least.
    """
    ring = np.arange(len(tasks))

    def judged(places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Nats of every fill in the place that is given for it."""
        there = [tasks[place] for place in places]
        texts = [fill + task.after[:NEXT_BYTES] for fill, task in zip(fills, there, strict=True)]
        lengths = np.array([len(text) for text in texts])
        return np.where(lengths > 0, lengths * rate([task.before for task in there], texts), 0)

    own = judged(ring)
    weights = np.concatenate([np.ones((1, len(tasks))), draw_weights(len(tasks), seed=seed)])
    total = pairs = np.zeros(len(weights))
    for step in range(1, min(PARTNERS, len(tasks) - 1) + 1):
        there, here = judged(np.roll(ring, -step)), np.roll(judged(np.roll(ring, step)), -step)
        both = weights * np.roll(weights, -step, 1)
        total = total + both @ (there + here - own - np.roll(own, -step)) / 2
        pairs = pairs + both.sum(1)
    with np.errstate(invalid="ignore"):
        means = total / pairs
    return interval(float(means[0]), means[1:])


def seam_gain(rate: Rating, tasks: Sequence[GapTask], fills: Sequence[bytes], *, seed: int) -> Interval:
    """By how many nats the `SEAM_BYTES` bytes after a gap are likelier given its own fill than given another gap's.

    The mean over gaps of `s(f_j, i) - s(f_i, i)`, where s(f, i) are the nats, all in all, of what follows gap i, given
    what stands before it and then the fill f; j are the `PARTNERS` next gaps, around a ring. Fills that are the same
    everywhere gain nothing.
    """
    behind = [task.after[:SEAM_BYTES] for task in tasks]
    lengths = np.array([len(text) for text in behind])

    def judged(step: int) -> NDArray[np.float64]:
        befores = [task.before + fills[(place + step) % len(tasks)] for place, task in enumerate(tasks)]
        return np.where(lengths > 0, lengths * rate(befores, behind), 0)

    own, steps = judged(0), range(1, min(PARTNERS, len(tasks) - 1) + 1)
    return bootstrap_mean(np.mean([judged(step) - own for step in steps], axis=0), seed=seed)


def is_exact(fill: bytes, answer: bytes) -> bool:
    """Whether a fill is the answer, white space around it aside."""
    return fill.strip() == answer.strip()


def first_words(text: bytes, count: int) -> bytes:
    """The beginning of a text up to the end of its word number `count`, or all of it."""
    ends = [end for _, end in _byte_spans(text.decode("utf-8", "surrogateescape"))]
    return text[: ends[count - 1]] if len(ends) >= count else text


def words_of(text: bytes) -> list[str]:
    """The words of a text in lower case."""
    return [match.group().lower() for match in WORD.finditer(text.decode("utf-8", "surrogateescape"))]


def _runs(index: int, document: bytes, words: int) -> list[_Place]:
    """Every run of `words` words within a line of a document."""
    places = []
    start = 0
    for line in document.split(b"\n"):
        text = line.decode("utf-8", "surrogateescape")
        spans = _byte_spans(text)
        places += [
            _Place(index, start + first[0], start + last[1])
            for first, last in zip(spans, spans[words - 1 :], strict=False)
        ]
        start += len(line) + 1
    return places


def _byte_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end, in bytes."""
    spans, position, at = [], 0, 0
    for match in WORD.finditer(text):
        start = at + len(text[position : match.start()].encode("utf-8", "surrogateescape"))
        position, at = match.end(), start + len(match.group().encode())
        spans.append((start, at))
    return spans


def _task(document: bytes, place: _Place) -> GapTask:
    """The gap with its context, which is not cut inside a code point."""
    begin, end = max(0, place.start - BEFORE), min(len(document), place.end + AFTER)
    while begin < place.start and document[begin] & 0xC0 == 0x80:
        begin += 1
    while place.end < end < len(document) and document[end] & 0xC0 == 0x80:
        end -= 1
    before, after = document[begin : place.start], document[place.end : end]
    gap = Gap(len(before), len(before) + len(MASK))
    return GapTask(before + MASK + after, gap, document[place.start : place.end])
