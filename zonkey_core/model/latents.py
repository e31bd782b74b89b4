"""Latent vectors live on the sphere of radius sqrt(C), so each coordinate has unit mean square."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROWS_TOGETHER = 512
"""Queries whose distributions over a table are held at once; larger ones leave the cache."""


def to_sphere(latents: Tensor) -> Tensor:
    """Scale [..., C] vectors to the radius sqrt(C), in float32."""
    wide = latents.float()
    scaled: Tensor = functional.normalize(wide, dim=-1, eps=1e-6) * wide.shape[-1] ** 0.5
    return scaled


def nearest_rows(latents: Tensor, table: Tensor) -> Tensor:
    """[n] which of the vectors of a table [K, C], all on one sphere, are nearest to latents [n, C]."""
    with torch.autocast(latents.device.type, enabled=False):
        return torch.cat([(part.float() @ table.T).argmax(-1) for part in torch.split(latents, ROWS_TOGETHER)])


def product_dtype(factor: Tensor) -> torch.dtype:
    """The precision in which a tensor is multiplied: that of the autocast, if any, else its own."""
    kind = factor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else factor.dtype


class _ChoiceNats(torch.autograd.Function):
    """`-log softmax(queries table^T + bias)` of chosen entries, row by row; the queries' gradient is made on the way.

    The distributions of some rows at a time stay in the cache and are never written out.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, *inputs: Tensor) -> Tensor:
        queries, entries, table, bias = inputs
        dtype = product_dtype(queries)
        table = table.to(dtype)
        nats, slopes = [queries.new_zeros(0)], [queries.new_zeros(0, queries.shape[1])]
        for part, chosen in zip(torch.split(queries, ROWS_TOGETHER), torch.split(entries, ROWS_TOGETHER), strict=True):
            log_prob = ((part.to(dtype) @ table.T).float() + bias).log_softmax(-1)
            rows = torch.arange(len(part), device=part.device)
            nats.append(-log_prob[rows, chosen])
            prob = log_prob.exp_()
            prob[rows, chosen] -= 1
            slopes.append((prob.to(dtype) @ table).to(queries.dtype))
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(nats)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0].unsqueeze(1) * slopes, None, None, None


def choice_nats(queries: Tensor, entries: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    """[K] nats of the entries [K] of a table [J, C] that a softmax gives over its products with queries [K, C] and the
    bias [J].

    Neither table nor bias is differentiated.
    """
    nats: Tensor = _ChoiceNats.apply(  # type: ignore[no-untyped-call]
        queries, entries, table.detach(), bias.detach()
    )
    return nats


def contrastive_loss(estimate: Tensor, target: Tensor, bank: Tensor, *, sharpness: float = 12.0) -> Tensor:
    """Cross-entropy of picking the target out of a bank of real latents, per estimate: [K, C] to [K].

    `-log sum_{j same as i} exp(l_ij) / sum_j exp(l_ij)` with `l_ij = sharpness cos(estimate_i, bank_j)`. The bank
    [J, C] holds the targets [K, C] themselves; entries that equal a target (cosine above 0.999) share its
    probability, so that frequent latents are not each other's negatives. A target of zeros, which is padding, costs
    nothing. Targets and bank are not differentiated.
    Products are in float32 whatever the autocast, because bfloat16 cannot tell a cosine of 0.999 from 1.
    """
    with torch.autocast(estimate.device.type, enabled=False):
        unit_bank = functional.normalize(bank.detach().float(), dim=-1)
        logits = sharpness * functional.normalize(estimate.float(), dim=-1) @ unit_bank.T
        unit_target = functional.normalize(target.detach().float(), dim=-1)
        same = unit_target @ unit_bank.T > 0.999
        is_latent = same.any(-1)
        matched = logits.masked_fill(~(same | ~is_latent.unsqueeze(-1)), -torch.inf)
        return torch.logsumexp(logits, -1) - torch.logsumexp(matched, -1)
