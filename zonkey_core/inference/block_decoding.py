"""Block decoding: rows of slots side by side, in which the writer tells open slots and chance draws what they hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.devices import choose_precision
from zonkey_core.diffusion.decoding_order import Draft, Layout, Plan, in_streams, lay_out
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.level import Level
from zonkey_core.model.writer import OrderedSlots, Told

BLOCK = 128
"""Entries whose probabilities are added up first when one is drawn."""
LEAST_SHARE = 0.005
"""Entries less likely than the likeliest by this factor are not drawn (Nguyen et al. 2024, "min-p")."""
SMALLEST = 1e-9
"""Stands for a chance of 0, which would draw what has no weight."""
EMPTY = -1
"""Stands for the entry of a slot that is still open."""


class Row(NamedTuple):
    """A row of slots and all that chance decides in it."""

    entries: Tensor
    """[M] `EMPTY` where they are open."""
    chances: Tensor
    """[M] numbers between 0 and 1."""
    hints: Tensor
    """[M, C] noisy latents of what is expected, zeros where nothing is."""
    noise_level: Tensor
    """[M] 1 where nothing is expected."""
    prefixes: Mapping[int, bytes]
    """What the strings of some slots begin with."""


class Reading(NamedTuple):
    """An evaluation."""

    places: Tensor
    """[B, n] in the layout."""
    told: Told


class Board:
    """Rows that are told side by side, until no slot is open."""

    def __init__(self, level: Level, rows: Sequence[Row], *, batch: int, length: int, temperature: float) -> None:
        assert level.dictionary is not None and level.writer is not None
        self.dictionary, self.schedule = level.dictionary, level.schedule
        self.table = level.dictionary.latents()
        self.device = self.table.device
        self.writer = copy.deepcopy(level.writer).to(choose_precision("auto", self.device))
        self.length, self.temperature = length, temperature
        blank = Row(torch.full((1,), EMPTY), torch.zeros(1), torch.zeros(1, level.channels), torch.ones(1), {})
        filled = [*rows, *[blank] * (batch - len(rows))]
        columns = zip(*(row[:-1] for row in filled), strict=True)
        self.entries, self.chances, self.hints, self.noise_level = (
            pad_sequence(list(column), batch_first=True, padding_value=padding).to(self.device)
            for column, padding in zip(columns, (EMPTY, 0.0, 0.0, 1.0), strict=True)
        )
        self.allowed = {
            (row, slot): level.dictionary.begins_with(prefix)
            for row, each in enumerate(rows)
            for slot, prefix in each.prefixes.items()
        }
        self.cache: KVCache | None = None

    def lay_out(self, drafts: Sequence[Draft], known: Sequence[int]) -> None:
        """Take up the order of the rows, of which everything up to `known` is read first; what was read stays there."""
        blank = [in_streams(0, [0], [0], begins=True, end_order=None)] * (len(self.entries) - len(drafts))
        self.plan = lay_out([*drafts, *blank], self.length, self.device)
        times = [np.maximum(draft.order - before, 0) for draft, before in zip(drafts, known, strict=True)]
        self.times = [*times, *(draft.order for draft in blank)]
        if self.cache is None:
            self.cache = KVCache(self.plan.layout)
        self.cache.layout = self.plan.layout

    @torch.no_grad()
    def read(self, time: int, width: int) -> Reading:
        """Read the slots that are known at a time, `width` of each row, with padding where there are fewer."""
        assert self.cache is not None
        table = np.full((len(self.times), width), self.length - 1)
        for row, times in zip(table, self.times, strict=True):
            due = np.flatnonzero(times == time)
            row[: len(due)] = due
        places = torch.from_numpy(table).to(self.device)
        source, told = self.plan.source.gather(1, places), self.plan.told.gather(1, places)
        held = self.entries.gather(1, source.clamp(min=0)).clamp(min=0)
        latents = self.table[held] * (source >= 0).unsqueeze(-1)
        asked = told.clamp(min=0)
        hints = self.hints.gather(1, asked.unsqueeze(-1).expand(-1, -1, self.hints.shape[-1]))
        noise_level = self.noise_level.gather(1, asked).where(told >= 0, 1.0)
        layout = Layout(*(field.gather(1, places) for field in self.plan.layout))
        self.cache.places = places
        hints = hints * (noise_level < 1).unsqueeze(-1)
        return Reading(places, self.writer(OrderedSlots(layout, latents, hints, noise_level), self.cache))

    @torch.no_grad()
    def tell(self, reading: Reading) -> None:
        """Draw what an evaluation tells of open slots."""
        told = self.plan.told.gather(1, reading.places)
        row, column = ((told >= 0) & (self.entries.gather(1, told.clamp(min=0)) == EMPTY)).nonzero(as_tuple=True)
        slot = told[row, column]
        sigma = self.schedule.sigma(self.noise_level[row, slot])
        logits = self.dictionary.logits(reading.told.latents[row, column], sigma, self.table)
        for index, place in enumerate(zip(row.tolist(), slot.tolist(), strict=True)):
            if place in self.allowed:
                logits[index].masked_fill_(~self.allowed[place], -torch.inf)
        self.entries[row, slot] = draw_entries(logits, self.chances[row, slot], self.temperature)

    def run(self, width: int, on_step: Callable[[], None]) -> None:
        """Tell all that is told after time 0; what is known last tells nothing and is not read."""
        for time in range(1, max(int(times.max()) for times in self.times)):
            self.tell(self.read(time, width))
            on_step()


def read_whole(level: Level, plan: Plan, entries: Tensor) -> Told:
    """Read rows of slots at once, with no hints; `entries` [B, M] do not matter where the plan holds none."""
    assert level.dictionary is not None and level.writer is not None
    held = level.dictionary.latents()[entries.gather(1, plan.source.clamp(min=0))]
    held = held * (plan.source >= 0).unsqueeze(-1)
    pure = torch.ones_like(plan.source, dtype=torch.float32)
    return cast(Told, level.writer(OrderedSlots(plan.layout, held, torch.zeros_like(held), pure)))


def prepare_row(
    level: Level,
    entries: Tensor,
    expected: Mapping[int, Tensor],
    noise_level: float,
    prefixes: Mapping[int, bytes],
    generator: torch.Generator,
) -> Row:
    """A row of slots [M], with hints of what is expected from given slots on, and prefixes of others."""
    count = len(entries)
    chances = torch.rand(count, generator=generator)
    hints, levels = torch.zeros(count, level.channels), torch.ones(count)
    for first, guess in expected.items():
        assert level.dictionary is not None
        span = slice(first, first + len(guess))
        levels[span] = noise_level
        noise = torch.randn(len(guess), level.channels, generator=generator)
        clean = level.dictionary.latents().detach()[guess].cpu()
        hints[span] = level.schedule.add_noise(clean, noise, levels[span])
    return Row(entries, chances, hints, levels, prefixes)


def draw_entries(logits: Tensor, chance: Tensor, temperature: float) -> Tensor:
    """[n] entries drawn from logits [n, K] with numbers [n] between 0 and 1; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    weights = ((logits - logits.amax(-1, keepdim=True)) / temperature).exp_()
    weights = weights.masked_fill_(weights < LEAST_SHARE, 0.0)
    number = -(-weights.shape[1] // BLOCK)
    blocks = functional.pad(weights, (0, -weights.shape[1] % BLOCK)).view(len(weights), number, BLOCK)
    # First the block that the chance falls into, then the entry within it: a cumulative sum over all takes longer.
    upto = blocks.sum(-1).cumsum(-1)
    aim = (chance.clamp(min=SMALLEST) * upto[:, -1]).unsqueeze(1)
    block = torch.searchsorted(upto, aim).clamp(max=upto.shape[1] - 1)
    rows = torch.arange(len(logits), device=logits.device)
    inside = blocks[rows, block.squeeze(1)].cumsum(-1)
    rest = aim - functional.pad(upto, (1, 0)).gather(1, block)
    entry = torch.searchsorted(inside, rest.clamp(min=SMALLEST).minimum(inside[:, -1:])).squeeze(1)
    return (block.squeeze(1) * BLOCK + entry).clamp(max=logits.shape[1] - 1)
