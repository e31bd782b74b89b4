"""Writing: what a text depends on, what is kept, when slots are told, how long texts and gaps become."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.model_helpers import chance, few, fit_dictionary, law, seeds, small_model
from zonkey_core.diffusion.decoding_order import GAP_WIDTH, Draft, Kind, Layout, in_streams, lay_out, with_gaps
from zonkey_core.inference import block_decoding, block_generation
from zonkey_core.inference.block_decoding import EMPTY
from zonkey_core.inference.block_generation import (
    KNOWN_STEP,
    TOGETHER,
    GappedText,
    OpenText,
    Written,
    fill_gaps,
    plan_streams,
    write_texts,
)
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.length_model import EDGES
from zonkey_core.model.level import Level
from zonkey_core.model.segment_vocabulary import SegmentVocabulary
from zonkey_core.model.writer import OrderedSlots, Told, Writer

SURE = 30.0
"""Logit of what is certain."""
CPU = torch.device("cpu")


@functools.lru_cache(maxsize=16)
def teller(remaining: int | None = None) -> Level:
    """A level 0 of strong opinions on strings of a text.

    So many slots remain wherever it is asked; where there is no number, it has opinions on that, too.
    """
    model = small_model(1, seed=3)
    dictionary, level = fit_dictionary(model), model.levels[0].eval().requires_grad_(False)
    nn.init.normal_(dictionary.table)
    writer = writer_of(level)
    nn.init.normal_(writer.latent_out.weight, std=2.0)
    nn.init.normal_(writer.ending_out.weight, std=0.3)
    nn.init.constant_(writer.ending_out.bias, -2.0)
    if remaining is not None:
        expect(level, remaining)
    return level


def writer_of(level: Level) -> Writer:
    """The level's writer."""
    assert level.writer is not None
    return level.writer


def strings_of(level: Level) -> SegmentVocabulary:
    """The level's dictionary."""
    assert level.dictionary is not None
    return level.dictionary


def expect(level: Level, remaining: int) -> None:
    """Make a level sure of how many slots remain, up to what its bins tell apart."""
    out = writer_of(level).ending_out
    nn.init.zeros_(out.weight)
    nn.init.constant_(out.bias, -SURE)
    if remaining < EDGES[-1]:
        out.bias[bisect.bisect_right(EDGES, remaining)] = SURE


NEVER = EDGES[-1]
"""Remaining slots of what is sure not to end."""


def opened(before: int = 0, room: int = 8, **changes: Any) -> OpenText:
    """A text of so many slots that may go on for others."""
    return OpenText(40 + torch.arange(before) % 200, room, True)._replace(**changes)


def gapped(*lengths: int, share: float = 0.5, **changes: Any) -> GappedText:
    """Pieces of these lengths with gaps between them."""
    known = [40 + 20 * number + torch.arange(length) for number, length in enumerate(lengths)]
    return GappedText(known, True, True, share, [b""] * (len(lengths) - 1))._replace(**changes)


def write(level: Level, *texts: OpenText, seed: int = 0, **options: Any) -> list[Written]:
    """The texts written side by side, each with chances of its own."""
    generators = [chance(seed + index) for index in range(len(texts))]
    return write_texts(level, texts, generators, **{"steps": 4, "temperature": 1.0, **options})


def fill(level: Level, *texts: GappedText, seed: int = 0, **options: Any) -> list[list[Tensor]]:
    """The texts filled side by side, each with chances of its own."""
    generators = [chance(seed + index) for index in range(len(texts))]
    return fill_gaps(level, texts, generators, **{"steps": 4, "temperature": 1.0, **options})


class Reading(NamedTuple):
    """What a writer was asked with a cache, and what it said."""

    slots: OrderedSlots
    places: Tensor
    told: Told


@contextmanager
def watched() -> Iterator[list[Reading]]:
    """All that any writer reads with a cache meanwhile."""
    seen: list[Reading] = []
    forward = Writer.forward

    def watching(writer: Writer, slots: OrderedSlots, cache: KVCache | None = None) -> Told:
        told = forward(writer, slots, cache)
        if cache is not None:
            seen.append(Reading(slots, cache.places, told))
        return told

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "forward", watching)
        yield seen


