"""Data that is damaged, or hardly any: it stops the run with a line, or is left out, counted and told of."""

from __future__ import annotations

import gzip
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data_helpers import error, read, write_wiki
from tests.training_helpers import Run, small_config
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import RowStream
from zonkey_core.errors import DataError
from zonkey_core.training import SkippedDataEvent

LINES = [b'{"text": "number %d"}\n' % number for number in range(40)]
BAD_LINES = (b"{not json\n", b'{"text": 3}\n', b"[" * 100_000 + b"\n", b"\xff\xfe\n")


def skipping(*sources: Path, **options: Any) -> tuple[list[bytes], list[str]]:
    """The documents of one pass that skips what is damaged, in their order, and what was told of it."""
    told: list[str] = []
    spec = SourceSpec(sources=tuple(map(str, sources)), on_bad_data="skip", split="all", **options)
    documents = open_stream(spec, seed=0, shuffle_documents=5, repeat=False, on_bad=told.append)
    return sorted(documents), told


def test_a_bad_line_stops_or_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join([*LINES[:7], *BAD_LINES, *LINES[7:]]))
    assert "line 8" in error(path)
    documents, told = skipping(path)
    assert documents == sorted(b"number %d" % number for number in range(40))
    assert len(told) == len(BAD_LINES)
    assert all(f"data.jsonl, line {number}" in text for number, text in zip(range(8, 12), told, strict=True))


def test_the_rest_of_a_damaged_file_is_skipped(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(LINES * 20_000))
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "whole"}\n')
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no parquet at all PAR1")
    documents, told = skipping(tmp_path)
    assert b"whole" in documents and len(documents) > 1000
    assert len(told) == 2 and "a.jsonl.gz" in told[0] + told[1] and "c.parquet" in told[0] + told[1]


def test_a_damaged_file_of_wikipedia_is_skipped(tmp_path: Path) -> None:
    write_wiki(tmp_path / "20231101.en", range(20), files=2)
    damaged = tmp_path / "20231101.en/train-00000-of-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert damaged.name in error("wiki", wiki_dir=str(tmp_path))
    told: list[str] = []
    spec = SourceSpec(sources=("wiki",), wiki_dir=str(tmp_path), on_bad_data="skip")
    documents = list(open_stream(spec, seed=0, shuffle_documents=5, repeat=False, on_bad=told.append))
    assert 0 < len(documents) <= 10 and len(told) == 1 and damaged.name in told[0]


def test_each_fault_is_told_of_once_however_often_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join([LINES[0], *BAD_LINES]))
    told: list[str] = []
    spec = SourceSpec(sources=(str(path),), on_bad_data="skip")
    stream = open_stream(spec, seed=0, shuffle_documents=3, on_bad=told.append)
    assert [next(stream) for _ in range(20)] == [b"number 0"] * 20 and stream.epochs == 19
    assert len(told) == len(BAD_LINES)


def test_nothing_but_damage_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"".join(BAD_LINES))
    spec = SourceSpec(sources=(str(tmp_path),), on_bad_data="skip")
    with pytest.raises(DataError, match="no text to train on"):
        next(open_stream(spec, seed=0, shuffle_documents=3))


def test_a_skipping_stream_resumes_exactly(tmp_path: Path) -> None:
    lines = [*LINES[:20], *BAD_LINES, *LINES[20:]]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "b.jsonl").write_bytes(b"".join(reversed(lines)))
    spec = SourceSpec(sources=(str(tmp_path),), on_bad_data="skip")
    whole = list(itertools.islice(open_stream(spec, seed=1, shuffle_documents=7), 300))
    for stop in (0, 1, 19, 50, 83, 211):
        stream = open_stream(spec, seed=1, shuffle_documents=7)
        assert [next(stream) for _ in range(stop)] == whole[:stop]
        again = open_stream(spec, seed=1, shuffle_documents=7, state=stream.state())
        assert list(itertools.islice(again, 300 - stop)) == whole[stop:]


def test_a_run_tells_of_what_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join([*LINES, *BAD_LINES]))
    run = Run(tmp_path / "model")
    spec = SourceSpec(sources=(str(path),), on_bad_data="skip")
    run.train(small_config(1), spec=spec, steps=30, stage="splitter")
    assert len([event for event in run.events if isinstance(event, SkippedDataEvent)]) == len(BAD_LINES)
    assert (run.out / "metrics.jsonl").read_text().count('"skipped data"') == len(BAD_LINES)


def test_a_run_that_stopped_at_damage_goes_on_when_told_to_skip_it(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join([*LINES * 60, BAD_LINES[0], *LINES]))
    config, run = small_config(1, row_bytes=512), Run(tmp_path / "model")
    with pytest.raises(DataError, match="line 2401"):
        run.train(config, spec=SourceSpec(sources=(str(path),)), steps=50, stage="splitter", save_every=0.0)
    result = run.resume(changes={"on_bad_data": "skip"})
    assert (result.stopped, result.steps) == (False, 50)


# Hardly any


@pytest.mark.parametrize("text", [b"a", b"\n", b"hello world\n", b"x" * 100_000, bytes(range(256)) * 40], ids=len)
def test_a_small_text_is_read_quickly_however_often(tmp_path: Path, text: bytes) -> None:
    """A batch of a one-byte text holds thousands of documents; a file is not opened for each."""
    path = tmp_path / "text"
    path.write_bytes(text)
    documents = open_stream(SourceSpec(sources=(str(path),)), seed=0, shuffle_documents=2000)
    rows = RowStream(documents, 1024, 6)
    rows.next_batch()
    path.unlink()
    started = time.process_time()
    for _ in range(5):
        batch = rows.next_batch()
        assert np.array_equal(np.unique(batch.bytes), np.unique(np.frombuffer(text, np.uint8)))
    assert time.process_time() - started < 2


def test_fitting_reads_a_small_text_only_a_few_times(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a")
    run = Run(tmp_path / "model")
    started = time.process_time()
    run.train(small_config(2), spec=SourceSpec(sources=(str(path),)), steps=7)

    assert time.process_time() - started < 30
    assert read(path) == [b"a"]
