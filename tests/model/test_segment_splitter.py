"""Laws of the Segment Splitter: nothing hidden leaks, no code point is cut, and each part sees what it may see."""

from __future__ import annotations

import copy
import itertools

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
    latent_rows,
    law,
    level_config,
    normal,
    seeds,
    small_model,
)
from zonkey_core.model import segment_splitter
from zonkey_core.model.bytes import cut_allowed_mask
from zonkey_core.model.hash_embeddings import prints, table_rows
from zonkey_core.model.level import Level
from zonkey_core.model.model import unsaved_buffers
from zonkey_core.model.ngram_tables import NGRAM_ORDERS
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.readers import CONTEXTS, ContextReader, CostEstimator, UnitKinds
from zonkey_core.model.segment_splitter import NEVER, SegmentSplitter, frozen_copy, hide_units
from zonkey_core.model.unit_rows import UnitRows, unit_rows
from zonkey_core.training.objectives import alone_in_segment, splitter_objective

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


def other_units(units: UnitRows, hidden: Tensor, seed: int) -> UnitRows:
    """The same with other units under the mask."""
    drawn = torch.randint(1, 0x3000, units.keys.shape, generator=chance(seed))
    return units._replace(keys=drawn.where(hidden, units.keys))


@few
@given(byte_texts, seeds)
@torch.no_grad()
def test_hidden_units_do_not_leak(data: bytes, seed: int) -> None:
    level = MODEL.levels[0]
    assert isinstance(level.reader, ContextReader)
    units = unit_rows(byte_rows(data))
    hidden, shown = hide_units(units, 0.4, chance(seed))
    hidden_again, shown_again = hide_units(other_units(units, hidden, seed), 0.4, chance(seed))
    assert torch.equal(hidden, hidden_again) and torch.equal(shown.keys, shown_again.keys)
    start_prob = level.splitter.split_units(shown).start_prob
    states = level.reader(shown.keys, hidden, start_prob)
    assert len(states) == hidden.sum()
    otherwise = level.reader(other_units(shown, hidden, seed).keys, hidden, start_prob)
    assert torch.equal(states, otherwise), "the reader does not even see what stands in their place"


def test_what_is_minimised_knows_hidden_units_as_targets_alone() -> None:
    """Other letters in the same number are hidden in the same places, and a few kinds of units have the same shares."""
    text = b"abcdefgh" * 12
    rows = byte_rows(text, text)
    hidden, _ = hide_units(unit_rows(rows), MODEL.levels[0].config.mask_rate, chance(3))
    values = rows.values.flatten()
    changed = values.where(~hidden, (values - 97 + 3) % 8 + 97).view(rows.values.shape)
    assert_told_alone(MODEL.levels[0], rows, rows._replace(values=changed))


def assert_told_alone(level: Level, rows: PositionSequence, changed: PositionSequence) -> None:
    """What stands under the mask changes what there is to tell and nothing else."""
    found = [splitter_objective(level, each, chance(3), stability=0.0) for each in (rows, changed)]
    assert not torch.equal(found[0]["masked"], found[1]["masked"])
    for name in ("rate", "overlong", "uncertainty"):
        assert torch.equal(found[0][name], found[1][name])


def test_a_unit_is_alone_where_two_segments_begin_next_to_each_other() -> None:
    start_prob = torch.tensor([1.0, 0.5, 0.25, 1.0, 0.0, 1.0])
    torch.testing.assert_close(alone_in_segment(start_prob), torch.tensor([0.5, 0.125, 0.25, 0.0, 0.0, 1.0]))


def test_units_that_are_cut_off_cost_their_share_whatever_a_reader_says() -> None:
    level = with_biased_splitter(40.0)
    rows = byte_rows(b"the cat sat on the mat", b"and the dog lay on it ")
    costs = []
    for scale in (1.0, 9.0):
        assert isinstance(level.reader, ContextReader)
        level.reader.units.table.data.mul_(scale)
        costs.append(splitter_objective(level, rows, chance(1), stability=0.0)["masked"])
    torch.testing.assert_close(*costs)


def test_hidden_units_give_way_to_visible_ones_of_their_row() -> None:
    rows = byte_rows(bytes(range(20, 119)), "中文字".encode() * 11)
    units = unit_rows(rows)
    hidden, shown = hide_units(units, 0.5, chance(2))
    assert torch.equal(shown.keys[~hidden], units.keys[~hidden])
    for row in (0, 1):
        here = units.rows == row
        drawn = set(shown.keys[here & hidden].tolist())
        assert drawn <= set(units.keys[here & ~hidden].tolist())
        assert len(drawn) > (20 if row == 0 else 1), "each drawn for itself"


