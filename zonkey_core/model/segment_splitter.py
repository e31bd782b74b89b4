"""Segment Splitter: the learned, differentiable tokenizer (paper, "Segment Splitter").

A small convolution network gives every position the probability `p` that a segment begins there; at level 0 it also
looks up what it has learned of the n-grams around. It learns from a masked-modelling loss: a *reader* tells hidden
positions from what stands around them in their own segment alone, so with the number of cuts fixed, cuts settle where
the two sides tell least about each other. Splitter and reader both see the sequence with other positions' values in
place of the hidden ones; if the splitter saw the true ones, `p` would become a side channel that tells the reader what
was hidden, and if it saw which are hidden, it would cut around these instead of where text can do without.

Above bytes the same loss trains a *guide*, a splitter that sees each position alone and so finds which positions begin
segments on the whole; the splitter that is used follows it and learns to tell from what stands around them.

Shapes: positions [B, L], embedded [B, L, width]; `p` [B, L]; K hidden positions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.attention import DocumentBias
from zonkey_core.model.bytes import NO_BYTE
from zonkey_core.model.codebook import Codebook
from zonkey_core.model.existence import cumulative_log_continue
from zonkey_core.model.hash_embeddings import ContextVectors, NgramVectors
from zonkey_core.model.positions import PositionEmbedding, PositionSequence
from zonkey_core.model.transformer import Transformer

NGRAM_ORDERS = (2, 3, 4, 5, 6)
CONTEXTS = (
    *((1, 1), (2, 0), (0, 2), (2, 1), (1, 2), (2, 2), (3, 0), (0, 3), (3, 1), (1, 3), (4, 0), (0, 4)),
    *((3, 3), (4, 2), (2, 4), (4, 4), (6, 0), (0, 6), (5, 1), (1, 5), (6, 6)),
)
"""Bytes before and after a hidden one from which, together, it is told."""


class Splits(NamedTuple):
    """What the splitter says of a batch of rows."""

    start_prob: Tensor
    """[B, L], exactly 1 at document starts and in padding, and 0 where no cut is allowed."""
    start_logits: Tensor
    """[B, L], before those two constraints."""


class SegmentSplitter(nn.Module):
    """Convolutions over embedded positions, one start logit for each; only bytes have a table, of `ngram_rows` rows."""

    def __init__(
        self,
        channels: int | None,
        width: int,
        kernel: int,
        layers: int,
        segment_length: float,
        ngram_rows: int,
    ) -> None:
        super().__init__()
        self.embedding = PositionEmbedding(channels, width)
        self.ngrams = NgramVectors(NGRAM_ORDERS, ngram_rows, width) if channels is None else None
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, 1)
        self.reach = layers * (kernel // 2) + (max(NGRAM_ORDERS) - 1 if self.ngrams is not None else 0)
        """Positions on either side that a probability depends on."""
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, -math.log(segment_length - 1))

    def forward(self, sequence: PositionSequence) -> Splits:
        """Probabilities and logits; padding counts as certain starts, so that it belongs to no segment."""
        exists = sequence.exists_mask
        embedded = self.embedding(sequence.values)
        if self.ngrams is not None:
            embedded = self.ngrams(sequence.values.masked_fill(~exists, NO_BYTE)) + embedded
        if torch.is_autocast_enabled(embedded.device.type):
            embedded = embedded.to(torch.get_autocast_dtype(embedded.device.type))
        # Channels lie last in memory and stay there, which a convolution over two dimensions can use.
        mask = exists[:, None, None].to(embedded.dtype)
        states = embedded.transpose(1, 2).unsqueeze(2)
        for index, layer in enumerate(self.convolutions):
            assert isinstance(layer, nn.Conv1d)
            reached = functional.conv2d(
                states * mask, layer.weight.unsqueeze(2), layer.bias, padding=(0, layer.kernel_size[0] // 2)
            )
            update = functional.silu(reached)
            states = update if index == 0 else states + update
        logits = self.head(self.norm(states.squeeze(2).transpose(1, 2))).squeeze(-1).float()
        forced = sequence.document_mask | ~exists
        forced[:, 0] = True
        start_prob = logits.sigmoid() * sequence.cut_allowed()
        return Splits(start_prob.where(~forced, 1.0), logits)

    @torch.no_grad()
    def shift(self, logit: float) -> None:
        """Lower every start logit by `logit`, also within a context of autocast, which keeps what it has cast."""
        self.head.bias.sub_(logit)
        torch.clear_autocast_cache()


class ContextReader(nn.Module):
    """Tells hidden bytes from the strings around them, each of which counts as it is sure to lie in one segment."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.vectors = ContextVectors(CONTEXTS, rows, width)
        inner = 4 * width
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, width), nn.LayerNorm(width)
        )

    def forward(self, values: Tensor, hidden_mask: Tensor, start_prob: Tensor) -> Tensor:
        """Bytes, hidden ones and starts [B, L] to states [K, width] of the hidden bytes, in order."""
        vectors = self.vectors(values, cumulative_log_continue(start_prob), hidden_mask)
        states: Tensor = self.network(vectors)
        return states


