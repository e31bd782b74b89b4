"""Filling: what a row of slots depends on, what is kept, how it is filled, and how long gaps become."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.model_helpers import chance, few, fit_dictionary, law, normal, seeds, small_model
from zonkey_core.denoiser import Estimate, NoisySlots
from zonkey_core.dictionary import Dictionary
from zonkey_core.filling import EMPTY, LENGTH_STEP, OpenRow, draw_entries, fill_rows, places_in_gaps
from zonkey_core.level import Level

SURE = 30.0
"""Logit of what exists in any case."""


class Prophet(nn.Module):
    """A trunk that knows how likely each place of a row is to exist, and remembers what it read."""

    def __init__(self, existence: Sequence[float], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.logits = torch.tensor(existence, dtype=torch.float64).logit().float()
        self.inner = inner
        self.reads: list[NoisySlots] = []

    def forward(self, slots: NoisySlots) -> Estimate:
        self.reads.append(slots)
        latents = torch.zeros_like(slots.latents) if self.inner is None else self.inner(slots).latents
        known = functional.pad(self.logits, (0, latents.shape[1]))[: latents.shape[1]]
        return Estimate(latents, known.expand(latents.shape[:2]))


@functools.lru_cache(maxsize=8)
def filler(existence: float = SURE) -> Level:
    """A level 0 of strong opinions on strings of a text, whose slots exist about as surely as this logit."""
    model = small_model(1, seed=3)
    dictionary, level = fit_dictionary(model), model.levels[0]
    nn.init.normal_(dictionary.table)
    nn.init.normal_(level.trunk.latent_out.weight)
    nn.init.constant_(level.trunk.existence_out.bias, existence)
    return level.eval().requires_grad_(False)


def prophetic(*existence: float, sees: bool = False) -> tuple[Level, Prophet]:
    """A level whose slots exist with these probabilities; its trunk `sees` what an untrained one does, or nothing."""
    level = small_model(1, seed=3).levels[0].eval().requires_grad_(False)
    trunk = Prophet(existence, level.trunk if sees else None)
    level.trunk = trunk  # type: ignore[assignment]
    return level, trunk


def strings_of(level: Level) -> Dictionary:
    """The level's dictionary."""
    assert level.dictionary is not None
    return level.dictionary


def open_row(count: int, **changes: Any) -> OpenRow:
    """One gap of so many slots, and nothing around it."""
    row = OpenRow(torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.long), True)
    return row._replace(**changes)


def fill(level: Level, *rows: OpenRow, seed: int = 0, **options: Any) -> list[Tensor]:
    """The rows filled side by side, each with chances of its own."""
    generators = [chance(seed + index) for index in range(len(rows))]
    return fill_rows(level, rows, generators, **{"steps": 4, "temperature": 1.0, **options})


@st.composite
def open_rows(draw: st.DrawFn, *, shortest: int = 1) -> OpenRow:
    """Known slots and gaps in any order."""
    runs = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=shortest, max_size=5))
    gaps: list[int] = []
    for is_open, length in runs:
        gaps += [max(gaps, default=0) + 1 if is_open else 0] * length
    kinds = st.integers(0, 299)
    entries = draw(st.lists(kinds, min_size=len(gaps), max_size=len(gaps)))
    noise = draw(st.sampled_from([1.0, 1.0, 0.8, 0.4]))
    long = torch.long
    return OpenRow(torch.tensor(entries, dtype=long), torch.tensor(gaps, dtype=long), draw(st.booleans()), noise)


# What a row depends on


@law
@given(st.lists(open_rows(shortest=0), min_size=1, max_size=4), seeds, st.integers(1, 12))
def test_a_row_is_filled_alike_alone_and_beside_others(rows: list[OpenRow], seed: int, steps: int) -> None:
    level = filler(0.5)
    beside = [chance(seed + index) for index in range(len(rows))]
    together = fill_rows(level, rows, beside, steps=steps, temperature=1.0)
    for index, row in enumerate(rows):
        alone = chance(seed + index)
        assert torch.equal(*fill_rows(level, [row], [alone], steps=steps, temperature=1.0), together[index])
        assert torch.equal(alone.get_state(), beside[index].get_state()), "what is drawn next is the same as well"


