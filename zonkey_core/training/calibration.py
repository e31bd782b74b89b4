"""Calibration: what a stage's losses leave slightly off is moved to what a text shows.

A splitter's cuts come at the rate that is asked for, and a denoiser expects documents to be as long as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from zonkey_core.diffusion.decoding_order import in_streams, lay_out
from zonkey_core.inference.block_decoding import read_whole
from zonkey_core.model.length_model import usual_logits
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.readers import UnitKinds
from zonkey_core.model.unit_rows import unit_rows
from zonkey_core.slots import SlotKind

LEAST_DOCUMENTS = 30
"""Documents that must reach a length before the shares of those that end there count."""


@torch.no_grad()
def calibrate(level: Level, sequences: Iterable[PositionSequence]) -> None:
    """Shift the level's start logits, all by the same amount, so that it cuts these positions at its target rate.

    In training `p` is held to that rate in the mean and on masked text, which leaves another number above one half on
    text as it is. The beginnings of rows and documents, where there is a cut in any case, are left out. Where a
    run keeps the cuts of some text, those may not move, and a lexicon sees text as it is and holds each kind of it to
    its rate, so there nothing is shifted.
    """
    if level.former is not None or level.lexicon is not None:
        return
    logits, segments = [], 0.0
    for sequence in sequences:
        logits.append(level.split(sequence).start_logits[sequence.cut_open()])
        segments += wanted_segments(level, sequence)
    ranked = torch.cat(logits).sort(descending=True).values
    wanted = round(segments)
    if 0 < wanted < len(ranked):
        level.splitter.shift(float(ranked[wanted - 1] + ranked[wanted]) / 2)


@torch.no_grad()
def wanted_segments(level: Level, sequence: PositionSequence) -> float:
    """How many segments the level's target rate gives for some rows, without the first of each document."""
    if level.estimator is None or not level.config.bits_per_segment:
        positions = int(sequence.exists_mask.sum() - (sequence.exists_mask & sequence.document_mask).sum())
        return positions / level.config.segment_length
    units = unit_rows(sequence)
    asked = (~units.fresh_mask).nonzero().flatten()
    cost = level.estimator(units, UnitKinds(units.keys), asked)
    return float(cost.sum()) / math.log(2) / level.config.bits_per_segment


@torch.no_grad()
def calibrate_endings(level: Level, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Let a level's denoiser expect as much of a document of which nothing is known as those in these rows hold.

    batches: `slot_mask` and `document_mask` [B, M] of the level's slots.
    """
    counts, certain = [], []
    for slot_mask, document_mask in batches:
        for begins, count in zip(document_mask, slot_mask.sum(1), strict=True):
            edges = torch.cat([begins.nonzero().flatten(), count[None]])
            counts.append(edges.diff())
            certain.append(torch.arange(len(edges) - 1, device=edges.device) < len(edges) - 2)
    wanted = usual_logits(torch.cat(counts), torch.cat(certain), least=LEAST_DOCUMENTS)
    nothing = lay_out([in_streams(0, [0], [0], begins=True, end_order=None)], 1, wanted.device)
    said = read_whole(level, nothing, torch.zeros(1, 0, level.channels, device=wanted.device))
    level.denoiser.ending_bias[SlotKind.DOCUMENT] += (wanted - said.ending_logits[0, 0]).nan_to_num()


def calibrate_cuts(models: tuple[Zonkey, Zonkey], indices: Iterable[int], rows: Sequence[PositionSequence]) -> None:
    """Calibrate the splitters of some levels on rows of bytes; the live model is asked, the averaged one is told."""
    for index in indices:
        level, average = (model.levels[index] for model in models)
        calibrate(level, (models[0].located_positions(row, index).sequence for row in rows))
        average.splitter.load_state_dict(level.splitter.state_dict())


def calibrate_lengths(models: tuple[Zonkey, Zonkey], indices: Iterable[int], rows: Sequence[PositionSequence]) -> None:
    """The same with the lengths that denoisers expect of documents."""
    for index in indices:
        level, average = (model.levels[index] for model in models)
        calibrate_endings(level, (models[0].slot_masks(row, index) for row in rows))
        average.denoiser.load_state_dict(level.denoiser.state_dict())
