"""Writing: open slots of level 0 are filled with strings of its dictionary, in as many steps as are given.

At the start an open slot is noise. In every step the trunk tells what each of them may hold and whether it exists at
all; some of those that do are drawn and known from then on, and the next step sees them. One number drawn for each gap
decides how long it becomes: a slot exists where its probability is above it, and because that falls from slot to slot,
lengths come out as often as the model thinks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.denoiser import NoisySlots
from zonkey_core.level import Level

EMPTY = -1
"""Stands for the entry of a slot that is still open, or turned out not to exist."""


class OpenRow(NamedTuple):
    """A row of slots, some of them open."""

    entries: Tensor
    """[M] strings of known slots, and what is expected of open ones where `noise_level` is below 1."""
    gaps: Tensor
    """[M] number of the gap that a slot lies in, from 1 and without holes; 0 where it is known."""
    starts_document: bool
    noise_level: float = 1.0
    """Noise level of open slots; at 1 their entries do not matter."""


@torch.no_grad()
def fill_rows(
    level: Level,
    rows: Sequence[OpenRow],
    generators: Sequence[torch.Generator],
    *,
    steps: int,
    temperature: float,
    on_step: Callable[[list[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Fill rows side by side: the entries [M] of each, `EMPTY` where a slot turned out not to exist.

    A row, and the state that its generator is left in, depend on that generator alone: everything is drawn beforehand
    and computed in float32, because bfloat16 would let a row's neighbours decide close calls. `on_step` is given the
    entries so far after each step.
    """
    dictionary, trunk, schedule = level.dictionary, level.trunk, level.schedule
    assert dictionary is not None
    latents = dictionary.latents()
    device = latents.device

    def side_by_side(parts: Iterable[Tensor]) -> Tensor:
        return pad_sequence(list(parts), batch_first=True).to(device)

    def draw(how: Callable[..., Tensor], *shape: int) -> Tensor:
        return side_by_side(
            how(len(row.gaps), *shape, generator=chance) for row, chance in zip(rows, generators, strict=True)
        )

    entries = side_by_side(row.entries for row in rows)
    gaps = side_by_side(row.gaps for row in rows)
    slot_mask = side_by_side(torch.ones_like(row.gaps, dtype=torch.bool) for row in rows)
    document_mask = torch.zeros_like(slot_mask)
    document_mask[:, :1] = torch.tensor([[row.starts_document] for row in rows])
    open_mask = gaps > 0
    noise_level = open_mask * torch.tensor([[row.noise_level] for row in rows], device=device)
    noisy = schedule.add_noise(latents[entries], draw(torch.randn, level.channels), noise_level)
    limit = draw(torch.rand).gather(1, (gaps - 1).clamp(min=0))
    for left, chance in zip(range(steps, 0, -1), [draw(torch.rand, 2) for _ in range(steps)], strict=True):
        if not open_mask.any():
            break
        reads = NoisySlots(
            torch.where(open_mask.unsqueeze(-1), noisy, latents[entries]),
            noise_level * open_mask,
            torch.zeros_like(noisy),
            document_mask,
            slot_mask,
        )
        estimate = trunk(reads)
        exists = open_mask & (estimate.existence_logits.sigmoid() > limit)
        wanted = -(-exists.sum(1, keepdim=True) // left)
        order = chance[..., 0].masked_fill(~exists, -1.0).argsort(1, descending=True)
        chosen = exists & (order.argsort(1) < wanted)
        if not chosen.any():
            break
        logits = dictionary.logits(estimate.latents[chosen], schedule.sigma(noise_level[chosen]), latents)
        entries[chosen] = draw_entries(logits, chance[chosen][:, 1], temperature)
        open_mask &= ~chosen
        if on_step is not None:
            on_step(_rows_of(entries.masked_fill(open_mask, EMPTY), rows))
    return _rows_of(entries.masked_fill(open_mask, EMPTY), rows)


def draw_entries(logits: Tensor, chance: Tensor, temperature: float) -> Tensor:
    """[n] entries drawn from logits [n, K] with numbers [n] between 0 and 1; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, (chance.clamp(min=1e-9) * cumulative[:, -1]).unsqueeze(1)).squeeze(1)
    return drawn.clamp(max=logits.shape[1] - 1)


def _rows_of(entries: Tensor, rows: Sequence[OpenRow]) -> list[Tensor]:
    """Rows [B, M] without their padding."""
    return [entry[: len(row.gaps)].clone() for entry, row in zip(entries.cpu(), rows, strict=True)]
