"""The figures that every trained model carries: how well it rebuilds held-out bytes, and where it cuts."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import RowStream
from zonkey_core.level import Level
from zonkey_core.model import Zonkey, byte_sequence
from zonkey_core.positions import PositionSequence

HELD_OUT_ROWS = 96
LATENT_MATCH = 0.9
"""Cosine from which a decoded latent counts as the right one."""


class Scores(NamedTuple):
    """Precision, recall and their harmonic mean."""

    precision: float
    recall: float
    f1: float


class Rebuilt(NamedTuple):
    """How much of a level's positions survives compression and decoding."""

    position_accuracy: float
    """Share of positions that come back right; one that is decoded as not existing counts as wrong."""
    exact_segments: float
    """Share of segments that come back whole and of the right length."""
    positions_per_segment: float


def held_out_rows(spec: SourceSpec, row_bytes: int, rows: int = HELD_OUT_ROWS) -> PositionSequence | None:
    """The first rows of the source's validation text; None where it has none to fill a row."""
    if "-" in spec.sources:
        return None
    held_out = SourceSpec(**{**{name: getattr(spec, name) for name in spec.__struct_fields__}, "split": "validation"})
    documents = open_stream(held_out, seed=0, shuffle_documents=1, repeat=False)
    batches = [batch for batch in itertools.islice(RowStream(documents, row_bytes, 1), rows) if len(batch.bytes)]
    if not batches:
        return None
    values = torch.cat([torch.from_numpy(batch.bytes) for batch in batches])
    return byte_sequence(values, torch.cat([torch.from_numpy(batch.document_starts) for batch in batches]))


@torch.no_grad()
def quick_figures(model: Zonkey, rows: PositionSequence) -> dict[str, float]:
    """Reconstruction of every level, and agreement of level 0's cuts with whitespace, on held-out rows."""
    figures: dict[str, float] = {}
    sequence = PositionSequence(*(field.to(model.device) for field in rows))
    for index, level in enumerate(model.levels):
        start_prob = level.split(sequence).start_prob
        segmentation = level.choose_starts(sequence, start_prob)
        rebuilt = rebuild(level, sequence)
        unit = "byte" if index == 0 else "position"
        figures[f"level {index}: {unit} accuracy"] = rebuilt.position_accuracy
        figures[f"level {index}: exact segments"] = rebuilt.exact_segments
        figures[f"level {index}: {unit}s per segment"] = rebuilt.positions_per_segment
        if index == 0:
            figures["level 0: whitespace F1"] = whitespace_scores(
                sequence.values, segmentation.starts, segmentation.slot_mask
            ).f1
        sequence = level.upper_sequence(level.encode(sequence, segmentation), segmentation)
    return figures


@torch.no_grad()
def rebuild(level: Level, sequence: PositionSequence) -> Rebuilt:
    """Compress every segment of a batch and decode it again."""
    segmentation = level.choose_starts(sequence, level.split(sequence).start_prob)
    end = sequence.exists_mask.sum(1, keepdim=True)
    following = torch.cat([segmentation.starts[:, 1:], end], 1)
    follows = torch.cat([segmentation.slot_mask[:, 1:], torch.zeros_like(end, dtype=torch.bool)], 1)
    lengths = (following.where(follows, end) - segmentation.starts)[segmentation.slot_mask]
    right = positions = exact = torch.zeros((), device=lengths.device)
    for windows in level.windows(sequence, segmentation):
        decoded = level.decode(level.compress(windows.values, windows.log_existence))
        window = windows.values.shape[1]
        exists = decoded.log_existence.exp() > 0.5
        correct = _correct(level, decoded.states[:, :window], windows.values) & exists[:, :window]
        length = lengths[windows.segments]
        inside = torch.arange(window, device=length.device) < length.unsqueeze(1)
        decoded_length = exists.sum(1)
        right = right + (correct & inside).sum()
        positions = positions + length.sum()
        whole = (correct | ~inside).all(1) & (length <= window)
        exact = exact + (whole & (decoded_length == length)).sum()
    count = max(1, len(lengths))
    return Rebuilt(
        float(right / positions.clamp(min=1)), float(exact) / count, float(positions) / count
    )


def _correct(level: Level, states: Tensor, values: Tensor) -> Tensor:
    """Which decoded positions are right: the likeliest byte is the true one, or the latent is close to it."""
    soft: Tensor = level.readout(states)
    if values.dim() == 2:
        return soft.argmax(-1) == values
    return torch.nn.functional.cosine_similarity(soft, values, dim=-1).gt(LATENT_MATCH)


def whitespace_scores(values: Tensor, starts: Tensor, slot_mask: Tensor) -> Scores:
    """Agreement of cuts with word starts, the letters or signs after whitespace, on ordinary text.

    values [B, L] bytes; starts and slot_mask [B, M]. A cut before whitespace counts where the whitespace ends; the
    first position of a row counts on neither side. Splitting at whitespace scores 1, so this alone shows little.
    """
    white = torch.isin(values, torch.tensor([9, 10, 13, 32], device=values.device))
    word = torch.zeros_like(white)
    word[:, 1:] = white[:, :-1] & ~white[:, 1:]
    cut = torch.zeros_like(white).scatter(1, starts, slot_mask)
    cut[:, 0] = False
    for position in range(1, values.shape[1]):
        cut[:, position] |= cut[:, position - 1] & white[:, position - 1]
    cut &= ~white
    hits, found, true = (cut & word).sum(), cut.sum(), word.sum()
    precision, recall = float(hits / found.clamp(min=1)), float(hits / true.clamp(min=1))
    return Scores(precision, recall, 2 * precision * recall / max(precision + recall, 1e-9))
