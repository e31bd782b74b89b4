"""A level's slots: segments or the strings that spell them, with latents that what is above can teach."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import (
    TEXT,
    byte_rows,
    chance,
    few,
    fit_vocabulary,
    latent_rows,
    law,
    normal,
    seeds,
    small_model,
)
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_vocabulary import SegmentVocabulary
from zonkey_core.model.segmentation import Segmentation, Slots

COMMON, RARE = [b"heron ", b"the ", b"stood", b"."], [b"qwx", b"zz", b"the x", b"\0"]


def level_of_words() -> tuple[Level, SegmentVocabulary]:
    """A level that holds the common strings and the single bytes, and has been told something of each."""
    level = small_model(1).bottom
    vocabulary = level.vocabulary
    assert vocabulary is not None
    strings = [*(bytes([value]) for value in range(256)), *COMMON[:-1]]
    vocabulary.fill({string: 1 / len(strings) for string in strings}, torch.zeros(len(strings), level.channels))
    level.follow_compressor()
    with torch.no_grad():
        vocabulary.table[0] += 0.3 * normal(*vocabulary.table[0].shape, seed=1, dtype=torch.float32)
    return level, vocabulary


def cut_text(rows: Sequence[Sequence[bytes]]) -> tuple[PositionSequence, Segmentation]:
    """Rows of segments, padded with bytes that do not exist; each row's third segment begins a document."""
    texts = [b"".join(row) for row in rows]
    longest = max(map(len, texts))
    sequence = byte_rows(*((text + b"heron " * longest)[:longest] for text in texts))
    exists = torch.arange(longest) < torch.tensor(list(map(len, texts))).unsqueeze(1)
    starts = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    slot_mask = torch.zeros_like(starts, dtype=torch.bool)
    document_mask = sequence.document_mask.clone()
    for row, segments in enumerate(rows):
        places = list(itertools.accumulate(map(len, segments[:-1]), initial=0))
        starts[row, : len(places)], slot_mask[row, : len(places)] = torch.tensor(places), True
        document_mask[row, places[2:3]] = True
    start_prob = torch.zeros(exists.shape)
    start_prob[slot_mask.nonzero()[:, 0], starts[slot_mask]] = 1
    begins = document_mask.gather(1, starts) & slot_mask
    return sequence._replace(exists_mask=exists, document_mask=document_mask), Segmentation(
        starts, slot_mask, begins, start_prob
    )


some_rows = st.lists(
    st.lists(st.sampled_from([*COMMON, *RARE]), min_size=1, max_size=7), min_size=1, max_size=3
)


def spelled(segment: bytes) -> list[bytes]:
    """The strings that spell one of the segments above."""
    if segment in COMMON:
        return [segment]
    return [b"the ", b"x"] if segment == b"the x" else [bytes([value]) for value in segment]


# Slots of bytes


@law
@given(some_rows)
@torch.no_grad()
def test_slots_spell_the_segments_and_say_which(rows: list[list[bytes]]) -> None:
    level, vocabulary = level_of_words()
    sequence, segmentation = cut_text(rows)
    slots = level.read_slots(sequence, segmentation, torch.zeros(0))
    assert slots.entries is not None
    for row, segments in enumerate(rows):
        real = slots.slot_mask[row]
        ways = [spelled(segment) for segment in segments]
        strings = [string for way in ways for string in way]
        assert [vocabulary.detokenize([entry]) for entry in slots.entries[row][real].tolist()] == strings
        assert slots.segments[row][real].tolist() == [index for index, way in enumerate(ways) for _ in way]
        assert slots.first_mask[row][real].tolist() == [not place for way in ways for place in range(len(way))]
        places = list(itertools.accumulate(map(len, strings[:-1]), initial=0))
        assert slots.starts[row][real].tolist() == places
        begins = sequence.document_mask[row].nonzero().flatten().tolist()
        assert slots.starts[row][slots.document_mask[row]].tolist() == begins
        assert torch.equal(slots.latents[row][real], vocabulary.latents()[slots.entries[row][real]])
    padding = ~slots.slot_mask
    assert slots.slot_mask[:, -1].any(), "no more padding than is needed"
    for field in (slots.latents, slots.entries, slots.document_mask, slots.starts, slots.first_mask):
        assert not field[padding].any()


