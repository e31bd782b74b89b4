"""Block generation: what a text depends on, what is kept, when slots are told, how long texts become."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.inference.model_helpers import NEVER, expect, read_at_once, strings_of, teller
from tests.model_helpers import chance, few, normal, seeds, small_model
from zonkey_core.diffusion.decoding_order import (
    Order,
    in_blocks,
    in_streams,
    lay_out,
)
from zonkey_core.inference import block_decoding, block_generation
from zonkey_core.inference import shapes as shapes_module
from zonkey_core.inference.block_decoding import EMPTY, TOGETHER, read_whole
from zonkey_core.inference.block_generation import (
    KNOWN_STEP,
    OpenText,
    Written,
    plan_streams,
    write_texts,
)
from zonkey_core.inference.planning import BlockPlan
from zonkey_core.model.denoiser import DenoisedSlots, Denoiser
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.level import Level
from zonkey_core.model.slot_batches import Plans
from zonkey_core.slots import SlotBatch, SlotKind

CPU = torch.device("cpu")


def opened(before: int = 0, room: int = 8, **changes: Any) -> OpenText:
    """A text of so many slots that may go on for others."""
    return OpenText(40 + torch.arange(before) % 200, room, True)._replace(**changes)


def planned(level: Level, *lengths: int, seed: int = 0, ends: bool = True, alpha: float = 0.8) -> BlockPlan:
    """Blocks of these lengths with any plans and drafts."""
    assert level.above is not None
    latents = to_sphere(normal(len(lengths), level.above.channels, seed=seed, dtype=torch.float32))
    drafts = to_sphere(normal(sum(lengths), level.channels, seed=seed + 1, dtype=torch.float32))
    return BlockPlan(list(lengths), Plans(latents, torch.full((len(lengths),), alpha), drafts), ends)


def write(level: Level, *texts: OpenText, seed: int = 0, **options: Any) -> list[Written]:
    """The texts written side by side, each with chances of its own."""
    generators = [chance(seed + index) for index in range(len(texts))]
    return write_texts(level, texts, generators, **{"steps": 4, "temperature": 1.0, **options})


class Reading(NamedTuple):
    """What a denoiser was asked with a cache, and what it said."""

    slots: SlotBatch
    places: Tensor
    found: DenoisedSlots


@contextmanager
def watched() -> Iterator[list[Reading]]:
    """All that any denoiser reads with a cache meanwhile."""
    seen: list[Reading] = []
    forward = Denoiser.forward

    def watching(denoiser: Denoiser, slots: SlotBatch, cache: KVCache | None = None) -> DenoisedSlots:
        found = forward(denoiser, slots, cache)
        if cache is not None:
            seen.append(Reading(slots, cache.places, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "forward", watching)
        yield seen


@st.composite
def open_texts(draw: st.DrawFn) -> OpenText:
    """A text with anything known, room for anything, and sometimes a prefix or a plan."""
    level = teller(levels=2)
    strings = st.integers(0, 299).filter(lambda entry: bool(strings_of(level).lengths[entry] > 0))
    before = draw(st.sampled_from([0, 1, 3, KNOWN_STEP, KNOWN_STEP + 1]))
    known = torch.tensor(draw(st.lists(strings, min_size=before, max_size=before)), dtype=torch.long)
    text = OpenText(known, draw(st.integers(1, 14)), draw(st.booleans()))
    if draw(st.booleans()):
        text = text._replace(prefix=strings_of(level).detokenize([draw(strings)]))
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
        lengths = [8] * (before // 8) + lengths
        lengths[-1] = max(lengths[-1], before + 1 - sum(lengths[:-1]))
        over = max(0, sum(lengths) - before - text.room)
        plan = planned(level, *lengths, seed=draw(seeds), ends=draw(st.booleans()))
        text = text._replace(room=text.room + over, plan=plan, most_blocks=len(lengths) + draw(st.integers(0, 2)))
    return text


# What a text depends on


@few
@given(st.lists(open_texts(), min_size=1, max_size=4), seeds, st.integers(1, 9))
def test_a_text_is_written_alike_alone_and_beside_others(texts: list[OpenText], seed: int, steps: int) -> None:
    level = teller(levels=2)
    beside = [chance(seed + index) for index in range(len(texts))]
    together = write_texts(level, texts, beside, steps=steps, temperature=1.0)
    for index, text in enumerate(texts):
        alone = chance(seed + index)
        (found,) = write_texts(level, [text], [alone], steps=steps, temperature=1.0)
        assert torch.equal(found.entries, together[index].entries) and found.ended == together[index].ended
        assert torch.equal(alone.get_state(), beside[index].get_state()), "what is drawn next is the same as well"


def test_products_have_the_same_shapes_whatever_stands_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others round otherwise."""
    monkeypatch.setattr(shapes_module, "rounds_alike", lambda device, threads: False)
    text = opened(3, 9)
    shapes = []
    for others in ([], [opened(1, 9)], [opened(20, 9, begins=False), *[opened(3, 9)] * 3]):
        with watched() as seen:
            write(teller(NEVER), text, *others, steps=3)
        shapes.append([tuple(reading.places.shape) for reading in seen])
    assert shapes[0] == shapes[1] == shapes[2]


