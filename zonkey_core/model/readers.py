"""Readers of units: what teaches level 0's splitter, by telling what is hidden from its own segment alone, and what
says how much text costs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.existence import LOG_FLOOR, log_continue_prob
from zonkey_core.model.hash_embeddings import NgramVectors, lookup_table, ngram_keys, table_rows
from zonkey_core.model.ngram_tables import ESTIMATE_ORDERS, SPREAD, TABLE_WIDTH
from zonkey_core.model.unit_rows import NO_UNIT, UnitRows, spaced_apart

EXPANSION = 4
"""Width of the hidden layer of the reader of units, as a multiple of its own."""
CONTEXTS = (
    (1, 1), (2, 0), (0, 2), (2, 1), (1, 2), (2, 2), (3, 0), (0, 3), (3, 1), (1, 3), (4, 0), (0, 4),
    (3, 3), (4, 2), (2, 4), (4, 4), (6, 0), (0, 6), (5, 1), (1, 5), (6, 6),
)  # fmt: skip
"""Units before and after a hidden one from which, together, it is told."""
NEAR = max(map(max, CONTEXTS))
"""Units on either side that a reader of units sees."""
OTHER_SPREAD = 0x2545F4914F6CDD1D
"""As `SPREAD`, for what stands after a unit."""
HIDDEN_UNIT = NO_UNIT - 1
"""The key that a reader of units sees in place of another hidden one."""


class UnitKinds:
    """The kinds of units of a batch, which are all that one of them may be: what is told is which."""

    def __init__(self, keys: Tensor) -> None:
        self.keys, self.which, counts = torch.unique(keys, return_inverse=True, return_counts=True)
        """[V] in order, and [T] the kind of each unit."""
        self.log_shares = (counts / max(1, len(keys))).log()
        """[V]"""


class UnitVectors(nn.Module):
    """A vector for every unit, found by hash: what a reader sees of one, and what it tells one by."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = lookup_table(rows, width)
        nn.init.normal_(self.table, std=0.05)

    def forward(self, keys: Tensor) -> Tensor:
        """[T] units to [T, width]."""
        places = table_rows(ngram_keys(keys[None], 1)[0][0], self.table.shape[1])
        return functional.embedding(places, self.table[0])

    def loss(self, states: Tensor, kinds: UnitKinds, asked: Tensor) -> Tensor:
        """[K] nats that it cost to tell units [K], by number, from states [K, width], given how often each occurs."""
        logits = (states @ self(kinds.keys).to(states.dtype).T).float() + kinds.log_shares
        return functional.cross_entropy(logits, kinds.which[asked], reduction="none")


class ContextReader(nn.Module):
    """The masked-modelling reader of level 0: a bag of the strings that enclose a hidden unit.

    It adds up a vector, which a table holds, for each of `CONTEXTS`, as much as all of that string is likely to be of
    the same segment, `exp(C_{i+r} - C_{i-l})`, and turns the sum into a state: a continuous bag of words (Mikolov et
    al. 2013) of strings and existence. It computes nothing for units that are not hidden, and learns from the first
    steps on.
    """

    def __init__(self, width: int, rows: int, context_rows: int) -> None:
        super().__init__()
        self.units = UnitVectors(rows, width)
        self.contexts = lookup_table(context_rows, TABLE_WIDTH)
        self.linear = nn.Linear(TABLE_WIDTH, width, bias=False)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, EXPANSION * width), nn.SiLU(), nn.Linear(EXPANSION * width, width),
            nn.LayerNorm(width),
        )  # fmt: skip
        nn.init.normal_(self.contexts, std=0.02)

    def forward(self, keys: Tensor, hidden_mask: Tensor, start_prob: Tensor) -> Tensor:
        """Units, hidden ones and starts [T] to states [K, width] of the hidden ones, in order."""
        asked = hidden_mask.nonzero().flatten() + NEAR
        shown = functional.pad(keys.masked_fill(hidden_mask, HIDDEN_UNIT), (NEAR, NEAR), value=NO_UNIT)
        goes_on = functional.pad(log_continue_prob(start_prob), (NEAR, NEAR), value=LOG_FLOOR)
        before, after = [torch.zeros_like(asked)], [torch.zeros_like(asked)]
        left, right = [torch.zeros_like(goes_on[asked])], [torch.zeros_like(goes_on[asked])]
        for distance in range(1, NEAR + 1):
            before.append((before[-1] + shown[asked - distance] + 1) * SPREAD)
            after.append((after[-1] + shown[asked + distance] + 1) * OTHER_SPREAD)
            left.append(left[-1] + goes_on[asked - distance + 1])
            right.append(right[-1] + goes_on[asked + distance])
        keys = torch.stack(
            [(3 * before[first] + after[last] + number) * SPREAD for number, (first, last) in enumerate(CONTEXTS)], 1
        )
        existence = torch.stack([left[first] + right[last] for first, last in CONTEXTS], 1).exp()
        bag = functional.embedding_bag(
            table_rows(keys, self.contexts.shape[1]), self.contexts[0], mode="sum",
            per_sample_weights=existence.to(self.contexts.dtype),
        )  # fmt: skip
        told: Tensor = self.network(self.linear(bag))
        return told


class CostEstimator(nn.Module):
    """What text costs: nats of every unit, told from the few before it by what was learned of such n-grams.

    It sets how often text is cut, and teaches nothing else.
    """

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.units = UnitVectors(rows, width)
        self.ngrams = NgramVectors(ESTIMATE_ORDERS, rows, width)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, units: UnitRows, kinds: UnitKinds, asked: Tensor) -> Tensor:
        """[K] nats of units [K], by number, of a batch with these kinds."""
        line, places = spaced_apart(units, max(ESTIMATE_ORDERS))
        vectors: Tensor = self.ngrams(line[None])[0][places[asked] - 1]
        return self.units.loss(self.network(vectors), kinds, asked)
