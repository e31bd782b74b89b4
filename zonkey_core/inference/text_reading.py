"""Reading many texts at once: what every level makes of each, whatever stands beside it.

Cuts come from `cutting_levels`, whose probabilities do not depend on the block they are computed in, and windows are
compressed in groups of one shape, since products of other shapes round otherwise. All else is integers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.inference.cutting_levels import cutting_levels
from zonkey_core.inference.level_cutter import CuttingLevel
from zonkey_core.inference.model_copies import make_copies
from zonkey_core.inference.planning import LevelContext
from zonkey_core.inference.shapes import padded_count
from zonkey_core.inference.windows import WINDOWS_TOGETHER
from zonkey_core.model.existence import LOG_FLOOR
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segmentation import Segmentation


class ReadText(NamedTuple):
    """A text as the levels know it."""

    entries: Tensor
    """[M] strings of the lowest level's vocabulary."""
    levels: list[LevelContext]
    """Lowest first; nothing of the text goes on, so that all slots are closed."""

    def opened(self) -> list[LevelContext]:
        """What each level knows where the text goes on: its last slot may, so it is open."""
        return [LevelContext(each.latents[:-1], each.starts[: max(1, len(each.latents))]) for each in self.levels]


class TextReader:
    """Reads texts with one model."""

    def __init__(self, model: Zonkey) -> None:
        self.model = model

    @functools.cached_property
    def cutting(self) -> list[CuttingLevel]:
        """What cuts the texts; made when the first one comes, since most texts from noise have none before them."""
        return cutting_levels(self.model)

    def prepare(self) -> None:
        """Make what is made when it is first needed, for workers to have in common."""
        make_copies(self.model)
        _ = self.cutting

    @torch.no_grad()
    def read(self, texts: Sequence[bytes]) -> list[ReadText]:
        """What becomes of each text does not depend on the others."""
        blank = ReadText(torch.zeros(0, dtype=torch.long), [_nothing(level) for level in self.model.levels])
        found = [blank] * len(texts)
        numbers = [number for number, text in enumerate(texts) if text]
        if numbers:
            for number, read in zip(numbers, self._read([texts[number] for number in numbers]), strict=True):
                found[number] = read
        return found

    def _read(self, texts: Sequence[bytes]) -> list[ReadText]:
        """Texts of a byte or more."""
        device = self.model.device
        values = [np.frombuffer(text, dtype=np.uint8) for text in texts]
        sequence = _as_rows([torch.from_numpy(value.astype(np.int64)) for value in values], device)
        contexts: list[list[LevelContext]] = [[] for _ in texts]
        entries: list[Tensor] = []
        positions, shared = sequence, None
        for number, (level, cutting) in enumerate(zip(self.model.levels, self.cutting, strict=True)):
            probs = pad_sequence([torch.from_numpy(part) for part in _start_probs(cutting, values)], batch_first=True)
            of_slots = probs.to(device) if shared is None else shared.share_out(probs.to(device))
            segmentation = level.choose_starts(positions, of_slots)
            last = number == len(self.model.levels) - 1
            if level.reads_bytes:
                slots = level.read_tokens(positions, segmentation)
                assert slots.entries is not None
                entries = [row[mask].cpu() for row, mask in zip(slots.entries, slots.slot_mask, strict=True)]
                if not last:
                    values = _compress_bytes(cutting, values, segmentation)
            else:
                latents = compress_windows(level, positions, segmentation)
                slots = level.read_slots(positions, segmentation, latents)
                counts = segmentation.slot_mask.sum(1).tolist()
                values = [part.cpu().numpy() for part in torch.split(latents, counts)]
            ends = positions.exists_mask.sum(1).cpu()
            for context, row, mask, starts, end in zip(
                contexts, slots.latents, slots.slot_mask, slots.starts.cpu(), ends, strict=True
            ):
                kept = mask.cpu()
                context.append(LevelContext(row[mask].float(), torch.cat([starts[kept], end[None]])))
            positions, shared = slots.as_positions(), slots
        return [ReadText(some, levels) for some, levels in zip(entries, contexts, strict=True)]


def _nothing(level: Level) -> LevelContext:
    """What a level knows of an empty text."""
    return LevelContext(torch.zeros(0, level.channels, device=level.device), torch.zeros(1, dtype=torch.long))


def _as_rows(values: Sequence[Tensor], device: torch.device) -> PositionSequence:
    """Texts side by side, each a document of its own."""
    rows = pad_sequence(list(values), batch_first=True).to(device)
    sizes = torch.tensor([len(value) for value in values], device=device)
    exists = torch.arange(rows.shape[1], device=device) < sizes.unsqueeze(1)
    documents = torch.zeros_like(exists)
    documents[:, 0] = True
    return PositionSequence(rows, exists, documents)


def _start_probs(cutting: CuttingLevel, values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The probability of a start at each position of texts of a position or more, which are read in one line."""
    sizes = np.cumsum([len(value) for value in values])
    return np.split(cutting.start_probs(np.concatenate(values), fresh=sizes[:-1]), sizes[:-1])


def _compress_bytes(
    cutting: CuttingLevel, values: Sequence[np.ndarray], segmentation: Segmentation
) -> list[np.ndarray]:
    """The latents [M, C] of the segments of each text, which are compressed in one line."""
    starts, counts = segmentation.starts.cpu().numpy(), segmentation.slot_mask.sum(1).tolist()
    sizes = np.cumsum([0, *(len(value) for value in values)])
    bounds = [row[:count] + begin for row, count, begin in zip(starts, counts, sizes[:-1], strict=True)]
    latents = cutting.compress(np.concatenate(values), np.concatenate([*bounds, sizes[-1:]]))
    return np.split(latents, np.cumsum(counts)[:-1])


def compress_windows(level: Level, sequence: PositionSequence, segmentation: Segmentation) -> Tensor:
    """Latents [K, C] of all segments of rows, in order, `WINDOWS_TOGETHER` windows of one length at a time."""
    latents = torch.zeros(int(segmentation.slot_mask.sum()), level.channels, device=level.device)
    for windows in level.windows(sequence, segmentation):
        together = padded_count(len(windows.segments), WINDOWS_TOGETHER, level.device)
        for first in range(0, len(windows.segments), together):
            part = slice(first, first + together)
            which = windows.segments[part]
            lacking = together - len(which)
            values = windows.values[part]
            values = functional.pad(values, (0, 0) * (values.dim() - 1) + (0, lacking))
            log_existence = functional.pad(windows.log_existence[part], (0, 0, 0, lacking), value=LOG_FLOOR)
            latents[which] = level.compress(values, log_existence)[: len(which)]
    return latents
