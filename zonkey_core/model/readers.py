"""Readers: what teaches splitters, by telling what is hidden from its own segment alone.

Two read the units of text and tell them, one reads latents, of which it tells the kind. A position sees others each as
much as it is likely to be of the same segment, `exp(-|C_q - C_k|)`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.attention import DocumentBias
from zonkey_core.model.codebook import Codebook
from zonkey_core.model.existence import LOG_FLOOR, cumulative_log_continue, log_continue_prob
from zonkey_core.model.hash_embeddings import NgramVectors, lookup_table, ngram_keys, table_rows
from zonkey_core.model.ngram_tables import SPREAD, TABLE_WIDTH
from zonkey_core.model.positions import PositionEmbedding
from zonkey_core.model.transformer import Transformer
from zonkey_core.model.unit_rows import NO_UNIT, UnitRows, spaced_apart

ESTIMATE_ORDERS = (1, 2, 3, 4)
"""Units before one from which, together, its cost is estimated."""
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


class SegmentReader(nn.Module):
    """The masked-modelling Transformer above level 0, which tells codes."""

    def __init__(self, channels: int, width: int, heads: int, layers: int, span: int, codes: int) -> None:
        super().__init__()
        self.span = span
        self.codebook = Codebook(codes, channels)
        self.embedding = PositionEmbedding(channels, width)
        self.code_embedding = nn.Embedding(codes, width)
        self.hidden = nn.Parameter(torch.randn(width))
        self.transformer = Transformer(width, heads, layers, rotary=True)
        self.norm = nn.LayerNorm(width, bias=False)
        self.readout = nn.Linear(width, codes)

    def forward(self, values: Tensor, hidden_mask: Tensor, start_prob: Tensor) -> Tensor:
        """Latents [B, L, C], hidden ones and starts [B, L] to states [K, width] of the hidden ones, in order.

        Rows are read in spans of at most `span` positions.
        """
        embedded = self.embedding(values) + self.code_embedding(self.codebook(values))
        embedded = torch.where(hidden_mask.unsqueeze(-1), self.hidden.to(embedded.dtype), embedded)
        states: Tensor = self.norm(_read_in_spans(self.transformer, embedded, start_prob, self.span))
        return states[hidden_mask]

    def loss(self, states: Tensor, values: Tensor) -> Tensor:
        """[K] nats that it cost to tell the codes of hidden latents [K, C] from states [K, width]."""
        return functional.cross_entropy(self.readout(states).float(), self.codebook(values), reduction="none")


def _read_in_spans(transformer: Transformer, embedded: Tensor, start_prob: Tensor, span: int) -> Tensor:
    """States [B, L, D] of embedded positions, of which at most `span` are read at once, each in its own segment."""
    batch, length, width = embedded.shape
    span = min(span, max(1, length))
    padding = -length % span
    spans = functional.pad(embedded, (0, 0, 0, padding)).view(-1, span, width)
    start_prob = functional.pad(start_prob, (0, padding), value=1.0).view(-1, span)
    states: Tensor = transformer(spans, DocumentBias(cumulative_log_continue(start_prob)))
    return states.view(batch, length + padding, width)[:, :length]
