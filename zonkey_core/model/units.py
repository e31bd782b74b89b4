"""The uncuttable units of a text, which level 0's splitter hides, draws, tells and cuts before.

A unit is an extended grapheme cluster (Unicode Standard Annex 29): what a reader takes for one sign, however many code
points and bytes spell it, as `é` with a combining accent, a syllable of jamo or a family of emoji. What is no UTF-8
counts byte by byte. Why not bytes: where a script spends three of them on a sign, a hidden one is told from the other
two, and nothing is left that presses toward words.

Where a unit begins depends on what stands near alone: one ends after `LONGEST_UNIT` bytes at the latest, and flags are
paired along at most `PAIRED_REACH` of their letters.

Only numpy is used, so that text can be read where torch is not. Bytes are given flat, [n], with a mask of those at
which a row or a document begins, across which nothing joins.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LONGEST_UNIT = 24
"""Bytes; a code point of a cluster that would end behind so many is a unit of its own."""
PAIRED_REACH = 32
"""Letters of flags before one that are looked at to pair them."""
LOOKBACK = 4 * PAIRED_REACH
"""Bytes before a place that decide, together with those of its own code point, whether a unit begins there."""
LONGEST_CODE_POINT = 4
BROKEN = 0x200000
"""What is added to the code of bytes that are no whole code point."""
CODE_POINTS = 0x110000
HANGUL_SYLLABLES = range(0xAC00, 0xD7A4)
JOINED_SPREAD = 0x2545F4914F6CDD1D
"""An odd number by whose powers the further code points of a unit enter its key."""

Offsets = NDArray[np.int64]
Mask = NDArray[np.bool_]


class BreakKind(IntEnum):
    """How a code point joins others: one of the first, and any of the last four, which are bits."""

    OTHER = 0
    CR = 1
    LF = 2
    CONTROL = 3
    EXTEND = 4
    JOINER = 5
    SPACING = 6
    PREPEND = 7
    HANGUL_L = 8
    HANGUL_V = 9
    HANGUL_T = 10
    HANGUL_LV = 11
    HANGUL_LVT = 12
    REGIONAL = 13
    PICTOGRAPH = 0x10
    LINKER = 0x20
    CONSONANT = 0x40
    CONJOINED = 0x80


_VOWELS = [BreakKind.HANGUL_V, BreakKind.HANGUL_T]
_SYLLABLES = {
    BreakKind.HANGUL_L: [BreakKind.HANGUL_L, BreakKind.HANGUL_V, BreakKind.HANGUL_LV, BreakKind.HANGUL_LVT],
    BreakKind.HANGUL_V: _VOWELS,
    BreakKind.HANGUL_LV: _VOWELS,
    BreakKind.HANGUL_T: [BreakKind.HANGUL_T],
    BreakKind.HANGUL_LVT: [BreakKind.HANGUL_T],
}
"""Which parts of a syllable of Hangul go on with which."""


class Units(NamedTuple):
    """The K units of n bytes, in order."""

    offsets: Offsets
    """[K] the byte at which each begins."""
    keys: Offsets
    """[K] a number that stands for each; of a unit of one code point, that code point."""


def byte_reach(units: int) -> int:
    """Bytes on either side of a place that hold so many units, and what decides where the first of them begins."""
    return (units + 1) * LONGEST_UNIT + LOOKBACK


def read_units(values: NDArray[np.uint8], fresh_mask: Mask) -> Units:
    """The units of bytes [n], none of which goes on across a byte at which `fresh_mask` [n] is true."""
    starts = np.flatnonzero(~inside_code_point(values, fresh_mask))
    codes = _codes(values, starts)
    joined = _joined(codes, starts, len(values), fresh_mask[starts])
    if joined is None:
        return Units(starts, codes)
    first = np.flatnonzero(~joined)
    keys = codes[first]
    further = np.flatnonzero(joined)
    unit = np.searchsorted(first, further, side="right") - 1
    powers = np.cumprod(np.full(LONGEST_UNIT, JOINED_SPREAD, dtype=np.int64))
    np.add.at(keys, unit, (codes[further] + 1) * powers[further - first[unit] - 1])
    return Units(starts[first], keys)


def unit_starts_mask(values: NDArray[np.uint8], fresh_mask: Mask) -> Mask:
    """[n] mask of the bytes at which units begin, as `read_units`."""
    mask = np.zeros(len(values), dtype=np.bool_)
    mask[read_units(values, fresh_mask).offsets] = True
    return mask


def inside_code_point(values: NDArray[np.uint8], fresh_mask: Mask) -> Mask:
    """[n] mask of the bytes 0x80-0xBF that a lead byte before them, near enough, still claims."""
    continues = (values & 0xC0) == 0x80
    inside = np.zeros(len(values), dtype=np.bool_)
    if not continues.any():
        return inside
    unbroken = continues & ~fresh_mask
    chain = unbroken.copy()
    for back, least in zip(range(1, LONGEST_CODE_POINT), (0xC0, 0xE0, 0xF0), strict=True):
        inside[back:] |= chain[back:] & (values[:-back] >= least)
        chain[back:] &= unbroken[:-back]
        chain[:back] = False
    return inside


def _codes(values: NDArray[np.uint8], starts: Offsets) -> Offsets:
    """[P] the code points that begin at some offsets; bytes that are none whole are numbers above all these."""
    codes = values[starts].astype(np.int64)
    wide = np.flatnonzero(codes >= 0x80)
    if not len(wide):
        return codes
    lead = codes[wide]
    begin = starts[wide]
    sizes = np.diff(starts, append=len(values))[wide]
    claimed = 1 + (lead >= 0xC0).astype(np.int64) + (lead >= 0xE0) + (lead >= 0xF0)
    code = lead & (0x7F >> np.where(sizes > 1, sizes, 0))
    for further in range(1, LONGEST_CODE_POINT):
        there = sizes > further
        code[there] = (code[there] << 6) | (values[begin[there] + further] & 0x3F)
    broken = (sizes != claimed) | (sizes == 1) | (code >= CODE_POINTS)
    codes[wide] = code + BROKEN * (broken * sizes)
    return codes


@cache
def _kinds() -> NDArray[np.uint8]:
    """[CODE_POINTS + 1] the kind of every code point, and last that of what is none."""
    content = resources.files("zonkey_core.model").joinpath("grapheme_breaks.bin").read_bytes()
    runs = len(content) // 5
    firsts = np.frombuffer(content, "<u4", runs).astype(np.int64)
    kinds = np.frombuffer(content, np.uint8, runs, 4 * runs)
    table = np.append(np.repeat(kinds, np.diff(firsts, append=CODE_POINTS)), np.uint8(BreakKind.CONTROL))
    syllables = table[HANGUL_SYLLABLES.start : HANGUL_SYLLABLES.stop]
    syllables[:] = BreakKind.HANGUL_LVT
    syllables[::28] = BreakKind.HANGUL_LV
    return table


@cache
def _pairs() -> Mask:
    """[256] whether a code point goes on with the one before it by their kinds, `16 * before + kind`."""
    controls = (BreakKind.CR, BreakKind.LF, BreakKind.CONTROL)
    joined = np.zeros((16, 16), dtype=np.bool_)
    joined[:, [BreakKind.EXTEND, BreakKind.JOINER, BreakKind.SPACING]] = True
    joined[BreakKind.PREPEND] = True
    for before, following in _SYLLABLES.items():  # rules GB6 to GB8
        joined[before, following] = True
    joined[controls, :] = joined[:, controls] = False
    joined[BreakKind.CR, BreakKind.LF] = True
    return joined.ravel()


def _joined(codes: Offsets, starts: Offsets, length: int, fresh: Mask) -> Mask | None:
    """[P] mask of the code points that go on with the unit before them; None where none does."""
    kinds = _kinds()[np.minimum(codes, CODE_POINTS)]
    if not (kinds & 0x0F).any():
        return None
    kind: NDArray[np.uint8] = kinds & np.uint8(0x0F)
    before = np.concatenate([[np.uint8(BreakKind.CONTROL)], kind[:-1]])
    joined: Mask = _pairs()[(before << 4) | kind]
    joined |= _pictographs(kinds, starts, fresh) | _conjuncts(kinds, starts, fresh) | _flags(kind, fresh)
    joined &= ~fresh
    if not joined.any():
        return None
    order = np.arange(len(codes))
    natural = starts[np.maximum.accumulate(np.where(joined, 0, order))]
    joined &= np.append(starts[1:], length) - natural <= LONGEST_UNIT
    return joined


def _last(mask: Mask) -> Offsets:
    """[P] index of the last true at or before each; -1 where there is none."""
    found: Offsets = np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))
    return found


def _shifted(values: Offsets, by: int) -> Offsets:
    """[P] the value `by` places before each; -1 where there is none."""
    return np.concatenate([np.full(min(by, len(values)), -1, dtype=np.int64), values[:-by]])


def _within(base: Offsets, starts: Offsets, fresh: Mask) -> Mask:
    """[P] whether an earlier code point, by its index, is there and begins at most `LONGEST_UNIT` bytes before."""
    near: Mask = (base >= np.maximum(_last(fresh), 0)) & (starts - starts[np.maximum(base, 0)] <= LONGEST_UNIT)
    return near


def _pictographs(kinds: NDArray[np.uint8], starts: Offsets, fresh: Mask) -> Mask:
    """Where a pictograph is joined to one before it (rule GB11)."""
    asked = (kinds & BreakKind.PICTOGRAPH) > 0
    if not asked.any():
        return asked
    kind = kinds & 0x0F
    asked[1:] &= kind[:-1] == BreakKind.JOINER
    asked[:1] = False
    base = _shifted(_last(kind != BreakKind.EXTEND), 2)
    joined: Mask = asked & _within(base, starts, fresh) & ((kinds[base] & BreakKind.PICTOGRAPH) > 0)
    return joined


def _conjuncts(kinds: NDArray[np.uint8], starts: Offsets, fresh: Mask) -> Mask:
    """Where a consonant is joined to one before it by a virama (rule GB9c)."""
    asked = (kinds & BreakKind.CONSONANT) > 0
    linkers = (kinds & BreakKind.LINKER) > 0
    if not (asked.any() and linkers.any()):
        return np.zeros(len(kinds), dtype=np.bool_)
    base = _shifted(_last((kinds & (BreakKind.LINKER | BreakKind.CONJOINED)) == 0), 1)
    linked = _shifted(_last(linkers), 1) > base
    joined: Mask = asked & linked & _within(base, starts, fresh) & ((kinds[base] & BreakKind.CONSONANT) > 0)
    return joined


def _flags(kind: NDArray[np.uint8], fresh: Mask) -> Mask:
    """Where the second letter of a flag stands (rules GB12 and GB13)."""
    letters: Mask = kind == BreakKind.REGIONAL
    if not letters.any():
        return letters
    order = np.arange(len(kind))
    others = _shifted(_last(~letters), 1)
    begun = np.maximum(others + 1, _last(fresh))
    preceding = order - begun
    joined: Mask = letters & (preceding % 2 == 1) & (preceding < PAIRED_REACH)
    return joined
