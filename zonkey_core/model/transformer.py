"""Transformer blocks with Probabilistic Attention.

Pre-normalised residual blocks. Positions enter either as rotary phases (documents, where only distance matters) or
as embeddings that the caller adds (windows, where the distance from the segment's start matters).
Shapes: activations [B, L, D]; attention biases [B, 1, L, L].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zonkey_core.model.attention import DocumentBias, attend, prepare_bias


def rotary_phases(positions: Tensor, head_width: int, *, base: float = 1000.0) -> Tensor:
    """Cosines and sines of positions [L] or [B, L], stacked: [2, L or B by 1 by L, head_width / 2] in float32."""
    rates = base ** -(torch.arange(0, head_width, 2, device=positions.device).float() / head_width)
    angles = positions.float().unsqueeze(-1) * rates
    if positions.dim() == 2:
        angles = angles.unsqueeze(1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(heads: Tensor, phases: Tensor) -> Tensor:
    """Turn [B, H, L, D/H] queries or keys by their positions."""
    cosine, sine = phases.to(heads.dtype)
    even, odd = heads.chunk(2, -1)
    return torch.cat([even * cosine - odd * sine, even * sine + odd * cosine], -1)


class Block(nn.Module):
    """One pre-normalised layer: Probabilistic Attention, then a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.forgets = False
        """Whether what it computes is not kept for the way back, but computed anew there."""
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feedforward_norm = nn.LayerNorm(width, bias=False)
        self.feedforward_in = nn.Linear(width, 4 * width)
        self.feedforward_out = nn.Linear(4 * width, width)

    def forward(
        self,
        states: Tensor,
        bias: Tensor | DocumentBias | None,
        phases: Tensor | None = None,
        keep: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
        first: int | None = None,
    ) -> Tensor:
        """[B, L, D] to the same shape, or to the `first` positions alone, which is what they are without it.

        `keep` turns keys and values [B, H, L, D/H] into all that are attended to.
        """
        if not (self.forgets and torch.is_grad_enabled() and keep is None):
            return self._compute(states, bias, phases, keep, first)
        result: Tensor = checkpoint(
            self._compute, states, bias, phases, None, first, use_reentrant=False, preserve_rng_state=False
        )
        return result

    def _compute(
        self,
        states: Tensor,
        bias: Tensor | DocumentBias | None,
        phases: Tensor | None,
        keep: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None,
        first: int | None,
    ) -> Tensor:
        batch, length, _ = states.shape
        joint = self.attention_in(self.attention_norm(states))
        queries, keys, values = joint.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if phases is not None:
            queries, keys = rotate(queries, phases), rotate(keys, phases)
        if keep is not None:
            keys, values = keep[0](keys), keep[1](values)
        if first is not None:
            queries, states = queries[:, :, :first], states[:, :first]
            bias = bias[:, :, :first] if isinstance(bias, Tensor) else bias
        mixed = attend(queries, keys, values, bias).transpose(1, 2).flatten(2)
        states = states + self.attention_out(mixed)
        hidden = self.feedforward_in(self.feedforward_norm(states))
        hidden = functional.silu(hidden, inplace=not torch.is_grad_enabled())
        result: Tensor = states + self.feedforward_out(hidden)
        return result


def forget_activations(module: nn.Module) -> None:
    """Let every block in a module compute its inner states anew on the way back, instead of keeping them in memory."""
    for block in module.modules():
        if isinstance(block, Block):
            block.forgets = True


def soften_outputs(blocks: nn.ModuleList) -> None:
    """Start a stack of blocks with outputs that are the smaller the more of them are added up."""
    for block in blocks:
        assert isinstance(block, Block)
        for layer in (block.attention_out, block.feedforward_out):
            nn.init.normal_(layer.weight, std=(2 * len(blocks) * layer.in_features) ** -0.5)


class Transformer(nn.Module):
    """A stack of blocks under one bias; with `rotary`, positions are relative."""

    def __init__(self, width: int, heads: int, layers: int, *, rotary: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head_width = width // heads
        self.rotary = rotary
        soften_outputs(self.blocks)

    def forward(self, states: Tensor, bias: Tensor | DocumentBias | None, first: int | None = None) -> Tensor:
        """[B, L, D] to the same shape, or to the `first` positions alone: the last block computes no others."""
        phases = None
        if self.rotary:
            phases = rotary_phases(torch.arange(states.shape[1], device=states.device), self.head_width)
        prepared = prepare_bias(bias, states)
        *inner, last = self.blocks
        for block in inner:
            states = block(states, prepared, phases)
        result: Tensor = last(states, prepared, phases, first=first)
        return result