def test_more_texts_than_are_written_at_once_are_written_as_each_alone() -> None:
    level, texts = teller(), [opened(index % 3, 6) for index in range(2 * TOGETHER + 3)]
    together = write(level, *texts)
    for index in (0, 1, TOGETHER, 2 * TOGETHER + 2):
        (alone,) = write(level, texts[index], seed=index)
        assert torch.equal(alone.entries, together[index].entries)
    assert write(level) == []


def test_texts_differ_by_their_chances_alone() -> None:
    level = teller(NEVER)
    first, second = (written.entries for written in write(level, opened(2, 12), opened(2, 12)))
    assert not torch.equal(first, second)
    again = write_texts(level, [opened(2, 12)] * 2, [chance(1), chance(1)], steps=4, temperature=1.0)
    assert torch.equal(again[0].entries, second) and torch.equal(again[1].entries, second)


def test_nothing_global_is_touched() -> None:
    level = teller(NEVER)
    before = {name: tensor.clone() for name, tensor in level.state_dict().items()}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        (written,) = write(level, opened(2, 9))
        assert torch.equal(state, torch.random.get_rng_state())
        found.append(written.entries)
    assert torch.equal(*found)
    assert all(torch.equal(before[name], tensor) for name, tensor in level.state_dict().items())
    assert level.denoiser.latent_in.weight.dtype == torch.float32, "what is read fast is a copy"


@few
@given(st.integers(1, 40), st.integers(1, 6), st.booleans())
def test_what_stands_already_decides_what_follows(before: int, room: int, begins: bool) -> None:
    level = teller(NEVER)
    text = opened(before, room, begins=begins)
    (base,) = write(level, text, temperature=0.0)
    others = [text._replace(begins=not begins)]
    for place in {0, before - 1}:
        known = text.known.clone()
        known[place] = 7
        others.append(text._replace(known=known))
    with watched() as seen:
        write(level, text, *others, temperature=0.0)
    said = seen[0].found.latents[:, before]
    assert all((said[1 + which] != said[0]).any() for which in range(len(others)))
    assert len(base.entries) == room


# When slots are told


@pytest.mark.parametrize("steps", range(1, 129))
def test_streams_have_room_for_every_slot(steps: int) -> None:
    for count in range(1, 301):
        plan = plan_streams(count, steps)
        assert sum(plan.lengths) == count and min(plan.lengths) > 0 and plan.stagger >= 0
        ends = [plan.lengths[0], *(
            1 + plan.stagger * index + length for index, length in enumerate(plan.lengths[1:])
        )]
        assert max(ends) <= steps + 1, "evaluations until the last slot of each is told"
        assert (len(plan.lengths) == 1) == (count <= steps + 1), "and where there is time, one is enough"
        assert len(plan.lengths) <= 1 - (1 - count) // steps + 1, "there are not many more than necessary"


def test_streams_start_one_after_the_other_where_there_is_time() -> None:
    staggers = [plan_streams(count, 16).stagger for count in range(18, 200)]
    assert staggers[0] > 0 and staggers[-1] == 0
    assert plan_streams(2 * 16 + 1, 16).lengths == [17, 16]


