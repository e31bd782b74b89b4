"""Stitcher: joins overlapping windows so that the result does not depend on the overlap (paper, "Stitcher").

A window runs past the next segment's start while its existence decays. Where the next window starts within it is
inferred from

    P(start = n) ~ (e_{n-1} - e_n) exp(w match(n)),

the loss of existence at n times how well the next window agrees with what this one says from n on. `match(n)` is
minus the number of disagreements between positions that exist, so agreement is never a reason to prefer a longer
overlap. Every pair of neighbours is compared at once; the offsets' sum gives each window its place, and the overlap is
merged by existence.

Shapes: contents [M, S, V] (symbol probabilities, or latents), log existence [M, S], window existence [M].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MATCH_WEIGHT = 8.0


class Stitched(NamedTuple):
    """A sequence of positions and how sure each is."""

    contents: Tensor
    """[L, V] mixture of the windows that cover each position."""
    existence: Tensor
    """[L] the largest existence that a window gives the position."""
    starts: Tensor
    """[M'] where each window that exists begins."""
    kept: Tensor
    """[M'] indices of the windows that exist."""


def disagreement(first: Tensor, second: Tensor, *, symbols: bool) -> Tensor:
    """How much two contents differ at aligned positions, 0 to 1: [..., V] twice to [...].

    Symbol probabilities differ by `1 - sum sqrt(p q)`: two windows that are equally unsure agree fully.
    """
    if symbols:
        return 1 - (first * second).sqrt().sum(-1).clamp(max=1)
    return (1 - functional.cosine_similarity(first, second, dim=-1)).clamp(0, 1)


def start_scores(
    contents: Tensor, log_existence: Tensor, *, symbols: bool, match_weight: float = MATCH_WEIGHT
) -> Tensor:
    """`log P(start of window m+1 = n)` within window m, up to a constant: [M - 1, S + 1] for n = 0..S.

    A start at n = 0 is impossible, since a window exists where it begins; n = S is the window's full length.
    """
    existence = log_existence.exp()
    before, after = existence[:-1], existence[1:]
    ended = functional.pad(before, (0, 1))
    loss = (ended[:, :-1] - ended[:, 1:]).clamp(min=0)
    window = contents.shape[1]
    scores = []
    for offset in range(1, window + 1):
        overlap = window - offset
        differs = disagreement(contents[:-1, offset:], contents[1:, :overlap], symbols=symbols)
        together = before[:, offset:] * after[:, :overlap]
        mismatch = (together * differs).sum(-1)
        scores.append(loss[:, offset - 1].clamp(min=1e-30).log() - match_weight * mismatch)
    impossible = torch.full_like(scores[0], -torch.inf)
    return torch.stack([impossible, *scores], -1)


def stitch(
    contents: Tensor,
    log_existence: Tensor,
    window_existence: Tensor,
    *,
    symbols: bool,
    match_weight: float = MATCH_WEIGHT,
    sizes: Tensor | None = None,
) -> Stitched:
    """Join windows in order; windows with an existence of one half or less are as if they were not there.

    Each begins where `P(start)` is highest within the one before it, and the sequence ends where the last window's
    existence falls to one half; or, where `sizes` [M] are given, each is as long as they say.
    """
    kept = (window_existence > 0.5).nonzero().flatten()
    contents, log_existence = contents[kept].float(), log_existence[kept].float()
    if not kept.numel():
        return Stitched(contents.new_zeros(0, contents.shape[-1]), contents.new_zeros(0), kept, kept)
    existence = log_existence.exp()
    window = contents.shape[1]
    if sizes is None:
        offsets = start_scores(contents, log_existence, symbols=symbols, match_weight=match_weight).argmax(-1)
        last = int((existence[-1] > 0.5).sum())
    else:
        offsets, last = sizes[kept][:-1], int(sizes[kept][-1])
    starts = functional.pad(offsets, (1, 0)).cumsum(0)
    length = int(starts[-1]) + last
    place = starts.unsqueeze(-1) + torch.arange(window, device=contents.device)
    weight = existence.where(place < length, 0).clamp(min=1e-12).where(place < length, 0)
    flat_place = place.clamp(max=max(length - 1, 0)).flatten()
    total = contents.new_zeros(length).index_add(0, flat_place, weight.flatten())
    mixed = contents.new_zeros(length, contents.shape[-1]).index_add(
        0, flat_place, (contents * weight.unsqueeze(-1)).flatten(0, 1)
    )
    strongest = contents.new_zeros(length).scatter_reduce(0, flat_place, weight.flatten(), "amax")
    return Stitched(mixed / total.clamp(min=1e-12).unsqueeze(-1), strongest.clamp(max=1), starts, kept)
