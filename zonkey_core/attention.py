"""Probabilistic Attention: attention over positions that exist only with some probability (paper, "Probabilistic
Attention").

For query *q* and key *k* the logit gains `log e_k - log e_q` when `k > q` and nothing when `k <= q`: a later key
counts as much as the probability that it exists, given that the query does. Over a whole document the same rule
between positions of different segments is the bias `-|C_q - C_k|`.

Shapes: queries, keys, values [B, H, L, D/H]; log existence [B, L]; biases [B, 1, L, L], shared by the heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.existence import LOG_FLOOR

PLAIN_LENGTH = 192


def window_bias(log_existence: Tensor) -> Tensor:
    """Bias within one segment's window: [B, L] log existence, never rising, to [B, 1, L, L]."""
    wide = log_existence.clamp(min=LOG_FLOOR)
    ratio = wide.unsqueeze(-2) - wide.unsqueeze(-1)
    return ratio.triu(1).clamp(max=0).unsqueeze(1)


def document_bias(cumulative: Tensor) -> Tensor:
    """Bias between the positions of a document, "in the same segment": [B, L] values of `C` to [B, 1, L, L]."""
    return -(cumulative.unsqueeze(-2) - cumulative.unsqueeze(-1)).abs().unsqueeze(1)


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """The fast path: attention with an additive bias [B, 1 or H, L, L], in the dtype of the queries.

    On a CPU, plain matrix products beat the fused kernel up to `PLAIN_LENGTH` keys (3 times at 12 keys, bfloat16);
    elsewhere the fused kernel is used.
    """
    mask = None if bias is None else bias.to(queries.dtype)
    if queries.device.type != "cpu" or keys.shape[-2] > PLAIN_LENGTH:
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    logits = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return (logits if mask is None else logits + mask).softmax(-1) @ values


def attend_reference(queries: Tensor, keys: Tensor, values: Tensor, existence_ratio: Tensor) -> Tensor:
    """The reference: plain matrices, where existence multiplies the exponential of the logit.

    existence_ratio: [B, 1, L, L], the probability that the key exists given the query (`exp` of a bias). Because
    nothing passes through a logarithm, gradients are finite at an existence of exactly 0.
    """
    logits = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    peak = logits.where(existence_ratio > 0, -torch.inf).amax(-1, keepdim=True).detach()
    weights = existence_ratio * torch.exp((logits - peak).clamp(max=80))
    return weights @ values / weights.sum(-1, keepdim=True)


def window_ratio(existence: Tensor) -> Tensor:
    """Reference form of `window_bias`: [B, L] existence to [B, 1, L, L] probabilities, exact at 0 and 1.

    To a query that does not exist itself, every key counts fully; nothing reads its answer.
    """
    query = existence.unsqueeze(-1)
    ratio = existence.unsqueeze(-2) / query.where(query > 0, 1)
    later = torch.ones_like(ratio).triu(1).bool()
    return ratio.where(later & (query > 0), 1).unsqueeze(1)
