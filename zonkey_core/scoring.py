"""The model's own opinion of texts: masked pseudo-likelihood of chosen pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.denoiser import NoisySlots
from zonkey_core.dictionary import Pieces
from zonkey_core.level import Level
from zonkey_core.model import Zonkey, text_sequence

FOLDS = 2
"""Passes over which the chosen pieces are hidden, every other one at a time."""
ROWS_TOGETHER = 16
"""Rows that the trunk reads at once."""


class Question(NamedTuple):
    """A text and the stretches of it that are asked about."""

    text: bytes
    spans: Sequence[tuple[int, int]]


class _Row(NamedTuple):
    """One pass over one text."""

    entries: Tensor
    """[M]"""
    hidden_mask: Tensor
    """[M]"""


@torch.no_grad()
def log_likelihoods(model: Zonkey, questions: Sequence[Question]) -> list[float]:
    """Log-probability, in nats, of the pieces that touch the spans of each text, given the others, added up.

    Each of them is replaced by pure noise in one of `FOLDS` passes of level 0's trunk.
    """
    level = model.levels[0]
    rows: list[_Row] = []
    owners: list[int] = []
    for index, question in enumerate(questions):
        if not question.text:
            continue
        sequence = text_sequence(question.text, device=model.device)
        pieces = level.pieces(sequence, level.split(sequence).start_prob)
        chosen = _touched(pieces, len(question.text), question.spans)
        for fold in range(FOLDS):
            hidden = chosen & (torch.arange(len(chosen), device=chosen.device) % FOLDS == fold)
            if hidden.any():
                rows.append(_Row(pieces.entries[0], hidden))
                owners.append(index)
    totals = [0.0] * len(questions)
    for first in range(0, len(rows), ROWS_TOGETHER):
        for owner, value in zip(
            owners[first:], _row_log_probs(level, rows[first : first + ROWS_TOGETHER]), strict=False
        ):
            totals[owner] += value
    return totals


def _touched(pieces: Pieces, length: int, spans: Sequence[tuple[int, int]]) -> Tensor:
    """[M] which pieces of a text of `length` bytes lie in or beside a span."""
    starts = pieces.starts[0]
    ends = torch.cat([starts[1:], starts.new_tensor([length])])
    chosen = torch.zeros_like(starts, dtype=torch.bool)
    for begin, end in spans:
        chosen |= (starts <= end) & (ends >= begin)
    return chosen


def _row_log_probs(level: Level, rows: Sequence[_Row]) -> list[float]:
    """The summed log-probability of each row's hidden pieces, whatever other rows there are."""
    dictionary = level.dictionary
    assert dictionary is not None
    latents = dictionary.latents()
    entries = pad_sequence([row.entries for row in rows], batch_first=True)
    hidden = pad_sequence([row.hidden_mask for row in rows], batch_first=True)
    slot_mask = pad_sequence([torch.ones_like(row.hidden_mask) for row in rows], batch_first=True)
    document_mask = torch.zeros_like(slot_mask)
    document_mask[:, 0] = True
    noise = pad_sequence(
        [torch.randn(len(row.entries), level.channels, generator=torch.Generator().manual_seed(0)) for row in rows],
        batch_first=True,
    )
    noisy = torch.where(hidden.unsqueeze(-1), noise.to(latents.device), latents[entries])
    estimate = level.trunk(NoisySlots(noisy, hidden.float(), torch.zeros_like(noisy), document_mask, slot_mask))
    logits = dictionary.logits(estimate.latents[hidden], hidden[hidden].float(), latents)
    log_prob = logits.log_softmax(-1).gather(1, entries[hidden].unsqueeze(1)).squeeze(1)
    found = torch.zeros_like(estimate.existence_logits).masked_scatter(hidden, log_prob)
    values: list[float] = found.sum(1).tolist()
    return values
