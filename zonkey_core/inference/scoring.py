"""The model's own opinion of texts: the probability of chosen pieces, given the others.

Text can be spelled with many rows of strings, and the one that the model cuts it into is counted. So a log-probability
is a lower bound of the text's own: that of one spelling out of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.diffusion.decoding_order import Order, in_streams, lay_out, with_gaps
from zonkey_core.inference.block_decoding import DRAWN_TOGETHER, read_whole
from zonkey_core.model.denoiser import DenoisedSlots
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey, text_sequence
from zonkey_core.model.segmentation import Slots
from zonkey_core.model.slot_batches import Plans, gather_entries, side_by_side

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


class Row(NamedTuple):
    """A text as the denoiser reads it."""

    entries: Tensor
    """[M]"""
    asked_mask: Tensor
    """[M]"""
    order: Order
    plans: Plans | None = None
    """What the level above says of its blocks, without the first dimension."""


def log_likelihoods(model: Zonkey, questions: Sequence[Question]) -> list[Likelihood]:
    """How likely the pieces are that touch the spans of each text, given the others and each other from left to right.

    This is the chain rule in a single pass. Spans that reach the end of their text are given only what stands before.
    """
    rows = {index: _read(model, question) for index, question in enumerate(questions) if question.text}
    found = dict(zip(rows, row_likelihoods(model.bottom, list(rows.values())), strict=True))
    return [found.get(index, Likelihood(0.0, 0)) for index in range(len(questions))]


@torch.no_grad()
def row_likelihoods(level: Level, rows: Sequence[Row]) -> list[Likelihood]:
    """How likely what is asked of each row is; either all of the rows have plans, or none."""
    results = []
    for first in range(0, len(rows), ROWS_TOGETHER):
        results += _together(level, rows[first : first + ROWS_TOGETHER])
    return results


def tokenize(level: Level, text: bytes) -> Slots:
    """The slots of a text by itself, a batch of one row; `level` reads bytes."""
    sequence = text_sequence(text, device=level.device)
    return level.read_tokens(sequence, level.choose_starts(sequence, level.split(sequence).start_prob))


@torch.no_grad()
def _read(model: Zonkey, question: Question) -> Row:
    """Take a text apart, and lay out what is asked of it."""
    slots = tokenize(model.bottom, question.text)
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
    return Row(slots.entries[0], asked, order)


def _touched(slots: Slots, length: int, spans: Sequence[tuple[int, int]]) -> Tensor:
    """[M] which slots of a text of `length` bytes lie in or beside a span."""
    starts = slots.starts[0]
    ends = torch.cat([starts[1:], starts.new_tensor([length])])
    chosen = torch.zeros_like(starts, dtype=torch.bool)
    for begin, end in spans:
        chosen |= (starts <= end) & (ends >= begin)
    return chosen


def _together(level: Level, rows: Sequence[Row]) -> list[Likelihood]:
    """What is asked of each of some rows, which are read at once."""
    vocabulary = level.vocabulary
    assert vocabulary is not None
    table = vocabulary.latents()
    ordered = lay_out([row.order for row in rows], max(len(row.order.source) for row in rows), table.device)
    entries = pad_sequence([row.entries for row in rows], batch_first=True)
    asked = pad_sequence([row.asked_mask for row in rows], batch_first=True)
    told = ordered.told.clamp(min=0)
    wanted = (ordered.told >= 0) & asked.gather(1, told)
    given = [row.plans for row in rows if row.plans is not None]
    found = read_whole(level, ordered, table[entries], side_by_side(given) if given else None)
    log_prob = log_probs(level, table, found, wanted, entries.gather(1, told), gather_entries(entries, ordered.source))
    summed = log_prob.new_zeros(wanted.shape).masked_scatter(wanted, log_prob)
    return list(itertools.starmap(Likelihood, zip(summed.sum(1).tolist(), wanted.sum(1).tolist(), strict=True)))


def log_probs(
    level: Level, table: Tensor, found: DenoisedSlots, asked_mask: Tensor, entries: Tensor, held: Tensor
) -> Tensor:
    """[k] log-probabilities of those of the entries [B, n] that a mask [B, n] asks for, a fixed number at a time.

    held [B, L]: the entries that all readings of the rows hold, -1 for none.
    """
    assert level.vocabulary is not None and found.copies is not None
    asked = entries[asked_mask].to(table.device)
    estimates = found.latents[asked_mask]
    results = [estimates.new_zeros(0)]
    for part, wanted in zip(torch.split(estimates, DRAWN_TOGETHER), torch.split(asked, DRAWN_TOGETHER), strict=True):
        queries = functional.pad(part, (0, 0, 0, DRAWN_TOGETHER - len(part)))
        logits = level.vocabulary.logits(queries, queries.new_ones(len(queries)), table)[: len(part)]
        results.append(logits.log_softmax(-1).gather(1, wanted.unsqueeze(1)).squeeze(1))
    copied = found.copies.log_copied(held, entries.to(held.device))[asked_mask]
    return torch.logaddexp(torch.cat(results) + found.copies.log_rest[asked_mask], copied)
