"""Segment Splitter: the learned, differentiable tokenizer (paper, "Segment Splitter").

A small convolution network gives every position the probability `p` that a segment begins there. At level 0 it reads
the uncuttable units of the text (`zonkey_core.model.units`), of which it looks up what it has learned of the n-grams
that end at each; a unit's first byte has its probability, and the others 0. It learns from a masked-modelling loss: a
*reader* tells hidden positions from what stands around them in their own segment alone, so with the number of cuts
fixed, cuts settle where the two sides tell least about each other. Splitter and reader both see the sequence with
other positions' values in place of the hidden ones; if the splitter saw the true ones, `p` would become a side channel
that tells the reader what was hidden, and if it saw which are hidden, it would cut around these instead of where text
can do without. In scripts without spaces, a lexicon teaches level 0's instead (`zonkey_core.model.lexicon`).

Above bytes it follows a *guide*, which knows from the ends of documents where segments begin
(`zonkey_core.training.document_guide`).

Shapes: positions [B, L], embedded [B, L, width]; `p` [B, L]; a line of T' places, in which units have gaps between
rows.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.hash_embeddings import OwnedNgramVectors
from zonkey_core.model.ngram_tables import NGRAM_ORDERS
from zonkey_core.model.positions import PositionEmbedding, PositionSequence
from zonkey_core.model.unit_rows import NO_UNIT, UnitRows, spaced_apart, unit_rows
from zonkey_core.model.units import byte_reach

LEFT_OUT = 0.2
"""Share of the n-grams of more than one unit that are left out where that is asked for."""
NEVER = -30.0
"""The start logit where no unit begins."""


class Splits(NamedTuple):
    """What the splitter says of a batch of rows."""

    start_prob: Tensor
    """[B, L], exactly 1 at document starts and in padding, and 0 where no cut is allowed."""
    start_logits: Tensor
    """[B, L], before those two constraints."""


class SegmentSplitter(nn.Module):
    """Convolutions over embedded positions, one start logit for each; only units have a table, of `ngram_rows` rows."""

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
        self.embedding = None if channels is None else PositionEmbedding(channels, width)
        self.ngrams = OwnedNgramVectors(NGRAM_ORDERS, ngram_rows, width) if channels is None else None
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, 1)
        self.spread = layers * (kernel // 2)
        """Positions on either side, or units, that a probability depends on beside the n-grams that end there."""
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, -math.log(segment_length - 1))

    @property
    def reach(self) -> int:
        """Positions on either side that a probability depends on."""
        if self.ngrams is None:
            return self.spread
        return byte_reach(self.gap)

    @property
    def gap(self) -> int:
        """Units on either side that the probability of one depends on."""
        return self.spread + max(NGRAM_ORDERS) - 1

    def forward(self, sequence: PositionSequence, *, apart: bool = False) -> Splits:
        """Probabilities and logits; padding counts as certain starts, so that it belongs to no segment.

        Where documents of bytes are read `apart`, none sees another, as if they were rows of their own.
        """
        exists = sequence.exists_mask
        forced = sequence.document_mask | ~exists
        forced[:, 0] = True
        if self.embedding is not None:
            logits = self._convolved(self.embedding(sequence.values), exists)
            return Splits(logits.sigmoid().where(~forced, 1.0), logits)
        units = unit_rows(sequence)
        if apart:
            units = units._replace(rows=units.fresh_mask.long().cumsum(0))
        found = self.unit_logits(units)
        logits = found.new_full(exists.shape, NEVER).flatten().index_copy(0, units.offsets, found).view(exists.shape)
        allowed = torch.zeros_like(exists).flatten().index_fill(0, units.offsets, 1).view(exists.shape)
        return Splits((logits.sigmoid() * allowed).where(~forced, 1.0), logits)

    def unit_logits(self, units: UnitRows, generator: torch.Generator | None = None) -> Tensor:
        """[T] start logits of units; with a generator, some of their n-grams are left out by chance."""
        assert self.ngrams is not None
        line, places = spaced_apart(units, self.gap)
        given = None
        if generator is not None:
            given = torch.rand(1, len(line), len(NGRAM_ORDERS), generator=generator).to(line.device) >= LEFT_OUT
            given[..., 0] = True
        return self._convolved(self.ngrams(line[None], given), line[None] != NO_UNIT)[0, places]

    def split_units(self, units: UnitRows, generator: torch.Generator | None = None) -> Splits:
        """Probabilities and logits [T] of units; certain where a row or a document begins.

        With a generator, some of their n-grams are left out by chance, as text that the splitter does not know has some
        that it has never met.
        """
        logits = self.unit_logits(units, generator)
        return Splits(logits.sigmoid().where(~units.fresh_mask, 1.0), logits)

    def _convolved(self, embedded: Tensor, exists: Tensor) -> Tensor:
        """[B, L] start logits of embedded positions."""
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
        logits: Tensor = self.head(self.norm(states.squeeze(2).transpose(1, 2))).squeeze(-1).float()
        return logits

    @torch.no_grad()
    def shift(self, logit: float) -> None:
        """Lower every start logit by `logit`, also within a context of autocast, which keeps what it has cast."""
        self.head.bias.sub_(logit)
        torch.clear_autocast_cache()


def frozen_copy(splitter: SegmentSplitter) -> SegmentSplitter:
    """A copy that does not learn, and that a saved model does without: its parameters are buffers."""
    copied = copy.deepcopy(splitter)
    for module in copied.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=False)
    return copied


def hide_units(units: UnitRows, rate: float, generator: torch.Generator) -> tuple[Tensor, UnitRows]:
    """Hide each unit with probability `rate`: a mask [T], and units that do not tell what it hides.

    In place of a hidden one stands a visible one of the same row, so that it does not stand out where the rows of a
    batch are of different scripts. A row that would be hidden whole is not hidden.
    """
    device = units.keys.device
    hidden = (torch.rand(units.keys.shape, generator=generator) < rate).to(device)
    rows = int(units.rows[-1]) + 1 if len(units.rows) else 0
    counts = torch.bincount(units.rows[~hidden], minlength=rows)
    hidden &= counts[units.rows] > 0
    visible = units.keys[~hidden]
    counts = torch.bincount(units.rows[~hidden], minlength=rows)
    first = counts.cumsum(0) - counts
    row = units.rows[hidden]
    chance = torch.rand(len(row), generator=generator).to(device)
    drawn = first[row] + torch.minimum((chance * counts[row]).long(), counts[row] - 1)
    return hidden, units._replace(keys=units.keys.index_put((hidden,), visible[drawn]))


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
