"""Wikipedia from a local folder and, with the hub replaced, from the hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.data_helpers import SPLITS, article_number, error, read, write_wiki
from zonkey_core.data.hub import hub_address
from zonkey_core.data.shards import split_of


def test_wiki_splits_by_hash_where_there_are_only_train_files(tmp_path: Path) -> None:
    write_wiki(tmp_path / "20231101.en", range(600), files=3)
    found = {split: sorted(map(article_number, read("wiki", wiki_dir=str(tmp_path), split=split))) for split in SPLITS}
    for split, remainder in (("validation", 0), ("test", 1)):
        bucket = [i for i in range(600) if int(hashlib.md5(str(i).encode()).hexdigest(), 16) % 100 == remainder]
        assert found[split] == bucket != []
    assert sorted(i for numbers in found.values() for i in numbers) == list(range(600))


def test_wiki_uses_the_files_of_a_split_where_there_are_some(tmp_path: Path) -> None:
    folder = tmp_path / "20180101.simple"
    write_wiki(folder, range(600))
    write_wiki(folder, range(1000, 1020), split="validation")
    options: dict[str, Any] = {"wiki_dir": str(tmp_path), "wiki_config": folder.name}
    in_train, held_out, in_test = (set(map(article_number, read("wiki", split=s, **options))) for s in SPLITS)
    assert held_out == set(range(1000, 1020))
    assert in_test == {i for i in range(600) if split_of(str(i).encode()) == "test"}
    assert in_train == set(range(600)) - in_test
    write_wiki(folder, range(2000, 2010), split="test")
    assert set(map(article_number, read("wiki", split="train", **options))) == set(range(600))


def test_wiki_reads_only_the_configuration_that_is_named(tmp_path: Path) -> None:
    write_wiki(tmp_path / "20180101.en", range(10))
    write_wiki(tmp_path / "20180101.simple", range(10, 20))
    options: dict[str, Any] = {"wiki_dir": str(tmp_path), "wiki_config": "20180101.simple"}
    texts = [text for split in SPLITS for text in read("wiki", split=split, **options)]
    assert sorted(texts) == [f"Article {i}\n\né ß".encode() for i in range(10, 20)]


def test_wiki_dir_may_hold_pattern_characters_and_be_hidden(tmp_path: Path) -> None:
    root = tmp_path / ".hidden" / "a[b]*"
    write_wiki(root / "20231101.en", range(1000, 1003))
    assert len(read("wiki", wiki_dir=str(root))) == 3


def test_wiki_dir_calls_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = []

    def resolve(host: str, *_: object, **__: object) -> None:
        hosts.append(host)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    write_wiki(tmp_path / "20231101.en", range(20))
    read("wiki", wiki_dir=str(tmp_path))
    assert hosts == []


def test_wiki_folder_errors(tmp_path: Path) -> None:
    missing = error("wiki", wiki_dir=str(tmp_path / "no"))
    assert "no such folder" in missing and "--data-dir" in missing
    assert "holds no CONFIG" in error("wiki", wiki_dir=str(tmp_path))
    write_wiki(tmp_path / "20180101.simple", range(5))
    absent = error("wiki", wiki_dir=str(tmp_path))
    assert "20231101.en" in absent and "--data-config with one of 20180101.simple" in absent
    assert "the folder above" in error("wiki", wiki_dir=str(tmp_path / "20180101.simple"))
    bad = tmp_path / "20180101.simple" / "train-00001-of-00002.parquet"
    bad.write_bytes(b"not parquet")
    assert f"{bad}: not a readable Parquet file" in error("wiki", wiki_dir=str(tmp_path), wiki_config="20180101.simple")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), bad)
    assert f"{bad}: has no column named id" in error("wiki", wiki_dir=str(tmp_path), wiki_config="20180101.simple")


def test_wiki_damage_inside_a_file_is_one_line(tmp_path: Path) -> None:
    write_wiki(tmp_path / "20231101.en", range(600), group=600)
    (file,) = (tmp_path / "20231101.en").iterdir()
    content = bytearray(file.read_bytes())
    content[4:2000] = b"\xff" * 1996
    file.write_bytes(content)
    message = error("wiki", wiki_dir=str(tmp_path))
    assert message.startswith(f"{file}: reading failed") and message.endswith("replace this file")


def test_hub_out_of_reach_is_one_line_that_says_what_else_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = []

    def refuse(self: object, repository: str, timeout: float) -> None:
        timeouts.append(timeout)
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    assert error("wiki") == (
        "cannot reach the Hugging Face hub for wikimedia/wikipedia (20231101.en): no route; "
        "give a local copy with --data-dir DIR (or ZONKEY_WIKI_DIR), or use --data sample or --data FILE"
    )
    assert timeouts[0] <= 5


def test_hub_files_are_read_like_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wiki(tmp_path / "20231101.simple", range(300), files=2)
    names = ["README.md", "20231101.de/train-00000-of-00001.parquet"]
    names += [f"20231101.simple/train-0000{i}-of-00002.parquet" for i in range(2)]
    info = SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=name) for name in names])
    revisions = []

    def address(revision: str) -> str:
        revisions.append(revision)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: info)
    monkeypatch.setattr("zonkey_core.data.hub.hub_address", address)
    texts = [text for split in SPLITS for text in read("wiki", wiki_config="20231101.simple", split=split)]
    assert sorted(map(article_number, texts)) == list(range(300))
    assert revisions == ["abc"] * 3
    assert "one of 20231101.de, 20231101.simple" in error("wiki", wiki_config="20231101.sample")


def test_hub_address_pins_the_revision() -> None:
    assert hub_address("abc") == "hf://datasets/wikimedia/wikipedia@abc"
