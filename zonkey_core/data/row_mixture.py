"""Rows of several sources side by side, each source with its share of them.

Every row comes from one source alone: the one that is furthest behind its share. So each batch holds of every source
what its weight asks for, to within a row, however long its documents are and however much text it has; a small source
is read more often. Nothing is drawn by chance, so the state is that of the sources and how many rows each has given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import msgspec
import numpy as np

from zonkey_core.data.rows import RowBatch, RowSource, RowStream
from zonkey_core.data.spec import SourceSpec
from zonkey_core.data.stream import open_stream
from zonkey_core.errors import ConfigError, DataError


class _State(msgspec.Struct, frozen=True):
    """What `RowMixture.state` returns."""

    sources: list[dict[str, Any]]
    given: list[int]


class RowMixture:
    """Iterator over batches of `batch_rows` rows of endless streams that give one row at a time, with their weights.

    To resume, open each stream with its entry of `sources` in the saved state, and give its `given` here.
    """

    def __init__(
        self,
        streams: Sequence[RowStream],
        weights: Sequence[float],
        batch_rows: int,
        given: Sequence[int] | None = None,
    ) -> None:
        if len(streams) != len(weights) or not streams or min(weights) <= 0 or batch_rows < 1:
            raise ValueError(f"{len(streams)} streams in batches of {batch_rows} rows do not go with {weights}")
        self._streams = streams
        self._weights = weights
        self._batch_rows = batch_rows
        self._given = [0] * len(streams) if given is None else list(given)
        self._epochs = [0] * len(streams)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RowBatch:
        return self.next_batch()

    def next_batch(self) -> RowBatch:
        """Return the next rows; `epochs` are those of the source that was read least often."""
        rows, sources = [], []
        for _ in range(self._batch_rows):
            source = min(range(len(self._streams)), key=self._standing)
            rows.append(self._streams[source].next_batch())
            self._given[source] += 1
            self._epochs[source] = rows[-1].epochs
            sources.append(source)
        return RowBatch(
            np.concatenate([row.bytes for row in rows]),
            np.concatenate([row.document_starts for row in rows]),
            min(self._epochs),
            np.array(sources, dtype=np.int64),
        )

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, for JSON."""
        return {"sources": [stream.state() for stream in self._streams], "given": list(self._given)}

    def _standing(self, source: int) -> float:
        """How many rows of all a source would have stood for after one more, by its weight."""
        return (self._given[source] + 1) / self._weights[source]


def open_rows(
    spec: SourceSpec,
    *,
    seed: int,
    shuffle_documents: int,
    row_bytes: int,
    batch_rows: int,
    state: Mapping[str, Any] | None = None,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> RowSource:
    """Rows of the text of `spec`, from the beginning or from a saved state on; `on_bad` as in `open_stream`.

    Raises `DataError` as that does, and `ConfigError` where not every source has a weight.
    """

    def stream(part: SourceSpec, rows: int, saved: Mapping[str, Any] | None) -> RowStream:
        documents = open_stream(
            part,
            seed=seed,
            shuffle_documents=shuffle_documents,
            state=None if saved is None else saved.get("documents"),
            on_bad=on_bad,
        )
        return RowStream(documents, row_bytes, rows, saved)

    if unknown := [source for source in spec.kept_cuts if source not in spec.sources]:
        raise ConfigError(f"{unknown[0]}: its cuts are to be kept, and it is no source of text")
    if spec.kept_cuts and not spec.weights:
        raise ConfigError("give every source a weight where cuts are to be kept")
    if not spec.weights:
        return stream(spec, batch_rows, state)
    if len(spec.weights) != len(spec.sources):
        raise ConfigError(f"{len(spec.sources)} sources have {len(spec.weights)} weights; give each of them one")
    parts = [msgspec.structs.replace(spec, sources=(source,), weights=()) for source in spec.sources]
    saved = None if state is None else _parse(state, len(parts))
    states = [None] * len(parts) if saved is None else saved.sources
    streams = [stream(part, 1, each) for part, each in zip(parts, states, strict=True)]
    return RowMixture(streams, spec.weights, batch_rows, None if saved is None else saved.given)


def _parse(state: Mapping[str, Any], sources: int) -> _State:
    """The saved state of a mixture of so many sources."""
    try:
        saved = msgspec.convert(state, _State)
    except msgspec.ValidationError as error:
        raise DataError(f"the saved position in the data is damaged ({error})") from error
    if len(saved.given) != sources or len(saved.sources) != sources:
        raise DataError("the saved position in the data is of other sources; start anew from the model")
    return saved
