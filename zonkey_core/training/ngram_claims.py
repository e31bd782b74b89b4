"""Whose the rows of the splitter's table are: each of the n-gram that is met most often of those that fall on it.

A text has many times as many different n-grams as a table has rows. Were rows for all, those of words would say what
chance has thrown on them, and what was never met before would be taken for something else.

Before that it is learned which kinds of units others stand in for, unless the splitter has learned so already: what its
table says is of n-grams with these.

That is for a splitter that a lexicon teaches. One that learns by masked modelling must not see which units are hidden,
and what stands in their place makes n-grams that are not known, around which it would cut. Its rows are for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zonkey_core.model.hash_embeddings import OwnedNgramVectors, prints, table_rows
from zonkey_core.model.model import Zonkey
from zonkey_core.model.ngram_tables import NOBODY, SHARED
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.unit_rows import NO_UNIT, spaced_apart, unit_rows
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.document_guide import Symbols
from zonkey_core.training.stand_ins import REACH, stand_ins

LEAST_MET = 3
"""Times that an n-gram has to be met to own a row: what is met less often is better not known than known by heart."""
MOST_TAKEN = 1 / 16
"""Share of the rows that n-grams of a new text take from others, at most: what was learned of other texts stays."""
KINDS_UNITS = 1 << 25
"""Symbols, from which it is learned which kinds others stand in for."""
COUNTED_TOGETHER = 1 << 22
"""Symbols whose n-grams are counted at once."""

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and prints as one number each, in order, and how often they were met."""


def claim_ngrams(
    models: tuple[Zonkey, Zonkey], stage: Stage, sequences: Iterator[PositionSequence], text_bytes: int
) -> None:
    """Before level 0's splitter learns, give the rows of its table to the n-grams of the text that comes next.

    Those of a splitter that learns by masked modelling are given to all. `models` are the one that learns and its
    average, which rows are given in alike.
    """
    if stage.name != "splitter" or stage.level:
        return
    live, average = (model.bottom.splitter.ngrams for model in models)
    assert live is not None and average is not None
    if models[0].bottom.lexicon is None:
        for vectors in (live, average):
            vectors.owners.fill_(SHARED)
        return
    lines = _lines(sequences, max(max(live.orders) - 1, REACH), text_bytes)
    if not len(live.pairs()[0]):
        begun = [*_of_units(lines, KINDS_UNITS)]
        kinds, others = map(torch.from_numpy, stand_ins(np.concatenate(begun or [np.zeros(0, np.int64)])))
        for vectors in (live, average):
            vectors.stand_in(kinds, others)
        lines = itertools.chain(begun, lines)
    rows, owners = _claims(_count(live, lines), live.owners.cpu().numpy())
    for vectors in (live, average):
        vectors.claim(rows.to(vectors.table.device), owners.to(vectors.table.device))


def _lines(sequences: Iterator[PositionSequence], gap: int, least: int) -> Iterator[Symbols]:
    """The units of at least so many bytes, if there are, row by row with a gap around each."""
    for sequence in sequences:
        yield spaced_apart(unit_rows(sequence), gap)[0].cpu().numpy()
        least -= sequence.values.numel()
        if least <= 0:
            return


def _of_units(lines: Iterator[Symbols], least: int) -> Iterator[Symbols]:
    """The first lines that have so many symbols, if there are."""
    for line in lines:
        yield line
        least -= len(line)
        if least <= 0:
            return


def _count(vectors: OwnedNgramVectors, lines: Iterable[Symbols]) -> Counts:
    """The n-grams of lines."""
    counts: Counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    waiting: list[NDArray[np.int64]] = []
    for line in lines:
        symbols = torch.from_numpy(line).to(vectors.table.device)
        keys = vectors.keys(symbols[None])[0, symbols != NO_UNIT]
        codes = table_rows(keys, vectors.rows) << 8 | prints(keys).long()
        waiting.append(codes.flatten().cpu().numpy())
        if sum(map(len, waiting)) >= COUNTED_TOGETHER * len(vectors.orders):
            counts = _added(counts, np.concatenate(waiting))
            waiting = []
    return _added(counts, np.concatenate(waiting)) if waiting else counts


def _added(counts: Counts, codes: NDArray[np.int64]) -> Counts:
    found, times = np.unique(codes, return_counts=True)
    every, which = np.unique(np.concatenate([counts[0], found]), return_inverse=True)
    total = np.bincount(which, weights=np.concatenate([counts[1], times])).astype(np.int64)
    return every, total


def _claims(counts: Counts, owners: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Rows that are claimed, and the prints of those that claim them.

    Of those that others own, the ones that are claimed most often are.
    """
    codes, times = (part[counts[1] >= LEAST_MET] for part in counts)
    order = np.lexsort((-times, codes >> 8))
    first = order[np.flatnonzero(np.diff(codes[order] >> 8, prepend=-1))]
    rows, prints_there = codes[first] >> 8, (codes[first] & 0xFF).astype(np.uint8)
    held = owners[rows]
    taken = np.flatnonzero((held != SHARED) & (held != NOBODY) & (held != prints_there))
    least = np.argsort(-times[first][taken], kind="stable")[int(MOST_TAKEN * len(owners)) :]
    kept = np.ones(len(rows), dtype=np.bool_)
    kept[taken[least]] = False
    return torch.from_numpy(rows[kept]), torch.from_numpy(prints_there[kept])
