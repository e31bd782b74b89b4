"""Laws of the denoiser: what it says of a slot depends on what is known by then, on the plan, and on nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import chance, few, law, normal, seeds
from zonkey_core.diffusion.decoding_order import (
    BLANKS,
    Order,
    at_once,
    in_blocks,
    in_streams,
    lay_out,
    with_blocks,
    with_gaps,
)
from zonkey_core.model.denoiser import REACH, DenoisedSlots, Denoiser, _existence_bias, _Preceding, _seen_before
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.length_model import EDGES
from zonkey_core.model.pointer import Copies
from zonkey_core.model.slot_batches import Plans, slot_batch
from zonkey_core.slots import Layout, SlotBatch, SlotKind

CHANNELS, ABOVE, WIDTH, LONGEST = 6, 4, 16, 20
CPU = torch.device("cpu")


def make_denoiser(above: int | None = ABOVE) -> Denoiser:
    """A denoiser of strong opinions."""
    torch.manual_seed(0)
    denoiser = Denoiser(CHANNELS, above, WIDTH, 2, 2, blocks=LONGEST, copying=True)
    for block in denoiser.blocks:
        torch.nn.init.normal_(block.attention_out.weight, std=0.5)
    assert denoiser.pointer is not None
    for weight in (denoiser.left, denoiser.ending_bias, denoiser.pointer.gate.weight):
        torch.nn.init.normal_(weight, std=0.5)
    if denoiser.plan_noise_in is not None:
        torch.nn.init.normal_(denoiser.plan_noise_in.weight, std=0.5)
    return denoiser.requires_grad_(False)


def any_order(count: int, seed: int) -> Order:
    """A document in any of the orders that there are."""
    dice = np.random.default_rng(seed)
    begins, ends = bool(seed % 2), bool(seed % 3)
    cuts = sorted({0, *dice.integers(0, count, int(dice.integers(0, 4))).tolist()})
    lengths = np.diff([*cuts, count]).tolist()
    way = int(dice.integers(4))
    if way == 0:
        openings = [0, *sorted(dice.integers(0, 6, len(cuts) - 1).tolist())]
        return in_streams(count, cuts, openings, begins=begins, end_order=3 if ends else None)
    if way == 1:
        edges = [*cuts, count]
        gaps = [(first, last) for first, last in itertools.pairwise(edges) if dice.random() < 0.6]
        measured = bool(dice.random() < 0.7)
        return with_blocks(with_gaps(count, gaps, begins=begins, ends=ends, measured=measured), lengths)
    if way == 2:
        return with_blocks(at_once(count, begins=begins, ends=ends, known=dice.random(count) < 0.3), lengths)
    known, steps = int(dice.integers(0, count)) * int(dice.random() < 0.5), int(dice.integers(1, count + 1))
    return in_blocks(lengths, steps, known=known, begins=begins, ends=ends)


some_orders = st.builds(any_order, st.integers(1, LONGEST), seeds)


def batch_of(*orders: Order, seed: int, spare: int = 0) -> SlotBatch:
    """Orders as rows with so much padding, any noise for half of what is asked, and plans of half of the blocks."""
    rows = lay_out(orders, max(len(order.source) for order in orders) + spare, CPU)
    shape = (len(orders), LONGEST)
    latents, noisy, drafts = (normal(*shape, CHANNELS, seed=seed + part, dtype=torch.float32) for part in range(3))
    left, given = (torch.rand(2, *shape, generator=chance(seed + part)) for part in (3, 4))
    alpha, plan_alpha = (share * (drawn < 0.5) for share, drawn in (left, given))
    plans = Plans(normal(*shape, ABOVE, seed=seed + 5, dtype=torch.float32), plan_alpha, drafts)
    return slot_batch(latents, rows, noisy=noisy, alpha=alpha, plans=plans)


def changed_where(mask: Tensor, one: SlotBatch, other: SlotBatch) -> SlotBatch:
    """One batch with the readings of a mask [B, L] as they are in another, but for their order and documents."""
    fields = [
        theirs.where(mask.unsqueeze(-1) if mine.dim() == 3 else mask, mine)
        for mine, theirs in zip(one[1:], other[1:], strict=True)
    ]
    kinds = ((one.layout.kinds + 1) % len(SlotKind)).where(mask, one.layout.kinds)
    positions = (one.layout.positions + 9).where(mask, one.layout.positions)
    return SlotBatch(one.layout._replace(kinds=kinds, positions=positions), *fields)


def joined(first: SlotBatch, second: SlotBatch) -> SlotBatch:
    """Two documents in one row."""
    later = second.layout._replace(documents=second.layout.documents + 1)
    layout = Layout(*(torch.cat(pair, 1) for pair in zip(first.layout, later, strict=True)))
    return SlotBatch(layout, *(torch.cat(pair, 1) for pair in zip(first[1:], second[1:], strict=True)))


def part(batch: SlotBatch, places: Tensor) -> SlotBatch:
    """The readings at some places [B, n]."""
    rows = torch.arange(len(places)).unsqueeze(1)
    layout = Layout(*(field[rows, places] for field in batch.layout))
    return SlotBatch(layout, *(field[rows, places] for field in batch[1:]))


def row_of(batch: SlotBatch, row: int, length: int) -> SlotBatch:
    """The first readings of one row."""
    layout = Layout(*(field[row : row + 1, :length] for field in batch.layout))
    return SlotBatch(layout, *(field[row : row + 1, :length] for field in batch[1:]))


def all_said(said: DenoisedSlots) -> Iterator[Tensor]:
    """Each thing that is said."""
    assert said.copies is not None
    yield from (said.latents, said.ending_logits, said.copies.log_rest, said.copies.log_shares.exp())


def assert_said_alike(one: DenoisedSlots, other: DenoisedSlots, *, before: int = 0) -> None:
    """The same up to rounding; `before` readings of the first row are not those of the second."""
    *mine, shares = all_said(one)
    *theirs, others = all_said(other)
    for each, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-5)
    inside = shares[..., before : before + others.shape[-1]]
    torch.testing.assert_close(inside, others, atol=1e-5, rtol=1e-5)
    assert not shares[..., :before].any() and not shares[..., before + others.shape[-1] :].any()


def at(said: DenoisedSlots, index: Any) -> DenoisedSlots:
    """What is said at some readings."""
    assert said.copies is not None
    return DenoisedSlots(said.latents[index], said.ending_logits[index], Copies(*(each[index] for each in said.copies)))


# What a reading sees


@law
@given(st.lists(some_orders, min_size=1, max_size=3), st.integers(0, 12), seeds)
def test_what_is_read_later_changes_nothing(orders: list[Order], time: int, seed: int) -> None:
    denoiser, batch = make_denoiser(), batch_of(*orders, seed=seed)
    late = batch.layout.order >= time
    changed = changed_where(late, batch, batch_of(*orders, seed=seed + 7))
    before, after = denoiser(batch), denoiser(changed)
    assert_said_alike(at(before, ~late), at(after, ~late))
    assert not late.any() or (before.ending_logits[late] != after.ending_logits[late]).any()


@law
@given(st.integers(1, LONGEST), st.booleans(), st.booleans(), seeds)
def test_an_open_slot_of_pure_noise_tells_the_others_nothing(count: int, begins: bool, ends: bool, seed: int) -> None:
    """Neither that it is there, nor its plan, nor an earlier estimate; but it sees what the others hold."""
    denoiser = make_denoiser()
    known = np.random.default_rng(seed).random(count) < 0.3
    order = with_blocks(at_once(count, begins=begins, ends=ends, known=known), [count])
    batch = batch_of(order, seed=seed)
    silent = batch.layout.silent_mask
    assert torch.equal(silent, (batch.layout.kinds == SlotKind.OPEN) & (batch.alpha == 0))
    changed = changed_where(silent, batch, batch_of(order, seed=seed + 7))
    before, after = denoiser(batch), denoiser(changed)
    assert torch.equal(before.latents[~silent], after.latents[~silent])
    assert torch.equal(before.ending_logits[~silent], after.ending_logits[~silent])
    if not silent.any():
        return
    others = changed_where(~silent, batch, batch_of(order, seed=seed + 7))
    assert (denoiser(others).ending_logits[silent] != before.ending_logits[silent]).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@few
@given(some_orders, st.integers(1, 12), seeds)
def test_no_attention_is_strong_enough_to_see_what_does_not_exist(
    dtype: torch.dtype, order: Order, time: int, seed: int
) -> None:
    """Products of queries and keys in the hundreds, which a soft floor would not outweigh."""
    denoiser, batch = make_denoiser(), batch_of(order, seed=seed)
    for block in denoiser.blocks:
        block.attention_in.weight *= 100  # type: ignore[union-attr, operator]
    hidden = (batch.layout.order >= time) | batch.layout.silent_mask
    changed = changed_where(hidden, batch, batch_of(order, seed=seed + 7))
    before, after = denoiser.to(dtype)(batch), denoiser(changed)
    assert torch.equal(before.latents[~hidden], after.latents[~hidden])


@pytest.mark.parametrize(
    "field", ["known", "noisy", "alpha", "estimate", "plan", "plan_alpha", "left", "kinds", "positions"]
)
@few
@given(some_orders, seeds)
def test_everything_sees_what_is_read_no_later(field: str, order: Order, seed: int) -> None:
    """To its left and to its right, and all that there is of it."""
    denoiser, batch = make_denoiser(), batch_of(order, seed=seed)
    place = seed % len(order.source)
    if field == "plan":
        assert batch.plan_alpha is not None
        batch.plan_alpha[0, place] = 0.4
    base = denoiser(batch).ending_logits[0]
    moved = getattr(batch.layout if field in Layout._fields else batch, field).clone()
    if field in Layout._fields:
        moved[0, place] = (moved[0, place] + 1) % len(SlotKind) if field == "kinds" else moved[0, place] + 3
        changed = batch._replace(layout=batch.layout._replace(**{field: moved}))
    else:
        moved[0, place] = {"alpha": 0.3, "plan_alpha": 0.7, "left": (moved[0, place] + 1) % LONGEST}.get(field, 2.0)
        changed = batch._replace(**{field: moved})
    reached = (denoiser(changed).ending_logits[0] != base).any(-1)
    if field == "positions":
        reached[place] = True  # alone, a position means nothing
    expected = batch.layout.order[0] >= batch.layout.order[0, place]
    if batch.layout.silent_mask[0, place]:
        expected = torch.arange(len(expected)) == place
    assert torch.equal(reached, expected)


@law
@given(some_orders, some_orders, seeds)
def test_documents_in_one_row_do_not_see_each_other(first: Order, second: Order, seed: int) -> None:
    denoiser = make_denoiser()
    one, other = batch_of(first, seed=seed), batch_of(second, seed=seed + 1)
    together = denoiser(joined(one, other))
    border = len(first.source)
    assert_said_alike(at(together, (slice(None), slice(border))), denoiser(one))
    assert_said_alike(at(together, (slice(None), slice(border, None))), denoiser(other), before=border)


@law
@given(st.lists(some_orders, min_size=1, max_size=3), st.integers(1, 7), seeds)
def test_padding_and_other_rows_change_nothing(orders: list[Order], spare: int, seed: int) -> None:
    denoiser = make_denoiser()
    together = batch_of(*orders, seed=seed, spare=spare)
    said = denoiser(together)
    assert all(field.isfinite().all() for field in all_said(said))
    for row, order in enumerate(orders):
        length = len(order.source)
        alone = denoiser(row_of(together, row, length))
        assert_said_alike(at(said, (slice(row, row + 1), slice(length))), alone)


@few
@given(some_orders, st.integers(-40, 400), seeds)
def test_only_distances_between_positions_matter(order: Order, shift: int, seed: int) -> None:
    denoiser, batch = make_denoiser(), batch_of(order, seed=seed)
    moved = batch._replace(layout=batch.layout._replace(positions=batch.layout.positions + shift))
    one, other = denoiser(batch), denoiser(moved)
    torch.testing.assert_close(one.latents, other.latents, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one.ending_logits, other.ending_logits, atol=1e-3, rtol=1e-3)


def test_behind_a_gap_of_unknown_length_nothing_that_is_mixed_in_stands_before_it() -> None:
    assert BLANKS >= REACH


def test_gaps_are_read_from_both_sides_and_streams_and_blocks_see_what_others_held_before() -> None:
    gap = with_gaps(9, [(3, 6)], begins=True, ends=True, measured=True)
    assert _sees(gap, told=3, held=8) and _sees(gap, told=5, held=3) and not _sees(gap, told=4, held=5)
    pair = in_streams(12, [0, 6], [0, 3], begins=True, end_order=2)
    assert _sees(pair, told=6, held=2) and not _sees(pair, told=6, held=3)
    assert _sees(pair, told=4, held=6) and not _sees(pair, told=3, held=6)
    blocks = in_blocks([4, 4], 5, begins=True, ends=True)
    assert _sees(blocks, told=4, held=0) and not _sees(blocks, told=4, held=1)
    assert _sees(blocks, told=3, held=5) and not _sees(blocks, told=2, held=5), "and what comes behind"


def _sees(order: Order, *, told: int, held: int) -> bool:
    """Whether one slot is told with a view of another."""
    denoiser, batch = make_denoiser(), batch_of(order, seed=4)
    teller = order.told.tolist().index(told)
    changed = batch.known.clone()
    changed[0, order.source.tolist().index(held)] *= -1
    moved = denoiser(batch._replace(known=changed))
    return bool((denoiser(batch).latents[0, teller] != moved.latents[0, teller]).any())


# Plans


@law
@given(st.lists(some_orders, min_size=1, max_size=2), seeds)
def test_a_plan_of_pure_noise_is_no_plan(orders: list[Order], seed: int) -> None:
    denoiser, batch = make_denoiser(), batch_of(*orders, seed=seed)
    assert batch.plan_alpha is not None and batch.plan is not None
    plan = normal(*batch.plan.shape, seed=seed + 9, dtype=torch.float32)
    noise = denoiser(batch._replace(plan=plan, plan_alpha=torch.zeros_like(batch.plan_alpha)))
    nothing = denoiser(batch._replace(plan=None, plan_alpha=None))
    assert torch.equal(noise.latents, nothing.latents) and torch.equal(noise.ending_logits, nothing.ending_logits)


@law
@given(some_orders, seeds)
def test_a_plan_of_which_something_is_left_is_read_with_how_much_it_is(order: Order, seed: int) -> None:
    denoiser, batch = make_denoiser(), batch_of(order, seed=seed)
    assert batch.plan_alpha is not None
    nothing = denoiser(batch._replace(plan=None, plan_alpha=None)).ending_logits
    said = [
        denoiser(batch._replace(plan_alpha=torch.full_like(batch.plan_alpha, share))).ending_logits
        for share in (0.01, 0.5, 1.0)
    ]
    for one in said:
        assert (one != nothing).any(-1).all()
    assert (said[0] != said[1]).any(-1).all() and (said[1] != said[2]).any(-1).all()


@few
@given(some_orders, seeds)
def test_a_plan_does_not_reach_beyond_what_may_see_its_readings(order: Order, seed: int) -> None:
    denoiser, batch = make_denoiser(), batch_of(order, seed=seed)
    assert batch.plan_alpha is not None
    late = batch.layout.order >= int(batch.layout.order.max())
    changed = batch._replace(plan_alpha=torch.ones_like(batch.plan_alpha).where(late, batch.plan_alpha))
    before, after = denoiser(batch), denoiser(changed)
    assert_said_alike(at(before, ~late), at(after, ~late))


def test_before_training_a_plan_is_heard_and_how_long_its_block_is_is_not() -> None:
    torch.manual_seed(1)
    denoiser = Denoiser(CHANNELS, ABOVE, WIDTH, 2, 2, blocks=LONGEST).requires_grad_(False)
    batch = batch_of(in_blocks([4, 3], 4, begins=True, ends=True), seed=1)
    assert batch.plan is not None and batch.plan_alpha is not None
    sure = batch._replace(plan_alpha=torch.ones_like(batch.plan_alpha))
    base = denoiser(sure).latents
    assert not torch.allclose(denoiser(sure._replace(plan=-batch.plan)).latents, base, atol=1e-3)
    assert torch.equal(denoiser(sure._replace(left=torch.full_like(batch.left, LONGEST))).latents, base)
    half = sure._replace(plan_alpha=torch.full_like(batch.plan_alpha, 0.5))
    assert torch.equal(denoiser(half).latents, base), "nor how noisy the plan is"


def test_a_level_with_nothing_above_reads_no_plan() -> None:
    denoiser = make_denoiser(None)
    assert denoiser.plan_in is None and denoiser.plan_noise_in is None
    batch = batch_of(in_streams(7, [0, 4], [0, 2], begins=True, end_order=1), seed=1)
    said = denoiser(batch._replace(plan=None, plan_alpha=None))
    assert torch.equal(said.latents, denoiser(batch).latents)


# Reading with a cache


def course_of(layout: Layout, padding: int, *, together: int) -> list[Tensor]:
    """Places [B, n] to read: all of times up to `together`, then one time after the other; `padding` is a free one."""
    times = (layout.order - together).clamp(min=0)
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
@given(st.lists(some_orders, min_size=1, max_size=3), st.integers(0, 6), seeds)
def test_reading_step_by_step_is_reading_at_once(orders: list[Order], together: int, seed: int) -> None:
    denoiser, batch = make_denoiser(), batch_of(*orders, seed=seed, spare=1)
    whole, cache = denoiser(batch), KVCache(batch.layout)
    seen = torch.zeros_like(batch.layout.order)
    for places in course_of(batch.layout, batch.layout.order.shape[1] - 1, together=together):
        cache.places = places
        said = denoiser(part(batch, places), cache)
        real = batch.layout.documents.gather(1, places) >= 0
        expected = at(whole, (torch.arange(len(orders)).unsqueeze(1), places))
        assert_said_alike(at(said, real), at(expected, real))
        seen.scatter_add_(1, places, real.long())
    assert torch.equal(seen, (batch.layout.documents >= 0).long()), "each is read once"


def test_whole_rows_are_kept_as_if_read_place_by_place() -> None:
    orders = in_streams(9, [0, 5], [0, 4], begins=True, end_order=6), in_streams(7, [0], [0], begins=False, end_order=3)
    denoiser, batch = make_denoiser(), batch_of(*orders, seed=3)
    whole, by_places = KVCache(batch.layout), KVCache(batch.layout)
    by_places.places = torch.arange(batch.layout.order.shape[1]).expand_as(batch.layout.order)
    assert_said_alike(denoiser(batch, whole), denoiser(batch, by_places))
    assert whole.layers.keys() == by_places.layers.keys() and len(whole.layers) > 3
    for name, layer in whole.layers.items():
        assert torch.equal(layer, by_places.layers[name])


@few
@given(seeds)
def test_what_has_been_read_stays_when_the_rest_is_laid_out_anew(seed: int) -> None:
    """As when the length of a text is asked before it is written."""
    denoiser = make_denoiser()
    short = in_streams(5, [0], [0], begins=True, end_order=None)
    long = in_streams(9, [0, 7], [0, 6], begins=True, end_order=6)
    length = len(long.source) + 1
    before = lay_out([short], length, CPU)
    batch = batch_of(long, seed=seed, spare=1)
    first = torch.arange(len(short.source)).unsqueeze(0)
    batch.noisy[:, first] = 0  # the last of the short text asks nothing
    batch.estimate[:, first] = 0
    cache = KVCache(before.layout)
    cache.places = first
    denoiser(part(batch, first), cache)
    cache.layout = batch.layout
    whole = denoiser(batch)
    for time in range(6, int(batch.layout.order.max()) + 1):
        cache.places = (batch.layout.order[0] == time).nonzero().T
        said = denoiser(part(batch, cache.places), cache)
        assert_said_alike(said, at(whole, (slice(None), cache.places[0])))


def test_a_cache_keeps_what_it_was_given() -> None:
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
@given(some_orders, seeds)
def test_a_slot_without_noise_comes_back_exactly(order: Order, seed: int) -> None:
    denoiser, batch = make_denoiser(), batch_of(order, seed=seed)
    sure = torch.rand(batch.alpha.shape, generator=chance(seed)) < 0.5
    batch = batch._replace(alpha=batch.alpha.clamp(max=0.99).masked_fill(sure, 1.0))
    said = denoiser(batch).latents
    assert torch.equal(said[sure], batch.noisy[sure])
    assert (said[~sure] != batch.noisy[~sure]).all()


def test_what_is_added_to_a_noisy_slot_grows_with_its_noise() -> None:
    denoiser = make_denoiser()
    torch.nn.init.zeros_(denoiser.latent_out.weight)
    torch.nn.init.normal_(denoiser.latent_out.bias)
    batch = batch_of(at_once(9, begins=True, ends=False), seed=1)
    alpha = torch.linspace(1, 0, 10)
    found = denoiser(batch._replace(alpha=alpha.unsqueeze(0))).latents
    sigma = (1 - alpha.square()).sqrt()
    expected = alpha.unsqueeze(-1) * batch.noisy + sigma.unsqueeze(-1) * CHANNELS**-0.5 * denoiser.latent_out.bias
    torch.testing.assert_close(found, expected)


def test_it_says_a_latent_and_hazards_of_every_slot_in_full_precision() -> None:
    batch = batch_of(in_streams(4, [0, 2], [0, 1], begins=True, end_order=1), seed=2)
    said = make_denoiser().to(torch.bfloat16)(batch)
    assert said.latents.shape == (1, 7, CHANNELS) and said.ending_logits.shape == (1, 7, len(EDGES))
    assert said.latents.dtype == said.ending_logits.dtype == torch.float32
    exact = make_denoiser()(batch)
    torch.testing.assert_close(said.latents, exact.latents, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", list(SlotKind))
def test_each_kind_of_reading_says_something_of_its_own(kind: SlotKind) -> None:
    denoiser = make_denoiser()
    batch = batch_of(in_streams(1, [0], [0], begins=True, end_order=None), seed=3)
    said = []
    for each in (kind, *(other for other in SlotKind if other != kind)):
        kinds = torch.full_like(batch.layout.kinds, each)
        said.append(denoiser(batch._replace(layout=batch.layout._replace(kinds=kinds))))
    for first, *others in zip(*map(all_said, said), strict=True):
        assert all(not torch.allclose(first, other, atol=1e-3) for other in others)


def test_every_parameter_learns_from_what_it_says() -> None:
    denoiser = make_denoiser().requires_grad_()
    orders = [any_order(12, seed) for seed in range(40)]
    said = denoiser(batch_of(*orders, seed=1))
    loss = sum((field * normal(*field.shape, seed=2, dtype=torch.float32)).sum() for field in all_said(said))
    for name, parameter in denoiser.named_parameters():
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any(), name
        if name in ("kinds", "ending_bias"):
            assert gradient.any(-1).all(), "of every kind"


# Its parts, against the same written out reading by reading


@law
@given(st.lists(some_orders, min_size=1, max_size=3), seeds)
def test_only_what_is_made_in_time_and_tells_something_exists(orders: list[Order], seed: int) -> None:
    layout = batch_of(*orders, seed=seed, spare=1).layout
    bias = _existence_bias(layout, layout, None)
    places = torch.arange(layout.order.shape[1]).flip(0).expand_as(layout.order)
    turned = Layout(*(field.flip(1) for field in layout))
    assert torch.equal(_existence_bias(turned, layout, places), bias.flip(2)), "wherever the readings stand"
    for row in range(len(orders)):
        order, documents, silent = (field[row].tolist() for field in layout[2:5])
        for query in range(len(order)):
            for key in range(len(order)):
                seen = documents[query] == documents[key] and order[key] <= order[query] and not silent[key]
                assert bias[row, 0, query, key] == (0 if seen or key == query else -torch.inf)


@law
@given(some_orders, some_orders, seeds)
def test_the_readings_before_are_added_where_they_exist(first: Order, second: Order, seed: int) -> None:
    torch.manual_seed(seed)
    preceding = _Preceding(WIDTH).double().requires_grad_(False)
    layout = joined(batch_of(first, seed=seed), batch_of(second, seed=seed)).layout
    states = normal(1, layout.order.shape[1], WIDTH, seed=seed)
    found = preceding(states, _seen_before(layout, layout, None), None, "states")[0]
    normed = preceding.norm(states)[0]
    order, documents, silent = (field[0].tolist() for field in layout[2:5])
    for place, said in enumerate(found):
        expected = states[0, place] + preceding.weights[0] * normed[place]
        for distance in range(1, min(REACH, place) + 1):
            before = place - distance
            if documents[before] == documents[place] and order[before] <= order[place] and not silent[before]:
                expected = expected + preceding.weights[distance] * normed[before]
        torch.testing.assert_close(said, expected)
