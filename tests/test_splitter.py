"""Laws of the Segment Splitter: nothing hidden leaks, no code point is cut, and each part sees what it may see."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import (
    byte_rows,
    chance,
    few,
    latent_rows,
    law,
    level_config,
    normal,
    seeds,
    small_model,
)
from zonkey_core.bytes import cut_allowed_mask
from zonkey_core.level import Level
from zonkey_core.positions import PositionSequence
from zonkey_core.segment_splitter import SegmentReader, SegmentSplitter, hide_positions

MODEL = small_model(2)


@st.composite
def multibyte_texts(draw: st.DrawFn) -> bytes:
    """Text in which most characters take two to four bytes, sometimes broken."""
    text = draw(st.text(alphabet="aé ß日本語🦢𝄞\n", min_size=1, max_size=30)).encode()
    if draw(st.booleans()):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.binary(min_size=1, max_size=4)) + text[place:]
    return text


byte_texts = st.one_of(multibyte_texts(), st.binary(min_size=1, max_size=40))


def inside_code_points(data: bytes) -> set[int]:
    """Positions of the later bytes of valid characters, as Python's own decoder finds them."""
    inside: set[int] = set()
    place = 0
    while place < len(data):
        for size in (1, 2, 3, 4):
            try:
                data[place : place + size].decode()
            except UnicodeDecodeError:
                continue
            inside.update(range(place + 1, place + size))
            place += size - 1
            break
        place += 1
    return inside


def with_biased_splitter(bias: float) -> Level:
    """A level whose splitter wants cuts everywhere, or nowhere."""
    level = small_model(1).levels[0]
    torch.nn.init.constant_(level.splitter.head.bias, bias)
    return level


@few
@given(byte_texts, st.data())
def test_hidden_bytes_do_not_leak(data: bytes, draw: st.DataObject) -> None:
    other = bytes(draw.draw(st.lists(st.integers(0, 255), min_size=len(data), max_size=len(data))))
    hidden = torch.tensor([draw.draw(st.lists(st.booleans(), min_size=len(data), max_size=len(data)))])
    true = byte_rows(data)
    changed = true._replace(values=byte_rows(other).values.where(hidden, true.values))
    assert_no_leak(MODEL.levels[0], true, changed, hidden)


@few
@given(seeds, st.integers(2, 20))
def test_hidden_latents_do_not_leak(seed: int, length: int) -> None:
    true, other = (latent_rows(MODEL.levels[1], [length], seed=seed + extra) for extra in (0, 1))
    hidden = torch.rand(1, length, generator=chance(seed)) < 0.4
    changed = true._replace(values=other.values.where(hidden.unsqueeze(-1), true.values))
    assert_no_leak(MODEL.levels[1], true, changed, hidden)


@torch.no_grad()
def assert_no_leak(level: Level, true: PositionSequence, changed: PositionSequence, hidden: Tensor) -> None:
    before, after = level.split(true, hidden), level.split(changed, hidden)
    assert torch.equal(before.start_prob, after.start_prob)
    assert torch.equal(before.start_logits, after.start_logits)
    states = [
        level.reader(level.reader_embedding(sequence.values, hidden), splits.start_prob)
        for sequence, splits in ((true, before), (changed, after))
    ]
    assert torch.equal(*states)


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_what_is_not_hidden_is_seen(index: int) -> None:
    level = MODEL.levels[index]
    true = byte_rows(b"abcdefgh") if index == 0 else latent_rows(level, [8], seed=1)
    other = byte_rows(b"abcXefgh") if index == 0 else true._replace(values=true.values.clone())
    if index:
        other.values[0, 3] *= -1
    nothing = torch.zeros(1, 8, dtype=torch.bool)
    assert not torch.equal(level.split(true, nothing).start_logits, level.split(other, nothing).start_logits)
    states = [level.reader(level.reader_embedding(row.values, nothing), torch.zeros(1, 8)) for row in (true, other)]
    assert not torch.equal(*states)


def test_positions_are_hidden_at_the_given_rate() -> None:
    hidden = hide_positions(torch.Size([100, 100]), 0.3, chance(1))
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert not hide_positions(torch.Size([5]), 0.0, chance(1)).any()


@law
@given(multibyte_texts())
def test_cuts_are_allowed_around_every_character_and_never_inside(data: bytes) -> None:
    allowed = cut_allowed_mask(torch.tensor([list(data)]))[0].tolist()
    assert not any(allowed[place] for place in inside_code_points(data))
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    assert {place for place, flag in enumerate(allowed) if not flag} == inside_code_points(data)


@pytest.mark.parametrize(
    ("data", "inside"),
    [
        (b"\xc3\xa9\xa9", {1}),
        (b"\xe6\x97\xa5\xa5", {1, 2}),
        (b"\xf0\x9f\xa6\xa2\xa2", {1, 2, 3}),
        (b"\xf0a\x9f\xa6", set()),
        (b"\xf0\x9fa\xa6", {1}),
        (b"\xf0\xc3\xa9\xa6", {2}),
        (b"\x80\x80", set()),
    ],
)
def test_a_lead_byte_claims_no_more_than_follows_it_unbroken(data: bytes, inside: set[int]) -> None:
    allowed = cut_allowed_mask(torch.tensor([list(data)]))[0].tolist()
    assert {place for place, flag in enumerate(allowed) if not flag} == inside


@law
@given(st.binary(min_size=1, max_size=60))
def test_random_bytes_are_never_uncuttable_for_long(data: bytes) -> None:
    allowed = cut_allowed_mask(torch.tensor([list(data)]))[0].tolist()
    assert not any(allowed[place] for place in inside_code_points(data))
    assert allowed[0]
    runs = [len(list(group)) for flag, group in itertools.groupby(allowed) if not flag]
    assert max(runs, default=0) <= 3
    assert all(0x80 <= byte < 0xC0 for byte, flag in zip(data, allowed, strict=True) if not flag)


