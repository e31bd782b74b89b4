"""Noise on rows of bytes, with where each noised byte came from, to teach splitters the same cuts under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zonkey_core.model.bytes import BYTE_VALUES
from zonkey_core.model.existence import cumulative_log_continue
from zonkey_core.model.positions import PositionSequence

KIND_SHARES = (0.5, 0.16, 0.18, 0.16, 0.0)
"""How often a row loses bytes, has some twice, has its letters in any case or in the upper one, or loses values."""
UPPER_KIND_SHARES = (0.1, 0.1, 0.1, 0.05, 0.65)
"""The same for what splitters above level 0 are taught with."""
RARE = 0.012
"""A row that loses byte values loses rare ones: those whose share of the batch is below a bound of at most this."""
LOWERED = 0.75
"""How many of the rows that lose byte values have only small letters."""
LOST_SHARE = 0.7
"""How many of the rare byte values, and of those that it is said to lose, it does lose."""
LEAST_SHARE, MOST_SHARE = 0.05, 0.25
"""Of the bytes of a row that are dropped, or written twice."""
CASE_BIT = 0x20


class NoisedRows(NamedTuple):
    """Noised rows of bytes."""

    sequence: PositionSequence
    """[B, L]; a row that has become shorter is padded, and one that has become longer is cut off."""
    origins: Tensor
    """[B, L] position in the clean row that each byte came from."""


def noise_rows(
    sequence: PositionSequence,
    generator: torch.Generator,
    shares: Sequence[float] = KIND_SHARES,
    telling: Tensor | None = None,
) -> NoisedRows:
    """Noise each row in one of five ways, drawn at random with the odds `shares`.

    Bytes dropped or written twice, letters of any case or all in the upper one, or byte values lost everywhere after,
    in most of these rows, all letters have become small: rare ones and those in the mask `telling` [256]. Letters are
    those of ASCII.
    """
    values = sequence.values.cpu()
    batch, length = values.shape
    kind = torch.multinomial(torch.tensor(shares), batch, replacement=True, generator=generator).unsqueeze(1)
    share = LEAST_SHARE + (MOST_SHARE - LEAST_SHARE) * torch.rand(batch, 1, generator=generator)
    struck = torch.rand(batch, length, generator=generator) < share
    copies = torch.ones_like(values) - (struck & (kind == 0)).long() + (struck & (kind == 1)).long()
    exists_mask = sequence.exists_mask.cpu()
    if shares[-1]:
        lowered = (kind == 4) & (torch.rand(batch, 1, generator=generator) < LOWERED)
        values = (values | CASE_BIT).where(_letters(values) & lowered, values)
        copies -= (_lost(values, exists_mask, telling, generator) & (kind == 4)).long()
    copies = copies * exists_mask
    copies[:, 0] += (copies.sum(1) == 0) & exists_mask[:, 0]
    ends = copies.cumsum(1)
    order = torch.arange(1, length + 1).expand(batch, length).contiguous()
    origins = torch.searchsorted(ends, order).clamp(max=length - 1)
    exists = order <= ends[:, -1:]
    noised = values.gather(1, origins)
    upper = torch.rand(batch, length, generator=generator) < 0.5
    changed = torch.where(upper | (kind == 3), noised & ~CASE_BIT, noised | CASE_BIT)
    noised = changed.where(_letters(noised) & ((kind == 2) | (kind == 3)), noised)
    device = sequence.values.device
    begins = sequence.document_mask.cpu().long().cumsum(1).gather(1, origins)
    documents = torch.diff(begins, dim=1, prepend=torch.zeros(batch, 1, dtype=torch.long)) > 0
    rows = PositionSequence(noised.to(device), exists.to(device), (documents & exists).to(device))
    return NoisedRows(rows, origins.to(device))


def _letters(values: Tensor) -> Tensor:
    """[B, L] mask of the letters of ASCII."""
    small = values | CASE_BIT
    return (small >= ord("a")) & (small <= ord("z"))


def _lost(values: Tensor, exists_mask: Tensor, telling: Tensor | None, generator: torch.Generator) -> Tensor:
    """[B, L] mask of bytes whose value is rare in the batch or telling, and is among those that their row loses."""
    counts = torch.bincount(values[exists_mask], minlength=BYTE_VALUES)
    could = counts / counts.sum().clamp(min=1) < RARE * torch.rand(len(values), 1, generator=generator)
    if telling is not None:
        could = could | telling.cpu()
    lost = could & (torch.rand(len(values), BYTE_VALUES, generator=generator) < LOST_SHARE)
    return lost.gather(1, values)


def noised_start_prob(start_prob: Tensor, origins: Tensor) -> Tensor:
    """Starts of clean rows [B, L] as starts of the noised ones, by where their bytes came from.

    A byte begins a segment if it, or a byte that was dropped since the one before it, did so; a second copy does not:
    `1 - exp(C_{o_j} - C_{o_{j-1}})`. The first of a row always does.
    """
    cumulative = cumulative_log_continue(start_prob).gather(1, origins)
    began = -torch.expm1(torch.diff(cumulative, dim=1))
    return torch.cat([torch.ones_like(cumulative[:, :1]), began], 1)
