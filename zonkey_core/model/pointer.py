"""Copying: an open slot may hold what a known slot holds.

Names and themes come back in a text, and a softmax over a vocabulary knows only what text is like on the whole. So a
reading also points at the slots that it sees, and takes what one of them holds with a probability of its own, as in
"Pointer Sentinel Mixture Models" (Merity et al. 2017):

    P(v) = (1 - g) softmax_v + g sum_k w_k [slot k holds v].

Shapes: B rows of L readings, n of them asking, states of width D, latents of width C.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.kv_cache import KVCache

POINTER_WIDTH = 64
"""Width of the vectors whose products say where a reading points."""
NEVER = -1e9
"""Logarithm of a share that is none, finite so that no gradient is lost in it."""
SELDOM = -3.0
"""Logit of the share that is copied, before training."""


class Copies(NamedTuple):
    """From which slots readings copy, and how often."""

    log_shares: Tensor
    """[B, n, L] log-probability that what is asked is a copy of what a reading of the row holds, float32."""
    log_rest: Tensor
    """[B, n] log-probability that it is none."""

    def log_copied(self, held: Tensor, wanted: Tensor) -> Tensor:
        """[B, n] log-probability that what is asked is a copy, and of an entry `wanted` [B, n].

        held [B, L]: the entry that each reading holds, -1 where it holds none.
        """
        same = held.unsqueeze(1) == wanted.unsqueeze(2)
        return self.log_shares.masked_fill(~same, NEVER).logsumexp(-1)


def with_copies(prob: Tensor, log_shares: Tensor, log_rest: Tensor, held: Tensor) -> Tensor:
    """[n, K] probabilities of entries, from those that a vocabulary gives [n, K] and what is copied.

    log_shares [n, L], log_rest [n]: of n answers, as in `Copies`; held [n, L]: entries, -1 for none.
    """
    told = prob * log_rest.exp().unsqueeze(1)
    return told.scatter_add_(1, held.clamp(min=0), log_shares.exp())


class Pointer(nn.Module):
    """Says from which of the slots that are held a reading copies."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.queries = nn.Linear(width, POINTER_WIDTH, bias=False)
        self.keys = nn.Linear(width + channels, POINTER_WIDTH, bias=False)
        self.gate = nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, SELDOM)

    def forward(self, states: Tensor, known: Tensor, held_mask: Tensor, cache: KVCache | None) -> Copies:
        """From states [B, n, D] and the latents [B, n, C] that they hold.

        held_mask [B, n, L]: which readings of the row hold a slot that each one sees.
        """
        keys = self.keys(torch.cat([states, known.to(states.dtype)], -1))
        if cache is not None:
            keys = cache.keep("pointer", keys.unsqueeze(1)).squeeze(1)
        scores = (self.queries(states) @ keys.transpose(1, 2)).float() * POINTER_WIDTH**-0.5
        weights = scores.masked_fill(~held_mask, NEVER).log_softmax(-1)
        any_mask = held_mask.any(-1)
        gate = self.gate(states).squeeze(-1).float()
        log_share = functional.logsigmoid(gate).masked_fill(~any_mask, NEVER)
        log_rest = functional.logsigmoid(-gate).masked_fill(~any_mask, 0.0)
        return Copies((weights + log_share.unsqueeze(-1)).masked_fill(~held_mask, NEVER), log_rest)