@st.composite
def open_texts(draw: st.DrawFn) -> OpenText:
    """A text with anything known, room for anything, and sometimes a prefix or a draft."""
    level = teller()
    strings = st.integers(0, 299).filter(lambda entry: bool(strings_of(level).lengths[entry] > 0))
    before = draw(st.sampled_from([0, 1, 3, KNOWN_STEP, KNOWN_STEP + 1]))
    known = torch.tensor(draw(st.lists(strings, min_size=before, max_size=before)), dtype=torch.long)
    text = OpenText(known, draw(st.integers(1, 14)), draw(st.booleans()))
    if draw(st.booleans()):
        text = text._replace(prefix=strings_of(level).detokenize([draw(strings)]))
    if draw(st.sampled_from([False, False, True])):
        expected = torch.tensor(draw(st.lists(strings, max_size=18)), dtype=torch.long)
        text = text._replace(expected=expected, noise_level=draw(st.sampled_from([0.3, 0.8])))
    return text


@st.composite
def gapped_texts(draw: st.DrawFn) -> GappedText:
    """A text with one gap or some, which may touch each other and the ends."""
    lengths = draw(st.lists(st.integers(0, 6), min_size=2, max_size=4))
    text = gapped(*lengths, share=draw(st.floats(0, 1)))
    return text._replace(begins=draw(st.booleans()), ends=draw(st.booleans()))


# What a text depends on


@law
@given(st.lists(open_texts(), min_size=1, max_size=4), seeds, st.integers(1, 9))
def test_a_text_is_written_alike_alone_and_beside_others(texts: list[OpenText], seed: int, steps: int) -> None:
    level = teller()
    beside = [chance(seed + index) for index in range(len(texts))]
    together = write_texts(level, texts, beside, steps=steps, temperature=1.0)
    for index, text in enumerate(texts):
        alone = chance(seed + index)
        (found,) = write_texts(level, [text], [alone], steps=steps, temperature=1.0)
        assert torch.equal(found.entries, together[index].entries) and found.ended == together[index].ended
        assert torch.equal(alone.get_state(), beside[index].get_state()), "what is drawn next is the same as well"


def test_products_have_the_same_shapes_whatever_stands_beside() -> None:
    """Since others round otherwise."""
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
        (written,), (filled,) = write(level, opened(2, 9)), fill(level, gapped(2, 3))
        assert torch.equal(state, torch.random.get_rng_state())
        found.append(torch.cat([written.entries, *filled]))
    assert torch.equal(*found)
    assert all(torch.equal(before[name], tensor) for name, tensor in level.state_dict().items())
    assert writer_of(level).latent_in.weight.dtype == torch.float32, "what is read fast is a copy"


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
    said = seen[0].told.latents[:, before]
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


@law
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
    text = sorted(position for kind, position, _ in read if kind == Kind.TEXT)
    assert len(text) == len(set(text)) and set(range(before)) <= set(text) <= set(range(before + len(written.entries)))
    ends = [(position, order) for kind, position, order in read if kind == Kind.END]
    if len(seen) > 1 and written.ended:
        assert ends == [(before + len(written.entries), before + 1)], "an end is known once it was asked"
    else:
        assert ends == []


@law
@given(rooms)
def test_gaps_take_as_many_evaluations_as_are_given(case: tuple[int, int, int, int]) -> None:
    _, steps, remaining, before = case
    with watched() as seen:
        (filled,) = fill(teller(remaining), gapped(before, 3, 0), steps=steps)
    assert 1 <= len(seen) <= steps + 1
    assert all((entries != EMPTY).all() for entries in filled)


@law
@given(open_texts(), seeds, st.integers(1, 9))
def test_what_is_shown_only_grows_and_ends_as_the_result(text: OpenText, seed: int, steps: int) -> None:
    shown: list[Tensor] = []
    texts = [text, opened(len(text.known), text.room), opened(5, 3)]
    written = write(teller(), *texts, seed=seed, steps=steps, on_step=shown.append)[0]
    assert 1 <= len(shown) <= steps + 1
    for before, after in itertools.pairwise(shown):
        assert torch.equal(before[before != EMPTY], after[before != EMPTY])
    assert torch.equal(shown[-1], written.entries)
    assert (shown[0] != EMPTY).tolist() == [place == 0 for place in range(len(written.entries))]


def test_streams_are_written_from_left_to_right() -> None:
    shown: list[Tensor] = []
    write(teller(NEVER), opened(3, 10), steps=3, on_step=shown.append)
    there = [set((entries != EMPTY).nonzero().flatten().tolist()) for entries in shown]
    lengths = plan_streams(10, 3).lengths
    firsts = [0, *itertools.accumulate(lengths[:-1])]
    fresh = [sorted(after - before) for before, after in itertools.pairwise([set(), *there])]
    for first, length in zip(firsts, lengths, strict=True):
        when = [next(time for time, told in enumerate(fresh) if slot in told) for slot in range(first, first + length)]
        assert when == list(range(when[0], when[0] + length))
    assert fresh[0] == [0] and all(fresh)