rooms = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 45), st.sampled_from([0, 2, KNOWN_STEP]))


@few
@given(rooms)
def test_every_slot_is_read_once_and_in_as_many_evaluations_as_are_given(case: tuple[int, int, int, int]) -> None:
    """Whatever the room is, and however much of it the text takes."""
    room, steps, remaining, before = case
    level = teller(remaining)
    with watched() as seen:
        (written,) = write(level, opened(before, room), steps=steps)
    assert (written.entries != EMPTY).all()
    assert 1 <= len(seen) <= steps + 1
    read: list[tuple[int, int, int]] = []
    for number, reading in enumerate(seen):
        layout = reading.slots.layout
        real = layout.documents[0] >= 0
        fields = (layout.kinds, layout.positions, layout.order)
        read += zip(*(field[0][real].tolist() for field in fields), strict=True)
        times = (layout.order[0][real] - before).clamp(min=0)
        assert (times == number).all(), "each when it is known"
    assert len(read) == len(set(read))
    text = sorted(position for kind, position, _ in read if kind == SlotKind.TEXT)
    assert len(text) == len(set(text)) and set(range(before)) <= set(text) <= set(range(before + len(written.entries)))
    ends = [(position, order) for kind, position, order in read if kind == SlotKind.END]
    if len(seen) > 1 and written.ended:
        assert ends == [(before + len(written.entries), before + 1)], "an end is known once it was asked"
    else:
        assert ends == []


@few
@given(open_texts(), seeds, st.integers(1, 9))
def test_what_is_shown_only_grows_and_ends_as_the_result(text: OpenText, seed: int, steps: int) -> None:
    shown: list[Tensor] = []
    texts = [text, opened(len(text.known), text.room), opened(5, 3)]
    written = write(teller(levels=2), *texts, seed=seed, steps=steps, on_step=shown.append)[0]
    assert 1 <= len(shown) <= steps + 1
    for before, after in itertools.pairwise(shown):
        assert torch.equal(before[before != EMPTY], after[before != EMPTY])
    assert torch.equal(shown[-1], written.entries)
    if text.plan is None:
        assert (shown[0] != EMPTY).tolist() == [place == 0 for place in range(len(written.entries))]
    else:
        assert (shown[0] != EMPTY).any() or not len(written.entries)


def test_streams_are_written_from_left_to_right() -> None:
    shown: list[Tensor] = []
    write(teller(NEVER), opened(3, 10), steps=3, on_step=shown.append)
    there = [set((entries != EMPTY).nonzero().flatten().tolist()) for entries in shown]
    lengths = plan_streams(10, 2).lengths
    firsts = [0, *itertools.accumulate(lengths[:-1])]
    fresh = [sorted(after - before) for before, after in itertools.pairwise([set(), *there])]
    for first, length in zip(firsts, lengths, strict=True):
        when = [next(time for time, told in enumerate(fresh) if slot in told) for slot in range(first, first + length)]
        assert when == list(range(when[0], when[0] + length))
    assert fresh[0] == [0] and all(fresh)


# What is told, against the same layouts read at once


def asked_at_once(level: Level, order: Order, entries: Tensor, plan: BlockPlan | None = None) -> tuple[Tensor, Tensor]:
    """The likeliest entry of every slot that an order asks, given all before it, and which slots these are."""
    plans = None if plan is None else Plans(*(part.unsqueeze(0) for part in plan.plans))
    prob, slots = read_at_once(level, order, entries, plans)
    return prob.argmax(-1), slots


