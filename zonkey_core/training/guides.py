"""The guides of a run: fitted when a stage first needs them, to the text that comes next in the run.

What is remembered of a guide is where its text begins in the data, and its rate of starts. So a run that goes on from a
checkpoint reads that text again and has the same guide. All processes read it, and come to the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch

from zonkey_core.checkpoint import GuideOrigin
from zonkey_core.devices import autocast
from zonkey_core.model.model import Zonkey
from zonkey_core.model.unit_rows import unit_rows
from zonkey_core.training.batches import BatchPieces, SharedBatches
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.document_guide import LEAST_ENDS, DocumentGuide, Line, line_of
from zonkey_core.training.events import GuideEvent
from zonkey_core.training.splitter_distillation import Guide, last_of_documents
from zonkey_core.training.telling_units import telling_units

RATE_BATCHES = 16
"""Batches by which the rate of starts is measured."""
PASSES = 2
"""Times that a small text is read at most: so all of it is, wherever the run stands in it."""


class RunGuides:
    """The guides of the levels of a run, by number; None where a text has too few documents to tell anything."""

    def __init__(self, origins: dict[str, GuideOrigin], pieces: BatchPieces, text_bytes: int) -> None:
        """`origins` are those of guides that were fitted before; those of new ones are added."""
        self.fitted: dict[int, Guide | None] = {}
        self._origins = origins
        self._pieces = pieces
        self._text_bytes = text_bytes

    def prepare(
        self,
        model: Zonkey,
        stage: Stage,
        batches: SharedBatches,
        reopened: Callable[[dict[str, Any]], AbstractContextManager[SharedBatches]],
        precision: torch.dtype,
    ) -> Iterator[GuideEvent]:
        """Fit the guides that a stage needs and that are not there yet; yields what is to be told of each new one.

        `reopened` opens the text of the run where a saved state says.
        """
        for index in guided_levels(model, stage):
            origin = self._origins.get(str(index))
            if index in self.fitted:
                continue
            if origin is not None:
                with reopened(origin.data_state) as again:
                    self.fitted[index] = _fit(self._read(model, index, again, origin.rate))
                continue
            begun = batches.state()
            with autocast(model.device, precision):
                text = self._read(model, index, batches, None)
            self._origins[str(index)] = GuideOrigin(begun, text.rate)
            self.fitted[index] = _fit(text)
            yield GuideEvent(index, len(text.line.ends), self.fitted[index] is not None)

    def _read(self, model: Zonkey, index: int, batches: SharedBatches, rate: float | None) -> _Text:
        """The text of a guide, and its rate of starts where it is not given."""
        parts, positions, units, read = [], 0, 0, 0
        for number, rows in enumerate(self._pieces.whole(batches, PASSES)):
            found = unit_rows(rows)
            parts.append((found.keys.cpu().numpy(), found.fresh_mask.cpu().numpy(), last_of_documents(found)))
            if rate is None and number < RATE_BATCHES:
                positions += int(model.located_positions(rows, index).sequence.exists_mask.sum())
                units += len(found.keys)
            read += rows.values.numel()
            if read >= self._text_bytes:
                break
        keys, fresh_mask, last_mask = (np.concatenate(each) for each in zip(*parts, strict=True))
        if rate is None:
            rate = positions / max(1, units) / model.levels[index].config.segment_length
        return _Text(line_of(keys, fresh_mask, last_mask), rate)


class _Text(NamedTuple):
    line: Line
    rate: float
    """Starts a unit."""


def guided_levels(model: Zonkey, stage: Stage) -> Iterable[int]:
    """The levels whose splitters follow guides in a stage."""
    if stage.level is None:
        return range(1, len(model.levels))
    return [stage.level] if stage.name == "splitter" and stage.level else []


def _fit(text: _Text) -> Guide | None:
    if len(text.line.ends) < LEAST_ENDS or not len(text.line.inner):
        return None
    places = DocumentGuide(text.line, text.rate)
    return Guide(places, telling_units(text.line, places.starts))
