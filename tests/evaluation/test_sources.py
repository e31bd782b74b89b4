"""Texts of other domains and gold sentences, as users give them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.data_helpers import compressed
from zonkey_core.errors import DataError
from zonkey_core.evaluation.tasks.sources import read_domains, read_gold


def test_a_file_is_a_domain_and_a_folder_is_several(tmp_path: Path) -> None:
    folder = tmp_path / "domains"
    folder.mkdir()
    table = pyarrow.Table.from_pylist([{"text": "eins"}, {"text": "zwei"}])
    pyarrow.parquet.write_table(table, folder / "german.parquet")
    (folder / "code.jsonl.gz").write_bytes(compressed(b'{"text": "print()"}\n', "gzip"))
    (folder / ".hidden.txt").write_text("not this")
    (tmp_path / "my poems.txt").write_bytes(b"roses\n\nviolets\n")
    found = read_domains([str(folder), str(tmp_path / "my poems.txt")], 100)
    assert found == [("code", b"print()"), ("german", b"eins\n\nzwei"), ("my poems", b"roses\n\nviolets\n")]


@pytest.mark.parametrize(("limit", "kept"), [(9, "日本語"), (8, "日本"), (6, "日本"), (100, "日本語")])
def test_only_the_beginning_is_read_in_whole_code_points(tmp_path: Path, limit: int, kept: str) -> None:
    (tmp_path / "sign.txt").write_text("日本語", "utf-8")
    assert read_domains([str(tmp_path / "sign.txt")], limit) == [("sign", kept.encode())]


def test_a_long_file_is_read_in_part(tmp_path: Path) -> None:
    text = b"A line of text.\n" * 20_000
    (tmp_path / "long.txt").write_bytes(text)
    assert read_domains([str(tmp_path / "long.txt")], 150_000) == [("long", text[:150_000])]


def test_mistakes_with_domains(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("text")
    (tmp_path / "one.md").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "void.txt").touch()
    for paths, message in (
        (["nope"], "nope: no such file or folder"),
        ([str(tmp_path / "one.txt"), str(tmp_path / "one.md")], r"one\.md: a second domain is called 'one'"),
        ([str(tmp_path / "empty")], r"empty: no text in void\.txt"),
    ):
        with pytest.raises(DataError, match=message):
            read_domains(paths, 100)


def test_gold_in_three_forms(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    lines = [["One.", "Two."], {"sentences": ["Three.", " "], "id": 3}, {"paragraphs": [["Four."], [], ["Five.", "6"]]}]
    gold.write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")
    assert read_gold(gold) == [["One.", "Two."], ["Three."], ["Four."], ["Five.", "6"]]


@pytest.mark.parametrize(
    "line", ["{", "[1, 2]", '"text"', '{"text": "no sentences"}', '{"sentences": "one"}', "\udc80"]
)
def test_a_malformed_line_of_gold_is_named(tmp_path: Path, line: str) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text(f'["Fine."]\n\n{line}\n', "utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=r"gold\.jsonl, line 3: neither a JSON list") as caught:
        read_gold(gold)
    assert "\n" not in str(caught.value)


def test_gold_without_sentences(tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text('[]\n{"paragraphs": []}\n')
    with pytest.raises(DataError, match=r"gold\.jsonl: no sentences"):
        read_gold(tmp_path / "gold.jsonl")
