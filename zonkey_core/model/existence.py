"""Existence: the one process under segments, attention, decoding and length (paper, "existence probability").

With `p_i` the probability that position *i* begins a segment and `C_i = sum_{j<=i} log(1 - p_j)`, the probability
that *i* still belongs to a segment begun at *s* is `e(s, i) = exp(C_i - C_s)`. It is 1 at the start, never rises,
and the starts partition every position: `sum_{s<=i} p_s e(s, i) = 1` when `p_0 = 1`.

Logarithms are kept, in float32 or better, and a certain start counts as `LOG_FLOOR` instead of minus infinity, so
that differences of cumulative sums stay finite. `exp(LOG_FLOOR)` is far below one unit in the last place of 1, so
sums over positions are unaffected by what lies beyond a certain start.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zonkey_core.model.window_limit import forced_starts

LOG_FLOOR = -60.0


def log_continue_prob(start_prob: Tensor) -> Tensor:
    """`log(1 - p)` in at least float32, bounded below by `LOG_FLOOR`. Any shape."""
    wide = start_prob if start_prob.dtype == torch.float64 else start_prob.float()
    return torch.log1p(-wide.clamp(max=1 - torch.finfo(wide.dtype).eps / 2)).clamp(min=LOG_FLOOR).where(
        wide < 1, LOG_FLOOR
    )


def cumulative_log_continue(start_prob: Tensor) -> Tensor:
    """`C` over the last axis: [..., L] probabilities to [..., L] cumulative logarithms."""
    return log_continue_prob(start_prob).cumsum(-1)


def window_log_existence(cumulative: Tensor, starts: Tensor, window: int) -> Tensor:
    """`log e(s, s + k)` for `k < window`.

    cumulative: [B, L] from `cumulative_log_continue`; starts: [B, M] positions. Returns [B, M, window];
    positions past the end of the row have `LOG_FLOOR`.
    """
    length = cumulative.shape[-1]
    index = starts.unsqueeze(-1) + torch.arange(window, device=starts.device)
    inside = index < length
    flat = index.clamp(max=length - 1).flatten(1)
    log_existence = cumulative.gather(1, flat).view(index.shape) - cumulative.gather(1, starts).unsqueeze(-1)
    return log_existence.where(inside, LOG_FLOOR).clamp(min=LOG_FLOOR)


def decoded_log_existence(start_logits: Tensor) -> Tensor:
    """Existence of a decoded window from its own predicted starts.

    start_logits: [..., S], the logit of "a new segment begins here"; the entry at 0 is ignored because a window
    exists where it begins. Returns [..., S], 0 at position 0 and never rising.
    """
    wide = start_logits if start_logits.dtype == torch.float64 else start_logits.float()
    log_continue = -torch.nn.functional.softplus(wide)
    first = torch.zeros_like(log_continue[..., :1])
    return torch.cat([first, log_continue[..., 1:]], -1).cumsum(-1).clamp(min=LOG_FLOOR)


def sample_starts(start_prob: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a segmentation: [B, L] probabilities to a [B, L] mask of starts; the first position always starts.

    A start at *s* whose segment reaches *i* has probability `p_s e(s, i)`, so a mean over draws is the expectation
    over segmentations.
    """
    noise = torch.rand(start_prob.shape, generator=generator, device=generator.device)
    mask = noise.to(start_prob.device) < start_prob
    mask[..., 0] = True
    return mask


def limit_segment_length(start_mask: Tensor, allowed_mask: Tensor, window: int) -> Tensor:
    """Add `forced_starts` to every row of [B, L] masks, in one copy to the CPU and back."""
    result = start_mask.cpu().numpy().copy()
    for row, allowed in zip(result, allowed_mask.cpu().numpy(), strict=True):
        row[forced_starts(np.append(np.flatnonzero(row), len(row)), allowed, window)] = True
    return torch.from_numpy(result).to(start_mask.device)
