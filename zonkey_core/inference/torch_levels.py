"""Cutting in torch, for devices that numpy does not know; always in float32, so that cuts are those of a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zonkey_core.model.level import Level
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_splitter import Splits
from zonkey_core.model.segmentation import Segmentation


class TorchLevel:
    """A level of a model on any device. Shapes: n positions, M segments, latents [M, C]."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.reads_bytes = level.reads_bytes
        self.window = level.config.window
        self.reach = level.splitter.reach

    @torch.no_grad()
    def start_probs(
        self, values: NDArray[Any], begin: int = 0, end: int | None = None, fresh: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """The probability of a start at each of the positions [n] or [n, C], or at those from `begin` to `end`.

        Documents begin at `fresh` [D], ascending, and at the first position in any case.
        """
        sequence = self._sequence(values)
        if fresh is not None:
            sequence.document_mask[0, torch.from_numpy(fresh).to(self.level.device)] = True
        probs = self._unit_probs(sequence) if self.reads_bytes else self._latent_probs(sequence)
        found: NDArray[np.float32] = probs[begin:end].float().cpu().numpy()
        return found

    def _unit_probs(self, sequence: PositionSequence) -> Tensor:
        """[n] probabilities of bytes: 0 where no unit begins."""
        splits: Splits = self.level.splitter(sequence, apart=True)
        return (splits.start_logits.sigmoid() * sequence.cut_allowed())[0]

    def _latent_probs(self, sequence: PositionSequence) -> Tensor:
        """[n] probabilities of latents, between whose documents lie places that do not exist."""
        values = sequence.values[0]
        places = torch.arange(len(values), device=values.device)
        places = places + self.level.splitter.gap * sequence.document_mask[0].long().cumsum(0)
        length = int(places[-1]) + 1 if len(places) else 0
        row = values.new_zeros(length, values.shape[1]).index_copy(0, places, values)
        exists = torch.zeros(1, length, dtype=torch.bool, device=values.device).index_fill(1, places, 1)
        logits = self.level.split(PositionSequence(row[None], exists, torch.zeros_like(exists))).start_logits
        return logits[0, places].sigmoid()

    @torch.no_grad()
    def compress(self, values: NDArray[Any], bounds: NDArray[np.int64]) -> NDArray[np.float32]:
        """The latents of the segments between consecutive `bounds` [M + 1] in positions [n] or [n, C]."""
        values = values[bounds[0] : bounds[-1]]
        begins = torch.from_numpy(bounds[:-1] - bounds[0]).to(self.level.device)[None]
        sequence = self._sequence(values)
        mask = torch.ones_like(begins, dtype=torch.bool)
        certain = torch.zeros(1, len(values), device=self.level.device).index_fill(1, begins[0], 1.0)
        latents = self.level.encode(sequence, Segmentation(begins, mask, torch.zeros_like(mask), certain))
        found: NDArray[np.float32] = latents.float().cpu().numpy()
        return found

    def _sequence(self, values: NDArray[Any]) -> PositionSequence:
        """Positions as a row of a batch of its own."""
        row: Tensor = torch.from_numpy(values.astype(np.int64 if self.reads_bytes else np.float32))
        row = row.to(self.level.device)[None]
        exists = torch.ones(row.shape[:2], dtype=torch.bool, device=row.device)
        return PositionSequence(row, exists, torch.zeros_like(exists))
