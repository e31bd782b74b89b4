"""The guide: what ends of documents teach of the places within them, whatever the signs are."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from zonkey_core.training import document_guide
from zonkey_core.training.document_guide import GAP, NOTHING, DocumentGuide, Line, line_of

NAMES = ("Smith", "Jones", "Brown", "Moore")
VERBS = ("saw", "met", "knew", "called")
RATE = 1 / 24


def document(chance: random.Random) -> str:
    """Some sentences, in which an abbreviation stands now and then; half of them end with another sign."""
    sentences = []
    for _ in range(chance.randint(1, 5)):
        who, title, end = chance.choice(("man", "cat")), chance.choice(("", "", "Dr. ")), chance.choice(".!")
        sentences.append(f"The {who} {chance.choice(VERBS)} {title}{chance.choice(NAMES)}{end}")
    return " ".join(sentences)


DOCUMENTS = [document(random.Random(number)) for number in range(1500)]


def line_from(texts: list[str], *, whole: bool = True) -> Line:
    """Documents in a line, a unit a sign."""
    keys = np.array([ord(sign) for text in texts for sign in text], dtype=np.int64)
    fresh = np.zeros(len(keys), dtype=np.bool_)
    fresh[np.cumsum([0, *map(len, texts[:-1])])] = True
    return line_of(keys, fresh, np.append(fresh[1:], True) & whole)


@pytest.fixture(scope="module")
def guide() -> DocumentGuide:
    """A guide that has read the documents."""
    return DocumentGuide(line_from(DOCUMENTS), RATE)


def probs_of(guide: DocumentGuide, text: str) -> NDArray[np.float32]:
    """What it says of the places before each sign of a text."""
    line = line_from([text], whole=False)
    return guide.start_probs(line.symbols, line.places)


def test_a_line_has_places_between_units_and_behind_documents() -> None:
    line = line_of(np.array([5, 6, 7, 8]), np.array([True, False, True, False]), np.array([False, True, False, False]))
    nothing = [NOTHING] * GAP
    assert line.symbols.tolist() == [*nothing, 5, 6, *nothing, 7, 8, *nothing]
    assert line.symbols[line.places].tolist() == [5, 6, 7, 8]
    assert line.symbols[line.inner].tolist() == [6, 8]
    assert line.ends.tolist() == [GAP + 2]


def test_an_empty_line_is_no_fault() -> None:
    empty = np.zeros(0, np.int64)
    line = line_of(empty, empty.astype(np.bool_), empty.astype(np.bool_))
    assert len(line.places) == len(line.inner) == len(line.ends) == 0


def test_sentences_begin_where_documents_might_have_ended(guide: DocumentGuide) -> None:
    text = "The man saw Jones. The cat met Dr. Moore! The cat knew Smith."
    probs = probs_of(guide, text)
    starts = {place for place in range(1, len(text)) if probs[place] > 0.5}
    assert starts == {text.index(". The") + 1, text.index("! The") + 1}


def test_what_never_ends_a_document_begins_nothing(guide: DocumentGuide) -> None:
    text = "The man saw Dr. Smith."
    assert probs_of(guide, text)[text.index(". ") + 1] < 0.3


def test_its_rate_is_held(guide: DocumentGuide) -> None:
    assert guide.starts.mean() == pytest.approx(RATE, rel=1e-3)
    rarer = DocumentGuide(line_from(DOCUMENTS), RATE / 3)
    assert rarer.starts.mean() == pytest.approx(RATE / 3, rel=1e-3)
    assert (rarer.starts <= guide.starts + 1e-6).mean() > 0.9


def test_the_same_text_gives_the_same_guide(guide: DocumentGuide) -> None:
    again = DocumentGuide(line_from(DOCUMENTS), RATE)
    assert np.array_equal(again.starts, guide.starts)
    text = DOCUMENTS[3]
    assert np.array_equal(probs_of(again, text), probs_of(guide, text))


def test_what_is_said_does_not_depend_on_how_many_places_are_asked_at_once(
    guide: DocumentGuide, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probs_of(guide, DOCUMENTS[0])
    monkeypatch.setattr(document_guide, "TOGETHER", 7)
    assert np.array_equal(probs_of(guide, DOCUMENTS[0]), whole)


def test_no_sign_is_known_beforehand() -> None:
    """The same text with other signs in place of all of its own gives the same guide, but for who shares a row."""
    signs = sorted({sign for text in DOCUMENTS for sign in text})
    other = dict(zip(signs, (chr(0x4E00 + 37 * number) for number in range(len(signs))), strict=True))
    changed = ["".join(other[sign] for sign in text) for text in DOCUMENTS]
    guide = DocumentGuide(line_from(changed), RATE)
    text = "The man saw Jones. The cat met Dr. Moore! The cat knew Smith."
    probs = probs_of(guide, "".join(other[sign] for sign in text))
    starts = {place for place in range(1, len(text)) if probs[place] > 0.5}
    assert starts == {text.index(". The") + 1, text.index("! The") + 1}


def test_what_stands_behind_is_not_judged_by_places_with_the_same_unit_before() -> None:
    """`com` follows nothing but a full stop, so what is before it tells nothing of it; `The` follows two signs."""
    symbols = line_from(["a.com! The b.com. The "] * 40).symbols
    places = np.flatnonzero((symbols[1:] != NOTHING) & (symbols[:-1] != NOTHING)) + 1
    starts = np.isin(symbols[places - 1], [ord("."), ord("!")]).astype(np.float32)
    side = document_guide.RightSide(symbols, places, starts, 1 << 12)
    found = side.logits(symbols, places)
    com = (symbols[places] == ord("c")) & (symbols[places - 1] == ord("."))
    the = (symbols[places] == ord(" ")) & (symbols[places + 1] == ord("T")) & (symbols[places - 1] == ord("."))
    assert com.any() and the.any()
    assert found[com].max() < 0.1 < 1 < found[the].min()


def test_behind_a_unit_that_often_ends_segments_it_is_told_which_of_them_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """`5` stands where the left side doubts, `The` where it does not; behind other units neither counts."""
    symbols = line_from(["a town. The b is .3.5 c"] * 60).symbols
    places = np.flatnonzero((symbols[1:] != NOTHING) & (symbols[:-1] != NOTHING)) + 1
    stop = symbols[places - 1] == ord(".")
    behind = {sign: stop & (symbols[places] == ord(sign)) for sign in " 35"}
    starts = np.where(behind[" "], 0.9, np.where(stop, 0.1, 0.0)).astype(np.float32)
    side = document_guide.RightSide(symbols, places, starts, 1 << 12)
    found = side.logits(symbols, places)
    monkeypatch.setattr(document_guide, "ENDING", 0.0)
    without = side.logits(symbols, places)
    assert (found - without)[behind["5"]].max() < -0.5 and (found - without)[behind[" "]].min() > 0.5
    assert np.abs(found - without)[~stop].max() < 1e-4
