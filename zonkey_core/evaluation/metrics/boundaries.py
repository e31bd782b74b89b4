"""Borders of words and sentences, and how well cuts agree with them.

Words are parted by whitespace. A cut counts where the first letter or digit at or after it stands, so that ` word`,
`word` and `"word` are all cut at the word. The first letter or digit of a text, where every method cuts, counts on no
side; nor does a cut with no letter or digit after it. Letters and digits are what `str.isalnum` says of a code point,
in any script; a byte that is no part of valid UTF-8 is a sign of its own and neither.

With h cuts that hit among c cuts and b borders: precision h / c, recall h / b, F1 2h / (c + b); 0 where undefined.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]

BINS = 10
"""Equal parts of [0, 1] over which forecasts are compared with what came."""


class CodePoints(NamedTuple):
    """A text as n code points."""

    points: NDArray[np.uint32]
    """[n]; a byte that is no part of valid UTF-8 is 0xDC00 plus its value."""
    bounds: Offsets
    """[n + 1] byte offset of each, and last the length of the text."""


class Places(NamedTuple):
    """Where cuts of a text may land, and the probability that at least one does."""

    offsets: Offsets
    """[K] letters and digits, without the first."""
    probs: NDArray[np.float64]
    """[K]"""


def code_points(text: bytes) -> CodePoints:
    """The code points of a text of any bytes."""
    encoded = text.decode("utf-8", "surrogateescape").encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(encoded, dtype="<u4").astype(np.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    sizes[(points >= 0xDC80) & (points < 0xDD00)] = 1
    return CodePoints(points, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def join_points(points: NDArray[np.uint32]) -> bytes:
    """The text of code points, as `code_points` gave them."""
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8", "surrogateescape")


def each_point(points: NDArray[np.uint32], what: Callable[[str], int]) -> NDArray[np.int64]:
    """[n] what a function says of each code point; it is asked once for each that occurs."""
    kinds, index = np.unique(points, return_inverse=True)
    return np.array([what(chr(point)) for point in kinds.tolist()], dtype=np.int64)[index]


def next_word_sign(text: bytes) -> Offsets:
    """[n + 1] offset of the first letter or digit at or after each byte and the end; n where there is none."""
    points, bounds = code_points(text)
    return next_marked(bounds[:-1][each_point(points, str.isalnum) > 0], len(text))


def next_marked(marks: Offsets, length: int) -> Offsets:
    """[length + 1] the first of the offsets `marks` at or after each offset; `length` where there is none."""
    following = np.full(length + 1, length, dtype=np.int64)
    following[marks] = marks
    nearest: Offsets = np.minimum.accumulate(following[::-1])[::-1]
    return nearest


def word_starts(text: bytes) -> Offsets:
    """Offsets of the signs that begin a text or follow whitespace, and are not whitespace."""
    points, bounds = code_points(text)
    white = each_point(points, str.isspace) > 0
    begins: Offsets = bounds[:-1][~white & np.concatenate([[True], white])[:-1]]
    return begins


def strip_spaces(text: bytes) -> tuple[bytes, Offsets]:
    """A text without its whitespace, and the offsets in what is left at which its words began."""
    points, bounds = code_points(text)
    kept = each_point(points, str.isspace) == 0
    before = np.concatenate([[0], np.cumsum(np.diff(bounds) * kept)]).astype(np.int64)
    begins = kept & np.concatenate([[True], ~kept])[:-1]
    return join_points(points[kept]), before[:-1][begins]


def move_cuts(cuts: Offsets, signs: Offsets) -> Offsets:
    """Where cuts count: sorted offsets of letters and digits, each once.

    signs: what `next_word_sign` says of the text. What lands at the first letter or digit, or nowhere, is left out.
    """
    landed = np.unique(signs[cuts])
    counting: Offsets = landed[(landed != signs[0]) & (landed < len(signs) - 1)]
    return counting


def match_counts(cuts: Offsets, borders: Offsets) -> NDArray[np.float64]:
    """[hits, cuts, borders] of two sorted sets of offsets."""
    hits = len(np.intersect1d(cuts, borders, assume_unique=True))
    return np.array([hits, len(cuts), len(borders)], dtype=np.float64)


class Contest(NamedTuple):
    """Passages with their borders."""

    texts: list[bytes]
    signs: list[Offsets]
    """What `next_word_sign` says of each."""
    borders: list[Offsets]
    """Where the borders of each count, as `move_cuts` gives them."""

    @property
    def rate(self) -> float:
        """Borders per byte."""
        return sum(map(len, self.borders)) / max(1, sum(map(len, self.texts)))

    def counts(self, cuts: Sequence[Offsets]) -> NDArray[np.float64]:
        """[passages, 3] hits, cuts and borders."""
        each = zip(cuts, self.signs, self.borders, strict=True)
        return np.stack([match_counts(move_cuts(found, signs), borders) for found, signs, borders in each])


def contest_of(texts: Sequence[tuple[bytes, Offsets]]) -> Contest:
    """Texts with the offsets at which their words or sentences begin."""
    signs = [next_word_sign(text) for text, _ in texts]
    borders = [move_cuts(begins, each) for (_, begins), each in zip(texts, signs, strict=True)]
    return Contest([text for text, _ in texts], signs, borders)


def sentences_of(paragraph: Sequence[str], *, bare: bool) -> tuple[bytes, Offsets]:
    """A paragraph and where its sentences begin; `bare` takes all punctuation and capitals away."""
    kept = [text for sentence in paragraph if (text := _bare(sentence) if bare else sentence.strip())]
    sizes = [len(text.encode("utf-8", "replace")) + 1 for text in kept]
    ends = np.cumsum(sizes, dtype=np.int64)
    return " ".join(kept).encode("utf-8", "replace"), ends - np.array(sizes, dtype=np.int64)


def _bare(sentence: str) -> str:
    """A sentence in small letters without punctuation and symbols, its words parted by single spaces."""
    kept = (sign for sign in sentence.lower() if unicodedata.category(sign)[0] not in "PS")
    return " ".join("".join(kept).split())


def precision_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Precision of summed `match_counts` [draws, 3]: [draws]."""
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


