"""Writing: open slots of level 0 are filled with strings of its dictionary, in as many steps as are given.

At the start an open slot is noise, and the trunk tells which of them exist. In every step it tells what these may hold;
some are drawn and known from then on, and the next step sees them. Slots that are drawn in one
step do not see each other, so a row is written in as many streams as its steps make necessary, spread over its length
and each from left to right: what is drawn together stands far apart and follows what is known.

One number drawn for each gap decides in the first step how long it becomes: a slot exists where its probability is
above it, and because that falls from slot to slot, lengths come out as often as the model thinks. Asked again in later
steps it would find no reason to end in what was written without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.denoiser import NoisySlots
from zonkey_core.devices import autocast, choose_precision
from zonkey_core.level import Level

LENGTH_STEP = 32
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

    A row, and the state that its generator is left in, depend on that generator alone: everything is drawn beforehand,
    and rows are padded to the next of `LENGTH_STEP`s whatever is beside them, since products of other shapes round
    otherwise. `on_step` is given the entries so far after each step of the first row and those padded like it.
    """
    state = [row.entries.masked_fill(row.gaps > 0, EMPTY) for row in rows]
    lengths = [-(-len(row.gaps) // LENGTH_STEP) * LENGTH_STEP for row in rows]
    for length in sorted(set(lengths)):
        alike = [index for index, each in enumerate(lengths) if each == length]

        def keep(entries: Tensor, alike: list[int] = alike) -> None:
            for index, filled in zip(alike, entries.cpu(), strict=True):
                state[index] = filled[: len(rows[index].gaps)].clone()
            if on_step is not None and 0 in alike:
                on_step(list(state))

        chosen, chances = [rows[index] for index in alike], [generators[index] for index in alike]
        board = _lay_out(chosen, chances, length, level.channels, steps)
        _fill_alike(level, board, temperature=temperature, on_step=keep)
    return state


class _Board(NamedTuple):
    """Rows of one length, side by side, with all that chance will decide."""

    entries: Tensor
    """[B, M]"""
    gaps: Tensor
    slot_mask: Tensor
    document_mask: Tensor
    noise_level: Tensor
    noise: Tensor
    """[B, M, C]"""
    limit: Tensor
    """[B, M] probability above which a slot exists, one for each gap."""
    chances: list[Tensor]
    """[B, M, 2] for every step, between 0 and 1."""


def _lay_out(
    rows: Sequence[OpenRow], generators: Sequence[torch.Generator], length: int, channels: int, steps: int
) -> _Board:
    """Pad rows to one length, and draw for each from its own generator."""

    def side_by_side(parts: Iterable[Tensor]) -> Tensor:
        joined = pad_sequence(list(parts), batch_first=True)
        padded = joined.new_zeros(len(joined), length, *joined.shape[2:])
        padded[:, : joined.shape[1]] = joined
        return padded

    def draw(how: Callable[..., Tensor], *shape: int) -> Tensor:
        return side_by_side(
            how(len(row.gaps), *shape, generator=chance) for row, chance in zip(rows, generators, strict=True)
        )

    gaps = side_by_side(row.gaps for row in rows)
    slot_mask = side_by_side(torch.ones_like(row.gaps, dtype=torch.bool) for row in rows)
    document_mask = torch.zeros_like(slot_mask)
    document_mask[:, :1] = torch.tensor([[row.starts_document] for row in rows])
    return _Board(
        entries=side_by_side(row.entries for row in rows),
        gaps=gaps,
        slot_mask=slot_mask,
        document_mask=document_mask,
        noise_level=(gaps > 0) * torch.tensor([[row.noise_level] for row in rows]),
        noise=draw(torch.randn, channels),
        limit=draw(torch.rand).gather(1, (gaps - 1).clamp(min=0)),
        chances=[draw(torch.rand, 2) for _ in range(steps)],
    )


@torch.no_grad()
def _fill_alike(
    level: Level, board: _Board, *, temperature: float, on_step: Callable[[Tensor], None]
) -> None:
    """Fill rows of one length; `on_step` is given the entries [B, M] after each step."""
    dictionary, schedule = level.dictionary, level.schedule
    assert dictionary is not None
    latents = dictionary.latents()
    device = latents.device
    entries, gaps, slot_mask, document_mask, noise_level, noise, limit = (part.to(device) for part in board[:-1])
    noisy = schedule.add_noise(latents[entries], noise, noise_level)
    open_mask = wanted = gaps > 0
    turn = gaps
    steps = len(board.chances)
    for left, chance in zip(range(steps, 0, -1), board.chances, strict=True):
        if not open_mask.any():
            break
        known = torch.where(open_mask.unsqueeze(-1), noisy, latents[entries])
        reads = NoisySlots(known, noise_level * open_mask, torch.zeros_like(noisy), document_mask, slot_mask)
        with autocast(device, choose_precision("auto", device)):
            estimate = level.trunk(reads)
        if left == steps:
            wanted = open_mask & (estimate.existence_logits.sigmoid() > limit)
            count = wanted.sum(1, keepdim=True)
            streams = (-(-count // steps)).clamp(min=1)
            turn = places_in_gaps(gaps) % (-(-count // streams)).clamp(min=1)
        exists = open_mask & wanted
        count = exists.sum(1, keepdim=True)
        due = (turn + chance[..., 0].to(device)).masked_fill(~exists, torch.inf).argsort(1).argsort(1)
        chosen = exists & (due < -(-count // left))
        if not chosen.any():
            break
        logits = dictionary.logits(estimate.latents[chosen], schedule.sigma(noise_level[chosen]), latents)
        entries[chosen] = draw_entries(logits, chance.to(device)[chosen][:, 1], temperature)
        open_mask &= ~chosen
        on_step(entries.masked_fill(open_mask, EMPTY))


def places_in_gaps(gaps: Tensor) -> Tensor:
    """[B, M] how many slots of the same gap stand before each slot; `gaps` [B, M] are their numbers."""
    order = torch.arange(gaps.shape[1], device=gaps.device).expand_as(gaps)
    first = torch.ones_like(gaps, dtype=torch.bool)
    first[:, 1:] = gaps[:, 1:] != gaps[:, :-1]
    return order - (order * first).cummax(1).values


def draw_entries(logits: Tensor, chance: Tensor, temperature: float) -> Tensor:
    """[n] entries drawn from logits [n, K] with numbers [n] between 0 and 1; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, (chance.clamp(min=1e-9) * cumulative[:, -1]).unsqueeze(1)).squeeze(1)
    return drawn.clamp(max=logits.shape[1] - 1)
