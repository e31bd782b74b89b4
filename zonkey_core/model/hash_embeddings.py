"""Vectors for short strings of symbols, looked up by hash.

A table holds what a text teaches of short strings at hardly any cost in time: a lookup per string, whatever was
learned of it. The same string always has the same vector, and different ones may share theirs.
Shapes: rows [B, L] of integer symbols, none below -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.bytes import NO_BYTE
from zonkey_core.model.ngram_tables import SPREAD, TABLE_WIDTH

NO_SYMBOL = -1
"""What stands before the first of symbols that are not bytes."""
KEYS_TOGETHER = 512
"""Strings that are hashed at once: of each, the hashes of all its substrings are made."""


def lookup_table(rows: int, width: int) -> nn.Parameter:
    """A table of vectors; of three dimensions, [1, rows, width], by which optimisers know it."""
    return nn.Parameter(torch.zeros(1, rows, width))


def is_lookup_table(parameter: Tensor) -> bool:
    """Whether a parameter was made by `lookup_table`."""
    return parameter.dim() == 3 and len(parameter) == 1


def ngram_keys(symbols: Tensor, longest: int, before: int = NO_BYTE) -> list[Tensor]:
    """Hashes [B, L] of the n-grams that end at each symbol, for n = 1 to `longest`.

    What stands before the first symbol counts as `before`.
    """
    length = symbols.shape[1]
    padded = functional.pad(symbols, (longest - 1, 0), value=before) + 1
    keys = torch.zeros_like(symbols)
    each: list[Tensor] = []
    for back in range(longest):
        first = longest - 1 - back
        keys = (keys + padded[:, first : first + length]) * SPREAD
        each.append(keys)
    return each


def string_keys(strings: Tensor, lengths: Tensor) -> Tensor:
    """[K] hashes of strings of bytes [K, S], of these lengths [K], as those of n-grams; 0 of empty ones."""
    sizes = (lengths.long() - 1).clamp(min=0)
    keys = torch.zeros_like(sizes)
    for which in torch.split(torch.arange(len(keys), device=keys.device), KEYS_TOGETHER):
        some, ends = torch.stack(ngram_keys(strings[which].long(), strings.shape[1])), sizes[which]
        keys[which] = some[ends, which - which[0], ends]
    return keys.masked_fill(lengths == 0, 0)


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

    def forward(self, symbols: Tensor, weights: Tensor | None = None) -> Tensor:
        """[B, L] symbols to [B, L, width]; `weights` [B, L, orders] of the n-grams are 1 where none are given."""
        keys = ngram_keys(symbols, max(self.orders), NO_SYMBOL)
        places = torch.stack([table_rows(keys[order - 1] + order, self.rows) for order in self.orders], -1)
        each = None if weights is None else weights.flatten(0, 1).to(self.table.dtype)
        summed = functional.embedding_bag(places.flatten(0, 1), self.table[0], mode="sum", per_sample_weights=each)
        vectors: Tensor = self.linear(summed)
        return vectors.view(*symbols.shape, -1)
