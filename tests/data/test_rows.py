"""Rows: documents laid end to end, resumed inside a document, and read ahead in a thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import Prefetcher, RowBatch, RowStream
from zonkey_core.errors import DataError


class ListedDocuments:
    """Documents of a list, endlessly or once; an exception among them is raised."""

    epochs = 0

    def __init__(self, items: Sequence[bytes | Exception], *, start: int = 0, repeat: bool = False) -> None:
        self.items = items
        self.drawn = start
        self.repeat = repeat

    def __next__(self) -> bytes:
        if self.drawn >= len(self.items) and not self.repeat:
            raise StopIteration
        item = self.items[self.drawn % len(self.items)]
        self.drawn += 1
        if isinstance(item, Exception):
            raise item
        return item

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn}


def resume(rows: Sequence[bytes | Exception], state: dict[str, Any], row_bytes: int, batch_rows: int) -> RowStream:
    """Rows over the same list, from a state that has been through JSON."""
    state = json.loads(json.dumps(state))
    documents = ListedDocuments(rows, start=state["documents"]["drawn"], repeat=True)
    return RowStream(documents, row_bytes, batch_rows, state)


def same(left: RowBatch, right: RowBatch) -> bool:
    return np.array_equal(left.bytes, right.bytes) and np.array_equal(left.document_starts, right.document_starts)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


documents_lists = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12)


@given(documents=documents_lists, row_bytes=st.integers(1, 20), batch_rows=st.integers(1, 4))
def test_rows_reassemble_to_the_documents(documents: list[bytes], row_bytes: int, batch_rows: int) -> None:
    batches = list(RowStream(ListedDocuments(documents), row_bytes, batch_rows))
    assert all(batch.bytes.dtype == np.uint8 and batch.document_starts.dtype == np.bool_ for batch in batches)
    assert all(batch.bytes.shape == batch.document_starts.shape == (batch_rows, row_bytes) for batch in batches[:-1])
    text = b"".join(batch.bytes.tobytes() for batch in batches)
    whole = b"".join(documents)
    assert text == whole[: len(whole) // row_bytes * row_bytes]
    starts = [index for batch in batches for index in batch.document_starts.reshape(-1)]
    expected = {sum(map(len, documents[:count])) for count in range(len(documents))}
    assert {index for index, start in enumerate(starts) if start} == {start for start in expected if start < len(text)}


@given(documents=documents_lists, taken=st.integers(0, 12), row_bytes=st.integers(1, 20))
def test_resuming_anywhere_goes_on_as_if_not_stopped(documents: list[bytes], taken: int, row_bytes: int) -> None:
    rows = RowStream(ListedDocuments(documents, repeat=True), row_bytes, 3)
    for _ in range(taken):
        rows.next_batch()
    resumed = resume(documents, rows.state(), row_bytes, 3)
    for _ in range(5):
        assert same(rows.next_batch(), resumed.next_batch())
        assert rows.state() == resumed.state()


@settings(deadline=None, max_examples=20)
@given(taken=st.integers(0, 120))
def test_rows_of_a_real_stream_resume(taken: int) -> None:
    def open_rows(state: dict[str, Any] | None = None) -> RowStream:
        documents = open_stream(
            SourceSpec(sources=("sample",)), seed=5, shuffle_documents=30, state=state and state["documents"]
        )
        return RowStream(documents, 256, 16, state)

    rows = open_rows()
    for _ in range(taken):
        rows.next_batch()
    resumed = open_rows(json.loads(json.dumps(rows.state())))
    assert all(same(rows.next_batch(), resumed.next_batch()) for _ in range(3))


def test_a_state_that_does_not_fit_is_refused() -> None:
    documents = [b"abcdef", b"gh"]
    rows = RowStream(ListedDocuments(documents, repeat=True), 5, 1)
    rows.next_batch()
    state = rows.state()
    assert state == {"documents": {"drawn": 0}, "offset": 5}
    with pytest.raises(ValueError, match="not opened with"):
        RowStream(ListedDocuments(documents, start=1), 5, 1, state)
    with pytest.raises(DataError, match="not the one that the saved position belongs to"):
        resume([b"abc"], state, 5, 1)
    with pytest.raises(DataError, match="damaged"):
        RowStream(ListedDocuments(documents), 5, 1, {"offset": 2})


def test_empty_batches_are_refused() -> None:
    for row_bytes, batch_rows in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least one byte"):
            RowStream(ListedDocuments([b"a"]), row_bytes, batch_rows)


def test_prefetcher_gives_the_same_batches_and_the_state_behind_the_last_one_taken() -> None:
    documents = [b"%d" % i * (i % 7 + 1) for i in range(50)]
    plain = RowStream(ListedDocuments(documents, repeat=True), 4, 2)
    source = ListedDocuments(documents, repeat=True)
    with Prefetcher(RowStream(source, 4, 2), depth=3) as ahead:
        assert ahead.state() == plain.state()
        for _ in range(30):
            assert same(ahead.next_batch(), plain.next_batch())
            assert ahead.state() == plain.state()
        assert eventually(lambda: source.drawn > plain.state()["documents"]["drawn"] + 2)
        assert ahead.state() == plain.state()
        resumed = resume(documents, ahead.state(), 4, 2)
    assert same(resumed.next_batch(), plain.next_batch())


def test_prefetcher_reads_a_bounded_number_of_batches_ahead() -> None:
    source = ListedDocuments([b"x"], repeat=True)
    with Prefetcher(RowStream(source, 1, 1), depth=3):
        assert eventually(lambda: source.drawn == 4)
        time.sleep(0.3)
        assert source.drawn == 4


def test_prefetcher_raises_an_error_at_the_batch_that_it_stands_for_and_after() -> None:
    rows = RowStream(ListedDocuments([b"ab", b"cd", DataError("a.jsonl, line 3: no")]), 2, 1)
    with Prefetcher(rows) as ahead:
        assert ahead.next_batch().bytes.tobytes() == b"ab"
        assert ahead.next_batch().bytes.tobytes() == b"cd"
        state = ahead.state()
        for _ in range(2):
            with pytest.raises(DataError, match="line 3"):
                ahead.next_batch()
        assert ahead.state() == state


def test_prefetcher_ends_with_its_rows() -> None:
    with Prefetcher(RowStream(ListedDocuments([b"abcdef"]), 2, 2)) as ahead:
        assert [batch.bytes.tobytes() for batch in ahead] == [b"abcd", b"ef"]
        assert list(ahead) == []


def test_prefetcher_closes_with_a_full_queue_and_refuses_to_go_on() -> None:
    source = ListedDocuments([b"x"], repeat=True)
    ahead = Prefetcher(RowStream(source, 1, 1), depth=2)
    ahead.next_batch()
    assert eventually(lambda: source.drawn >= 3)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "zonkey-prefetcher"]
    assert ahead.state()["offset"] == 1
    ahead.close()
    with pytest.raises(ValueError, match="closed"):
        ahead.next_batch()


def test_prefetcher_reads_files_in_its_thread(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abcdefgh")
    documents = open_stream(SourceSpec(sources=(str(tmp_path),)), seed=0, shuffle_documents=2)
    with Prefetcher(RowStream(documents, 3, 2)) as ahead:
        assert ahead.next_batch().bytes.tobytes() == b"abcdef"
        assert ahead.next_batch().bytes.tobytes() == b"ghabcd"