def test_where_nothing_is_visible_nothing_is_hidden() -> None:
    units = unit_rows(byte_rows(b"abc", b"xyz"))
    hidden, whole = hide_units(units, 1.0, chance(1))
    assert not hidden.any() and torch.equal(whole.keys, units.keys)
    losses = splitter_objective(MODEL.levels[0], byte_rows(b"a"), chance(1), stability=0.0)
    assert losses["masked"] == 0 and all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_what_is_not_hidden_is_seen(index: int) -> None:
    level = MODEL.levels[index]
    true = byte_rows(b"abcdefgh") if index == 0 else latent_rows(level, [8], seed=1)
    other = byte_rows(b"abcXefgh") if index == 0 else true._replace(values=true.values.clone())
    if index:
        other.values[0, 3] *= -1
    assert not torch.equal(level.split(true).start_logits, level.split(other).start_logits)
    if level.reader is not None:
        hidden = torch.arange(8) == 4
        states = [level.reader(unit_rows(row).keys, hidden, torch.zeros(8)) for row in (true, other)]
        assert not torch.equal(*states)


def test_positions_are_hidden_at_the_given_rate() -> None:
    rows = byte_rows(*[b"x" * 100] * 100)
    hidden, _ = hide_units(unit_rows(rows), 0.3, chance(1))
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert not hide_units(unit_rows(rows), 0.0, chance(1))[0].any()


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
    for certain in (True, False):
        starts = level.choose_starts(rows, probs, certain=certain).starts[0].tolist()
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
    for certain in (True, False):
        segmentation = level.choose_starts(rows, splits.start_prob, certain=certain)
        assert segmentation.starts[0][segmentation.slot_mask[0]].max() < 5
    unaware = level.choose_starts(latent_rows(level, [7, 30], seed=4), torch.zeros(2, 30))
    assert unaware.starts.tolist() == [[0, 0, 0, 0], [0, 8, 16, 24]]
    assert unaware.slot_mask.sum(1).tolist() == [1, 4]


