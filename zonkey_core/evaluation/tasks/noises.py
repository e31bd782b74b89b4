"""Noise on text, and the way back: which clean byte every byte of the noised text came from.

Characters are code points where the text is valid UTF-8, else bytes. `drop` leaves out one in ten, `repeat` writes
one in five twice, `random_case` gives every letter either case, and `upper_case` the upper one. A letter whose other
case is longer or shorter, as that of `ß`, keeps its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zonkey_core.evaluation.metrics.boundaries import (
    Offsets,
    code_points,
    each_point,
    join_points,
    match_counts,
    next_marked,
)

NOISES = ("drop", "repeat", "random_case", "upper_case")
DROPPED = 0.1
REPEATED = 0.2


class Noised(NamedTuple):
    """A noised text."""

    text: bytes
    origins: Offsets
    """[len(text)] offset in the clean text that each byte came from."""


def add_noise(text: bytes, noise: str, seed: int) -> Noised:
    """Noise a text with one of `NOISES`; the same for the same seed. Raises `ValueError` for another noise."""
    points, bounds = code_points(text)
    generator = np.random.default_rng(seed)
    chance = generator.random(len(points))
    kept = np.arange(len(points))
    if noise == "drop":
        kept = kept[chance >= DROPPED]
    elif noise == "repeat":
        kept = np.repeat(kept, 1 + (chance < REPEATED))
    elif noise == "random_case":
        points = np.where(chance < 0.5, each_point(points, _upper), each_point(points, _lower)).astype(np.uint32)
    elif noise == "upper_case":
        points = each_point(points, _upper).astype(np.uint32)
    else:
        raise ValueError(f"unknown noise {noise!r}; choose one of {', '.join(NOISES)}")
    sizes = np.diff(bounds)[kept]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return Noised(join_points(points[kept]), np.repeat(bounds[:-1][kept], sizes) + within)


def stability_counts(clean: Offsets, noised: Offsets, noise: Noised, length: int) -> NDArray[np.float64]:
    """[hits, noised cuts, clean cuts] of the cuts of a clean text of `length` bytes and those of its noised form.

    Cuts of the noised text count where they came from, and cuts of the clean text at the first character at or after
    them that is left. The cut before the first of these counts on neither side.
    """
    if not len(noise.origins):
        return np.zeros(3)
    left = next_marked(noise.origins, length)
    sides = [np.unique(noise.origins[noised]), np.unique(left[clean])]
    return match_counts(*(side[(side != left[0]) & (side < length)] for side in sides))


def _upper(sign: str) -> int:
    return _same_size(sign, sign.upper())


def _lower(sign: str) -> int:
    return _same_size(sign, sign.lower())


def _same_size(sign: str, other: str) -> int:
    """The other case of a sign, if it is one code point of as many bytes; else the sign itself."""
    if len(other) != 1 or len(other.encode("utf-8", "surrogatepass")) != len(sign.encode("utf-8", "surrogatepass")):
        return ord(sign)
    return ord(other)