def test_rows_differ_by_their_chances_alone() -> None:
    level = filler()
    first, second = fill(level, open_row(12), open_row(12))
    assert not torch.equal(first, second)
    again = fill_rows(level, [open_row(12)] * 2, [chance(1), chance(1)], steps=4, temperature=1.0)
    assert torch.equal(again[0], second) and torch.equal(again[1], second)


def test_nothing_global_is_touched() -> None:
    level = filler()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    (first,) = fill(level, open_row(9))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(*fill(level, open_row(9)), first)


def test_pure_noise_owes_nothing_to_what_stood_there() -> None:
    kinds = torch.arange(40, 49)
    (first,) = fill(filler(), open_row(9))
    assert torch.equal(*fill(filler(), open_row(9, entries=kinds)), first)
    assert not torch.equal(*fill(filler(), open_row(9, entries=kinds, noise_level=0.5)), first)


def test_a_draft_under_little_noise_stays() -> None:
    level, _ = prophetic(*[1.0] * 20, sees=True)
    kinds = torch.arange(40, 60)
    assert torch.equal(*fill(level, open_row(20, entries=kinds, noise_level=0.02)), kinds)
    (noisy,) = fill(level, open_row(20, entries=kinds, noise_level=0.9))
    assert not torch.equal(noisy, kinds)


def test_a_row_says_whether_it_begins_a_document() -> None:
    level, trunk = prophetic(*[1.0] * 6)
    fill(level, open_row(4), open_row(6, starts_document=False), steps=1)
    (reads,) = trunk.reads
    padding = LENGTH_STEP - 6
    assert reads.document_mask.int().tolist() == [[1, 0, 0, 0, 0, 0, *[0] * padding], [0] * LENGTH_STEP]
    assert reads.slot_mask.int().tolist() == [[1, 1, 1, 1, 0, 0, *[0] * padding], [*[1] * 6, *[0] * padding]]


# What is kept, and what is filled


@few
@given(st.lists(open_rows(), min_size=1, max_size=3), seeds, st.sampled_from([-SURE, 0.0, SURE]))
def test_known_slots_never_change(rows: list[OpenRow], seed: int, existence: float) -> None:
    shown: list[list[Tensor]] = []
    result = fill(filler(existence), *rows, seed=seed, on_step=shown.append)
    for state in [*shown, result]:
        for row, entries in zip(rows, state, strict=True):
            assert len(entries) == len(row.gaps)
            known = row.gaps == 0
            assert torch.equal(entries[known], row.entries[known])
            lengths = strings_of(filler(existence)).lengths[entries[entries != EMPTY]]
            assert (lengths[~known[entries != EMPTY]] > 0).all(), "what is drawn spells something"


@few
@given(st.lists(open_rows(), min_size=1, max_size=3), st.integers(1, 9), st.sampled_from([0.0, 1.0]))
def test_slots_that_exist_are_filled_and_others_are_empty(
    rows: list[OpenRow], steps: int, temperature: float
) -> None:
    for entries in fill(filler(SURE), *rows, steps=steps, temperature=temperature):
        assert (entries != EMPTY).all()
    for row, entries in zip(rows, fill(filler(-SURE), *rows, steps=steps, temperature=temperature), strict=True):
        assert torch.equal(entries == EMPTY, row.gaps > 0)


@few
@given(st.lists(open_rows(), min_size=1, max_size=3), seeds, st.integers(1, 9))
def test_what_is_shown_only_grows_and_ends_as_the_result(rows: list[OpenRow], seed: int, steps: int) -> None:
    shown: list[list[Tensor]] = []
    result = fill(filler(0.0), *rows, seed=seed, steps=steps, on_step=shown.append)
    assert len(shown) <= steps
    untouched = [row.entries.where(row.gaps == 0, EMPTY) for row in rows]
    for before, after in itertools.pairwise([untouched, *shown]):
        for earlier, later in zip(before, after, strict=True):
            assert torch.equal(earlier[earlier != EMPTY], later[earlier != EMPTY])
        assert torch.cat(before).ne(EMPTY).sum() < torch.cat(after).ne(EMPTY).sum()
    assert torch.equal(torch.cat([untouched, *shown][-1]), torch.cat(result))


