"""Which kinds of units others stand in for, by the text alone."""

from __future__ import annotations

import gzip
import json
import random
from importlib import resources

import numpy as np
import pytest

from zonkey_core.model.ngram_tables import STAND_INS
from zonkey_core.model.unit_rows import NO_UNIT
from zonkey_core.training import stand_ins as module
from zonkey_core.training.stand_ins import REACH, stand_ins

CASES = dict(zip("ABCDEFGH", "abcdefgh", strict=True))


def pairs_of(*texts: str) -> dict[str, str]:
    """What stands in for what."""
    gap = [NO_UNIT] * REACH
    line = np.array([*gap, *(each for text in texts for each in [*map(ord, text), *gap])], dtype=np.int64)
    kinds, others = stand_ins(line)
    assert (np.diff(kinds) > 0).all()
    return {chr(kind): chr(other) for kind, other in zip(kinds.tolist(), others.tolist(), strict=True)}


def words(count: int, *, parted: str = " ", capitals: float = 0.3) -> str:
    """Words of few letters, of which some begin with another sign for theirs."""
    draw = random.Random(0)
    known = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(60)]
    texts = []
    for word in draw.choices(known, k=count):
        capital = word[0].upper() + word[1:]
        texts.append(capital if draw.random() < capitals else word)
    return parted.join(texts)


def test_capitals_of_a_made_up_language_give_way_to_its_small_letters() -> None:
    assert pairs_of(words(12000)) == CASES
    assert pairs_of(*(words(12000)[first : first + 100] for first in range(0, 50000, 100))) == CASES


def test_signs_of_no_alphabet_do_so_too() -> None:
    """Nothing knows what a letter is."""
    text = words(12000).translate({ord(sign): 0x4E00 + place for place, sign in enumerate("abcdefghABCDEFGH")})
    assert pairs_of(text.replace(" ", "~")) == {chr(0x4E08 + place): chr(0x4E00 + place) for place in range(8)}


def test_real_text_has_capitals() -> None:
    packed = resources.files("zonkey_core.data").joinpath("sample.jsonl.gz").read_bytes()
    texts = [json.loads(line)["text"] for line in gzip.decompress(packed).splitlines()]
    found = pairs_of(*texts)
    letters = {kind: other for kind, other in found.items() if kind.isalpha()}
    assert len(letters) >= 12 and all(other == kind.lower() for kind, other in letters.items())


def test_where_nothing_parts_words_nothing_gives_way() -> None:
    assert pairs_of(words(12000, parted="")) == {}


def test_a_stand_in_does_not_give_way_and_stands_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEHIND_COMMONEST", 0.0)
    monkeypatch.setattr(module, "ALIKE", 1e-6)
    found = pairs_of(words(12000))
    assert len(found) >= 8 and len({*found.values()}) == len(found) and not found.keys() & {*found.values()}


def test_there_are_no_more_pairs_than_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STAND_INS", 3)
    found = pairs_of(words(12000))
    assert len(found) == 3 < STAND_INS and found.items() <= CASES.items()


@pytest.mark.parametrize("text", ["", "a", "aaaa", "Some text that says too little of its capitals."])
def test_little_text_tells_nothing(text: str) -> None:
    assert pairs_of(text) == {}
