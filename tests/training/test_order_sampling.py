"""Orders of training: what is asked, when it becomes known, and what the level above is told of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import chance, law, pieces_of, seeds
from zonkey_core.diffusion.decoding_order import OrderedRows
from zonkey_core.slots import SlotKind
from zonkey_core.training import order_sampling
from zonkey_core.training.order_sampling import (
    ALONE,
    AT_ONCE,
    BLOCKS,
    GAPS,
    DrawnOrders,
    draw_alone,
    draw_gaps,
    draw_known,
    draw_orders,
    known_and_open,
)

rows_of_documents = st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=4), min_size=1, max_size=3)
OWN = (SlotKind.TEXT, SlotKind.OPEN)
"""Kinds of readings that stand for a slot of their own."""


class Batch:
    """Rows of documents of these lengths, with blocks that begin by chance, and where documents do."""

    def __init__(self, lengths: list[list[int]], seed: int) -> None:
        tokens = pieces_of(lengths)
        self.lengths, self.slot_mask, self.document_mask = lengths, tokens.slot_mask, tokens.document_mask
        drawn = torch.rand(self.slot_mask.shape, generator=chance(seed)) < 0.3
        self.block_mask = (drawn | self.document_mask) & self.slot_mask
        self.block_mask[:, 0] = True
        drawn = torch.rand(self.slot_mask.shape, generator=chance(seed + 1)) < 0.6
        self.open_mask = (drawn | self.block_mask) & self.slot_mask
        self.block_of = self.block_mask.long().cumsum(1) - 1

    def orders(self, seed: int, mode: int | None = None) -> DrawnOrders:
        """What is drawn, for documents of one mode alone if there is one."""
        with pytest.MonkeyPatch.context() as patch:
            if mode is not None:
                patch.setattr(order_sampling, "SHARES", tuple(float(each == mode) for each in range(4)))
            return draw_orders(self.slot_mask, self.document_mask, self.open_mask, self.block_mask, chance(seed))

    def documents(self) -> list[tuple[int, int, int, int]]:
        """Row, number in it, first slot and the one after the last, of every document."""
        return [
            (row, number, sum(sizes[:number]), sum(sizes[: number + 1]))
            for row, sizes in enumerate(self.lengths) for number in range(len(sizes))
        ]


def readings(rows: OrderedRows, row: int) -> list[dict[str, int]]:
    """The readings of a row that are no padding."""
    layout = rows.layout
    fields = {
        "kind": layout.kinds, "position": layout.positions, "order": layout.order, "document": layout.documents,
        "source": rows.source, "told": rows.told, "remaining": rows.remaining, "block": rows.blocks, "left": rows.left,
    }
    table = {name: tensor[row].tolist() for name, tensor in fields.items()}
    every = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    return [each for each in every if each["document"] >= 0]


@law
@given(rows_of_documents, seeds, st.sampled_from([None, ALONE, BLOCKS, GAPS, AT_ONCE]))
def test_a_slot_is_asked_once_at_most_and_before_it_is_held(
    lengths: list[list[int]], seed: int, mode: int | None
) -> None:
    batch = Batch(lengths, seed)
    drawn = batch.orders(seed, mode)
    for row, sizes in enumerate(lengths):
        read = readings(drawn.rows, row)
        held = [each for each in read if each["source"] >= 0 and each["kind"] != SlotKind.GAP]
        asked = [each for each in read if each["told"] >= 0]
        assert len({each["source"] for each in held}) == len(held)
        assert len({each["told"] for each in asked}) == len(asked)
        assert {each[name] for each in read for name in ("source", "told")} <= set(range(-1, sum(sizes)))
        when = {each["source"]: each["order"] for each in held}
        for each in asked:
            assert when.get(each["told"], each["order"] + 1) > each["order"], "what is asked is not known yet"
            document = batch.document_mask[row, : each["told"] + 1].sum() - 1
            assert each["document"] == int(document), "and is of the document of what asks it"
        assert all(each["position"] == each["source"] - sum(sizes[: each["document"]]) for each in held
                   if mode in (BLOCKS, AT_ONCE))  # fmt: skip


@law
@given(rows_of_documents, seeds)
def test_all_at_once_every_slot_asks_itself(lengths: list[list[int]], seed: int) -> None:
    batch = Batch(lengths, seed)
    drawn = batch.orders(seed, AT_ONCE)
    assert torch.equal(drawn.at_once_mask, batch.slot_mask)
    for row, sizes in enumerate(lengths):
        own = [each for each in readings(drawn.rows, row) if each["kind"] == SlotKind.OPEN]
        assert [each["told"] for each in own] == list(range(sum(sizes)))
        assert all(each["source"] == -1 for each in own)
    assert drawn.known_blocks is not None and not drawn.known_blocks.any()


@law
@given(rows_of_documents, seeds)
def test_in_blocks_every_open_slot_is_asked(lengths: list[list[int]], seed: int) -> None:
    """A slot that is not asked is held from the first; those of a block that the level above knows all are."""
    batch = Batch(lengths, seed)
    drawn = batch.orders(seed, BLOCKS)
    assert drawn.known_blocks is not None and not drawn.at_once_mask.any()
    for row, sizes in enumerate(lengths):
        read = readings(drawn.rows, row)
        asked = {each["told"] for each in read if each["told"] >= 0}
        first = {each["source"] for each in read if each["source"] >= 0 and each["order"] == 0}
        for slot in range(sum(sizes)):
            assert (slot in asked) != (slot in first)
            assert slot in first or not drawn.known_blocks[row, batch.block_of[row, slot]]


@law
@given(rows_of_documents, seeds, st.sampled_from([None, BLOCKS, GAPS, AT_ONCE]))
def test_the_level_above_knows_blocks_without_an_open_slot_alone(
    lengths: list[list[int]], seed: int, mode: int | None
) -> None:
    batch = Batch(lengths, seed)
    drawn = batch.orders(seed, mode)
    assert drawn.known_blocks is not None and drawn.alone_blocks is not None
    assert drawn.known_blocks.shape == drawn.alone_blocks.shape
    assert not (drawn.known_blocks & drawn.alone_blocks).any()
    for row, _, first, last in batch.documents():
        blocks = batch.block_of[row, first:last]
        alone = drawn.alone_blocks[row, blocks]
        assert alone.all() or not alone.any(), "a document is told with something above or with nothing"
        asked = [each["told"] for each in readings(drawn.rows, row) if first <= each["told"] < last]
        assert not drawn.known_blocks[row, batch.block_of[row, asked]].any()
        inside = [each for each in readings(drawn.rows, row)
                  if first <= max(each["told"], each["source"]) < last]  # fmt: skip
        for each in inside:
            if alone.any() or each["block"] == -1:
                assert each["block"] == -1 and each["left"] == 0
            else:
                place = each["told"] if each["told"] >= 0 else each["source"]
                assert each["block"] == int(batch.block_of[row, place])


@law
@given(rows_of_documents, seeds, st.sampled_from([BLOCKS, AT_ONCE]))
def test_how_much_of_a_block_is_left_is_counted_from_what_is_asked(
    lengths: list[list[int]], seed: int, mode: int
) -> None:
    batch = Batch(lengths, seed)
    drawn = batch.orders(seed, mode)
    ends = {
        (row, slot): int((batch.block_of[row, slot:] == batch.block_of[row, slot]).logical_and(
            batch.slot_mask[row, slot:]).sum())
        for row, sizes in enumerate(lengths) for slot in range(sum(sizes))
    }  # fmt: skip
    for row in range(len(lengths)):
        for each in readings(drawn.rows, row):
            if each["told"] >= 0:
                assert each["left"] == (ends[row, each["told"]] if each["block"] >= 0 else 0)


@law
@given(rows_of_documents, seeds)
def test_with_nothing_above_there_are_no_blocks(lengths: list[list[int]], seed: int) -> None:
    batch = Batch(lengths, seed)
    drawn = draw_orders(batch.slot_mask, batch.document_mask, batch.open_mask, None, chance(seed))
    assert drawn.known_blocks is None and drawn.alone_blocks is None and not drawn.at_once_mask.any()
    assert (drawn.rows.blocks == -1).all() and (drawn.rows.left == 0).all()


@law
@given(rows_of_documents, seeds)
def test_in_blocks_streams_open_where_they_may(lengths: list[list[int]], seed: int) -> None:
    batch = Batch(lengths, seed)
    drawn = batch.orders(seed, BLOCKS)
    told = drawn.rows.told[(drawn.rows.layout.kinds == SlotKind.STREAM) & (drawn.rows.layout.documents >= 0)]
    rows = ((drawn.rows.layout.kinds == SlotKind.STREAM) & (drawn.rows.layout.documents >= 0)).nonzero()[:, 0]
    assert batch.open_mask[rows, told].all()


def test_every_mode_is_drawn_about_as_often_as_its_share_says() -> None:
    batch = Batch([[60, 60]] * 200, 0)
    drawn = batch.orders(1)
    assert drawn.alone_blocks is not None
    alone, at_once, gapped = 0, 0, 0
    for row, _, first, last in batch.documents():
        alone += bool(drawn.alone_blocks[row, batch.block_of[row, first]])
        at_once += bool(drawn.at_once_mask[row, first:last].all())
        kinds = {each["kind"] for each in readings(drawn.rows, row)
                 if first <= max(each["told"], each["source"]) < last}  # fmt: skip
        told_side_by_side = {SlotKind.BLOCK, SlotKind.STREAM, SlotKind.OPEN} & kinds
        gapped += not told_side_by_side and not drawn.alone_blocks[row, batch.block_of[row, first]]
    assert alone / 400 == pytest.approx(order_sampling.SHARES[ALONE], abs=0.06)
    assert at_once / 400 == pytest.approx(order_sampling.SHARES[AT_ONCE], abs=0.06)
    assert gapped / 400 == pytest.approx(order_sampling.SHARES[GAPS], abs=0.08)


def test_an_order_is_decided_by_its_generator() -> None:
    batch = Batch([[9, 14], [20]], 3)
    first, again, other = (batch.orders(seed) for seed in (5, 5, 6))
    assert all(torch.equal(one, two) for one, two in zip(first.rows[1:], again.rows[1:], strict=True))
    assert first.rows.told.shape != other.rows.told.shape or not torch.equal(first.rows.told, other.rows.told)


# A level alone


@law
@given(st.integers(1, 60), seeds, st.booleans(), st.booleans())
def test_a_document_alone_asks_every_slot_or_those_of_its_gaps(count: int, seed: int, begins: bool, ends: bool) -> None:
    dice = np.random.default_rng(seed)
    opens = dice.random(count) < dice.random()
    order, certain = draw_alone(opens, dice, begins=begins, ends=ends)
    asked = order.told[order.told >= 0]
    held = order.source[(order.source >= 0) & (order.kinds != SlotKind.GAP)]
    assert len(set(asked.tolist())) == len(asked) and len(set(held.tolist())) == len(held)
    if SlotKind.GAP not in order.kinds and len(asked) == count:
        assert sorted(asked.tolist()) == sorted(held.tolist()) == list(range(count))
        assert certain == ends
        streams = order.told[order.kinds == SlotKind.STREAM]
        assert opens[streams[streams > 0]].all(), "streams open where they may"
        measured = order.remaining >= 0
        assert measured[0] and order.remaining[0] == count, "how long it is, is asked where it opens"
        assert (order.remaining[measured] == count - 1 - order.positions[measured]).all()
    else:
        open_slots = set(range(count)) - set(held.tolist())
        unmeasured = order.remaining[order.kinds == SlotKind.GAP]
        if len(asked):
            assert not open_slots and (unmeasured == -1).all()
            assert set(order.source[order.order > 0].tolist()) == set(asked.tolist())
        else:
            assert unmeasured.sum() == len(open_slots) > 0


@law
@given(st.integers(1, 200), st.integers(1, 48), seeds)
def test_gaps_lie_apart_and_inside(count: int, longest: int, seed: int) -> None:
    gaps = draw_gaps(count, np.random.default_rng(seed), longest)
    assert all(0 <= first < last <= count and last - first <= longest for first, last in gaps)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(gaps))


# A level of blocks


def masks(lengths: list[list[int]], seed: int) -> tuple[Batch, Tensor, Tensor]:
    """Documents with the slots of each that are held, from the front where only that is counted."""
    batch = Batch(lengths, seed)
    held, counted = draw_known(batch.slot_mask, batch.document_mask, chance(seed))
    for row, _, first, last in batch.documents():
        if counted[row, first]:
            held[row, first:last] = torch.arange(last - first) < (last - first) // 2
    return batch, held, counted


@law
@given(rows_of_documents, seeds)
def test_slots_of_a_level_of_blocks_are_held_or_ask_themselves(lengths: list[list[int]], seed: int) -> None:
    batch, held, counted = masks(lengths, seed)
    rows = known_and_open(batch.slot_mask, batch.document_mask, held, counted, None)
    for row, number, first, last in batch.documents():
        read = [each for each in readings(rows, row) if each["document"] == number]
        own = [each for each in read if each["kind"] in OWN]
        if counted[row, first]:
            kept = int(held[row, first:last].sum())
            assert [each["source"] for each in own] == list(range(first, first + kept))
            assert read[-1]["remaining"] == last - first - kept and all(each["told"] == -1 for each in read)
            assert all(each["remaining"] == -1 for each in read[:-1])
        else:
            for slot, each in zip(range(first, last), own, strict=True):
                known = bool(held[row, slot])
                assert (each["source"], each["told"]) == ((slot, -1) if known else (-1, slot))
            assert all(each["remaining"] == -1 for each in read)
            assert (read[-1]["kind"] == SlotKind.END) == (number < len(lengths[row]) - 1)
        assert all(each["order"] == 0 for each in read)


@law
@given(rows_of_documents, seeds)
def test_documents_that_ask_how_long_they_are_hold_no_known_slot_drawn_by_chance(
    lengths: list[list[int]], seed: int
) -> None:
    batch = Batch(lengths, seed)
    held, counted = draw_known(batch.slot_mask, batch.document_mask, chance(seed))
    assert not (held & counted).any() and not (held & ~batch.slot_mask).any() and not (counted & ~batch.slot_mask).any()
    for row, _, first, last in batch.documents():
        assert counted[row, first:last].all() or not counted[row, first:last].any()


def test_behind_blocks_with_plans_the_rest_may_be_a_stream_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_sampling, "UNPLANNED", 1.0)
    batch = Batch([[40]], 3)
    for seed in range(20):
        drawn = batch.orders(seed, BLOCKS)
        assert drawn.known_blocks is not None
        told = drawn.rows.told[0]
        asked = told[told >= 0]
        first = int(asked.min())
        assert asked.tolist() == list(range(first, 40)) and bool(batch.block_mask[0, first])
        source = drawn.rows.source[0]
        assert source[source >= 0].tolist() == list(range(40)), "the blocks are known slot by slot"
        assert (drawn.rows.blocks[0][told >= 0] == -1).all() and (drawn.rows.left[0][told >= 0] == 0).all()
        assert drawn.known_blocks[0].sum() == batch.block_of[0, first]
