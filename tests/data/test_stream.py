"""The stream of documents: shuffled in blocks, repeated in epochs, resumed exactly."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_helpers import SPLITS, compressed, write_wiki
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.shards import Document, split_of
from zonkey_core.data.stream import DocumentStream
from zonkey_core.errors import DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of every kind."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "a.jsonl").write_bytes(b"".join(b'{"text": "a%d"}\n' % i for i in range(50)))
    (root / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(b'{"text": "b%d"}\n' % i for i in range(50))))
    (root / "c.txt").write_bytes(b"".join(b"paragraph c%05d\n\n" % i for i in range(20_000)))
    (root / "d.txt.zst").write_bytes(compressed(b"".join(b"paragraph d%05d\n\n" % i for i in range(20_000)), "zstd"))
    table = pyarrow.table({"text": [f"e{i}" for i in range(50)]})
    pyarrow.parquet.write_table(table, root / "e.parquet", row_group_size=8)
    write_wiki(root / "wiki" / "20231101.en", range(50), files=2)
    return root


def open_corpus(
    corpus: Path, state: dict[str, Any] | None = None, *, seed: int = 3, shuffle: int = 13
) -> DocumentStream:
    """All of that folder and its Wikipedia."""
    names = ("a.jsonl", "b.jsonl.gz", "c.txt", "d.txt.zst", "e.parquet")
    spec = SourceSpec(sources=(*(str(corpus / name) for name in names), "wiki"), wiki_dir=str(corpus / "wiki"))
    return open_stream(spec, seed=seed, shuffle_documents=shuffle, state=state)


@settings(deadline=None, max_examples=15)
@given(taken=st.integers(0, 450), shuffle=st.sampled_from([1, 13, 1000]))
def test_resuming_anywhere_goes_on_as_if_not_stopped(corpus: Path, taken: int, shuffle: int) -> None:
    stream = open_corpus(corpus, shuffle=shuffle)
    for _ in range(taken):
        next(stream)
    saved = json.dumps(stream.state())
    assert len(saved) < 250
    resumed = open_corpus(corpus, json.loads(saved), shuffle=shuffle)
    assert [next(resumed) for _ in range(60)] == [next(stream) for _ in range(60)]
    assert resumed.state() == stream.state() and resumed.epochs == stream.epochs


def test_every_epoch_has_every_document_in_an_order_of_its_own(corpus: Path) -> None:
    stream = open_corpus(corpus)
    epochs: list[list[bytes]] = [[], [], []]
    while (text := next(stream)) and stream.epochs < 3:
        epochs[stream.epochs].append(text)
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again, other = open_corpus(corpus), open_corpus(corpus, seed=4)
    assert [next(again) for _ in epochs[0]] == epochs[0]
    assert [next(other) for _ in epochs[0]] != epochs[0]


class CountingShard:
    """Numbers as documents, which notes how far it was read."""

    name = "numbers"
    kept = frozenset(SPLITS)
    pinned = False

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts
        self.reached = 0

    def read(self, start: tuple[int, int] = (0, 0)) -> Any:
        for index in range(start[0], len(self.texts)):
            self.reached = index + 1
            yield Document(self.texts[index], self.texts[index], (index + 1, 0))


def numbers(shard: CountingShard, **options: Any) -> DocumentStream:
    return DocumentStream([shard], label="numbers", split="train", seed=0, **{"shuffle_documents": 20, **options})


def test_shuffling_reads_one_block_ahead_and_no_more() -> None:
    shard = CountingShard([b"%d" % i for i in range(1000)])
    stream = numbers(shard)
    seen = []
    for count in range(1000):
        seen.append(int(next(stream)))
        assert shard.reached <= count + 20
    blocks = [seen[i : i + 20] for i in range(0, 1000, 20)]
    assert all(sorted(block) == list(range(20 * i, 20 * i + 20)) for i, block in enumerate(blocks))
    assert len({tuple(number % 20 for number in block) for block in blocks}) == 50


def test_a_block_of_long_documents_is_bounded_by_its_bytes() -> None:
    shard = CountingShard([b"x" * 100] * 1000)
    stream = numbers(shard, shuffle_documents=500, block_bytes=1000)
    for count in range(1000):
        next(stream)
        assert shard.reached <= count + 10


def test_an_epoch_that_ends_with_a_full_block_is_followed_by_the_next() -> None:
    shard = CountingShard([b"%d" % i for i in range(40)])
    stream = numbers(shard)
    for _ in range(40):
        next(stream)
    resumed = numbers(shard, state=stream.state())
    assert [next(stream) for _ in range(40)] == [next(resumed) for _ in range(40)]
    assert stream.epochs == 1
    once = numbers(shard, repeat=False)
    assert len(list(once)) == 40 and list(once) == []


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(name.encode())

    def open_files(*names: str, seed: int = 0, state: Any = None) -> DocumentStream:
        spec = SourceSpec(sources=tuple(str(tmp_path / name) for name in names))
        return open_stream(spec, seed=seed, shuffle_documents=5, state=state)

    stream = open_files("a.txt", "b.txt")
    assert {next(stream), next(stream)} == {b"a.txt", b"b.txt"}
    for names, seed in ((("a.txt",), 0), (("b.txt", "a.txt"), 0), (("a.txt", "b.txt"), 1)):
        with pytest.raises(DataError, match="belongs to other files"):
            open_files(*names, seed=seed, state=stream.state())
    with pytest.raises(DataError, match="damaged"):
        open_files("a.txt", "b.txt", state={"place": 3})
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(DataError, match="not the one that the saved position belongs to"):
        next(open_files("a.txt", "b.txt", state=stream.state()))


def test_data_that_moved_as_a_whole_is_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for i in range(30):
        (tmp_path / "old" / f"{i}.txt").write_bytes(b"%d" % i)
    stream = open_stream(SourceSpec(sources=(str(tmp_path / "old"),)), seed=0, shuffle_documents=4)
    for _ in range(9):
        next(stream)
    state = stream.state()
    expected = [next(stream) for _ in range(50)]
    (tmp_path / "old").rename(tmp_path / "new")
    moved = open_stream(SourceSpec(sources=(str(tmp_path / "new"),)), seed=0, shuffle_documents=4, state=state)
    assert [next(moved) for _ in range(50)] == expected


def test_reading_goes_on_after_a_failure_that_was_mended(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    expected = [b"%d" % i for i in range(20) if split_of(b"%d" % i) == "train"]
    lines = [b'{"text": "%s"}\n' % text for text in expected]
    path.write_bytes(b"".join([*lines[:10], b"{\n", *lines[10:]]))
    stream = open_stream(SourceSpec(sources=(str(path),)), seed=0, shuffle_documents=4, repeat=False)
    texts = [next(stream) for _ in range(8)]
    for _ in range(2):
        with pytest.raises(DataError, match="line 11"):
            next(stream)
    path.write_bytes(b"".join(lines))
    assert sorted([*texts, *stream], key=int) == expected