@law
@given(st.integers(1, 20), st.integers(1, 12))
def test_every_step_fills_its_share(count: int, steps: int) -> None:
    level, trunk = prophetic(*[1.0] * count)
    shown: list[list[Tensor]] = []
    fill(level, open_row(count), steps=steps, on_step=shown.append)
    assert len(shown) == len(trunk.reads) == min(count, steps), "and no step is left without work"
    filled = [int((entries != EMPTY).sum()) for (entries,) in shown]
    shares = [after - before for before, after in zip([0, *filled], filled, strict=False)]
    assert sum(shares) == count and max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("count", "steps", "order"),
    [(4, 4, [[0], [1], [2], [3]]), (6, 3, [[0, 3], [1, 4], [2, 5]]), (5, 9, [[0], [1], [2], [3], [4]])],
)
def test_streams_are_written_from_left_to_right(count: int, steps: int, order: list[list[int]]) -> None:
    level, _ = prophetic(*[1.0] * count)
    shown: list[list[Tensor]] = []
    fill(level, open_row(count), steps=steps, on_step=shown.append)
    there = [set((entries != EMPTY).nonzero().flatten().tolist()) for (entries,) in shown]
    assert [sorted(after - before) for before, after in itertools.pairwise([set(), *there])] == order


def test_places_are_counted_within_each_gap() -> None:
    gaps = torch.tensor([[0, 1, 1, 1, 2, 0, 0, 3, 3]])
    assert places_in_gaps(gaps).tolist() == [[0, 0, 1, 2, 0, 0, 1, 0, 1]]


def test_what_is_filled_is_known_from_then_on() -> None:
    level, trunk = prophetic(*[1.0] * 8, sees=True)
    gaps = torch.tensor([0, 1, 1, 0, 2, 2, 2, 0])
    entries = torch.arange(30, 38)
    shown: list[list[Tensor]] = [[torch.where(gaps > 0, EMPTY, entries)]]
    fill(level, OpenRow(entries, gaps, True, 0.7), steps=4, on_step=shown.append)
    latents = strings_of(level).latents()
    assert len(trunk.reads) == 4
    for reads, (state,) in zip(trunk.reads, shown, strict=False):
        known = state != EMPTY
        levels, seen, first = reads.noise_level[0][:8], reads.latents[0][:8], trunk.reads[0].latents[0][:8]
        assert torch.equal(levels, torch.where(known, 0.0, 0.7))
        assert torch.equal(seen[known], latents[state[known]])
        assert torch.equal(seen[~known], first[~known]), "its noise stays the same"


def test_rows_without_open_slots_are_no_work() -> None:
    level, trunk = prophetic(*[1.0] * 3)
    known = OpenRow(torch.tensor([5, 6, 7]), torch.zeros(3, dtype=torch.long), True)
    found = fill(level, known, open_row(0))
    assert [entries.tolist() for entries in found] == [[5, 6, 7], []]
    assert [entries.tolist() for entries in fill(level, open_row(0), open_row(0))] == [[], []]
    assert not trunk.reads


# How long gaps become


@law
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=12), st.integers(1, 6), seeds)
def test_where_existence_falls_a_prefix_exists(existence: list[float], steps: int, seed: int) -> None:
    level, _ = prophetic(*sorted(existence, reverse=True))
    (entries,) = fill(level, open_row(len(existence)), seed=seed, steps=steps)
    empty = (entries == EMPTY).int()
    assert torch.equal(empty, empty.cummax(0).values)


