"""The model's own opinion of texts: the probability of chosen pieces, given the others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.diffusion.decoding_order import Order, in_streams, lay_out, with_gaps
from zonkey_core.inference.block_decoding import read_whole
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey, text_sequence
from zonkey_core.model.segmentation import Slots

ROWS_TOGETHER = 16
"""Texts that are read at once."""


class Question(NamedTuple):
    """A text and the stretches of it that are asked about."""

    text: bytes
    spans: Sequence[tuple[int, int]]
    begins: bool = True
    """Whether a document begins with the text."""
    ends: bool = False


class Likelihood(NamedTuple):
    """How likely the stretches of a text are."""

    total: float
    """Log-probability in nats."""
    pieces: int
    """Strings of the vocabulary that it is the sum of."""


class _Row(NamedTuple):
    """A text as the denoiser reads it."""

    entries: Tensor
    """[M]"""
    asked_mask: Tensor
    """[M]"""
    order: Order


@torch.no_grad()
def log_likelihoods(model: Zonkey, questions: Sequence[Question]) -> list[Likelihood]:
    """How likely the pieces are that touch the spans of each text, given the others and each other from left to right.

    This is the chain rule in a single pass. Spans that reach the end of their text are given only what stands before.
    """
    level = model.bottom
    rows = {index: _read(model, question) for index, question in enumerate(questions) if question.text}
    results = [Likelihood(0.0, 0)] * len(questions)
    numbers = list(rows)
    for first in range(0, len(numbers), ROWS_TOGETHER):
        some = numbers[first : first + ROWS_TOGETHER]
        for index, result in zip(some, _row_likelihoods(level, [rows[index] for index in some]), strict=True):
            results[index] = result
    return results


def _read(model: Zonkey, question: Question) -> _Row:
    """Take a text apart, and lay out what is asked of it."""
    level = model.bottom
    sequence = text_sequence(question.text, device=model.device)
    slots = level.read_tokens(sequence, level.choose_starts(sequence, level.split(sequence).start_prob))
    assert slots.entries is not None
    asked = _touched(slots, len(question.text), question.spans)
    edges = np.flatnonzero(np.diff(asked.cpu().numpy().astype(np.int8), prepend=0, append=0)).tolist()
    gaps = list(zip(edges[::2], edges[1::2], strict=True))
    count = len(asked)
    if [last for _, last in gaps] == [count]:
        end_order = gaps[0][0] + 1 if question.ends else None
        order = in_streams(count, [0], [0], begins=question.begins, end_order=end_order)
    else:
        order = with_gaps(count, gaps, begins=question.begins, ends=question.ends, measured=True)
    return _Row(slots.entries[0], asked, order)


def _touched(slots: Slots, length: int, spans: Sequence[tuple[int, int]]) -> Tensor:
    """[M] which slots of a text of `length` bytes lie in or beside a span."""
    starts = slots.starts[0]
    ends = torch.cat([starts[1:], starts.new_tensor([length])])
    chosen = torch.zeros_like(starts, dtype=torch.bool)
    for begin, end in spans:
        chosen |= (starts <= end) & (ends >= begin)
    return chosen


def _row_likelihoods(level: Level, rows: Sequence[_Row]) -> list[Likelihood]:
    """What is asked of each row."""
    vocabulary = level.vocabulary
    assert vocabulary is not None
    table = vocabulary.latents()
    ordered = lay_out([row.order for row in rows], max(len(row.order.source) for row in rows), table.device)
    entries = pad_sequence([row.entries for row in rows], batch_first=True)
    asked = pad_sequence([row.asked_mask for row in rows], batch_first=True)
    told = ordered.told.clamp(min=0)
    wanted = (ordered.told >= 0) & asked.gather(1, told)
    latents = read_whole(level, ordered, table[entries]).latents[wanted]
    logits = vocabulary.logits(latents, latents.new_ones(len(latents)), table)
    log_prob = logits.log_softmax(-1).gather(1, entries.gather(1, told)[wanted].unsqueeze(1)).squeeze(1)
    found = log_prob.new_zeros(wanted.shape).masked_scatter(wanted, log_prob)
    return list(itertools.starmap(Likelihood, zip(found.sum(1).tolist(), wanted.sum(1).tolist(), strict=True)))
