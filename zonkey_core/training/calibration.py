"""Calibration: a splitter's probabilities moved so that cuts above one half come at the rate that is asked for."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from zonkey_core.level import Level
from zonkey_core.positions import PositionSequence


@torch.no_grad()
def calibrate(level: Level, sequences: Iterable[PositionSequence]) -> None:
    """Shift the level's start logits, all by the same amount, so that it cuts these positions at its target rate.

    In training `p` is held to that rate in the mean and on masked text, which leaves another number above one half on
    text as it is. The beginnings of rows and documents, where there is a cut in any case, are left out.
    """
    logits, positions = [], 0
    for sequence in sequences:
        logits.append(level.split(sequence).start_logits[sequence.cut_open()])
        positions += int(sequence.exists_mask.sum() - (sequence.exists_mask & sequence.document_mask).sum())
    ranked = torch.cat(logits).sort(descending=True).values
    wanted = round(positions / level.config.segment_length)
    if 0 < wanted < len(ranked):
        level.splitter.shift(float(ranked[wanted - 1] + ranked[wanted]) / 2)
