"""Segment Splitter: the learned, differentiable tokenizer (paper, "Segment Splitter").

A small convolution network gives every position the probability `p` that a segment begins there. It learns from a
masked-modelling loss: a *reader* fills hidden positions and may look only within its own segment (bias
`-|C_q - C_k|`), so with the number of cuts fixed, cuts settle where the two sides tell least about each other.
Both splitter and reader see the *masked* sequence only; if the splitter saw the clean one, `p` would become a side
channel that tells the reader what was hidden.

Shapes: positions [B, L, width] embedded by the level; `p` [B, L].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.attention import DocumentBias
from zonkey_core.existence import cumulative_log_continue
from zonkey_core.transformer import Transformer


class Splits(NamedTuple):
    """What the splitter says of a batch of rows."""

    start_prob: Tensor
    """[B, L], exactly 1 at document starts and in padding, and 0 where no cut is allowed."""
    start_logits: Tensor
    """[B, L], before those two constraints."""


class SegmentSplitter(nn.Module):
    """Convolutions over embedded positions, one start logit for each."""

    def __init__(self, width: int, kernel: int, layers: int, segment_length: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, 1)
        self.reach = layers * (kernel // 2)
        """Positions on either side that a probability depends on."""
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, -math.log(segment_length - 1))

    def forward(
        self, embedded: Tensor, exists_mask: Tensor, *, allowed_mask: Tensor, forced_mask: Tensor
    ) -> Splits:
        """embedded [B, L, width]; masks [B, L]: not padding, where a cut is allowed, and where one is certain."""
        states = embedded.transpose(1, 2)
        for index, convolution in enumerate(self.convolutions):
            update = functional.silu(convolution(states * exists_mask.unsqueeze(1)))
            states = update if index == 0 else states + update
        logits = self.head(self.norm(states.transpose(1, 2))).squeeze(-1).float()
        start_prob = logits.sigmoid() * allowed_mask
        return Splits(start_prob.where(~forced_mask, 1.0), logits)


class SegmentReader(nn.Module):
    """The masked-modelling Transformer that teaches the splitter; each position sees its own segment alone."""

    def __init__(self, width: int, heads: int, layers: int, span: int) -> None:
        super().__init__()
        self.span = span
        self.transformer = Transformer(width, heads, layers, rotary=True)
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, embedded: Tensor, start_prob: Tensor) -> Tensor:
        """embedded [B, L, width] and starts [B, L] to states [B, L, width], read in spans of at most `span`."""
        batch, length, width = embedded.shape
        span = min(self.span, length)
        padding = -length % span
        embedded = functional.pad(embedded, (0, 0, 0, padding)).view(-1, span, width)
        start_prob = functional.pad(start_prob, (0, padding), value=1.0).view(-1, span)
        bias = DocumentBias(cumulative_log_continue(start_prob))
        states: Tensor = self.norm(self.transformer(embedded, bias))
        return states.view(batch, length + padding, width)[:, :length]


def hide_positions(shape: torch.Size, rate: float, generator: torch.Generator) -> Tensor:
    """A mask of hidden positions, each with probability `rate`."""
    return torch.rand(shape, generator=generator) < rate