# What is told, against the same layouts read at once


def asked_at_once(level: Level, draft: Draft, entries: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest entry of every slot that a layout tells, given all before it, and which slots these are."""
    dictionary, writer = strings_of(level), writer_of(level)
    plan = lay_out([draft], len(draft.source), CPU)
    latents = dictionary.latents()
    held = latents[entries[plan.source.clamp(min=0)]] * (plan.source >= 0).unsqueeze(-1)
    pure = torch.ones(plan.source.shape)
    told = plan.told[0] >= 0
    estimate = writer(OrderedSlots(plan.layout, held, torch.zeros_like(held), pure)).latents[0][told]
    return dictionary.logits(estimate, torch.ones(len(estimate)), latents).argmax(-1), plan.told[0][told]


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
    lengths, stagger = plan_streams(count, steps)
    firsts = [0, *(before + np.cumsum(lengths[:-1])).tolist()]
    openings = [0, *(before + 1 + stagger * index for index in range(len(lengths) - 1))]
    draft = in_streams(
        before + count, firsts, openings, begins=True, end_order=before + 1 if written.ended else None
    )
    entries = torch.cat([text.known, written.entries])
    likeliest, slots = asked_at_once(level, draft, entries)
    fresh = slots >= before
    assert sorted(slots[fresh].tolist()) == list(range(before, before + count))
    assert torch.equal(likeliest[fresh], entries[slots[fresh]])


@few
@given(gapped_texts(), st.integers(1, 12), st.sampled_from([1, 3, 12]))
def test_without_temperature_gaps_are_filled_with_what_is_likeliest(
    text: GappedText, steps: int, remaining: int
) -> None:
    level = teller(remaining)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_decoding, "choose_precision", lambda *given: torch.float32)
        (filled,) = fill(level, text, steps=steps, temperature=0.0)
    parts: list[tuple[int, int]] = []
    entries: list[int] = []
    for known, gap in itertools.zip_longest(text.known, filled):
        entries += known.tolist()
        if gap is not None:
            number = -(-len(gap) // (steps + 1))
            edges = [len(entries) + len(gap) * part // number for part in range(number + 1)]
            parts += itertools.pairwise(edges)
            entries += gap.tolist()
    draft = with_gaps(len(entries), parts, begins=text.begins, ends=text.ends, measured=True)
    likeliest, slots = asked_at_once(level, draft, torch.tensor(entries))
    assert len(slots) == sum(map(len, filled))
    assert torch.equal(likeliest, torch.tensor(entries)[slots])


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
@given(st.lists(open_texts(), min_size=1, max_size=3), st.lists(gapped_texts(), min_size=1, max_size=3), seeds)
def test_known_slots_never_change(texts: list[OpenText], gaps: list[GappedText], seed: int) -> None:
    level = teller()
    with boards() as made:
        for text in texts:
            (written,) = write(level, text, seed=seed)
            row = made[-1].entries[0]
            assert torch.equal(row[: len(text.known)], text.known)
            assert torch.equal(row[len(text.known) :][: len(written.entries)], written.entries)
            assert (row[len(text.known) + len(written.entries) :] == EMPTY).all(), "nothing is told behind its end"
        filled = fill(level, *gaps, seed=seed)
        for row, text, each in zip(made[-1].entries, gaps, filled, strict=True):
            parts = itertools.chain.from_iterable(itertools.zip_longest(text.known, each, fillvalue=torch.zeros(0)))
            expected = torch.cat([part.long() for part in parts])
            assert torch.equal(row[: len(expected)], expected)


@law
@given(st.lists(open_texts(), min_size=1, max_size=3), seeds, st.sampled_from([0.0, 1.0]))
def test_what_is_told_spells_something_and_begins_as_it_should(
    texts: list[OpenText], seed: int, temperature: float
) -> None:
    level = teller()
    for text, (entries, _) in zip(texts, write(level, *texts, seed=seed, temperature=temperature), strict=True):
        assert (strings_of(level).lengths[entries] > 0).all()
        if len(entries):
            assert strings_of(level).detokenize(entries[:1].tolist()).startswith(text.prefix)
        assert len(entries) or not text.prefix or text.expected is not None, "a string that is begun is told"


@few
@given(st.lists(st.sampled_from([b"", b"t", b"th", b"It wai", b"\xc3", b" "]), min_size=1, max_size=3), seeds)
def test_gaps_begin_as_they_should(prefixes: list[bytes], seed: int) -> None:
    level = teller(4)
    prefixes = [prefix if strings_of(level).begins_with(prefix).any() else b"" for prefix in prefixes]
    (filled,) = fill(level, gapped(*[3] * (len(prefixes) + 1), prefixes=prefixes), seed=seed)
    for prefix, entries in zip(prefixes, filled, strict=True):
        assert strings_of(level).detokenize(entries[:1].tolist()).startswith(prefix)


@pytest.mark.parametrize("before", [0, 3, KNOWN_STEP])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_what_is_expected_under_little_noise_is_written(before: int, steps: int) -> None:
    level = teller(2)
    kinds = torch.arange(60, 80)
    text = opened(before, 25, expected=kinds, noise_level=0.02)
    assert torch.equal(write(level, text, steps=steps)[0].entries, kinds)
    prefix = strings_of(level).detokenize(kinds[:1].tolist())
    assert torch.equal(write(level, text._replace(prefix=prefix), steps=steps)[0].entries, kinds)
    assert torch.equal(write(level, text._replace(room=9), steps=steps)[0].entries, kinds[:9])
    noisy = write(level, text._replace(noise_level=0.95), steps=steps)[0].entries
    assert len(noisy) == 20 and not torch.equal(noisy, kinds)
    (filled,) = fill(
        level, gapped(before, 2, 0, expected=[kinds[:7], kinds[7:]], noise_level=0.02), steps=steps
    )
    assert torch.equal(torch.cat(filled), kinds)


def test_what_is_expected_beyond_the_widest_gap_is_left_out() -> None:
    long = torch.arange(60, 60 + GAP_WIDTH + 8)
    (filled,) = fill(teller(2), gapped(1, 2, 0, expected=[long, long.flip(0)], noise_level=0.02))
    assert torch.equal(filled[0], long[:GAP_WIDTH]) and torch.equal(filled[1], long.flip(0)[:GAP_WIDTH])


def test_what_is_expected_counts_as_much_as_its_noise_leaves_of_it() -> None:
    level, seen = teller(3), []
    logits = SegmentVocabulary.logits

    def watching(dictionary: SegmentVocabulary, estimate: Tensor, sigma: Tensor, latents: Tensor) -> Tensor:
        seen.append(sigma)
        return logits(dictionary, estimate, sigma, latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentVocabulary, "logits", watching)
        write(level, opened(2, 30, expected=torch.arange(60, 69), noise_level=0.1))
        fill(level, gapped(2, 2, expected=[torch.arange(60, 69)], noise_level=0.1))
        hinted = torch.cat(seen)
        seen.clear()
        write(level, opened(2, 30))
    sigma = level.schedule.sigma(torch.tensor(0.1))
    assert len(hinted) == 18 and torch.equal(hinted, sigma.expand(18)) and sigma < 0.7
    assert (torch.cat(seen) == 1).all()


def test_where_there_is_nothing_but_noise_nothing_is_expected() -> None:
    level, kinds = teller(9), torch.arange(60, 69)
    with watched() as seen:
        write(level, opened(2, 30), opened(2, 30, expected=kinds, noise_level=0.7))
    for reading in seen:
        assert not reading.slots.hints[0].any() and (reading.slots.noise_level[0] == 1).all()
        levels = reading.slots.noise_level[1]
        assert ((levels == 1) | (levels == torch.tensor(0.7))).all()
        assert torch.equal(reading.slots.hints[1].any(-1), levels < 1)
    hinted = sum(int((reading.slots.noise_level[1] < 1).sum()) for reading in seen)
    assert hinted == len(kinds), "each slot comes with its hint once"


# How long texts become


@law
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
    (written,) = write(teller(NEVER), opened(2, EDGES[-1] + 20), steps=128)
    assert not written.ended and len(written.entries) >= EDGES[-1]


@pytest.mark.parametrize("remaining", [0, 3, NEVER])
@pytest.mark.parametrize("prefix", [b"", b"t"])
def test_a_draft_says_how_long_a_text_is_and_only_nothing_ends_it(remaining: int, prefix: bytes) -> None:
    level = teller(remaining)
    for count in (0, 1, 5, 9, 12):
        text = opened(3, 9, expected=torch.arange(count), noise_level=0.9, prefix=prefix)
        (written,) = write(level, text)
        assert (len(written.entries), written.ended) == (min(count, 9), count == 0)


def test_texts_are_as_long_as_often_as_the_writer_thinks() -> None:
    level, likely = small_model(1, seed=3).levels[0].eval().requires_grad_(False), (0.3, 0.5, 0.2, 0.6)
    expect(level, NEVER)
    writer_of(level).ending_out.bias[: len(likely)] = torch.tensor(likely).logit()
    counts = torch.tensor([len(written.entries) for written in write(level, *[opened(2, 6)] * 1600, steps=1)])
    left, expected = 1.0, []
    for share in likely:
        expected.append(left * share)
        left *= 1 - share
    found = torch.bincount(counts, minlength=7) / len(counts)
    torch.testing.assert_close(found, torch.tensor([*expected, 0, 0, left]), atol=0.04, rtol=0)


# How long gaps become


@few
@given(st.lists(gapped_texts(), min_size=1, max_size=3), seeds, st.integers(0, 400))
def test_gaps_hold_at_least_a_slot_and_not_more_than_they_seem_to(
    texts: list[GappedText], seed: int, remaining: int
) -> None:
    for level in (teller(), teller(remaining)):
        for text, filled in zip(texts, fill(level, *texts, seed=seed), strict=True):
            assert len(filled) == len(text.known) - 1
            assert all(1 <= len(entries) <= GAP_WIDTH for entries in filled)
            if remaining < 8 and level is teller(remaining) and 0 < text.share < 1:
                assert all(len(entries) == max(1, remaining) for entries in filled)


@law
@given(gapped_texts(), st.lists(st.floats(0, 1), min_size=2, max_size=5), seeds)
def test_a_longer_share_never_gives_a_shorter_gap(text: GappedText, shares: list[float], seed: int) -> None:
    level = teller()
    rows = [text._replace(share=share) for share in sorted(shares)]
    lengths = [[len(entries) for entries in filled] for filled in fill(level, *rows, seed=seed)]
    for shorter, longer in itertools.pairwise(lengths):
        assert all(one <= other for one, other in zip(shorter, longer, strict=True))


def test_shares_reach_from_the_shortest_to_the_longest() -> None:
    level = small_model(1, seed=3).levels[0].eval().requires_grad_(False)
    expect(level, NEVER)
    writer_of(level).ending_out.bias[1:6] = torch.tensor([1 / 5, 1 / 4, 1 / 3, 1 / 2, 0.9999]).logit()
    shares = [(index + 0.5) / 5 for index in range(5)]
    filled = fill(level, *[gapped(2, 2, share=share) for share in shares])
    assert [len(entries) for (entries,) in filled] == [1, 2, 3, 4, 5]


def test_what_stands_on_both_sides_decides_what_a_gap_holds() -> None:
    level = teller(5)
    text = gapped(4, 4)
    with watched() as seen:
        for side, place in ((0, 0), (0, 3), (1, 0), (1, 3)):
            known = [part.clone() for part in text.known]
            known[side][place] = 7
            fill(level, text, text._replace(known=known), text, temperature=0.0, seed=side)
    for reading in seen[:: len(seen) // 4]:
        gate = int((reading.slots.layout.kinds[0] == Kind.GAP).nonzero())
        first, changed, same = reading.told.latents[:, gate]
        assert torch.equal(first, same) and (first != changed).any()


@few
@given(gapped_texts(), seeds)
def test_how_long_a_gap_is_is_asked_of_both_sides_before_it_is_open(text: GappedText, seed: int) -> None:
    level, asked, told = teller(), [], []
    forward = Writer.forward

    def watching(writer: Writer, slots: OrderedSlots, cache: KVCache | None = None) -> Told:
        (asked if cache is None else told).append(slots)
        return forward(writer, slots, cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "forward", watching)
        for share in (0.0, 1.0):
            fill(level, text._replace(share=share), seed=seed)
    (first, second) = asked
    assert all(torch.equal(one, other) for one, other in zip(first.layout, second.layout, strict=True))
    assert torch.equal(first.latents, second.latents) and (first.layout.order == 0).all()
    for slots in (first, told[0]):
        kinds = slots.layout.kinds[0]
        assert (kinds == Kind.DOCUMENT).sum() == text.begins and (kinds == Kind.END).sum() == text.ends
    layout: Layout = first.layout
    assert (layout.kinds[0] == Kind.TEXT).sum() == sum(map(len, text.known))
    gates = layout.positions[0][layout.kinds[0] == Kind.GAP]
    assert gates.tolist() == [
        sum(map(len, text.known[: gap + 1])) + GAP_WIDTH * gap - 1 for gap in range(len(text.known) - 1)
    ]


def test_a_generator_may_be_used_again() -> None:
    """Two texts of one generator are two texts."""
    generator, level = chance(1), teller(NEVER)
    found: Sequence[Written] = [
        *write_texts(level, [opened(2, 12)], [generator], steps=4, temperature=1.0),
        *write_texts(level, [opened(2, 12)], [generator], steps=4, temperature=1.0),
    ]
    assert not torch.equal(found[0].entries, found[1].entries)
