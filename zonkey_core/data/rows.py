"""Rows: the stream of documents laid end to end and cut into pieces of equal length, for batches.

A document that is longer than what is left of its row goes on in the next one. Shapes: B rows of L bytes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from zonkey_core.errors import DataError

POLL_SECONDS = 0.1
CLOSE_SECONDS = 5.0


class ResumableDocuments(Protocol):
    """The part of `DocumentStream` that rows are packed from."""

    def __next__(self) -> bytes:
        """The next document."""

    def state(self) -> dict[str, Any]:
        """Where the stream is."""

    @property
    def epochs(self) -> int:
        """Complete passes over the data before the one that the last document came from."""


@dataclass(frozen=True)
class RowBatch:
    """Consecutive rows of the stream."""

    bytes: NDArray[np.uint8]
    """[B, L]"""
    document_starts: NDArray[np.bool_]
    """[B, L], true at the first byte of every document."""
    epochs: int = 0
    """Complete passes over the data before the one that the last document came from."""
    sources: NDArray[np.int64] | None = None
    """[B] the number of the source that each is from, where sources have weights; otherwise None."""

    def numbered_sources(self) -> NDArray[np.int64]:
        """`sources`, where they have no weights all of one."""
        return np.zeros(len(self.bytes), np.int64) if self.sources is None else self.sources

    def in_rows_of(self, row_bytes: int) -> RowBatch:
        """The same text in rows of so many bytes, which divide those that there are."""
        number = self.bytes.shape[1] // row_bytes
        sources = None if self.sources is None else self.sources.repeat(number)
        shape = -1, row_bytes
        return RowBatch(self.bytes.reshape(shape), self.document_starts.reshape(shape), self.epochs, sources)


class _State(msgspec.Struct, frozen=True):
    """What `RowStream.state` returns."""

    documents: dict[str, Any]
    """State of the documents before the present one was drawn."""
    offset: int
    """Bytes of the present document that are used up."""


class RowSource(Protocol):
    """Where batches of rows come from: one stream, or several side by side."""

    def next_batch(self) -> RowBatch:
        """The next rows; raises `StopIteration` where there are none left."""

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, for JSON."""


class RowStream:
    """Iterator that packs documents into batches of `batch_rows` rows of `row_bytes` bytes.

    To resume, open the documents with the `documents` entry of the saved state, and give the whole of it here. At the
    end of a finite stream the last batch has fewer rows, and the bytes that do not fill a row are dropped.
    """

    def __init__(
        self, documents: ResumableDocuments, row_bytes: int, batch_rows: int, state: Mapping[str, Any] | None = None
    ) -> None:
        if row_bytes < 1 or batch_rows < 1:
            raise ValueError(f"rows need at least one byte and batches one row, not {row_bytes} and {batch_rows}")
        self._documents = documents
        self._row_bytes = row_bytes
        self._batch_rows = batch_rows
        self._before = documents.state()
        self._text = np.empty(0, np.uint8)
        self._offset = 0
        if state is not None:
            self._restore(state)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RowBatch:
        return self.next_batch()

    def next_batch(self) -> RowBatch:
        """Return the next rows; raise `StopIteration` when no full row is left."""
        text = np.empty(self._batch_rows * self._row_bytes, np.uint8)
        starts = np.zeros(len(text), np.bool_)
        filled = 0
        while filled < len(text):
            if self._offset == len(self._text) and not self._draw():
                break
            starts[filled] = self._offset == 0
            count = min(len(text) - filled, len(self._text) - self._offset)
            text[filled : filled + count] = self._text[self._offset : self._offset + count]
            filled += count
            self._offset += count
        rows = filled // self._row_bytes
        if not rows:
            raise StopIteration
        shape = (rows, self._row_bytes)
        size = rows * self._row_bytes
        return RowBatch(text[:size].reshape(shape), starts[:size].reshape(shape), self._documents.epochs)

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, for JSON."""
        return {"documents": self._before, "offset": self._offset}

    def _draw(self) -> bool:
        """Make the next document the present one, if there is one."""
        before = self._documents.state()
        try:
            document = next(self._documents)
        except StopIteration:
            return False
        self._before, self._offset = before, 0
        self._text = np.frombuffer(document, np.uint8)
        return True

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Go to the saved offset in the document that the documents' state stands before."""
        try:
            saved = msgspec.convert(state, _State)
        except msgspec.ValidationError as error:
            raise DataError(f"the saved position in the data is damaged ({error})") from error
        if saved.documents != self._before:
            raise ValueError("the documents were not opened with the state['documents'] of these rows")
        if saved.offset and (not self._draw() or saved.offset > len(self._text)):
            raise DataError("the text is not the one that the saved position belongs to; start anew from the model")
        self._offset = saved.offset


class Prefetcher:
    """Draws batches from a `RowSource` in a thread, at most `depth` ahead; its state is that of the batches taken.

    An error in the thread, `StopIteration` included, is raised to whoever takes the batch that it stands for, and to
    everyone after. While it is open, nothing else may use the rows. It is a context manager.
    """

    def __init__(self, rows: RowSource, depth: int = 4) -> None:
        self._rows = rows
        self._state = rows.state()
        self._queue: queue.Queue[tuple[RowBatch, dict[str, Any]] | Exception] = queue.Queue(depth)
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="zonkey-prefetcher", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RowBatch:
        return self.next_batch()

    def next_batch(self) -> RowBatch:
        """Return the next batch, waiting for it where needed."""
        if self._closing.is_set():
            raise ValueError("this prefetcher is closed")
        if self._failure is None:
            item = self._queue.get()
            if not isinstance(item, Exception):
                batch, self._state = item
                return batch
            self._failure = item
        raise self._failure

    def state(self) -> dict[str, Any]:
        """State of the rows behind the last batch that was taken; it may be asked for after closing, too."""
        return self._state

    def close(self) -> None:
        """Stop the thread and drop what it has read ahead; a thread that waits for its source is left to end alone."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._closing.is_set():
            item: tuple[RowBatch, dict[str, Any]] | Exception
            try:
                batch = self._rows.next_batch()
                item = (batch, self._rows.state())
            except Exception as error:  # handed to the consumer
                item = error
            self._put(item)
            if isinstance(item, Exception):
                return

    def _put(self, item: tuple[RowBatch, dict[str, Any]] | Exception) -> None:
        """Queue an item, looking now and then whether there is still someone to take it."""
        while not self._closing.is_set():
            try:
                self._queue.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return
