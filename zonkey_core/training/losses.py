"""Losses as free functions; each docstring gives the formula. All are computed in float32.

Means are over the whole batch, also where several processes share it (`processes.mean_over`). So every process calls
these functions equally often, whatever its rows hold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.training.processes import global_sum, mean_over, over_all

RATES = ((1.0, 1.0), (12.0, 0.5), (150.0, 0.3))
"""By what odds of starts are multiplied where cuts are learned for more than one rate, and the weight of each."""


def rate_penalty(start_prob: Tensor, exists_mask: Tensor, rate: float | Tensor) -> Tensor:
    """`100 (mean p - rate)^2` over existing positions of [B, L]."""
    mean = mean_over((start_prob * exists_mask).sum(), exists_mask.sum())
    return 100 * (mean - rate).square()


def uncertainty_penalty(start_prob: Tensor, exists_mask: Tensor) -> Tensor:
    """`mean p (1 - p)`: the variance of a drawn segmentation, per existing position of [B, L]."""
    return mean_over((start_prob * (1 - start_prob) * exists_mask).sum(), exists_mask.sum())


def existence_loss(start_logits: Tensor, start_prob: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of predicted starts against the splitter's, `-p log p^ - (1-p) log(1-p^)`, weighted.

    All of one shape; the weight at k is the existence at k - 1, the probability that the question arises at all.
    """
    loss = functional.binary_cross_entropy_with_logits(start_logits.float(), start_prob, reduction="none")
    return mean_over((loss * weight).sum(), weight.sum())


def existence_loss_at_rates(start_logits: Tensor, start_prob: Tensor, weight: Tensor) -> Tensor:
    """The same summed over `RATES`, with the odds of both multiplied, as if cuts were asked for at lower thresholds.

    So those that are likelier than others, but not likely, are told as well as the splitter's own.
    """
    losses = []
    for odds, share in RATES:
        raised = start_prob * odds / (1 - start_prob + start_prob * odds)
        losses.append(share * existence_loss(start_logits + math.log(odds), raised, weight))
    return torch.stack(losses).sum()


def expected_segment_sum(
    position_loss: Tensor, log_existence: Tensor, start_prob: Tensor, baseline: Tensor | float
) -> Tensor:
    """Estimate `sum_s p_s sum_k e(s, s+k) loss(s, k)` from the starts of a drawn segmentation, without bias.

    position_loss, log_existence: [M, S] for M drawn starts with probability start_prob [M]. A drawn start already
    occurs with probability p_s, so it weighs `p_s / stopgrad(p_s)`: 1 in value, with the gradient of the
    expectation. The baseline is subtracted in that gradient alone. A constant leaves its expectation as it is,
    because the starts partition every position, and lowers its variance.
    """
    existence = log_existence.exp()
    above = (position_loss - baseline).detach()
    score = start_prob.clamp(min=1e-6).log()
    score = score - score.detach()
    decay = ((existence - existence.detach()) * above).sum()
    value = (existence.detach() * position_loss).sum()
    return value + decay + (score * (existence.detach() * above).sum(-1)).sum()


def expected_segment_loss(position_loss: Tensor, log_existence: Tensor, start_prob: Tensor) -> Tensor:
    """`expected_segment_sum` per position that the drawn segments hold, which is L in expectation.

    Its baseline is the mean loss, so this has the gradient of a ratio of expectations: a bias of the order of one
    position in all of them. Call it once for all segments of a batch; parts with a mean each would bias the starts.
    """
    existence = log_existence.detach().exp()
    mean = mean_over((existence * position_loss.detach()).sum(), existence.sum())
    return mean_over(expected_segment_sum(position_loss, log_existence, start_prob, mean), existence.sum())


def latent_regression(estimate: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """`sum_i w_i mean_c (estimate - target)^2 / sum_i w_i` for [M, C] latents and [M] weights."""
    error = (estimate.float() - target.float()).square().mean(-1)
    return mean_over((error * weight).sum(), weight.sum(), least=1e-6)


def spread_penalty(latents: Tensor, *, least: float = 0.7, weight: float = 4.0) -> Tensor:
    """`w mean_c max(0, least - std_c)` over [K, C] latents: that no coordinate says the same of everything."""
    latents = latents.float()
    count = over_all(torch.tensor(float(len(latents)), device=latents.device))
    mean = over_all(latents.sum(0)) / count.clamp(min=1)  # its gradient would be nothing, over all of them
    variance = global_sum((latents - mean).square().sum(0)) / (count - 1).clamp(min=1)
    penalty = weight * functional.relu(least - (variance + 1e-4).sqrt()).mean()
    return penalty if count >= 2 else latents.sum() * 0
