"""Laws of the writer: what it says of a slot depends on what is known by then, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import chance, few, law, normal, seeds
from zonkey_core.diffusion.decoding_order import Draft, Kind, Layout, draw_draft, in_streams, lay_out, with_gaps
from zonkey_core.diffusion.noise_schedule import NoiseSchedule
from zonkey_core.model.existence import LOG_FLOOR
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.length_model import EDGES
from zonkey_core.model.writer import REACH, OrderedSlots, Told, Writer, _Preceding, _seen_before, _unknown_bias

CHANNELS, WIDTH = 6, 16
CPU = torch.device("cpu")


def make_writer() -> Writer:
    """A writer of strong opinions."""
    torch.manual_seed(0)
    writer = Writer(CHANNELS, WIDTH, 2, 2, NoiseSchedule(5.0))
    for block in writer.blocks:
        torch.nn.init.normal_(block.attention_out.weight, std=0.5)
    return writer.requires_grad_(False)


def content(layout: Layout, source: Tensor, told: Tensor, *, seed: int) -> OrderedSlots:
    """A layout with latents where there is text, and hints of half of what is told."""
    shape = (*layout.order.shape, CHANNELS)
    latents = normal(*shape, seed=seed, dtype=torch.float32) * (source >= 0).unsqueeze(-1)
    levels = torch.rand(shape[:2], generator=chance(seed))
    hinted = (told >= 0) & (torch.rand(shape[:2], generator=chance(seed + 1)) < 0.5)
    hints = normal(*shape, seed=seed + 2, dtype=torch.float32) * hinted.unsqueeze(-1)
    return OrderedSlots(layout, latents, hints, levels.where(hinted, 1.0))


def slots_of(*drafts: Draft, seed: int, spare: int = 0) -> OrderedSlots:
    """Drafts as rows, with so much padding."""
    plan = lay_out(drafts, max(len(draft.source) for draft in drafts) + spare, CPU)
    return content(plan.layout, plan.source, plan.told, seed=seed)


def any_draft(count: int, seed: int) -> Draft:
    """A document as training asks for it."""
    return draw_draft(count, np.random.default_rng(seed), begins=seed % 2 == 0, ends=seed % 3 > 0)[0]


some_drafts = st.builds(any_draft, st.integers(1, 20), seeds)


def joined(first: OrderedSlots, second: OrderedSlots) -> OrderedSlots:
    """Two documents in one row."""
    later = second._replace(layout=second.layout._replace(documents=second.layout.documents + 1))
    layout = Layout(*(torch.cat(pair, 1) for pair in zip(first.layout, later.layout, strict=True)))
    return OrderedSlots(layout, *(torch.cat(pair, 1) for pair in zip(first[1:], later[1:], strict=True)))


def part(slots: OrderedSlots, places: Tensor) -> OrderedSlots:
    """The slots at some places [B, n]."""
    layout = Layout(*(field.gather(1, places) for field in slots.layout))
    wide = places.unsqueeze(-1).expand(-1, -1, CHANNELS)
    return OrderedSlots(
        layout, slots.latents.gather(1, wide), slots.hints.gather(1, wide), slots.noise_level.gather(1, places)
    )


def row_of(slots: OrderedSlots, row: int, length: int) -> OrderedSlots:
    """The first slots of one row."""
    layout = Layout(*(field[row : row + 1, :length] for field in slots.layout))
    return OrderedSlots(layout, *(field[row : row + 1, :length] for field in slots[1:]))


def assert_told_alike(one: Told, other: Told) -> None:
    """The same up to rounding."""
    torch.testing.assert_close(one.latents, other.latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.ending_logits, other.ending_logits, atol=1e-5, rtol=1e-5)


def chosen(told: Told, mask: Tensor) -> Told:
    """What is said at the places of a mask [B, L]."""
    return Told(told.latents[mask], told.ending_logits[mask])


# What a slot sees


@law
@given(st.lists(some_drafts, min_size=1, max_size=3), st.integers(0, 12), seeds)
def test_what_is_known_later_changes_nothing(drafts: list[Draft], time: int, seed: int) -> None:
    writer, slots = make_writer(), slots_of(*drafts, seed=seed)
    late = slots.layout.order >= time
    other = slots_of(*drafts, seed=seed + 7)
    kinds = (slots.layout.kinds + 1) % len(Kind)
    changed = OrderedSlots(
        slots.layout._replace(
            kinds=kinds.where(late, slots.layout.kinds),
            positions=(slots.layout.positions + 9).where(late, slots.layout.positions),
        ),
        other.latents.where(late.unsqueeze(-1), slots.latents),
        other.hints.where(late.unsqueeze(-1), slots.hints),
        (0.5 * other.noise_level).where(late, slots.noise_level),
    )
    before, after = writer(slots), writer(changed)
    assert_told_alike(chosen(before, ~late), chosen(after, ~late))
    assert not late.any() or (before.ending_logits[late] != after.ending_logits[late]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@few
@given(some_drafts, st.integers(1, 12), seeds)
def test_no_attention_is_strong_enough_to_see_what_is_known_later(
    dtype: torch.dtype, draft: Draft, time: int, seed: int
) -> None:
    """Products of queries and keys in the hundreds, which a soft floor would not outweigh."""
    writer, slots = make_writer(), slots_of(draft, seed=seed)
    for block in writer.blocks:
        block.attention_in.weight *= 100  # type: ignore[union-attr, operator]
    late = slots.layout.order >= time
    other = slots_of(draft, seed=seed + 7)
    changed = slots._replace(latents=other.latents.where(late.unsqueeze(-1), slots.latents))
    before, after = writer.to(dtype)(slots), writer(changed)
    assert torch.equal(before.latents[~late], after.latents[~late])


@pytest.mark.parametrize("field", ["latents", "hints", "noise_level", "kinds", "positions"])
@few
@given(some_drafts, seeds)
def test_everything_sees_what_is_known_no_later(field: str, draft: Draft, seed: int) -> None:
    """To its left and to its right, and all that there is of it."""
    writer, slots = make_writer(), slots_of(draft, seed=seed)
    base = writer(slots).ending_logits[0]
    place = seed % len(draft.source)
    if field in Layout._fields:
        moved = getattr(slots.layout, field).clone()
        moved[0, place] = (moved[0, place] + 1) % len(Kind) if field == "kinds" else moved[0, place] + 3
        changed = slots._replace(layout=slots.layout._replace(**{field: moved}))
    else:
        moved = getattr(slots, field).clone()
        moved[0, place] = 0.3 if field == "noise_level" else 2.0
        changed = slots._replace(**{field: moved})
    reached = (writer(changed).ending_logits[0] != base).any(-1)
    if field == "positions":
        reached[place] = True  # alone, a position means nothing
    assert torch.equal(reached, slots.layout.order[0] >= slots.layout.order[0, place])


@law
@given(some_drafts, some_drafts, seeds)
def test_documents_in_one_row_do_not_see_each_other(first: Draft, second: Draft, seed: int) -> None:
    writer = make_writer()
    one, other = slots_of(first, seed=seed), slots_of(second, seed=seed + 1)
    together = writer(joined(one, other))
    border = len(first.source)
    assert_told_alike(Told(*(field[:, :border] for field in together)), writer(one))
    assert_told_alike(Told(*(field[:, border:] for field in together)), writer(other))


@law
@given(st.lists(some_drafts, min_size=1, max_size=3), st.integers(1, 7), seeds)
def test_padding_and_other_rows_change_nothing(drafts: list[Draft], spare: int, seed: int) -> None:
    writer = make_writer()
    together = slots_of(*drafts, seed=seed, spare=spare)
    told = writer(together)
    assert all(field.isfinite().all() for field in told)
    for row, draft in enumerate(drafts):
        length = len(draft.source)
        alone = writer(row_of(together, row, length))
        assert_told_alike(Told(*(field[row : row + 1, :length] for field in told)), alone)


@few
@given(some_drafts, st.integers(-40, 400), seeds)
def test_only_distances_between_positions_matter(draft: Draft, shift: int, seed: int) -> None:
    writer, slots = make_writer(), slots_of(draft, seed=seed)
    moved = slots._replace(layout=slots.layout._replace(positions=slots.layout.positions + shift))
    one, other = writer(slots), writer(moved)
    torch.testing.assert_close(one.latents, other.latents, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one.ending_logits, other.ending_logits, atol=1e-3, rtol=1e-3)


def test_gaps_are_read_from_both_sides_and_streams_see_what_others_wrote_before() -> None:
    gap = with_gaps(9, [(3, 6)], begins=True, ends=True, measured=True)
    assert _sees(gap, told=3, held=8) and _sees(gap, told=5, held=3) and not _sees(gap, told=4, held=5)
    pair = in_streams(12, [0, 6], [0, 3], begins=True, end_order=2)
    assert _sees(pair, told=6, held=2) and not _sees(pair, told=6, held=3)
    assert _sees(pair, told=4, held=6) and not _sees(pair, told=3, held=6)


def _sees(draft: Draft, *, told: int, held: int) -> bool:
    """Whether one slot is told with a view of another."""
    writer, slots = make_writer(), slots_of(draft, seed=4)
    teller = draft.told.tolist().index(told)
    changed = slots.latents.clone()
    changed[0, draft.source.tolist().index(held)] *= -1
    return bool((writer(slots).latents[0, teller] != writer(slots._replace(latents=changed)).latents[0, teller]).any())


# Reading with a cache


def course_of(layout: Layout, padding: int, *, at_once: int) -> list[Tensor]:
    """Places [B, n] to read: all known up to time `at_once`, then one time after the other; `padding` is a free one."""
    times = (layout.order - at_once).clamp(min=0)
    parts = []
    for time in range(int(times.max()) + 1):
        due = [row.nonzero().flatten() for row in (times == time) & (layout.documents >= 0)]
        width = max(1, *map(len, due))
        table = torch.full((len(due), width), padding)
        for row, places in zip(table, due, strict=True):
            row[: len(places)] = places
        parts.append(table)
    return parts


@law
@given(st.lists(some_drafts, min_size=1, max_size=3), st.integers(0, 6), seeds)
def test_reading_slot_by_slot_is_reading_at_once(drafts: list[Draft], at_once: int, seed: int) -> None:
    writer, slots = make_writer(), slots_of(*drafts, seed=seed, spare=1)
    whole, cache = writer(slots), KVCache(slots.layout)
    seen = torch.zeros_like(slots.layout.order)
    for places in course_of(slots.layout, slots.layout.order.shape[1] - 1, at_once=at_once):
        cache.places = places
        told = writer(part(slots, places), cache)
        real = slots.layout.documents.gather(1, places) >= 0
        expected = Told(*(field[torch.arange(len(drafts)).unsqueeze(1), places] for field in whole))
        assert_told_alike(chosen(told, real), chosen(expected, real))
        seen.scatter_add_(1, places, real.long())
    assert torch.equal(seen, (slots.layout.documents >= 0).long()), "each is read once"


@few
@given(seeds)
def test_what_has_been_read_stays_when_the_rest_is_laid_out_anew(seed: int) -> None:
    """As when the length of a text is asked before it is written."""
    writer = make_writer()
    short = in_streams(5, [0], [0], begins=True, end_order=None)
    long = in_streams(9, [0, 7], [0, 6], begins=True, end_order=6)
    length = len(long.source) + 1
    before, after = (lay_out([draft], length, CPU) for draft in (short, long))
    slots = content(after.layout, after.source, torch.full_like(after.told, -1), seed=seed)
    first = torch.arange(len(short.source)).unsqueeze(0)
    cache = KVCache(before.layout)
    cache.places = first
    writer(part(slots, first), cache)
    cache.layout = after.layout
    whole = writer(slots)
    for time in range(6, int(after.layout.order.max()) + 1):
        cache.places = (after.layout.order[0] == time).nonzero().T
        told = writer(part(slots, cache.places), cache)
        assert_told_alike(told, Told(*(field[:, cache.places[0]] for field in whole)))


def test_a_memory_keeps_what_it_was_given() -> None:
    layout = Layout(*(torch.zeros(2, 5, dtype=torch.long) for _ in Layout._fields))
    cache = KVCache(layout)
    expected = torch.zeros(2, 3, 5, 4)
    for turn, places in enumerate(([[0, 2], [1, 4]], [[1], [0]], [[2], [2]])):
        cache.places = torch.tensor(places)
        fresh = normal(2, 3, len(places[0]), 4, seed=turn, dtype=torch.float32)
        kept = cache.keep("keys", fresh)
        for row, at in enumerate(places):
            expected[row][:, at] = fresh[row]
        assert torch.equal(kept, expected)
    assert not cache.keep("values", torch.zeros(2, 3, 1, 4)).any()


# What it says


@law
@given(some_drafts, seeds)
def test_a_hint_without_noise_is_taken_as_it_is(draft: Draft, seed: int) -> None:
    writer, slots = make_writer(), slots_of(draft, seed=seed)
    sure = torch.rand(slots.noise_level.shape, generator=chance(seed)) < 0.5
    slots = slots._replace(noise_level=slots.noise_level.masked_fill(sure, 0.0))
    told = writer(slots).latents
    assert torch.equal(told[sure], slots.hints[sure])
    assert (told[~sure] != slots.hints[~sure]).all()


def test_what_is_added_to_a_hint_grows_with_its_noise() -> None:
    writer = make_writer()
    torch.nn.init.zeros_(writer.latent_out.weight)
    torch.nn.init.normal_(writer.latent_out.bias)
    slots = slots_of(in_streams(9, [0], [0], begins=True, end_order=None), seed=1)
    slots = slots._replace(noise_level=torch.linspace(0, 1, 10).unsqueeze(0))
    alpha, sigma = (of(slots.noise_level).unsqueeze(-1) for of in (writer.schedule.alpha, writer.schedule.sigma))
    expected = alpha * slots.hints + sigma * CHANNELS**-0.5 * writer.latent_out.bias
    torch.testing.assert_close(writer(slots).latents, expected)
    assert (alpha[0, -1] == 0).all() and (sigma.diff(dim=1) > 0).all()


def test_it_says_a_latent_and_hazards_of_every_slot_in_full_precision() -> None:
    slots = slots_of(in_streams(4, [0, 2], [0, 1], begins=True, end_order=1), seed=2)
    told = make_writer().to(torch.bfloat16)(slots)
    assert told.latents.shape == (1, 7, CHANNELS) and told.ending_logits.shape == (1, 7, len(EDGES))
    assert told.latents.dtype == told.ending_logits.dtype == torch.float32
    exact = make_writer()(slots)
    torch.testing.assert_close(told.latents, exact.latents, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", list(Kind))
def test_each_kind_of_slot_says_something_of_its_own(kind: Kind) -> None:
    writer = make_writer()
    slots = slots_of(in_streams(1, [0], [0], begins=True, end_order=None), seed=3)
    said = []
    for each in (kind, *(other for other in Kind if other != kind)):
        kinds = torch.full_like(slots.layout.kinds, each)
        said.append(writer(slots._replace(layout=slots.layout._replace(kinds=kinds))).ending_logits)
    assert all(not torch.allclose(said[0], other, atol=1e-3) for other in said[1:])


# Its parts, against the same written out slot by slot


@law
@given(st.lists(some_drafts, min_size=1, max_size=3), seeds)
def test_only_what_is_known_in_time_exists(drafts: list[Draft], seed: int) -> None:
    layout = slots_of(*drafts, seed=seed, spare=1).layout
    bias = _unknown_bias(layout, layout)
    for row in range(len(drafts)):
        order, documents = layout.order[row].tolist(), layout.documents[row].tolist()
        for query in range(len(order)):
            for key in range(len(order)):
                seen = documents[query] == documents[key] and order[key] <= order[query]
                assert bias[row, 0, query, key] == 0 if seen else bias[row, 0, query, key] <= LOG_FLOOR


@law
@given(some_drafts, some_drafts, seeds)
def test_the_slots_before_are_added_where_they_are_known(first: Draft, second: Draft, seed: int) -> None:
    torch.manual_seed(seed)
    preceding = _Preceding(WIDTH).double().requires_grad_(False)
    layout = joined(slots_of(first, seed=seed), slots_of(second, seed=seed)).layout
    states = normal(1, layout.order.shape[1], WIDTH, seed=seed)
    found = preceding(states, _seen_before(layout, layout, None), None, "states")[0]
    normed = preceding.norm(states)[0]
    order, documents = layout.order[0].tolist(), layout.documents[0].tolist()
    for place, told in enumerate(found):
        expected = states[0, place] + preceding.weights[0] * normed[place]
        for distance in range(1, min(REACH, place) + 1):
            before = place - distance
            if documents[before] == documents[place] and order[before] <= order[place]:
                expected = expected + preceding.weights[distance] * normed[before]
        torch.testing.assert_close(told, expected)