@pytest.mark.parametrize("channels", [None, 6])
@pytest.mark.parametrize(("kernel", "layers"), [(1, 1), (3, 1), (5, 2), (7, 3)])
@torch.no_grad()
def test_a_probability_depends_on_as_much_as_reach_says(kernel: int, layers: int, channels: int | None) -> None:
    torch.manual_seed(1)
    splitter = SegmentSplitter(channels, 8, kernel, layers, 4.0, 512).double()
    torch.nn.init.normal_(splitter.head.weight)
    length, place, around = 51, 25, layers * (kernel // 2)
    behind = around + (len(NGRAM_ORDERS) - 1 if channels is None else 0)
    if channels is None:
        assert splitter.ngrams is not None
        torch.nn.init.normal_(splitter.ngrams.table)
        rows = byte_rows(bytes(range(40, 40 + length)))
        other = rows._replace(values=rows.values.clone())
        other.values[0, place] = 10
    else:
        everywhere = torch.ones(1, length, dtype=torch.bool)
        rows = PositionSequence(normal(1, length, channels, seed=2), everywhere, ~everywhere)
        other = rows._replace(values=rows.values.clone())
        other.values[0, place] += 3
    logits = [splitter(each).start_logits[0] for each in (rows, other)]
    moved = (logits[0] != logits[1]).nonzero().flatten().tolist()
    assert moved == list(range(place - around, place + behind + 1))
    assert splitter.reach >= behind and (channels is None or splitter.reach == around)


@pytest.mark.parametrize("before", [1, 4, 40])
@torch.no_grad()
def test_padding_around_a_text_changes_no_probability(before: int) -> None:
    """A stream's beginning is read after a halo of padding."""
    level = copy.deepcopy(MODEL.levels[0]).double()
    text = TEXT.encode()[:60]
    values = torch.cat([torch.randint(256, (before,), generator=chance(before)), torch.tensor(list(text)),
                        torch.randint(256, (7,), generator=chance(before))])[None]
    exists = torch.zeros_like(values, dtype=torch.bool)
    exists[0, before : before + len(text)] = True
    plain = level.split(byte_rows(text))
    padded = level.split(PositionSequence(values, exists, torch.zeros_like(exists)))
    inside = slice(before, before + len(text))
    torch.testing.assert_close(padded.start_logits[:, inside], plain.start_logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(padded.start_prob[0, inside][1:], plain.start_prob[0, 1:], atol=1e-6, rtol=0)
    assert (padded.start_prob[~exists] == 1).all()


@pytest.mark.parametrize("channels", [None, 16])
@torch.no_grad()
def test_an_untrained_splitter_cuts_at_its_rate(channels: int | None) -> None:
    torch.manual_seed(0)
    splitter = SegmentSplitter(channels, 16, 5, 2, 5.0, 64)
    everywhere = torch.ones(1, 500, dtype=torch.bool)
    values = torch.randint(128, (1, 500), generator=chance(1)) if channels is None else torch.randn(1, 500, channels)
    splits = splitter(PositionSequence(values, everywhere, ~everywhere))
    assert splits.start_prob.mean().item() == pytest.approx(1 / 5, abs=0.02)


def test_a_shift_lowers_every_logit() -> None:
    level = small_model(1).levels[0]
    rows = byte_rows(TEXT.encode()[:50])
    begins = rows.cut_allowed()
    before = level.split(rows).start_logits
    level.splitter.shift(1.5)
    after = level.split(rows).start_logits
    torch.testing.assert_close(after[begins], before[begins] - 1.5)
    assert torch.equal(after[~begins], before[~begins]) and (before[~begins] == NEVER).all()


def context_reader() -> ContextReader:
    """A reader of units."""
    torch.manual_seed(0)
    return ContextReader(16, 1 << 12, 1 << 16).double()


@torch.no_grad()
def test_ngrams_are_left_out_by_chance_but_never_single_units(monkeypatch: pytest.MonkeyPatch) -> None:
    splitter = small_model(1).bottom.splitter
    assert splitter.ngrams is not None
    units = unit_rows(byte_rows(b"the cat sat on the mats", b"and a dog lay beside it"))
    whole = splitter.split_units(units)
    first, again, other = (splitter.split_units(units, chance(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.start_logits, again.start_logits)
    assert not torch.equal(first.start_logits, other.start_logits)
    monkeypatch.setattr(segment_splitter, "LEFT_OUT", 0.0)
    assert torch.equal(splitter.split_units(units, chance(1)).start_logits, whole.start_logits)
    monkeypatch.setattr(segment_splitter, "LEFT_OUT", 1.0)
    none_left = splitter.split_units(units, chance(1)).start_logits
    single = splitter.ngrams.keys(units.keys[None])[0, :, 0]
    splitter.ngrams.claim(table_rows(single, splitter.ngrams.rows), prints(single))
    monkeypatch.setattr(segment_splitter, "LEFT_OUT", 0.0)
    assert torch.equal(none_left, splitter.split_units(units).start_logits)


@law
@given(seeds, st.integers(0, 23), st.integers(0, 23))
@torch.no_grad()
def test_the_reader_of_units_sees_the_strings_about_it_that_are_of_its_own_segment(
    seed: int, place: int, asked: int
) -> None:
    reader = context_reader()
    starts = (torch.rand(24, generator=chance(seed)) < 0.3).double()
    starts[0] = 1
    segments = starts.cumsum(0).tolist()
    hidden = torch.arange(24) == asked
    keys = torch.randint(1, 300, (24,), generator=chance(seed))
    other = keys.clone()
    other[place] += 1000
    changed = (reader(keys, hidden, starts) - reader(other, hidden, starts)).abs().max() > 1e-9
    own = [each for each in range(24) if segments[each] == segments[asked]]
    strings = [range(asked - before, asked + after + 1) for before, after in CONTEXTS]
    held = any(place in string and own[0] <= string[0] and string[-1] <= own[-1] for string in strings)
    assert changed == (held and place != asked)


@torch.no_grad()
def test_the_reader_of_units_knows_on_which_side_and_how_far_a_unit_is() -> None:
    reader = context_reader()
    hidden = torch.arange(13) == 6
    starts = (torch.arange(13) == 0).double()
    states = []
    for place in (1, 3, 5, 7, 10):
        keys = torch.full((13,), 97)
        keys[place] = 98
        states.append(reader(keys, hidden, starts)[0])
    assert torch.pdist(torch.stack(states)).min() > 1e-3


@torch.no_grad()
def test_the_reader_of_units_sees_the_further_the_less_likely_a_cut_is() -> None:
    reader = context_reader()
    keys = torch.arange(97, 106)
    other = keys.clone()
    other[0] = 3000
    hidden = torch.arange(9) == 4
    changes = []
    for prob in (0.0, 0.5, 0.99, 1.0):
        starts = torch.zeros(9, dtype=torch.float64)
        starts[2] = prob
        changes.append((reader(keys, hidden, starts) - reader(other, hidden, starts)).abs().max().item())
    assert changes[0] > changes[1] > changes[2] > changes[3] and changes[3] < 1e-12


def test_a_segment_length_sets_the_splitters_first_rate() -> None:
    below, above = (Level([level_config(segment_length=4.0, window=16)], channels) for channels in (None, 6))
    for cutter in (below.splitter, above.splitter):
        assert cutter.head.bias.sigmoid().item() == pytest.approx(0.25)


# What is told of hidden positions


@torch.no_grad()
def test_a_hidden_unit_is_told_among_those_of_the_batch_given_how_often_each_occurs() -> None:
    reader = context_reader()
    keys = torch.tensor([5, 7, 5, 5, 900, 7])
    kinds = UnitKinds(keys)
    asked = torch.tensor([0, 4])
    nothing = reader.units.loss(torch.zeros(2, 16).double(), kinds, asked)
    torch.testing.assert_close(nothing, -torch.tensor([3 / 6, 1 / 6]).log())
    states = normal(2, 16, seed=3)
    logits = states @ reader.units(torch.tensor([5, 7, 900])).T + torch.tensor([3 / 6, 2 / 6, 1 / 6]).log()
    torch.testing.assert_close(
        reader.units.loss(states, kinds, asked), -logits.float().log_softmax(-1)[[0, 1], [0, 2]]
    )


@torch.no_grad()
def test_the_cost_of_a_unit_is_told_from_what_stands_before_it_in_its_row() -> None:
    torch.manual_seed(1)
    estimator = CostEstimator(16, 1 << 12).double()
    torch.nn.init.normal_(estimator.ngrams.table)
    rows = byte_rows(b"abcdefgh", b"abcdefgh")
    asked = torch.arange(16)

    def cost(rows: PositionSequence) -> Tensor:
        units = unit_rows(rows)
        kinds = UnitKinds(torch.arange(90, 130))
        kinds.which = units.keys - 90
        found: Tensor = estimator(units, kinds, asked)
        return found

    before = cost(rows)
    torch.testing.assert_close(before[:8], before[8:])
    rows.values[0, 5] = 125
    moved = (cost(rows) != before).nonzero().flatten().tolist()
    assert moved == [5, 6, 7], "itself and what follows in its row"


def test_a_shift_is_seen_within_a_context_of_autocast() -> None:
    """A cast of the old weights, which autocast keeps while they may learn, is not used any more."""
    level = copy.deepcopy(MODEL.levels[0]).requires_grad_(True)
    rows = byte_rows(b"the sea is deep, and the sky is wide.")
    with torch.autocast("cpu", torch.bfloat16):
        before = level.split(rows).start_logits
        level.splitter.shift(4.0)
        after = level.split(rows).start_logits
    assert float((before - after - 4.0).abs().max().detach()) < 0.1


# Frozen copies


def test_a_frozen_copy_says_what_was_said_and_does_not_learn() -> None:
    level, rows = small_model(1).bottom, byte_rows(TEXT.encode()[:80])
    copied = frozen_copy(level.splitter)
    before = level.split(rows)
    for parameter in level.splitter.parameters():
        torch.nn.init.normal_(parameter)
    after, said = level.split(rows), copied(rows)
    assert torch.equal(said.start_logits, before.start_logits) and torch.equal(said.start_prob, before.start_prob)
    assert not torch.equal(said.start_logits, after.start_logits) and not said.start_logits.requires_grad


def test_a_frozen_copy_is_no_part_of_a_saved_model() -> None:
    """All of it are buffers, which a run that goes on takes up, and its parameters stay the model's own."""
    model = small_model(2)
    saved, parameters = model.state_dict().keys(), [*model.parameters()]
    model.bottom.former = frozen_copy(model.bottom.splitter)
    assert model.state_dict().keys() == saved
    assert list(map(id, model.parameters())) == list(map(id, parameters))
    names = {f"bottom.former.{name}" for name in model.bottom.splitter.state_dict()}
    assert {name for name in unsaved_buffers(model) if "former" in name} == names
    assert [*map(type, model.bottom.former.modules())] == [*map(type, model.bottom.splitter.modules())]