@pytest.mark.parametrize("bias", [-30.0, 30.0])
@few
@given(data=byte_texts, seed=seeds)
@torch.no_grad()
def test_segments_never_split_a_character(bias: float, data: bytes, seed: int) -> None:
    level = with_biased_splitter(bias)
    rows = byte_rows(data)
    probs = level.split(rows).start_prob
    inside = inside_code_points(data)
    assert all(probs[0, place] == 0 for place in inside)
    for generator in (None, chance(seed)):
        starts = level.choose_starts(rows, probs, generator=generator).starts[0].tolist()
        assert not inside & set(starts)
    lengths = torch.tensor([*level.choose_starts(rows, probs).starts[0].tolist(), len(data)]).diff()
    assert lengths.max() <= level.config.window


@torch.no_grad()
def test_documents_begin_with_a_certain_cut() -> None:
    level = with_biased_splitter(-30.0)
    rows = byte_rows(b"one two\xa9", b"onetwo!!")
    rows.document_mask[0, 7] = True
    rows.document_mask[1, 0] = False
    probs = level.split(rows).start_prob
    assert probs[0, 0] == probs[0, 7] == probs[1, 0] == 1
    assert (probs[0, 1:7] < 1e-6).all() and (probs[1, 1:] < 1e-6).all()
    segmentation = level.choose_starts(rows, probs)
    assert segmentation.starts[0].tolist() == [0, 7]
    assert segmentation.document_mask.tolist() == [[True, True], [False, False]]


@torch.no_grad()
def test_padding_belongs_to_no_segment() -> None:
    level = MODEL.levels[1]
    rows = latent_rows(level, [5, 12], seed=3)
    splits = level.split(rows)
    assert (splits.start_prob[0, 5:] == 1).all()
    for generator in (None, chance(1)):
        segmentation = level.choose_starts(rows, splits.start_prob, generator=generator)
        assert segmentation.starts[0][segmentation.slot_mask[0]].max() < 5
    unaware = level.choose_starts(latent_rows(level, [7, 30], seed=4), torch.zeros(2, 30))
    assert unaware.starts.tolist() == [[0, 0, 0, 0], [0, 8, 16, 24]]
    assert unaware.slot_mask.sum(1).tolist() == [1, 4]


@pytest.mark.parametrize(("kernel", "layers"), [(3, 1), (5, 2), (7, 3)])
@torch.no_grad()
def test_a_probability_depends_on_as_much_as_reach_says(kernel: int, layers: int) -> None:
    torch.manual_seed(1)
    splitter = SegmentSplitter(8, kernel, layers, 4.0).double()
    torch.nn.init.normal_(splitter.head.weight)
    length, place = 41, 20
    embedded = normal(1, length, 8, seed=2)
    other = embedded.clone()
    other[0, place] += 3
    everywhere = torch.ones(1, length, dtype=torch.bool)
    logits = [
        splitter(rows, everywhere, allowed_mask=everywhere, forced_mask=~everywhere).start_logits[0]
        for rows in (embedded, other)
    ]
    moved = (logits[0] != logits[1]).nonzero().flatten().tolist()
    assert moved == list(range(place - splitter.reach, place + splitter.reach + 1))


@torch.no_grad()
def test_an_untrained_splitter_cuts_at_its_rate() -> None:
    torch.manual_seed(0)
    splitter = SegmentSplitter(16, 5, 2, 5.0)
    everywhere = torch.ones(1, 500, dtype=torch.bool)
    splits = splitter(
        normal(1, 500, 16, seed=1, dtype=torch.float32), everywhere, allowed_mask=everywhere, forced_mask=~everywhere
    )
    assert splits.start_prob.mean().item() == pytest.approx(1 / 5, abs=0.02)


@law
@given(seeds, st.integers(0, 23))
def test_the_reader_sees_its_own_segment_alone(seed: int, place: int) -> None:
    torch.manual_seed(0)
    reader = SegmentReader(16, 2, 2, span=10).double()
    probs = (torch.rand(1, 24, generator=chance(seed)) < 0.3).double()
    probs[:, 0] = 1
    embedded = normal(1, 24, 16, seed=seed)
    other = embedded.clone()
    other[0, place] += 5 * normal(16, seed=seed + 1)
    with torch.no_grad():
        before, after = reader(embedded, probs)[0], reader(other, probs)[0]
    segment = probs[0].cumsum(0)
    span = torch.arange(24) // 10
    sees = (segment == segment[place]) & (span == span[place])
    assert torch.equal(before[~sees], after[~sees])
    assert (before[sees] != after[sees]).any(1).all()


@torch.no_grad()
def test_the_reader_sees_further_the_less_likely_a_cut_is() -> None:
    torch.manual_seed(0)
    reader = SegmentReader(16, 2, 2, span=16).double()
    embedded = normal(1, 8, 16, seed=1)
    other = embedded.clone()
    other[0, 0] += 5 * normal(16, seed=2)
    changes = []
    for prob in (0.0, 0.5, 0.99, 1.0):
        probs = torch.zeros(1, 8, dtype=torch.float64)
        probs[0, 4] = prob
        changes.append((reader(embedded, probs)[0, 4:] - reader(other, probs)[0, 4:]).abs().max().item())
    assert changes[0] > changes[1] > changes[2] > changes[3] == 0


def test_a_segment_length_sets_the_splitters_first_rate() -> None:
    level = Level(level_config(segment_length=4.0, window=16), None)
    assert level.splitter.head.bias.sigmoid().item() == pytest.approx(0.25)