@few
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=6), st.data(), st.integers(1, 12), st.booleans(), st.booleans()
)
def test_without_temperature_blocks_hold_what_is_likeliest(
    lengths: list[int], drawn: st.DataObject, steps: int, begins: bool, ends: bool
) -> None:
    """Each slot is told as a single pass over the finished text would tell it, with the plans and drafts of all."""
    level = teller(levels=2)
    before = drawn.draw(st.integers(0, sum(lengths) - 1))
    plan = planned(level, *lengths, ends=ends)
    text = opened(before, sum(lengths), begins=begins, plan=plan, most_blocks=len(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_decoding, "choose_precision", lambda *given: torch.float32)
        (written,) = write(level, text, steps=steps, temperature=0.0)
    assert len(written.entries) == sum(lengths) - before and written.ended == ends
    entries = torch.cat([text.known, written.entries])
    order = in_blocks(lengths, steps, known=before, begins=begins, ends=ends)
    likeliest, slots = asked_at_once(level, order, entries, plan)
    assert sorted(slots.tolist()) == list(range(before, sum(lengths)))
    assert torch.equal(likeliest, entries[slots])


@few
@given(st.integers(0, 40), st.integers(1, 30), st.integers(1, 12), st.sampled_from([3, 20, NEVER]))
def test_without_temperature_what_is_likeliest_is_written(before: int, room: int, steps: int, remaining: int) -> None:
    """Each slot is told as a single pass over the finished text would tell it, streams, openings, ends and all."""
    level = teller(remaining)
    text = opened(before, room)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_decoding, "choose_precision", lambda *given: torch.float32)
        (written,) = write(level, text, steps=steps, temperature=0.0)
    count = len(written.entries)
    lengths, stagger = plan_streams(count, max(1, steps - 1))
    firsts = [0, *(before + np.cumsum(lengths[:-1])).tolist()]
    openings = [0, *(before + 1 + stagger * index for index in range(len(lengths) - 1))]
    order = in_streams(
        before + count, firsts, openings, begins=True, end_order=before + 1 if written.ended else None
    )
    entries = torch.cat([text.known, written.entries])
    likeliest, slots = asked_at_once(level, order, entries)
    fresh = slots >= before
    assert sorted(slots[fresh].tolist()) == list(range(before, before + count))
    assert torch.equal(likeliest[fresh], entries[slots[fresh]])


# What is kept, and what is asked for


@contextmanager
def boards() -> Iterator[list[Any]]:
    """All boards that are made meanwhile."""
    made: list[Any] = []

    class Noted(block_generation.Board):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_generation, "Board", Noted)
        yield made


@few
@given(st.lists(open_texts(), min_size=1, max_size=3), seeds)
def test_known_slots_never_change(texts: list[OpenText], seed: int) -> None:
    level = teller(levels=2)
    with boards() as made:
        for text in texts:
            (written,) = write(level, text, seed=seed)
            row = made[-1].entries[0]
            assert torch.equal(row[: len(text.known)], text.known)
            assert torch.equal(row[len(text.known) :][: len(written.entries)], written.entries)
            assert (row[len(text.known) + len(written.entries) :] == EMPTY).all(), "nothing is told behind its end"


@few
@given(st.lists(open_texts(), min_size=1, max_size=3), seeds, st.sampled_from([0.0, 1.0]))
def test_what_is_told_spells_something_and_begins_as_it_should(
    texts: list[OpenText], seed: int, temperature: float
) -> None:
    level = teller(levels=2)
    for text, (entries, _) in zip(texts, write(level, *texts, seed=seed, temperature=temperature), strict=True):
        assert (strings_of(level).lengths[entries] > 0).all()
        if len(entries):
            assert strings_of(level).detokenize(entries[:1].tolist()).startswith(text.prefix)
        assert len(entries) or not text.prefix, "a string that is begun is told"


@few
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(0, 6), seeds, st.integers(1, 8))
def test_what_is_all_noise_above_is_as_if_nothing_were(lengths: list[int], known: int, seed: int, steps: int) -> None:
    """Plans of which nothing is left say no more than plans that say nothing else."""
    level, known = teller(levels=2), min(known, sum(lengths) - 1)
    text = opened(known, sum(lengths), most_blocks=len(lengths))
    plans = [planned(level, *lengths, seed=each, alpha=0.0) for each in (seed, seed + 7)]
    plans.append(planned(level, *lengths, seed=seed, alpha=0.8))
    first, second, third = (write(level, text._replace(plan=plan), steps=steps)[0].entries for plan in plans)
    assert torch.equal(first, second)
    blank = plans[0]._replace(plans=Plans(*(torch.zeros_like(part) for part in plans[0].plans)))
    assert torch.equal(first, write(level, text._replace(plan=blank), steps=steps)[0].entries)
    assert sum(lengths) - known < 6 or not torch.equal(first, third)


