"""The figures that every trained model carries: how well it rebuilds held-out bytes, and where it cuts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import RowStream
from zonkey_core.model.latents import nearest_rows
from zonkey_core.model.level import Level
from zonkey_core.model.model import Ascent, Zonkey, byte_sequence
from zonkey_core.model.positions import PositionSequence

HELD_OUT_ROWS = 96
DECODED_TOGETHER = 1024
"""Segments whose windows are in memory at once while they are decoded."""
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


class SegmentsBack(NamedTuple):
    """What came back of each segment of a level, in order, counted in positions of a level at or below it."""

    rows: Tensor
    """[K] row of the batch."""
    sizes: Tensor
    """[K] positions of the segment."""
    right: Tensor
    """[K] how many of them are right; one that is decoded as not existing is wrong."""
    exact: Tensor
    """[K] whether all are right and, at every level on the way down, there are neither fewer nor more."""


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
    views = model.ascend(sequence, len(model.levels) - 1)
    for index, (level, view) in enumerate(zip(model.levels, views, strict=True)):
        rebuilt = _rebuilt(rebuild_segments([level], [view]))
        unit = "byte" if index == 0 else "position"
        figures[f"level {index}: {unit} accuracy"] = rebuilt.position_accuracy
        figures[f"level {index}: exact segments"] = rebuilt.exact_segments
        figures[f"level {index}: {unit}s per segment"] = rebuilt.positions_per_segment
    lowest = views[0].segmentation
    figures["level 0: whitespace F1"] = whitespace_scores(sequence.values, lowest.starts, lowest.slot_mask).f1
    return figures


def _rebuilt(found: SegmentsBack) -> Rebuilt:
    """Shares of what came back."""
    count = max(1, len(found.sizes))
    positions = float(found.sizes.sum())
    return Rebuilt(float(found.right.sum()) / max(1.0, positions), float(found.exact.sum()) / count, positions / count)


@torch.no_grad()
def rebuild_segments(levels: Sequence[Level], views: Sequence[Ascent]) -> SegmentsBack:
    """Decode the segments of the last view, level by level, down to the positions of the first, and compare those.

    `levels` and their `views` of one batch are given from the lowest to the highest. On the way down what one level
    decodes, as slots of the next, is decoded by that, each at its true place; how many there are is compared at every
    level.
    """
    views = [*(view.by_slots() for view in views[:-1]), views[-1]]
    latents = views[-1].latents.float()
    rows = views[-1].segmentation.slot_mask.nonzero()[:, 0]
    mistakes = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
    owners = torch.arange(len(latents), device=latents.device)
    exists = torch.ones_like(owners, dtype=torch.bool)
    below = list(levels[:-1])
    for level, view in zip(reversed(levels), reversed(views), strict=True):
        segments, offsets = _places(view)
        parts = [level.decode(part) for part in torch.split(latents, DECODED_TOGETHER)]
        there = torch.cat([part.log_existence for part in parts]).exp() > 0.5
        mistakes.index_add_(0, owners, (there.sum(1) != torch.bincount(segments, minlength=len(latents))).long())
        exists = exists[segments] & there[segments, offsets]
        latents = level.readout(torch.cat([part.states for part in parts])[segments, offsets])
        if below:
            latents = below.pop().settle(latents)
        owners = owners[segments]
    right = exists & _correct(latents, views[0])
    mistakes.index_add_(0, owners, (~right).long())
    rights = torch.zeros_like(mistakes).index_add_(0, owners, right.long())
    return SegmentsBack(rows, torch.bincount(owners, minlength=len(rows)), rights, mistakes == 0)


class EndForecasts(NamedTuple):
    """At each place of n segments where it might end, from its second position to the one behind its last."""

    rows: Tensor
    """[n] the row that the segment is in."""
    probs: Tensor
    """[n] that it ends before this place, given that it has not ended before, as decoded from its latents."""
    came_mask: Tensor
    """[n] true where it did."""


@torch.no_grad()
def forecast_ends(level: Level, view: Ascent) -> EndForecasts:
    """Decode the segments of a level's view, each from its own latents, and ask where they end."""
    latents = view.latents.float()
    logits = torch.cat([level.decode(part).start_logits for part in torch.split(latents, DECODED_TOGETHER)])
    segments, _ = _places(view)
    sizes = torch.bincount(segments, minlength=len(latents)).unsqueeze(1)
    order = torch.arange(logits.shape[1], device=logits.device)
    asked = (order > 0) & (order <= sizes)
    rows = view.segmentation.slot_mask.nonzero()[:, :1].expand_as(asked)
    return EndForecasts(rows[asked], logits[asked].sigmoid(), (order == sizes)[asked])


def _places(view: Ascent) -> tuple[Tensor, Tensor]:
    """For each existing position of a level [P], in order: its segment's number, and its place within it."""
    segmentation, exists = view.segmentation, view.sequence.exists_mask
    rows, slots = segmentation.slot_mask.nonzero(as_tuple=True)
    begins = torch.zeros_like(exists)
    begins[rows, segmentation.starts[rows, slots]] = True
    segments = begins[exists].cumsum(0) - 1
    firsts = begins[exists].nonzero().flatten()
    return segments, torch.arange(len(segments), device=exists.device) - firsts[segments]


def _correct(soft: Tensor, view: Ascent) -> Tensor:
    """Which decoded positions [P] are right: the likeliest byte or string is the true one, or the latent is close."""
    exists = view.sequence.exists_mask
    values = view.sequence.values[exists]
    if values.dim() == 1:
        return soft.argmax(-1) == values
    if view.choices is not None:
        return nearest_rows(soft, view.choices.latents) == view.choices.entries[exists]
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