class SegmentReader(nn.Module):
    """The masked-modelling Transformer above level 0; each position sees its own segment alone, and tells codes."""

    def __init__(self, channels: int, width: int, heads: int, layers: int, span: int, codes: int) -> None:
        super().__init__()
        self.span = span
        self.codebook = Codebook(codes, channels)
        self.embedding = PositionEmbedding(channels, width)
        self.code_embedding = nn.Embedding(codes, width)
        self.hidden = nn.Parameter(torch.randn(width))
        self.transformer = Transformer(width, heads, layers, rotary=True)
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, values: Tensor, hidden_mask: Tensor, start_prob: Tensor) -> Tensor:
        """Latents [B, L, C], hidden ones and starts [B, L] to states [K, width] of the hidden ones, in order.

        Rows are read in spans of at most `span` positions.
        """
        embedded = self.embedding(values) + self.code_embedding(self.codebook(values))
        embedded = torch.where(hidden_mask.unsqueeze(-1), self.hidden.to(embedded.dtype), embedded)
        batch, length, width = embedded.shape
        span = min(self.span, length)
        padding = -length % span
        embedded = functional.pad(embedded, (0, 0, 0, padding)).view(-1, span, width)
        start_prob = functional.pad(start_prob, (0, padding), value=1.0).view(-1, span)
        bias = DocumentBias(cumulative_log_continue(start_prob))
        states: Tensor = self.norm(self.transformer(embedded, bias))
        return states.view(batch, length + padding, width)[:, :length][hidden_mask]


def hide_positions(sequence: PositionSequence, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide each existing position with probability `rate`: a mask [B, L], and values that do not tell what it hides.

    In place of a hidden value stands that of a visible position, drawn from all of the batch.
    """
    device = sequence.values.device
    shape = sequence.exists_mask.shape
    hidden = (torch.rand(shape, generator=generator) < rate).to(device) & sequence.exists_mask
    visible = sequence.values[sequence.exists_mask & ~hidden]
    if not len(visible):
        return torch.zeros_like(hidden), sequence.values
    drawn = (torch.rand(int(hidden.sum()), generator=generator) * len(visible)).long().to(device)
    return hidden, sequence.values.index_put((hidden,), visible[drawn])


def draw_relaxed(splits: Splits, temperature: float, generator: torch.Generator) -> Tensor:
    """Starts [B, L] drawn from their probabilities, all but certain ones, with a gradient: `sigmoid((l + n) / T)`.

    `n` is logistic noise, so the value is above one half with probability `sigmoid(l)` (the binary concrete
    distribution; Maddison et al. 2017, Jang et al. 2017). A reader that was given p itself would look through cuts:
    what it sees beyond a start of 0.9 is faint, but nothing is lost.
    """
    noise = torch.rand(splits.start_prob.shape, generator=generator).clamp(1e-6, 1 - 1e-6).logit()
    drawn = ((splits.start_logits + noise.to(splits.start_logits.device)) / temperature).sigmoid()
    fixed = (splits.start_prob == 0) | (splits.start_prob == 1)
    return torch.where(fixed, splits.start_prob, drawn)
