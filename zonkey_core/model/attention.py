"""Probabilistic Attention: attention over positions that exist only with some probability (paper, "Probabilistic
Attention").

For query *q* and key *k* the logit gains `log e_k - log e_q` when `k > q` and nothing when `k <= q`: a later key
counts as much as the probability that it exists, given that the query does. Over a whole document the same rule
between positions of different segments is the bias `-|C_q - C_k|`.

Shapes: queries, keys, values [B, H, L, D/H]; log existence [B, L]; biases [B, 1, L, L], shared by the heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.model.existence import LOG_FLOOR

PLAIN_LENGTH = 256
"""Keys up to which plain matrix products over all rows are the fastest path on a CPU."""
ROWS_LENGTH = 2048
"""Keys up to which such products row by row are; the fused kernel is, beyond."""
FLEX_LENGTH = 1024
"""Positions from which a GPU computes document biases inside the attention kernel instead of storing them."""


def window_bias(log_existence: Tensor) -> Tensor:
    """Bias within one segment's window: [B, L] log existence, never rising, to [B, 1, L, L]."""
    wide = log_existence.clamp(min=LOG_FLOOR)
    ratio = wide.unsqueeze(-2) - wide.unsqueeze(-1)
    return ratio.triu(1).clamp(max=0).unsqueeze(1)


class DocumentBias(NamedTuple):
    """Bias between the positions of a document, "in the same segment", `-|C_q - C_k|`, not yet spelled out."""

    cumulative: Tensor
    """[B, L] values of `C`."""
    absent: Tensor | None = None
    """[B, L] `LOG_FLOOR` where there is no position to attend to, else 0."""

    def dense(self) -> Tensor:
        """The bias as [B, 1, L, L]."""
        bias = document_bias(self.cumulative)
        return bias if self.absent is None else bias + self.absent[:, None, None, :]


def document_bias(cumulative: Tensor) -> Tensor:
    """[B, L] values of `C` to the bias [B, 1, L, L]."""
    return -(cumulative.unsqueeze(-2) - cumulative.unsqueeze(-1)).abs().unsqueeze(1)


def attend_document(
    queries: Tensor, keys: Tensor, values: Tensor, bias: DocumentBias, kernel: Callable[..., Tensor]
) -> Tensor:
    """Attention that computes a document's bias as it goes, so that nothing of size L x L is stored."""
    cumulative, absent = bias

    def score(logit: Tensor, batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        biased = logit - (cumulative[batch, query] - cumulative[batch, key]).abs()
        return biased if absent is None else biased + absent[batch, key]

    return kernel(queries, keys, values, score_mod=score)


@functools.cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """The fused kernel, compiled when it is first needed; its module, too, takes a tenth of a second to import."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


def prepare_bias(bias: Tensor | DocumentBias | None, states: Tensor) -> Tensor | DocumentBias | None:
    """A bias in the form and dtype that `attend` takes fastest for these states [B, L, D], once for all layers."""
    if isinstance(bias, DocumentBias):
        if states.device.type == "cuda" and states.shape[1] >= FLEX_LENGTH:
            return bias
        bias = bias.dense()
    if bias is not None and torch.is_autocast_enabled(states.device.type):
        bias = bias.to(torch.get_autocast_dtype(states.device.type))
    return bias


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | DocumentBias | None) -> Tensor:
    """The fast path: attention with an additive bias [B or 1, 1 or H, L, L], in the dtype of the queries.

    On a CPU, plain matrix products beat the fused kernel up to `PLAIN_LENGTH` keys (3 times at 12 keys, bfloat16), and
    up to `ROWS_LENGTH` where no gradient is asked of the bias (1.8 times at 550 keys, the way back included);
    elsewhere the fused kernel is used, and for a `DocumentBias` one that computes the bias itself.
    """
    if isinstance(bias, DocumentBias):
        return attend_document(queries, keys, values, bias, compiled_flex_attention())
    mask = None if bias is None else bias.to(queries.dtype)
    on_cpu, length = queries.device.type == "cpu", keys.shape[-2]
    if on_cpu and length <= PLAIN_LENGTH:
        logits = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        mixed: Tensor = (logits if mask is None else logits + mask).softmax(-1) @ values
        return mixed
    if on_cpu and length <= ROWS_LENGTH and mask is not None and not mask.requires_grad:
        return attend_by_rows(queries, keys, values, mask.expand(len(queries), -1, -1, -1))
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


class _ByRows(torch.autograd.Function):
    """Attention with the weights of a row at a time, which stay in the cache and are computed anew on the way back."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        scaled = queries * queries.shape[-1] ** -0.5
        mixed = torch.empty_like(queries)
        for row, each in enumerate(values):
            mixed[row] = _row_weights(scaled[row], keys[row], bias[row]) @ each
        ctx.save_for_backward(scaled, keys, values, bias)
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        scaled, keys, values, bias = ctx.saved_tensors
        of_queries, of_keys, of_values = map(torch.empty_like, (scaled, keys, values))
        for row, each in enumerate(gradient):
            weights = _row_weights(scaled[row], keys[row], bias[row])
            of_values[row] = weights.mT @ each
            of_weights = each @ values[row].mT
            of_logits = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_queries[row] = of_logits @ keys[row]
            of_keys[row] = of_logits.mT @ scaled[row]
        return of_queries.mul_(scaled.shape[-1] ** -0.5), of_keys, of_values, None


def _row_weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """[H, n, L] of one row, whose queries are scaled."""
    return torch.baddbmm(bias.expand(len(queries), -1, -1), queries, keys.mT).softmax(-1)


attend_by_rows: Callable[..., Tensor] = _ByRows.apply
"""As `attend`, with a dense bias; `training.compiling` keeps it from a compiler, which would unroll the rows."""


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
