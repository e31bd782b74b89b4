"""Transformer blocks with Probabilistic Attention.

Pre-normalised residual blocks. Positions enter either as rotary phases (documents, where only distance matters) or
as embeddings that the caller adds (windows, where the distance from the segment's start matters).
Shapes: activations [B, L, D]; attention biases [B, 1, L, L].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.attention import DocumentBias, attend, prepare_bias


def rotary_phases(length: int, head_width: int, *, device: torch.device, base: float = 1000.0) -> Tensor:
    """Cosines and sines of rotary positions, stacked: [2, length, head_width / 2] in float32."""
    rates = base ** -(torch.arange(0, head_width, 2, device=device).float() / head_width)
    angles = torch.arange(length, device=device).float().unsqueeze(-1) * rates
    return torch.stack([angles.cos(), angles.sin()])


def rotate(heads: Tensor, phases: Tensor) -> Tensor:
    """Turn [B, H, L, D/H] queries or keys by their positions."""
    cosine, sine = phases.to(heads.dtype)
    even, odd = heads.chunk(2, -1)
    return torch.cat([even * cosine - odd * sine, even * sine + odd * cosine], -1)


class Block(nn.Module):
    """One pre-normalised layer: Probabilistic Attention, then a feed-forward network."""

    def __init__(self, width: int, heads: int, *, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feedforward_norm = nn.LayerNorm(width, bias=False)
        self.feedforward_in = nn.Linear(width, expansion * width)
        self.feedforward_out = nn.Linear(expansion * width, width)

    def forward(
        self, states: Tensor, bias: Tensor | DocumentBias | None, phases: Tensor | None = None
    ) -> Tensor:
        batch, length, width = states.shape
        joint = self.attention_in(self.attention_norm(states))
        queries, keys, values = joint.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if phases is not None:
            queries, keys = rotate(queries, phases), rotate(keys, phases)
        mixed = attend(queries, keys, values, bias).transpose(1, 2).reshape(batch, length, width)
        states = states + self.attention_out(mixed)
        hidden = functional.silu(self.feedforward_in(self.feedforward_norm(states)))
        result: Tensor = states + self.feedforward_out(hidden)
        return result


class Transformer(nn.Module):
    """A stack of blocks under one bias; with `rotary`, positions are relative."""

    def __init__(self, width: int, heads: int, layers: int, *, rotary: bool, expansion: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, expansion=expansion) for _ in range(layers))
        self.head_width = width // heads
        self.rotary = rotary
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (block.attention_out, block.feedforward_out):
                nn.init.normal_(layer.weight, std=(2 * layers * layer.in_features) ** -0.5)

    def forward(self, states: Tensor, bias: Tensor | DocumentBias | None) -> Tensor:
        phases = None
        if self.rotary:
            phases = rotary_phases(states.shape[1], self.head_width, device=states.device)
        bias = prepare_bias(bias, states)
        for block in self.blocks:
            states = block(states, bias, phases)
        return states
