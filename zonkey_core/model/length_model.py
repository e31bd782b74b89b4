"""Length model: how many slots there are from one on, as existence that decays over bins of distance.

A denoiser gives, for each bin, the probability `h` that the last slot lies in it, given that it does not lie before
(the hazard). As everywhere, existence is the product of `1 - h`: it starts at 1 and never rises. Bins are as wide as a
reader cares, single slots at first; within one, all counts are as likely. The last bin has no end and no hazard.

Shapes: n questions, E = `len(EDGES)` bins with a hazard.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EDGES = (
    1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
)  # fmt: skip
"""Where bins end: bin b holds the counts from `EDGES[b - 1]`, or 0, up to `EDGES[b] - 1`."""


def ending_losses(logits: Tensor, remaining: Tensor, certain_mask: Tensor) -> Tensor:
    """`-log p` of what is known of each count, in nats: [n].

    logits: [n, E] of the hazards; remaining: [n] counts; where `certain_mask` [n] is false there are at least as many,
    and what is told is that no bin before that one holds the last (a censored count).
    """
    edges = torch.tensor(EDGES, device=logits.device)
    which = torch.bucketize(remaining, edges, right=True)
    order = torch.arange(len(EDGES), device=logits.device)
    passed = order < which.unsqueeze(1)
    stopped = (order == which.unsqueeze(1)) & certain_mask.unsqueeze(1)
    wide = logits.float()
    return (functional.softplus(wide) * passed + functional.softplus(-wide) * stopped).sum(1)


def log_survival(logits: Tensor) -> Tensor:
    """`log e` at the bins' edges: [n, E] logits to [n, E], the log-probability that the count is `EDGES[b]` or more."""
    return -functional.softplus(logits.float()).cumsum(-1)


def usual_logits(counts: Tensor, certain_mask: Tensor, *, least: int) -> Tensor:
    """[E] logits of the hazards of counts [n], some of them censored (Kaplan and Meier 1958).

    NaN for bins that fewer than `least` of them reach.
    """
    edges = torch.tensor(EDGES, device=counts.device)
    which = torch.bucketize(counts, edges, right=True)
    order = torch.arange(len(EDGES), device=counts.device).unsqueeze(1)
    ended = ((which == order) & certain_mask).sum(1)
    reached = ended + (which > order).sum(1)
    hazard = (ended + 0.5) / (reached + 1)
    return torch.logit(hazard).masked_fill(reached < least, torch.nan)


def draw_counts(logits: Tensor, chance: Tensor) -> Tensor:
    """Counts [n] drawn by numbers [n] between 0 and 1; `EDGES[-1]` stands for any from there on."""
    survival = functional.pad(log_survival(logits).exp(), (1, 0), value=1.0)
    which = (survival[:, 1:] > chance.unsqueeze(1)).sum(1)
    edges = torch.tensor((0, *EDGES), device=logits.device)
    last = which.clamp(max=len(EDGES) - 1)
    begin, end = edges[last], edges[last + 1]
    high, low = (survival.gather(1, (last + after).unsqueeze(1)).squeeze(1) for after in (0, 1))
    share = (high - chance) / (high - low).clamp(min=1e-9)
    inside = begin + (share.clamp(0, 1 - 1e-6) * (end - begin)).long()
    return inside.where(which < len(EDGES), EDGES[-1])
