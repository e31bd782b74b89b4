"""Units that give sentences away: found by a guide in text that people wrote, and in text whose laws are known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.test_document_guide import line_from
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.training.document_guide import DocumentGuide
from zonkey_core.training.telling_units import TellingUnits, swapping_units, telling_units


@pytest.fixture(scope="module")
def told() -> TellingUnits:
    """What tells in the text that is bundled, by a guide that has read it."""
    spec = SourceSpec(sources=("sample",), split="all")
    texts = [text.decode() for text in open_stream(spec, seed=0, shuffle_documents=1000, repeat=False)]
    line = line_from(texts)
    return telling_units(line, DocumentGuide(line, 1 / 90).starts)


def test_full_stops_are_lost_and_letters_are_not(told: TellingUnits) -> None:
    lost = {chr(kind) for kind in told.kinds[told.lost_mask]}
    assert "." in lost
    assert not lost & set(" abcdefghijklmnopqrstuvwxyz")


def test_most_capitals_give_way_to_their_small_letters_and_line_ends_to_spaces(told: TellingUnits) -> None:
    way = {chr(kind): chr(other) for kind, other in zip(told.kinds, told.stand_ins, strict=True) if kind != other}
    assert sum(way.get(sign) == sign.lower() for sign in "ABCDEFGHIJKLMNOPQRSTUVWXYZ") >= 20
    assert all(way[sign] == sign.lower() for sign in "AHIST") and way["\n"] == " "
    assert not way.keys() & set(" abcdefghijklmnopqrstuvwxyz")


def test_what_gives_way_is_not_lost_and_stand_ins_stay(told: TellingUnits) -> None:
    gives_way = told.kinds != told.stand_ins
    assert gives_way.any() and not (gives_way & told.lost_mask).any()
    stand_ins = np.searchsorted(told.kinds, told.stand_ins[gives_way])
    assert np.array_equal(told.kinds[stand_ins], told.stand_ins[gives_way])
    assert not (told.lost_mask | gives_way)[stand_ins].any()


def test_where_nothing_begins_nothing_is_lost() -> None:
    line = line_from(["abcabcabc"] * 5)
    told = telling_units(line, np.zeros(len(line.inner), np.float32))
    assert not told.lost_mask.any() and np.array_equal(told.kinds, told.stand_ins)
    assert told.kinds.tolist() == [ord(sign) for sign in "abc"]


def test_kinds_and_what_stands_in_for_them_give_way_to_each_other() -> None:
    kinds, others = (np.array([ord(sign) for sign in signs], dtype=np.int64) for signs in ("ADZ", "daz"))
    told = swapping_units(kinds, others)
    assert told is not None and not told.lost_mask.any()
    way = {chr(kind): chr(other) for kind, other in zip(told.kinds, told.stand_ins, strict=True)}
    assert way == {"A": "d", "d": "A", "D": "a", "a": "D", "Z": "z", "z": "Z"} and (np.diff(told.kinds) > 0).all()
    assert swapping_units(kinds[:0], others[:0]) is None
