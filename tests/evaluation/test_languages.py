"""Words of languages: what counts as one, what is forced, and what is compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.context_helpers import small_context
from zonkey_core.errors import DataError
from zonkey_core.evaluation.context import Language
from zonkey_core.evaluation.results import Measure
from zonkey_core.evaluation.tasks.languages import (
    UnitCutter,
    _punctuation_borders,
    _spans,
    measure_languages,
    read_language,
    read_words,
    word_counts,
)


def counts(text: str, *, cut: str, gold: list[str]) -> list[float]:
    """Right, found and true words of cuts that are given as a text with bars."""
    parts = cut.split("|")
    assert "".join(parts) == text == "".join(gold)
    starts = np.cumsum([0, *(len(part.encode()) for part in parts[:-1])])
    found: list[float] = word_counts(starts, text.encode(), _spans(gold)).tolist()
    return found


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("中国|人民|进入", [3, 3, 3]),
        ("中国人民|进入", [1, 2, 3]),
        ("中|国|人民|进入", [2, 4, 3]),
        ("中国人民进入", [0, 1, 3]),
    ],
)
def test_a_word_counts_where_both_its_borders_are_cut(cut: str, expected: list[float]) -> None:
    assert counts("中国人民进入", cut=cut, gold=["中国", "人民", "进入"]) == expected


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("the| cat| sat", [3, 3, 3]),
        ("the |cat |sat", [3, 3, 3]),
        ("the| |cat sat", [1, 2, 3]),
        ("the cat sat", [0, 1, 3]),
    ],
)
def test_white_space_around_a_segment_does_not_count(cut: str, expected: list[float]) -> None:
    assert counts("the cat sat", cut=cut, gold=["the", " ", "cat", " ", "sat"]) == expected


def test_cuts_are_forced_around_signs_of_any_script() -> None:
    text = "好。他\uff08说\uff09a+b c"
    borders = _punctuation_borders(text.encode())
    parts = [text.encode()[a:b].decode() for a, b in zip([0, *borders], [*borders, len(text.encode())], strict=True)]
    assert [part for part in parts if part] == ["好", "。", "他", "\uff08", "说", "\uff09", "a", "+", "b c"]


def test_words_are_read_from_lists_and_mistakes_named(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text('["中国", "人民"]\n\n["a", " ", "b"]\n', "utf-8")
    assert read_words(gold) == [["中国", "人民"], ["a", " ", "b"]]
    for content, message in (("[1]\n", "line 1: no JSON list of words"), ("[]\n", "no words in this file")):
        gold.write_text(content)
        with pytest.raises(DataError, match=message):
            read_words(gold)


def test_a_language_is_measured_beside_tokenizers_of_its_own_text(tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text(json.dumps(["ab", "cde", "。", "ab"], ensure_ascii=False) + "\n", "utf-8")
    (tmp_path / "text.txt").write_text("abcde。ab " * 40, "utf-8")
    language = read_language("made", str(tmp_path / "gold.jsonl"), str(tmp_path / "text.txt"), 10_000)
    assert sum(map(len, language.training)) > 100
    outcomes = {each.name: each for each in measure_languages(small_context(tmp_path, languages=[language]))}
    plain, forced = (outcomes[f"segment.words.made.f1{suffix}"] for suffix in ("", "_forced"))
    assert isinstance(plain, Measure) and isinstance(forced, Measure)
    assert plain.n == 1 and plain.ceiling == 1.0
    assert plain.floor == pytest.approx(2 * 1 / (8 + 4)), "of eight signs one is a word"
    assert "segment.words.made.rivals.unigram_16k" in outcomes, "too little text for so many pieces"
    assert UnitCutter().cut("日本".encode()).tolist() == [0, 3]


def test_where_no_language_is_named_nothing_is_measured(tmp_path: Path) -> None:
    assert list(measure_languages(small_context(tmp_path))) == []
    assert Language("a", [["b"]], []).lines == [["b"]]
