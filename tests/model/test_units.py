"""Units of text: extended grapheme clusters, whole code points, and bytes where there are none."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import grapheme_breaks
from tests.model_helpers import byte_rows, law
from zonkey_core.model.unit_rows import NO_UNIT, spaced_apart, unit_rows
from zonkey_core.model.units import LONGEST_CODE_POINT, LONGEST_UNIT, LOOKBACK, read_units, unit_starts_mask

SIGNS = (
    "a", " ", "\r\n", "\r", "e\u0301", "\u0301", "\u200d", "👨", "👩‍👧", "👍🏽", "1\ufe0f\u20e3", "🇩", "🇪", "\u1100",
    "\u1161", "\u11a8", "각", "가", "क", "ि", "\u0e17", "\u0e33", "\u0600", "\u00ad", "中", "日本", "\u0b95", "©",
)  # fmt: skip
texts = st.lists(st.sampled_from(SIGNS), min_size=1, max_size=14).map("".join)


def spelled(data: bytes) -> list[bytes]:
    """The units of a text."""
    values = np.frombuffer(data, np.uint8)
    offsets = read_units(values, np.arange(len(values)) == 0).offsets.tolist()
    return [data[a:b] for a, b in zip(offsets, [*offsets[1:], len(data)], strict=True)]


@law
@given(texts)
def test_units_are_extended_grapheme_clusters(text: str) -> None:
    clusters = [cluster.encode() for cluster in regex.findall(r"\X", text)]
    if max(map(len, clusters)) <= LONGEST_UNIT:
        assert spelled(text.encode()) == clusters


@pytest.mark.parametrize(
    "unit",
    ["👨‍👩‍👧", "é", "e\u0301", "क्षि", "각", "\u1100\u1161\u11a8", "🇩🇪", "👍🏽", "1️⃣", "🏴‍☠️", "ทำ", "\r\n", "ß", "中"],
)  # fmt: skip
def test_what_is_one_sign_is_one_unit(unit: str) -> None:
    assert spelled(f"x{unit}y{unit}{unit}".encode()) == [b"x", unit.encode(), b"y", unit.encode(), unit.encode()]


def test_flags_are_paired_along_a_row_of_them() -> None:
    assert [len(unit) for unit in spelled("🇩🇪🇫🇷🇮🇹🇪🇸🇬".encode())] == [8, 8, 8, 8, 4]


def test_no_unit_outgrows_its_bound_and_what_is_too_much_stands_alone() -> None:
    sizes = [len(unit) for unit in spelled(("a" + "\u0301" * 40).encode())]
    assert sizes[0] == 23 and set(sizes[1:]) == {2}


@law
@given(st.one_of(texts.map(str.encode), st.binary(min_size=1, max_size=60)))
@example(b"\xf5\x80\x80\x80")  # spelled as one code point, beyond the last there is
def test_units_spell_any_bytes(data: bytes) -> None:
    units = spelled(data)
    assert b"".join(units) == data and max(map(len, units)) <= LONGEST_UNIT
    for unit in units:
        assert unit.decode("utf-8", "ignore") or len(unit) <= LONGEST_CODE_POINT, "at most a broken code point"


@law
@given(st.lists(st.one_of(texts, st.sampled_from(["🇩", "\u0301", "👨\u200d"]).map(lambda sign: sign * 60))), st.data())
def test_where_a_unit_begins_depends_on_what_stands_near(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts).encode()
    values = np.frombuffer(text, np.uint8)
    whole = unit_starts_mask(values, np.arange(len(values)) == 0)
    place = data.draw(st.integers(0, max(0, len(text) - 1)))
    if len(text) > place + 4:
        first = max(0, place - LOOKBACK)
        part = values[first : place + 4]
        assert unit_starts_mask(part, np.zeros(len(part), np.bool_))[place - first] == whole[place] or place == 0


def test_different_units_have_different_keys_and_the_same_have_the_same() -> None:
    data = "👨‍👩‍👧👨‍👧‍👩e\u0301é中a\u0301".encode() + b"\xff\xfe\xe4\xb8\x01"
    values = np.frombuffer(data * 2, np.uint8)
    fresh = np.zeros(len(values), np.bool_)
    fresh[[0, len(data)]] = True
    keys = read_units(values, fresh).keys.tolist()
    half = len(keys) // 2
    assert keys[:half] == keys[half:] and len(set(keys)) == half and keys[4] == ord("中")


@law
@given(st.lists(st.sampled_from(["👨", "\u200d👩", "क", "\u094dष", "🇩", "🇪🇫", "e", "\u0301", "\r", "\n"]), min_size=1))
@example(["👨", "\u200d👩"])
@example(["क", "\u094dष"])
def test_a_document_has_the_units_that_it_has_alone(texts: list[str]) -> None:
    parts = [text.encode() for text in texts]
    sizes = np.cumsum([0, *map(len, parts)])
    values = np.frombuffer(b"".join(parts), np.uint8)
    found = read_units(values, np.isin(np.arange(len(values)), sizes[:-1]))
    alone = [read_units(np.frombuffer(part, np.uint8), np.arange(len(part)) == 0) for part in parts]
    assert found.keys.tolist() == [key for each in alone for key in each.keys.tolist()]
    assert found.offsets.tolist() == [
        offset for each, size in zip(alone, sizes, strict=False) for offset in (each.offsets + size).tolist()
    ]


def test_nothing_joins_across_the_beginning_of_a_row_or_a_document() -> None:
    text = "e\u0301中".encode()
    rows = byte_rows(text, text)
    rows.document_mask[1, [1, 3]] = True
    units = unit_rows(rows)
    assert units.offsets.tolist() == [0, 3, 6, 7, 9] and units.rows.tolist() == [0, 0, 1, 1, 1]
    assert units.sizes.tolist() == [3, 3, 1, 2, 3]
    line, places = spaced_apart(units, 3)
    assert line[places].tolist() == units.keys.tolist()
    assert places.tolist() == [3, 4, 8, 9, 10] and len(line) == 14
    gaps = np.setdiff1d(np.arange(14), places.numpy())
    assert (line[gaps] == NO_UNIT).all()


def test_padding_holds_no_units() -> None:
    rows = byte_rows(b"abcd", b"efgh")
    rows.exists_mask[0, 2:] = False
    assert unit_rows(rows).keys.tolist() == list(b"abefgh")


def test_the_table_of_kinds_is_that_of_the_library_up_to_what_a_version_of_unicode_adds() -> None:
    stored = resources.files("zonkey_core.model").joinpath("grapheme_breaks.bin").read_bytes()
    kept, now = (spread_out(each) for each in (stored, grapheme_breaks.kinds()))
    assert (kept != now).sum() < 1000 and (kept[:0x3000] != now[:0x3000]).sum() < 60


def spread_out(content: bytes) -> NDArray[np.uint8]:
    """The kind of every code point from runs of them."""
    runs = len(content) // 5
    firsts = np.frombuffer(content, "<u4", runs).astype(np.int64)
    return np.repeat(np.frombuffer(content, np.uint8, runs, 4 * runs), np.diff(firsts, append=0x110000))