def test_gaps_are_as_long_as_often_as_the_trunk_thinks() -> None:
    existence = (0.9, 0.6, 0.5, 0.1)
    level, _ = prophetic(*existence)
    found = torch.stack(fill(level, *[open_row(4)] * 2000, steps=2)) != EMPTY
    torch.testing.assert_close(found.float().mean(0), torch.tensor(existence), atol=0.04, rtol=0)


def test_every_gap_has_a_limit_of_its_own() -> None:
    level, _ = prophetic(*[0.5] * 7)
    gaps = torch.tensor([0, 1, 1, 2, 2, 0, 3])
    row = OpenRow(torch.zeros_like(gaps), gaps, True)
    found = torch.stack(fill(level, *[row] * 800, steps=3)) != EMPTY
    assert torch.equal(found[:, 1], found[:, 2]) and torch.equal(found[:, 3], found[:, 4])
    kinds, counts = torch.unique(found[:, [1, 3, 6]], dim=0, return_counts=True)
    assert len(kinds) == 8 and counts.min() > 60 and counts.max() < 140


# How entries are chosen


@torch.no_grad()
@pytest.mark.parametrize("noise_level", [1.0, 0.6])
def test_without_temperature_the_likeliest_entries_are_taken(noise_level: float) -> None:
    level = filler()
    dictionary, schedule = strings_of(level), level.schedule
    drafted = torch.arange(250, 260)
    gaps = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0, 2, 2])
    row = OpenRow(drafted, gaps, True, noise_level)
    (found,) = fill(level, row, steps=1, temperature=0.0)
    latents, levels = dictionary.latents()[drafted], noise_level * (gaps > 0)
    noisy = schedule.add_noise(latents, torch.randn(latents.shape, generator=chance(0)), levels)
    present = torch.ones(1, 10, dtype=torch.bool)
    starts = functional.one_hot(torch.tensor([0]), 10).bool()
    estimate = level.trunk(NoisySlots(noisy[None], levels[None], torch.zeros(1, *noisy.shape), starts, present))
    logits = estimate.latents[0] @ dictionary.latents().T / schedule.sigma(levels).square().unsqueeze(-1)
    likeliest = (logits + dictionary.bias).argmax(-1)
    assert torch.equal(found, likeliest.where(gaps > 0, drafted))
    assert len(set(found[gaps > 0].tolist())) > 1, "the strings differ from slot to slot"


@law
@given(st.integers(1, 9), st.sampled_from([0.5, 1.0, 2.0]), seeds)
def test_entries_are_drawn_as_often_as_the_softmax_says(kinds: int, temperature: float, seed: int) -> None:
    logits = 2 * normal(kinds, seed=seed, dtype=torch.float32)
    count = 1000
    for numbers, tolerance in (
        ((torch.arange(count) + 0.5) / count, 1.1 / count),
        (torch.rand(count, generator=chance(seed)), 0.08),
    ):
        drawn = draw_entries(logits.expand(count, -1), numbers, temperature)
        share = torch.bincount(drawn, minlength=kinds) / count
        torch.testing.assert_close(share, (logits / temperature).softmax(-1), atol=tolerance, rtol=0)


@law
@given(st.integers(1, 9), st.sampled_from([0.3, 1.0]), seeds)
def test_what_is_impossible_is_never_drawn(possible: int, temperature: float, seed: int) -> None:
    logits = normal(possible, seed=seed, dtype=torch.float32)
    logits = functional.pad(logits, (2, 3), value=-1e4)
    numbers = torch.tensor([0.0, 1e-12, 0.5, 1 - 2**-24])
    drawn = draw_entries(logits.expand(len(numbers), -1), numbers, temperature)
    assert ((drawn >= 2) & (drawn < 2 + possible)).all()


@law
@given(st.integers(1, 9), seeds)
def test_little_temperature_is_as_good_as_none(kinds: int, seed: int) -> None:
    logits = normal(20, kinds, seed=seed, dtype=torch.float32)
    numbers = torch.rand(20, generator=chance(seed))
    assert torch.equal(draw_entries(logits, numbers, 0.0), logits.argmax(-1))
    assert torch.equal(draw_entries(logits, numbers, 1e-6), logits.argmax(-1))
