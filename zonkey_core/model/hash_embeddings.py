"""Vectors for short strings of symbols, looked up by hash.

A table holds what a text teaches of short strings at hardly any cost in time: a lookup per string, whatever was
learned of it. The same string always has the same vector, and different ones may share theirs (hash embeddings), but
where rows have owners: there a row belongs to one string, and all others that fall on it are not known.
Shapes: rows [B, L] of integer symbols, none below -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.bytes import NO_BYTE
from zonkey_core.model.ngram_tables import NO_SYMBOL, NOBODY, PRINTS, SHARED, SPREAD, STAND_INS, TABLE_WIDTH

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


def prints(keys: Tensor) -> Tensor:
    """1 to `PRINTS`, by which strings that fall on one row are told apart."""
    return (((keys >> 24) & 0xFF) % PRINTS + 1).to(torch.uint8)


class NgramVectors(nn.Module):
    """The sum of the vectors of the n-grams that end at each symbol, projected to a width."""

    def __init__(self, orders: Sequence[int], rows: int, width: int) -> None:
        super().__init__()
        self.orders = tuple(orders)
        self.rows = rows
        self.table = lookup_table(rows, TABLE_WIDTH)
        self.linear = nn.Linear(TABLE_WIDTH, width, bias=False)
        nn.init.normal_(self.table, std=0.02)

    def keys(self, symbols: Tensor) -> Tensor:
        """[B, L, orders] hashes of the n-grams that end at each symbol."""
        each = self._hashes(symbols)
        return torch.stack([each[order - 1] + order for order in self.orders], -1)

    def _hashes(self, symbols: Tensor) -> list[Tensor]:
        """Those of all orders up to the longest, [B, L] each."""
        return ngram_keys(symbols, max(self.orders), NO_SYMBOL)

    def forward(self, symbols: Tensor) -> Tensor:
        """[B, L] symbols to [B, L, width]."""
        places = table_rows(self.keys(symbols), self.rows)
        summed = functional.embedding_bag(places.flatten(0, 1), self.table[0], mode="sum")
        vectors: Tensor = self.linear(summed)
        return vectors.view(*symbols.shape, -1)


class OwnedNgramVectors(NgramVectors):
    """The same with rows that have owners, told by their prints; an n-gram without a row has the vector of what is not
    known, one for each order.

    So what a text has that was never met is not taken for what happens to share its row. A print says so of all but one
    of 254. Of n-grams of more than one symbol, those that differ only in a kind and what stands in for it are one.
    """

    owners: Tensor
    """[rows] prints, or `SHARED` of all rows of a table that nobody has claimed."""
    stand_ins: Tensor
    """[2, STAND_INS] kinds of symbols, in order, and what stands in for each; `NO_SYMBOL` where there are fewer."""

    def __init__(self, orders: Sequence[int], rows: int, width: int) -> None:
        super().__init__(orders, rows, width)
        self.unknown = nn.Parameter(torch.zeros(len(self.orders), TABLE_WIDTH))
        self.register_buffer("owners", torch.full((rows,), SHARED, dtype=torch.uint8))
        self.register_buffer("stand_ins", torch.full((2, STAND_INS), NO_SYMBOL, dtype=torch.long))

    def forward(self, symbols: Tensor, given_mask: Tensor | None = None) -> Tensor:
        """[B, L] symbols to [B, L, width]; n-grams that a mask [B, L, orders] leaves out are taken for unknown."""
        keys = self.keys(symbols).flatten(0, 1)
        places = table_rows(keys, self.rows)
        owners = self.owners[places]
        known = (owners == prints(keys)) | (owners == SHARED)
        if given_mask is not None:
            known &= given_mask.flatten(0, 1)
        summed = functional.embedding_bag(
            places, self.table[0], mode="sum", per_sample_weights=known.to(self.table.dtype)
        )
        vectors: Tensor = self.linear(summed + (~known).to(self.unknown.dtype) @ self.unknown)
        return vectors.view(*symbols.shape, -1)

    def _hashes(self, symbols: Tensor) -> list[Tensor]:
        """With what stands in for kinds of symbols, but where one is alone."""
        kinds, stand_ins = self.stand_ins
        place = torch.searchsorted(kinds, symbols).clamp(max=STAND_INS - 1)
        each = super()._hashes(torch.where(kinds[place] == symbols, stand_ins[place], symbols))
        each[0] = ngram_keys(symbols, 1, NO_SYMBOL)[0]
        return each

    @torch.no_grad()
    def claim(self, rows: Tensor, owners: Tensor) -> None:
        """Give rows [K] to the n-grams with these prints [K]; all that were shared, and nobody claims, to nobody.

        What a row says of its owner is forgotten where this is another than before; what it says of all who shared it
        is what its owner begins with.
        """
        taken = (self.owners[rows] != owners) & (self.owners[rows] != SHARED)
        self.table[0, rows[taken]] = 0
        self.owners[self.owners == SHARED] = NOBODY
        self.owners[rows] = owners

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Kinds of symbols [K] and what stands in for each."""
        kinds, others = self.stand_ins[:, self.stand_ins[0] != NO_SYMBOL]
        return kinds, others

    def stand_in(self, kinds: Tensor, stand_ins: Tensor) -> None:
        """Let others stand in for kinds [K] of symbols, both in the order of the first."""
        self.stand_ins.fill_(NO_SYMBOL)
        if len(kinds):
            self.stand_ins[:, -len(kinds) :] = torch.stack([kinds, stand_ins])
