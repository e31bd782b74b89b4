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
from zonkey_core.model.ngram_tables import SPREAD
from zonkey_core.model.positions import PositionEmbedding
from zonkey_core.model.transformer import Transformer
from zonkey_core.model.unit_rows import NO_UNIT, UnitRows, spaced_apart

ESTIMATE_ORDERS = (1, 2, 3, 4)
"""Units before one from which, together, its cost is estimated."""
EXPANSION = 2
"""Width of the feed-forward layers of the readers of units, as a multiple of their own."""
CONTEXTS = (
    (-1,), (1,), (-2,), (2,), (-3,), (3,),
    (-2, -1), (1, 2), (-3, -2, -1), (1, 2, 3), (-4, -3, -2, -1), (1, 2, 3, 4),
    (-1, 1), (-2, -1, 1), (-1, 1, 2), (-2, -1, 1, 2),
)
"""What a reader without attention sees, by distance: units, strings on either side, and those that enclose a unit."""
NEAR = max(abs(side) for context in CONTEXTS for side in context)
"""Units on either side that it sees."""
HIDDEN_UNIT = NO_UNIT - 1
"""The key that such a reader sees in place of another hidden unit."""


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


class UnitReader(nn.Module):
    """The masked-modelling Transformer of level 0."""

    def __init__(self, width: int, heads: int, layers: int, span: int, rows: int) -> None:
        super().__init__()
        self.span = span
        self.units = UnitVectors(rows, width)
        self.hidden = nn.Parameter(0.05 * torch.randn(width))
        self.transformer = Transformer(width, heads, layers, rotary=True, expansion=EXPANSION, neighbours=True)
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, keys: Tensor, hidden_mask: Tensor, start_prob: Tensor) -> Tensor:
        """Units, hidden ones and starts [T] to states [K, width] of the hidden ones, in order.

        They are read in spans of at most `span` units.
        """
        embedded = torch.where(hidden_mask.unsqueeze(-1), self.hidden, self.units(keys))
        states: Tensor = self.norm(_read_in_spans(self.transformer, embedded[None], start_prob[None], self.span))
        return states[0][hidden_mask]


class ContextReader(nn.Module):
    """A reader of units without attention: a bag of the strings that stand around a hidden one.

    It adds up a vector, which a table holds, for each of `CONTEXTS`, as much as all of that string is likely to be of
    the same segment, and turns the sum into a state: a continuous bag of words (Mikolov et al. 2013) with places,
    strings and existence. It computes nothing for units that are not hidden and learns from the first steps on.
    """

    def __init__(self, width: int, rows: int, context_rows: int) -> None:
        super().__init__()
        self.units = UnitVectors(rows, width)
        self.contexts = lookup_table(context_rows, width)
        self.hidden = nn.Parameter(0.05 * torch.randn(width))
        self.norm = nn.LayerNorm(width, bias=False)
        last = nn.Linear(EXPANSION * width, width)
        self.network = nn.Sequential(nn.Linear(width, EXPANSION * width), nn.SiLU(), last)
        self.out = nn.LayerNorm(width, bias=False)
        nn.init.normal_(self.contexts, std=0.05)
        nn.init.normal_(last.weight, std=0.02)

    def forward(self, keys: Tensor, hidden_mask: Tensor, start_prob: Tensor) -> Tensor:
        """Units, hidden ones and starts [T] to states [K, width] of the hidden ones, in order."""
        asked = hidden_mask.nonzero().flatten() + NEAR
        shown = functional.pad(keys.masked_fill(hidden_mask, HIDDEN_UNIT), (NEAR, NEAR), value=NO_UNIT)
        goes_on = functional.pad(log_continue_prob(start_prob), (NEAR, NEAR), value=LOG_FLOOR)
        reached = {0: torch.zeros_like(goes_on[asked])}
        for distance in range(1, NEAR + 1):
            reached[-distance] = reached[1 - distance] + goes_on[asked - distance + 1]
            reached[distance] = reached[distance - 1] + goes_on[asked + distance]
        places, log_existence = [], []
        for number, context in enumerate(CONTEXTS, 1):
            key = torch.full_like(asked, number * (1 << 40))
            for side in context:
                key = (key + shown[asked + side]) * SPREAD
            places.append(table_rows(key, self.contexts.shape[1]))
            log_existence.append(reached[min(0, *context)] + reached[max(0, *context)])
        existence = torch.stack(log_existence, 1).exp().to(self.contexts.dtype)
        bag = functional.embedding_bag(
            torch.stack(places, 1), self.contexts[0], mode="sum", per_sample_weights=existence
        )
        states = self.norm(self.hidden + bag)
        told: Tensor = self.out(states + self.network(states))
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