@law
@given(some_rows, seeds)
@torch.no_grad()
def test_what_is_said_of_segments_is_said_of_the_slots_that_begin_them(rows: list[list[bytes]], seed: int) -> None:
    level, _ = level_of_words()
    sequence, segmentation = cut_text(rows)
    slots = level.read_tokens(sequence, segmentation)
    of_segments = 0.1 + torch.rand(segmentation.slot_mask.shape, generator=chance(seed))
    shared = slots.share_out(of_segments)
    assert torch.equal(shared > 0, slots.first_mask)
    assert torch.equal(shared[slots.first_mask], of_segments[segmentation.slot_mask])
    positions = slots.as_positions()
    assert torch.equal(positions.values, slots.latents) and torch.equal(positions.exists_mask, slots.slot_mask)
    assert torch.equal(positions.document_mask, slots.document_mask)


@few
@given(some_rows, st.integers(1, 9))
@torch.no_grad()
def test_padding_and_other_rows_change_no_slots(rows: list[list[bytes]], padding: int) -> None:
    level, _ = level_of_words()
    together = level.read_tokens(*cut_text([*rows, [b"heron "] * padding]))
    for row, segments in enumerate(rows):
        alone = level.read_tokens(*cut_text([segments]))
        real = together.slot_mask[row]
        for name in Slots._fields:
            assert torch.equal(getattr(together, name)[row][real], getattr(alone, name)[0]), name


# Slots of latents


@few
@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), seeds)
@torch.no_grad()
def test_without_a_vocabulary_slots_are_the_segments(lengths: list[int], seed: int) -> None:
    level = small_model(2).levels[1]
    rows = latent_rows(level, lengths, seed=seed)
    segmentation = level.choose_starts(rows, level.split(rows).start_prob)
    latents = level.encode(rows, segmentation)
    slots = level.read_slots(rows, segmentation, latents)
    assert slots.entries is None
    assert torch.equal(slots.latents[slots.slot_mask], latents) and not slots.latents[~slots.slot_mask].any()
    assert torch.equal(slots.starts, segmentation.starts) and torch.equal(slots.slot_mask, segmentation.slot_mask)
    assert torch.equal(slots.first_mask, slots.slot_mask)
    assert torch.equal(slots.document_mask, segmentation.document_mask)
    of_segments = torch.rand(slots.slot_mask.shape, generator=chance(seed))
    assert torch.equal(slots.share_out(of_segments), of_segments * slots.slot_mask)


@few
@given(seeds, st.integers(1, 40))
@torch.no_grad()
def test_a_segmentation_marks_its_starts(seed: int, length: int) -> None:
    level = small_model(1).bottom
    text = TEXT.encode()
    rows = byte_rows(text[seed % 50 :][:length], text[60:][:length])
    segmentation = level.choose_starts(rows, level.split(rows).start_prob, certain=False)
    mask = segmentation.start_mask()
    for row in range(2):
        assert mask[row].nonzero().flatten().tolist() == segmentation.starts[row][segmentation.slot_mask[row]].tolist()


# Latents of strings


