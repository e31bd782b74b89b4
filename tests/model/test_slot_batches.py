"""What a denoiser is given: the slots that an order names, at their noise, and the plans of their blocks."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import chance, law, normal, seeds
from zonkey_core.diffusion.decoding_order import Order, at_once, in_blocks, in_streams, lay_out, with_blocks
from zonkey_core.model.slot_batches import Plans, at_places, at_slots, gather_slots, slot_batch
from zonkey_core.slots import SlotBatch, SlotKind

CHANNELS, ABOVE, SLOTS, BLOCKS = 3, 2, 12, 4
CPU = torch.device("cpu")


def any_order(seed: int) -> Order:
    """One of `SLOTS` slots in `BLOCKS` blocks."""
    dice = np.random.default_rng(seed)
    cuts = [0, *sorted((1 + dice.choice(SLOTS - 1, BLOCKS - 1, replace=False)).tolist())]
    lengths = np.diff([*cuts, SLOTS]).tolist()
    way, known = int(dice.integers(3)), int(dice.integers(SLOTS))
    if way == 0:
        order = at_once(SLOTS, begins=True, ends=True, known=dice.random(SLOTS) < 0.5)
        return with_blocks(order, lengths)._replace(left=np.where(order.told >= 0, 2, 0))
    if way == 1:
        return with_blocks(in_streams(SLOTS, cuts, [0] * BLOCKS, begins=True, end_order=1), lengths)
    return in_blocks(lengths, int(dice.integers(1, SLOTS + 1)), known=known, begins=True, ends=True)


some_orders = st.lists(seeds.map(any_order), min_size=1, max_size=3)


def some_plans(rows: int, seed: int) -> Plans:
    """Plans of which some say nothing."""
    share, given_mask = torch.rand(2, rows, BLOCKS, generator=chance(seed)).unbind(0)
    latents, drafts = (
        normal(rows, *shape, seed=seed + 1, dtype=torch.float32) for shape in ((BLOCKS, ABOVE), (SLOTS, CHANNELS))
    )
    return Plans(latents, share * (given_mask < 0.6), drafts)


def some_slots(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean slots, noisy ones, and what is left of these."""
    clean, noisy = (normal(rows, SLOTS, CHANNELS, seed=seed + part, dtype=torch.float32) for part in (2, 3))
    share, noised = torch.rand(2, rows, SLOTS, generator=chance(seed + 4)).unbind(0)
    return clean, noisy, share * (noised < 0.6)


def assert_batches_equal(one: SlotBatch, other: SlotBatch, *, but: tuple[str, ...] = ()) -> None:
    for name in set(SlotBatch._fields) - {"layout", *but}:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.layout, other.layout, strict=True))


@law
@given(some_orders, st.booleans(), seeds)
def test_readings_hold_and_ask_what_their_order_says(orders: list[Order], noised: bool, seed: int) -> None:
    rows = lay_out(orders, max(len(order.source) for order in orders) + 1, CPU)
    clean, noisy, alpha = some_slots(len(orders), seed)
    plans = some_plans(len(orders), seed)
    batch = slot_batch(clean, rows, **({"noisy": noisy, "alpha": alpha} if noised else {}), plans=plans)
    assert batch.plan is not None and batch.plan_alpha is not None
    silent = batch.layout.silent_mask
    zeros = torch.zeros(CHANNELS)
    for row in range(len(orders)):
        for place in range(rows.source.shape[1]):
            held, asked, block = (int(field[row, place]) for field in (rows.source, rows.told, rows.blocks))
            assert torch.equal(batch.known[row, place], clean[row, held] if held >= 0 else zeros)
            left = alpha[row, asked] if noised and asked >= 0 else torch.zeros(())
            assert batch.alpha[row, place] == left
            assert torch.equal(batch.noisy[row, place], noisy[row, asked] if left > 0 else zeros)
            assert silent[row, place] == (rows.layout.kinds[row, place] == SlotKind.OPEN and left == 0)
            planned = plans.alpha[row, block] if block >= 0 else torch.zeros(())
            assert batch.plan_alpha[row, place] == planned
            assert torch.equal(batch.plan[row, place], plans.latents[row, block] * (planned > 0))
            drafted = planned > 0 and asked >= 0
            assert torch.equal(batch.estimate[row, place], plans.drafts[row, asked] if drafted else zeros)
            assert batch.left[row, place] == rows.left[row, place] * (planned > 0)


@law
@given(some_orders, seeds)
def test_plans_that_say_nothing_are_as_none(orders: list[Order], seed: int) -> None:
    rows = lay_out(orders, max(len(order.source) for order in orders), CPU)
    clean, noisy, alpha = some_slots(len(orders), seed)
    plans = some_plans(len(orders), seed)._replace(alpha=torch.zeros(len(orders), BLOCKS))
    silent = slot_batch(clean, rows, noisy=noisy, alpha=alpha, plans=plans)
    alone = slot_batch(clean, rows, noisy=noisy, alpha=alpha)
    assert alone.plan is None and alone.plan_alpha is None
    assert silent.plan is not None and not silent.plan.any()
    assert silent.plan_alpha is not None and not silent.plan_alpha.any()
    assert_batches_equal(silent, alone, but=("plan", "plan_alpha"))
    assert not alone.left.any() and not alone.estimate.any()


@law
@given(some_orders, seeds)
def test_what_is_said_comes_back_to_its_slots(orders: list[Order], seed: int) -> None:
    rows = lay_out(orders, max(len(order.source) for order in orders) + 2, CPU)
    said = normal(*rows.told.shape, CHANNELS, seed=seed, dtype=torch.float32)
    found = at_slots(said, rows.told, torch.zeros(len(orders), SLOTS, CHANNELS, dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    for row in range(len(orders)):
        told = rows.told[row].tolist()
        for slot in range(SLOTS):
            expected = said[row, told.index(slot)] if slot in told else torch.zeros(CHANNELS)
            assert torch.equal(found[row, slot], expected)
    asked = (rows.told >= 0).unsqueeze(-1)
    assert torch.equal(gather_slots(found, rows.told), said * asked)


def test_there_may_be_no_slots() -> None:
    which = torch.full((2, 3), -1)
    assert torch.equal(gather_slots(torch.zeros(2, 0, 5), which), torch.zeros(2, 3, 5))
    rows = lay_out([at_once(0, begins=True, ends=True)], 2, CPU)
    batch = slot_batch(torch.zeros(1, 0, CHANNELS), rows)
    assert not batch.known.any() and batch.noisy.shape == (1, 2, CHANNELS)


@law
@given(some_orders, seeds, st.data())
def test_readings_at_some_places_are_those_of_the_whole(orders: list[Order], seed: int, data: st.DataObject) -> None:
    rows = lay_out(orders, max(len(order.source) for order in orders), CPU)
    length = rows.told.shape[1]
    places = torch.tensor([
        data.draw(st.lists(st.integers(0, length - 1), min_size=3, max_size=3)) for _ in orders
    ])
    clean, noisy, alpha = some_slots(len(orders), seed)
    plans = some_plans(len(orders), seed)
    whole = slot_batch(clean, rows, noisy=noisy, alpha=alpha, plans=plans)
    some = slot_batch(clean, at_places(rows, places), noisy=noisy, alpha=alpha, plans=plans)
    each = torch.arange(len(orders)).unsqueeze(1)
    expected = SlotBatch(whole.layout, *(field[each, places] for field in whole[1:]))
    assert_batches_equal(some, expected._replace(layout=type(whole.layout)(*(f[each, places] for f in whole.layout))))