@torch.no_grad()
@few
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), seeds)
def test_a_denoiser_given_nothing_but_noise_above_says_what_it_says_alone(lengths: list[int], seed: int) -> None:
    level, count = teller(levels=2), sum(lengths)
    rows = lay_out([in_blocks(lengths, 3, begins=True, ends=True)], count + 20, CPU)
    latents = strings_of(level).latents()[torch.randint(280, (1, count), generator=chance(seed))]
    plans = [
        Plans(*(part.unsqueeze(0) for part in planned(level, *lengths, seed=seed, alpha=alpha).plans))
        for alpha in (0.0, 0.8)
    ]
    alone, noise, told = (read_whole(level, rows, latents, plan) for plan in (None, *plans))
    assert torch.equal(alone.latents, noise.latents) and torch.equal(alone.ending_logits, noise.ending_logits)
    assert not torch.equal(alone.latents, told.latents)


def test_blocks_are_told_side_by_side_and_each_from_its_start() -> None:
    level, shown = teller(levels=2), list[Tensor]()
    plan = planned(level, 4, 4, 4)
    write(level, opened(0, 12, plan=plan, most_blocks=3), steps=4, on_step=shown.append)
    there = [(entries != EMPTY).view(3, 4).sum(1).tolist() for entries in shown]
    assert there == [[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]
    shown.clear()
    write(level, opened(0, 12, plan=plan, most_blocks=3), steps=12, on_step=shown.append)
    assert [int((entries != EMPTY).sum()) for entries in shown] == list(range(1, 13)), "one by one where there is time"


# How long texts become


@few
@given(st.integers(0, 7), st.integers(1, 9), st.sampled_from([0, 1, 40]), st.integers(1, 9))
def test_a_text_ends_where_it_says(remaining: int, room: int, before: int, steps: int) -> None:
    (written,) = write(teller(remaining), opened(before, room), steps=steps)
    expected = remaining if before else max(1, remaining)
    assert (len(written.entries), written.ended) == (min(expected, room), expected <= room)


@few
@given(st.integers(1, 9), st.sampled_from([0, 1, 40]))
def test_a_text_that_does_not_end_takes_all_its_room(room: int, before: int) -> None:
    (written,) = write(teller(NEVER), opened(before, room))
    assert (len(written.entries), written.ended) == (room, False)


def test_a_count_that_stands_for_any_from_there_on_ends_nothing() -> None:
    (written,) = write(teller(NEVER), opened(2, NEVER + 20), steps=128)
    assert not written.ended and len(written.entries) >= NEVER


@few
@given(st.lists(st.integers(1, 8), min_size=1, max_size=4), st.integers(1, 6), st.booleans())
def test_a_plan_says_how_long_a_text_is(lengths: list[int], steps: int, ends: bool) -> None:
    level = teller(0, levels=2)
    text = opened(0, sum(lengths) + 3, plan=planned(level, *lengths, ends=ends), most_blocks=len(lengths))
    (written,) = write(level, text, steps=steps)
    assert (len(written.entries), written.ended) == (sum(lengths), ends)


def test_texts_are_as_long_as_often_as_the_level_thinks() -> None:
    level, likely = small_model(1, seed=3).bottom.eval().requires_grad_(False), (0.3, 0.5, 0.2, 0.6)
    expect(level, NEVER)
    level.denoiser.ending_out.bias[: len(likely)] = torch.tensor(likely).logit()
    counts = torch.tensor([len(written.entries) for written in write(level, *[opened(2, 6)] * 1600, steps=1)])
    left, expected = 1.0, []
    for share in likely:
        expected.append(left * share)
        left *= 1 - share
    found = torch.bincount(counts, minlength=7) / len(counts)
    torch.testing.assert_close(found, torch.tensor([*expected, 0, 0, left]), atol=0.04, rtol=0)


def test_a_generator_may_be_used_again() -> None:
    """Two texts of one generator are two texts."""
    generator, level = chance(1), teller(NEVER)
    found: Sequence[Written] = [
        *write_texts(level, [opened(2, 12)], [generator], steps=4, temperature=1.0),
        *write_texts(level, [opened(2, 12)], [generator], steps=4, temperature=1.0),
    ]
    assert not torch.equal(found[0].entries, found[1].entries)
