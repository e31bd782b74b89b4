"""Block decoding: rows of slots side by side; the denoiser tells open ones, and chance draws what they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.devices import choose_precision, in_precision
from zonkey_core.diffusion.decoding_order import Order, OrderedRows, in_streams, lay_out
from zonkey_core.inference.shapes import padded_count, padded_width
from zonkey_core.model.denoiser import DenoisedSlots
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.level import Level
from zonkey_core.model.pointer import NEVER, with_copies
from zonkey_core.model.slot_batches import Plans, at_places, gather_entries, slot_batch

DRAWN_TOGETHER = 32
"""Slots that are drawn at once: what their logits take stays in the cache."""
BLOCK = 128
"""Entries whose probabilities are added up first when one is drawn."""
LEAST_SHARE = 0.001
"""Entries less likely than the likeliest by this factor are not drawn (Nguyen et al. 2024, "min-p")."""
LEAST_PLANNED_SHARE = 0.03
"""The same where a plan is given, which makes unlikely entries likelier than they are in text."""
SMALLEST = 1e-9
"""Stands for a chance of 0, which would draw what has no weight."""
TOGETHER = 16
"""Texts that are formed side by side."""
EMPTY = -1
"""Stands for the entry of a slot that is still open."""


class Row(NamedTuple):
    """A row of slots and all that chance decides in it."""

    entries: Tensor
    """[M] `EMPTY` where they are open."""
    chances: Tensor
    """[M] numbers between 0 and 1."""
    prefixes: Mapping[int, bytes]
    """What the strings of some slots begin with."""
    plans: Plans | None = None
    """Of this row alone, without the first dimension."""


class Reading(NamedTuple):
    """An evaluation."""

    rows: OrderedRows
    """[B, n] what was read."""
    found: DenoisedSlots


class Board:
    """Rows that are told side by side, until no slot is open."""

    def __init__(self, level: Level, rows: Sequence[Row], *, batch: int, length: int, temperature: float) -> None:
        assert level.vocabulary is not None
        self.vocabulary = level.vocabulary
        self.table = level.vocabulary.latents()
        self.device = self.table.device
        precision = choose_precision("auto", self.device)
        self.denoiser = in_precision(level.denoiser, precision)
        self.choices = self.table.to(precision)
        self.length, self.temperature = length, temperature
        blank = Row(torch.full((1,), EMPTY), torch.zeros(1), {})
        filled = [*rows, *[blank] * (batch - len(rows))]
        self.entries = _stacked([row.entries for row in filled], EMPTY).to(self.device)
        self.chances = _stacked([row.chances for row in filled], 0.0).to(self.device)
        self.plans = self._plans(level, filled)
        self.least_share = LEAST_SHARE if self.plans is None else LEAST_PLANNED_SHARE
        prefixes = {prefix for row in rows for prefix in row.prefixes.values()}
        masks = {prefix: level.vocabulary.begins_with(prefix) for prefix in prefixes}
        self.allowed = {
            (row, slot): masks[prefix] for row, each in enumerate(rows) for slot, prefix in each.prefixes.items()
        }
        self.cache: KVCache | None = None

    def _plans(self, level: Level, rows: Sequence[Row]) -> Plans | None:
        """What the level above says of all rows; nothing for those of which it says nothing."""
        if level.above is None or all(row.plans is None for row in rows):
            return None
        nothing = Plans(torch.zeros(1, level.above.channels), torch.zeros(1), torch.zeros(1, level.channels))
        each = [row.plans or nothing for row in rows]
        return Plans(*(_stacked(list(column), 0.0).to(self.device) for column in zip(*each, strict=True)))

    def lay_out(self, orders: Sequence[Order], known: Sequence[int]) -> None:
        """Take up the order of the rows, of which everything up to `known` is read first; what was read stays there."""
        blank = [in_streams(0, [0], [0], begins=True, end_order=None)] * (len(self.entries) - len(orders))
        self.rows = lay_out([*orders, *blank], self.length, self.device)
        times = [np.maximum(order.order - before, 0) for order, before in zip(orders, known, strict=True)]
        self.times = [*times, *(order.order for order in blank)]
        if self.cache is None:
            self.cache = KVCache(self.rows.layout)
        self.cache.layout = self.rows.layout

    def take_up(self, orders: Sequence[Order], cache: KVCache) -> None:
        """Take up the order of rows of which a cache holds what is known already, all but what asks gaps."""
        self.cache = cache
        self.lay_out(orders, [0] * len(orders))
        for times, order in zip(self.times, orders, strict=False):
            times[(order.order == 0) & (order.told < 0)] = -1

    @torch.no_grad()
    def read(self, time: int, most: int) -> Reading:
        """Read what is known at a time, at most so many readings of each row, with padding where there are fewer."""
        assert self.cache is not None
        due = [np.flatnonzero(times == time) for times in self.times]
        width = padded_width(max(map(len, due)), most, self.device)
        table = np.full((len(due), width), self.length - 1)
        for row, some in zip(table, due, strict=True):
            row[: len(some)] = some
        places = torch.from_numpy(table).to(self.device)
        rows = at_places(self.rows, places)
        held = self.entries.gather(1, rows.source.clamp(min=0)).clamp(min=0)
        own = torch.arange(width, device=self.device).expand_as(held).where(rows.source >= 0, -1)
        self.cache.places = places
        batch = slot_batch(self.table[held], rows._replace(source=own), plans=self.plans)
        return Reading(rows, self.denoiser(batch, self.cache))

    @torch.no_grad()
    def tell(self, reading: Reading) -> None:
        """Draw what an evaluation tells of open slots."""
        told = reading.rows.told
        row, column = ((told >= 0) & (self.entries.gather(1, told.clamp(min=0)) == EMPTY)).nonzero(as_tuple=True)
        slot = told[row, column]
        estimate, copies = reading.found.latents[row, column], reading.found.copies
        assert copies is not None
        held = gather_entries(self.entries, self.rows.source)
        places = list(zip(row.tolist(), slot.tolist(), strict=True))
        drawn = []
        together = padded_count(len(places), DRAWN_TOGETHER, self.device)
        for first in range(0, len(places), together):
            part = slice(first, first + together)
            padding = max(0, first + together - len(places))
            queries = functional.pad(estimate[part], (0, 0, 0, padding))
            logits = self.vocabulary.logits(queries, queries.new_ones(len(queries)), self.choices)
            shares, rest = (field[row[part], column[part]] for field in copies)
            shares = functional.pad(shares, (0, 0, 0, padding), value=NEVER)
            held_there = functional.pad(held[row[part]], (0, 0, 0, padding), value=EMPTY)
            prob = with_copies(logits.softmax(-1), shares, functional.pad(rest, (0, padding)), held_there)
            for index, place in enumerate(places[part]):
                if place in self.allowed:
                    prob[index] = self._as_allowed(prob[index], logits[index], place)
            chances = functional.pad(self.chances[row[part], slot[part]], (0, padding))
            drawn.append(draw_entries(prob, chances, self.temperature, self.least_share))
        if drawn:
            self.entries[row, slot] = torch.cat(drawn)[: len(places)]

    def _as_allowed(self, prob: Tensor, logits: Tensor, place: tuple[int, int]) -> Tensor:
        """[K] probabilities of what a slot may hold; by the logits alone where all of these are 0."""
        allowed = self.allowed[place]
        kept = prob * allowed
        return kept if kept.any() else logits.masked_fill(~allowed, -torch.inf).softmax(-1)

    def run(self, first: int, later: int, on_step: Callable[[], None]) -> None:
        """Tell all that is open: at most `first` readings of each row in the first evaluation, then `later` in each.

        What is known last tells nothing and is not read.
        """
        told = self.rows.told.cpu().numpy()
        asked = [times[which[: len(times)] >= 0] for times, which in zip(self.times, told, strict=True)]
        for time in range(1 + max((int(times.max()) for times in asked if len(times)), default=0)):
            self.tell(self.read(time, later if time else first))
            on_step()


def _stacked(rows: list[Tensor], padding: float) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=padding)


def read_whole(level: Level, rows: OrderedRows, latents: Tensor, plans: Plans | None = None) -> DenoisedSlots:
    """Read rows of known slots [B, M, C] at once; those that are asked are pure noise."""
    return cast(DenoisedSlots, level.denoiser(slot_batch(latents, rows, plans=plans)))


def draw_entries(
    prob: Tensor, chance: Tensor, temperature: float, least_share: float = LEAST_SHARE
) -> Tensor:
    """[n] entries drawn by probabilities [n, K] with numbers [n] between 0 and 1; the likeliest at temperature 0.

    Those less likely than the likeliest by the factor `least_share`, or more, are not drawn.
    """
    if temperature == 0:
        return prob.argmax(-1)
    weights = prob / prob.amax(-1, keepdim=True)
    if temperature != 1:
        weights.pow_(1 / temperature)
    functional.threshold(weights, least_share, 0.0, inplace=True)
    number = -(-weights.shape[1] // BLOCK)
    blocks = functional.pad(weights, (0, -weights.shape[1] % BLOCK)).view(len(weights), number, BLOCK)
    # First the block that the chance falls into, then the entry within it: a cumulative sum over all takes longer.
    upto = blocks.sum(-1).cumsum(-1)
    aim = (chance.clamp(min=SMALLEST) * upto[:, -1]).unsqueeze(1)
    block = torch.searchsorted(upto, aim).clamp(max=upto.shape[1] - 1)
    rows = torch.arange(len(prob), device=prob.device)
    inside = blocks[rows, block.squeeze(1)].cumsum(-1)
    rest = aim - functional.pad(upto, (1, 0)).gather(1, block)
    entry = torch.searchsorted(inside, rest.clamp(min=SMALLEST).minimum(inside[:, -1:])).squeeze(1)
    return (block.squeeze(1) * BLOCK + entry).clamp(max=prob.shape[1] - 1)
