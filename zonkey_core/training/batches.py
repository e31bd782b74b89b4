"""How batches come to the device: in this process's pieces to learn from, or whole, to fit or calibrate something.

Of several processes the first alone reads text, and hands each batch to the others. So the text that a step learns
from, and where a run goes on in it, depend on neither their number nor on what the text can be divided into.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zonkey_core.data.rows import Prefetcher, RowBatch, RowSource
from zonkey_core.errors import ConfigError
from zonkey_core.model.model import byte_sequence
from zonkey_core.model.positions import PositionSequence
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.objectives import RowOrigins
from zonkey_core.training.processes import on_first_alone, process_count, process_number, take_from_first

FITTING_PASSES = 16
"""Times that a text is read at most to fit a vocabulary or a calibration."""
FITTING_ROWS = 32
"""Rows that are read at once for that, of larger batches too; every process reads the same ones."""
HALVED = 0.6
"""Share of the batches for denoisers whose rows are cut in halves, and of these again, down to `SHORTEST_ROW` bytes."""
SHORTEST_ROW = 128


class SharedBatches:
    """Batches of an endless source, which the first process has and the others are handed."""

    def __init__(self, source: RowSource | None, rows: int, row_bytes: int) -> None:
        self._source = source
        self._shape = rows, row_bytes

    def next_batch(self) -> RowBatch:
        """The next rows, the same in all processes, which ask for them at once.

        What the first process cannot read is raised there, and as a `ZonkeyError` in the others.
        """
        read: list[RowBatch] = []
        on_first_alone(lambda: read.append(self._read()))
        if process_count() == 1:
            return read[0]
        batch = read[0] if read else RowBatch(np.empty(self._shape, np.uint8), np.empty(self._shape, np.bool_))
        epochs = torch.tensor([batch.epochs])
        sources = batch.numbered_sources()
        take_from_first([*map(torch.from_numpy, (batch.bytes, batch.document_starts, sources)), epochs])
        return RowBatch(batch.bytes, batch.document_starts, int(epochs), sources)

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, for JSON; the first process alone knows it."""
        return {} if self._source is None else self._source.state()

    def _read(self) -> RowBatch:
        assert self._source is not None
        return self._source.next_batch()


def shortened(batch: RowBatch, stage: Stage, generator: torch.Generator) -> RowBatch:
    """The same text in rows that are as long, or shorter, where a stage of a denoiser learns from it.

    A text with a gap may be a single sentence, so a denoiser has to know such, too; how much of a text is said again,
    for one, it cannot tell from long rows alone.
    """
    row_bytes, *halves = _halves(batch.bytes.shape[1], stage)
    for half in halves:
        if torch.rand((), generator=generator) >= HALVED:
            break
        row_bytes = half
    return batch.in_rows_of(row_bytes)


def row_lengths(row_bytes: int, stage: Stage) -> dict[int, float]:
    """The lengths that rows of `row_bytes` have in a stage, and the share of the batches in which they do."""
    lengths = _halves(row_bytes, stage)
    shares = {length: (1 - HALVED) * HALVED**times for times, length in enumerate(lengths)}
    return {**shares, lengths[-1]: HALVED ** (len(lengths) - 1)}


def _halves(row_bytes: int, stage: Stage) -> list[int]:
    """The lengths that rows may have in a stage, the longest first."""
    lengths = [row_bytes]
    while stage.name in ("denoiser", "plan") and lengths[-1] % 2 == 0 and lengths[-1] >= 2 * SHORTEST_ROW:
        lengths.append(lengths[-1] // 2)
    return lengths


@contextlib.contextmanager
def shared_batches(open_source: Callable[[], RowSource], rows: int, row_bytes: int) -> Iterator[SharedBatches]:
    """Batches of `rows` rows of `row_bytes` bytes from a source that the first process opens, and reads ahead."""
    opened: list[Prefetcher] = []
    on_first_alone(lambda: opened.append(Prefetcher(open_source())))
    with contextlib.ExitStack() as stack:
        yield SharedBatches(stack.enter_context(opened[0]) if opened else None, rows, row_bytes)


class BatchPieces:
    """Divides batches evenly among the processes, and the part of each into as many pieces as are accumulated."""

    def __init__(
        self, rows: int, accumulate: int, device: torch.device, kept_sources: Sequence[int] = (), sources: int = 1
    ) -> None:
        """`kept_sources` are the numbers of those of all `sources` whose cuts are kept."""
        self._kept = list(kept_sources)
        self._mixed = 0 < len(self._kept) < sources
        self._each = accumulate
        self._all = accumulate * process_count()
        self._device = device
        if rows % self._all:
            raise ConfigError(
                f"training.batch_rows is {rows}, the rows of a step in all, which {process_count()} processes with "
                f"{accumulate} pieces each cannot share evenly; "
                f"give --set training.batch_rows={-(-rows // self._all) * self._all}"
            )

    def own(self, batch: RowBatch) -> list[PositionSequence]:
        """The rows of a batch that this process learns from, a piece after the other."""
        rows = len(batch.bytes) // self._all
        return [self._take(batch, slice(piece * rows, (piece + 1) * rows)) for piece in self._numbers()]

    def origins(self, batch: RowBatch) -> list[RowOrigins]:
        """For each of these pieces, where its rows are from."""
        rows = len(batch.bytes) // self._all
        sources = batch.numbered_sources()
        kept = np.isin(sources, self._kept)
        parts = [slice(piece * rows, (piece + 1) * rows) for piece in self._numbers()]
        return [
            RowOrigins(*(torch.from_numpy(each[part]).to(self._device) for each in (sources, kept))) for part in parts
        ]

    def require_whole(self) -> None:
        """Raise `ConfigError` where cuts of some rows are kept and a batch is shared out: its pieces would not be
        alike."""
        if self._mixed and self._all > 1:
            raise ConfigError(
                "--keep-cuts of some of the text is for one process that takes each batch whole; leave out --accumulate"
            )

    def generators(self, common: torch.Generator) -> list[torch.Generator]:
        """What decides by chance about each of these pieces; `common` is the same in all processes, and stays so."""
        if self._all == 1:
            return [common]
        drawn = int(torch.randint(2**62, (1,), generator=common))
        return [torch.Generator().manual_seed(drawn + piece) for piece in self._numbers()]

    def whole(self, batches: SharedBatches, passes: int = FITTING_PASSES) -> Iterator[PositionSequence]:
        """Rows of further batches, the same in all processes: one batch at least, and some passes of the text at most.

        A small text tells nothing new however often it is read.
        """
        batch = batches.next_batch()
        last = batch.epochs + passes
        while True:
            yield self._take(batch, slice(FITTING_ROWS))
            batch = batches.next_batch()
            if batch.epochs >= last:
                return

    def _numbers(self) -> range:
        first = process_number() * self._each
        return range(first, first + self._each)

    def _take(self, batch: RowBatch, rows: slice) -> PositionSequence:
        """Some rows on the device; pinned memory lets the copy to a GPU overlap with the step before."""
        return byte_sequence(self._moved(batch.bytes[rows]), self._moved(batch.document_starts[rows]))

    def _moved(self, values: NDArray[np.uint8] | NDArray[np.bool_]) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)