@torch.no_grad()
def test_latents_of_strings_follow_the_compressor() -> None:
    level, vocabulary = level_of_words()
    before, used = vocabulary.table[0].clone(), vocabulary.lengths > 0
    level.follow_compressor()
    torch.testing.assert_close(vocabulary.table[0], before)
    compressed = [_alone(level, vocabulary, entry) for entry in (5, 256, 257)]
    for parameter in level.compressor.parameters():
        parameter += 0.1 * normal(*parameter.shape, seed=3, dtype=torch.float32)
    level.follow_compressor()
    for entry, old in zip((5, 256, 257), compressed, strict=True):
        moved = before[entry] + _alone(level, vocabulary, entry) - old
        torch.testing.assert_close(vocabulary.table[0, entry], moved, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(vocabulary.latents()[entry], to_sphere(before[entry]), atol=0.1)
    assert torch.equal(vocabulary.table[0, ~used], before[~used])


def _alone(level: Level, vocabulary: SegmentVocabulary, entry: int) -> Tensor:
    """What one string compresses to."""
    string = vocabulary.detokenize([entry])
    return level.compress(torch.tensor([list(string)]), torch.zeros(1, len(string)))[0]


@torch.no_grad()
def test_from_an_anchor_on_only_what_is_learned_since_counts() -> None:
    level, vocabulary = level_of_words()
    for parameter in level.compressor.parameters():
        parameter += 0.1 * normal(*parameter.shape, seed=3, dtype=torch.float32)
    before = vocabulary.latents()
    level.anchor_vocabulary()
    level.follow_compressor()
    torch.testing.assert_close(vocabulary.latents(), before, atol=1e-5, rtol=1e-5)


def test_slots_carry_gradients_to_the_compressor_where_it_learns_and_nowhere_else() -> None:
    level, vocabulary = level_of_words()
    sequence, segmentation = cut_text([[b"the ", b"heron ", b"qwx", b"the "], [b"stood"]])
    with torch.no_grad():
        read = level.read_tokens(sequence, segmentation)
    slots = level.read_tokens(sequence, segmentation)
    torch.testing.assert_close(slots.latents, read.latents, atol=1e-5, rtol=1e-5)
    loss = (slots.latents * normal(*slots.latents.shape, seed=1, dtype=torch.float32)).sum()
    learning = [*level.compressor.parameters(), *level.embedding.parameters(), vocabulary.table]
    for gradient in torch.autograd.grad(loss, learning, retain_graph=True):
        assert gradient.isfinite().all() and gradient.any()
    assert slots.entries is not None
    (gradient,) = torch.autograd.grad(loss, vocabulary.table)
    touched = gradient[0].any(-1).nonzero().flatten()
    assert torch.equal(touched, slots.entries[slots.slot_mask].unique())
    level.compressor.requires_grad_(False)
    assert vocabulary.table.requires_grad
    told = level.read_tokens(sequence, segmentation).latents
    torch.testing.assert_close(told, read.latents)
    assert torch.autograd.grad(told.sum(), level.embedding.table.weight, allow_unused=True) == (None,)


def test_where_the_compressor_has_moved_slots_are_where_their_strings_will_be() -> None:
    level, _ = level_of_words()
    sequence, segmentation = cut_text([[b"the ", b"heron ", b"qwx"]])
    with torch.no_grad():
        for parameter in level.compressor.parameters():
            parameter += 0.1 * normal(*parameter.shape, seed=3, dtype=torch.float32)
    ahead = level.read_tokens(sequence, segmentation).latents.detach()
    with torch.no_grad():
        assert not torch.allclose(level.read_tokens(sequence, segmentation).latents, ahead, atol=0.1)
    level.follow_compressor()
    with torch.no_grad():
        torch.testing.assert_close(level.read_tokens(sequence, segmentation).latents, ahead, atol=1e-4, rtol=1e-4)


def test_drift_is_how_far_the_compressor_has_turned() -> None:
    level, vocabulary = level_of_words()
    sequence, segmentation = cut_text([[b"the ", b"heron ", b"the "]])
    slots = level.read_tokens(sequence, segmentation)
    entries, drifts = level.drift(slots)
    assert entries.tolist() == [256, 257]
    assert drifts.tolist() == pytest.approx([0, 0], abs=1e-5)
    with torch.no_grad():
        level.compressor.out.weight.neg_()
        level.compressor.out.bias.neg_()
    assert level.drift(slots)[1].tolist() == pytest.approx([4, 4], abs=1e-4)
    with torch.no_grad():
        level.compressor.out.bias += 1
        turned = torch.stack([_alone(level, vocabulary, entry) for entry in (256, 257)])
        cosine = torch.cosine_similarity(turned, vocabulary.compressed[256:258], dim=-1)
    drifts = level.drift(slots)[1]
    torch.testing.assert_close(drifts, 2 * (1 - cosine), atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(drifts.mean(), level.compressor.out.weight)
    assert gradient.any()


@torch.no_grad()
def test_unfolded_latents_settle_on_the_nearest_strings() -> None:
    level, vocabulary = level_of_words()
    entries = torch.tensor([256, 3, 258, 65])
    noised = vocabulary.latents()[entries] + 0.05 * normal(4, level.channels, seed=1, dtype=torch.float32)
    assert torch.equal(level.settle(noised), vocabulary.latents()[entries])
    assert level.settle(torch.zeros(0, level.channels)).shape == (0, level.channels)
    upper = small_model(2).levels[1]
    assert upper.settle(noised) is noised, "where there is no vocabulary, nothing is nearest"


# What existence teaches


def test_latents_teach_the_splitter_through_existence() -> None:
    """At every level: what is made of the segments of bytes, and of the slots above."""
    model = small_model(2)
    fit_vocabulary(model)
    sequence = split_on = byte_rows(TEXT.encode()[:200])
    slots: Slots | None = None
    for level in model.levels:
        start_prob = level.split(split_on).start_prob
        if slots is not None:
            sequence, start_prob = slots.as_positions(), slots.share_out(start_prob)
        segmentation = level.choose_starts(sequence, start_prob, certain=False)
        latents = level.encode(sequence, segmentation)
        slots = level.read_slots(sequence, segmentation, latents)
        loss = (latents * normal(*latents.shape, seed=2, dtype=torch.float32)).sum()
        for parameter in level.splitter.parameters():
            (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
            assert gradient.isfinite().all() and gradient.any()
        split_on = level.upper_sequence(latents, segmentation)


def test_latents_above_teach_the_compressor_and_the_vectors_of_strings_below() -> None:
    model = small_model(2)
    vocabulary = fit_vocabulary(model)
    lower, upper = model.levels
    rows = byte_rows(TEXT.encode()[:200])
    segmentation = lower.choose_starts(rows, lower.split(rows).start_prob)
    slots = lower.read_slots(rows, segmentation, lower.encode(rows, segmentation))
    positions = slots.as_positions()
    blocks = upper.choose_starts(positions, slots.share_out(torch.full(segmentation.starts.shape, 0.6)))
    latents = upper.encode(positions, blocks)
    loss = (latents * normal(*latents.shape, seed=2, dtype=torch.float32)).sum()
    for parameter in (*lower.compressor.parameters(), vocabulary.table):
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any()


# Levels that hold levels


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_level_holds_the_one_above(count: int) -> None:
    model = small_model(count)
    level: Level | None = model.bottom
    found = []
    while level is not None:
        found.append(level)
        level = level.above
    assert len(found) == count and all(mine is theirs for mine, theirs in zip(found, model.levels, strict=True))
    assert [level.reads_bytes for level in found] == [True] + [False] * (count - 1)
    assert [level.vocabulary is not None for level in found] == [level.reads_bytes for level in found]
    for index, level in enumerate(found):
        assert list(level.stack()) == found[index:]
        above = level.above
        plans = level.denoiser.plan_in
        assert (plans is None) == (above is None)
        if above is not None and plans is not None:
            assert above.embedding.channels == level.channels and plans.in_features == above.channels
            assert len(level.denoiser.left) == above.config.window + 1


def test_a_stack_on_its_own_is_the_upper_part_of_a_larger_one() -> None:
    """A level does not know how many are below it, only how wide what it reads is."""
    whole = small_model(3)
    torch.manual_seed(5)
    part = Level(whole.config.levels[1:], whole.bottom.channels)
    assert whole.bottom.above is not None
    part.load_state_dict(whole.bottom.above.state_dict())
    rows = latent_rows(part, [20], seed=1)
    for mine, theirs in zip(part.stack(), whole.bottom.above.stack(), strict=True):
        with torch.no_grad():
            ones = mine.split(rows).start_prob
            assert torch.equal(ones, theirs.split(rows).start_prob)
            segmentation = mine.choose_starts(rows, ones)
            latents = mine.encode(rows, segmentation)
            assert torch.equal(latents, theirs.encode(rows, segmentation))
        rows = mine.upper_sequence(latents, segmentation)


def test_no_parameter_of_a_level_is_of_another() -> None:
    model = small_model(3)
    seen: set[int] = set()
    for level in model.levels:
        groups = [level.splitter_parameters(), level.autoencoder_parameters(), level.denoiser_parameters()]
        own = {id(parameter) for parameter in itertools.chain(*groups)}
        assert not own & seen
        seen |= own
    assert seen == {id(parameter) for parameter in Zonkey.parameters(model)}
