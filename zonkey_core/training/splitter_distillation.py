"""How a splitter above bytes learns from its guide where to cut, and to do so when what gives cuts away is lost.

The guide sees each position alone, so it finds what begins segments on the whole and leans on their own signs.
Shapes: rows of bytes [B, L]; a level's positions of them [B, M].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.model.bytes import BYTE_VALUES
from zonkey_core.model.level import Level
from zonkey_core.model.positions import LocatedPositions, PositionSequence
from zonkey_core.training.augmentation import noised_start_prob
from zonkey_core.training.processes import mean_over, over_all

START_WEIGHT = 5.0
"""Weight of a start against that of its absence where a splitter follows its guide. Where starts can be told only a
third of the time, cuts agree best with them (F1) when they are made above a sixth."""
TELLING = 0.2
"""Share of the occurrences of a byte value that begin segments, above which it gives the segments away."""


def telling_values(sequence: PositionSequence, offsets: Tensor, start_prob: Tensor) -> Tensor:
    """[256] mask of the byte values that mostly tell where a segment begins, by their occurrences in rows of bytes.

    offsets, start_prob [B, M]: where the level's positions begin, and with what probability a segment does there.
    """
    counts = over_all(torch.bincount(sequence.values[sequence.exists_mask], minlength=BYTE_VALUES))
    first = sequence.values.gather(1, offsets).flatten()
    begun = torch.zeros(BYTE_VALUES, device=first.device).index_add_(0, first, start_prob.flatten().float())
    return over_all(begun) > TELLING * counts.clamp(min=1)


def following_loss(
    level: Level, clean: LocatedPositions, target: Tensor, noised: LocatedPositions, origins: Tensor
) -> Tensor:
    """Cross-entropy of a splitter's starts, of clean rows and of noised ones, against its guide's of the clean ones.

    The guide, which sees each position alone, finds what positions begin segments on the whole; the splitter learns
    to tell from what stands around them. `target` [B, M]: the guide's probabilities; `origins` [B, L]: where each
    noised byte came from.
    """
    of_bytes = torch.zeros(origins.shape, device=target.device)
    of_bytes.scatter_reduce_(1, clean.offsets, target * clean.sequence.exists_mask, "amax")
    moved = noised_start_prob(of_bytes, origins.gather(1, noised.offsets))
    losses, weights = [], []
    for located, wanted in ((clean, target), (noised, moved)):
        asked = located.sequence.cut_open()
        logits = level.split(located.sequence).start_logits[asked]
        wanted = wanted[asked]
        weight = torch.full_like(logits, START_WEIGHT)
        losses.append(functional.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="sum"))
        weights.append(len(logits))
    return mean_over(torch.stack(losses).sum(), sum(weights))