def recall_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Recall of summed `match_counts` [draws, 3]: [draws]."""
    return sums[:, 0] / np.maximum(sums[:, 2], 1)


def f1_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of summed `match_counts` [draws, 3]: [draws]."""
    return 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)


def landing_probs(probs: NDArray[np.float64], signs: Offsets) -> Places:
    """From the probability of a cut before each byte to that of one that lands at each letter or digit.

    probs [n], signs [n + 1]. With the bytes i that lead to a place, 1 - prod_i (1 - p_i).
    """
    targets = signs[:-1]
    firsts = np.flatnonzero(np.diff(targets, prepend=-1))
    with np.errstate(divide="ignore"):
        landed = -np.expm1(np.add.reduceat(np.log1p(-probs), firsts)) if len(firsts) else np.zeros(0)
    offsets = targets[firsts]
    kept = (offsets != signs[0]) & (offsets < len(targets))
    return Places(offsets[kept], landed[kept])


def calibration_counts(places: Places, borders: Offsets) -> NDArray[np.float64]:
    """[3 * BINS]: places with a forecast in each bin, the sums of these forecasts, and the borders among them."""
    return forecast_counts(places.probs, np.isin(places.offsets, borders, assume_unique=True))


def forecast_counts(probs: NDArray[np.float64], came: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[3 * BINS]: forecasts [n] in each bin, their sums, and how many of them came true."""
    bins = np.minimum((probs * BINS).astype(np.int64), BINS - 1)
    weights = (np.ones(len(bins)), probs, came.astype(np.float64))
    return np.concatenate([np.bincount(bins, weight, minlength=BINS) for weight in weights])


def calibration_error_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected calibration error, sum_b |forecasts_b - borders_b| / places, of summed `calibration_counts`: [draws]."""
    count, forecast, came = np.split(sums, 3, axis=1)
    error: NDArray[np.float64] = np.abs(forecast - came).sum(1) / np.maximum(count.sum(1), 1)
    return error
