"""Vectors for short strings of symbols, looked up by hash.

A table holds what a text teaches of short strings at hardly any cost in time: a lookup per string, whatever was
learned of it. The same string always has the same vector, and different ones may share theirs.
Shapes: rows [B, L] of integer symbols.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.bytes import NO_BYTE

SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)
"""An odd number that spreads what it multiplies over 64 bits."""
OTHER_SPREAD = 0xC2B2AE3D27D4EB4F - (1 << 64)
TABLE_WIDTH = 32
"""Channels of the tables here, before they are projected."""


def lookup_table(rows: int, width: int) -> nn.Parameter:
    """A table of vectors; of three dimensions, [1, rows, width], by which optimisers know it."""
    return nn.Parameter(torch.zeros(1, rows, width))


def is_lookup_table(parameter: Tensor) -> bool:
    """Whether a parameter was made by `lookup_table`."""
    return parameter.dim() == 3 and len(parameter) == 1


def ngram_keys(symbols: Tensor, longest: int) -> list[Tensor]:
    """Hashes [B, L] of the n-grams that end at each symbol, for n = 1 to `longest`.

    What stands before the first symbol counts as `NO_BYTE`.
    """
    length = symbols.shape[1]
    padded = functional.pad(symbols, (longest - 1, 0), value=NO_BYTE) + 1
    keys = torch.zeros_like(symbols)
    each: list[Tensor] = []
    for back in range(longest):
        first = longest - 1 - back
        keys = (keys + padded[:, first : first + length]) * SPREAD
        each.append(keys)
    return each


def table_rows(keys: Tensor, rows: int) -> Tensor:
    """Which of `rows` rows a hash stands for."""
    return (keys >> 32) % rows


class NgramVectors(nn.Module):
    """The sum of the vectors of the n-grams that end at each symbol, projected to a width."""

    def __init__(self, orders: Sequence[int], rows: int, width: int) -> None:
        super().__init__()
        self.orders = tuple(orders)
        self.rows = rows
        self.table = lookup_table(rows, TABLE_WIDTH)
        self.linear = nn.Linear(TABLE_WIDTH, width, bias=False)
        nn.init.normal_(self.table, std=0.02)

    def forward(self, symbols: Tensor) -> Tensor:
        """[B, L] symbols to [B, L, width]."""
        keys = ngram_keys(symbols, max(self.orders))
        places = torch.stack([table_rows(keys[order - 1] + order, self.rows) for order in self.orders], -1)
        summed = functional.embedding_bag(places.flatten(0, 1), self.table[0], mode="sum")
        vectors: Tensor = self.linear(summed)
        return vectors.view(*symbols.shape, -1)


class ContextVectors(nn.Module):
    """What surrounds chosen symbols, without the symbols themselves: the sum of the vectors of contexts, projected.

    A context is the `l` symbols before a place and the `r` after it. It counts as much as it is certain that no
    segment begins behind its first symbol: existence `exp(C_{i+r} - C_{i-l})`, 0 across the ends of a row.
    """

    def __init__(self, contexts: Sequence[tuple[int, int]], rows: int, width: int) -> None:
        super().__init__()
        self.contexts = tuple(contexts)
        self.reach = max(max(context) for context in contexts)
        self.rows = rows
        self.table = lookup_table(rows, TABLE_WIDTH)
        self.linear = nn.Linear(TABLE_WIDTH, width, bias=False)
        nn.init.normal_(self.table, std=0.02)

    def forward(self, symbols: Tensor, cumulative: Tensor, chosen_mask: Tensor) -> Tensor:
        """Symbols and `C` [B, L] with a mask [B, L] of K chosen places to [K, width], in the mask's order."""
        length = symbols.shape[1]
        row, place = chosen_mask.nonzero(as_tuple=True)
        before, after = [torch.zeros_like(place)], [torch.zeros_like(place)]
        for distance in range(1, self.reach + 1):
            left, right = (place - distance).clamp(min=0), (place + distance).clamp(max=length - 1)
            before.append((before[-1] + symbols[row, left] + 1) * SPREAD)
            after.append((after[-1] + symbols[row, right] + 1) * OTHER_SPREAD)
        rows, existences = [], []
        for index, (left_size, right_size) in enumerate(self.contexts):
            rows.append(table_rows((before[left_size] * 3 + after[right_size] + index) * SPREAD, self.rows))
            left, right = place - left_size, place + right_size
            inside = (left >= 0) & (right < length)
            span = cumulative[row, right.clamp(max=length - 1)] - cumulative[row, left.clamp(min=0)]
            existences.append(span.exp() * inside)
        vectors = functional.embedding_bag(
            torch.stack(rows, -1), self.table[0], per_sample_weights=torch.stack(existences, -1), mode="sum"
        )
        projected: Tensor = self.linear(vectors)
        return projected
