"""The lexicon: how much of each segment there is, what it costs, what is counted, and that words are found by it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import TEXT, byte_rows, chance, few, law, level_config, seeds, small_model
from zonkey_core.config import ModelConfig
from zonkey_core.model.lexicon import (
    DISCOUNT,
    KEPT_UNITS,
    LARGEST_PRICE,
    LIKELY,
    LONGEST,
    PRICE_RATE,
    STRENGTH,
    UNIT_ROWS,
    UNTOLD,
    Lexicon,
    log_segment_shares,
)
from zonkey_core.model.model import Zonkey, unsaved_buffers
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.readers import UnitKinds
from zonkey_core.model.segment_splitter import Splits
from zonkey_core.model.unit_rows import UnitRows, unit_rows
from zonkey_core.training.objectives import rate_losses, splitter_objective

ROWS = 1 << 14
STEPS = 150
"""Of a training on words."""


def alone(values: Tensor) -> Tensor:
    """The sum over all processes of what one has."""
    return values


def splits_of(logits: Tensor, fresh_mask: Tensor) -> Splits:
    """What a splitter with these logits [T] says of units."""
    return Splits(logits.sigmoid().where(~fresh_mask, 1.0), logits)


def units_of(text: bytes) -> UnitRows:
    """The units of one row."""
    return unit_rows(byte_rows(text))


def certain(length: int, *starts: int) -> Tensor:
    """Logits [length] of a text that is cut at some units for certain, and nowhere else."""
    logits = torch.full((length,), -40.0)
    logits[list(starts)] = 40.0
    return logits


def met_of(length: int, *starts: int) -> Tensor:
    """[length, LONGEST] how much of each segment there is, where a text is cut at some units and nowhere else."""
    fresh = torch.arange(length) == 0
    return log_segment_shares(splits_of(certain(length, *starts), fresh), fresh).exp()


def taught(*texts: tuple[bytes, list[int]], times: int = 1, rows: int = ROWS) -> Lexicon:
    """A lexicon that has read some texts, cut so."""
    lexicon = Lexicon(rows)
    for text, starts in texts * times:
        lexicon.learn(units_of(text).keys, met_of(len(text), *starts), alone)
    return lexicon


# How much of each segment there is


@law
@given(seed=seeds, length=st.integers(1, 13), breaks=st.sets(st.integers(1, 12), max_size=2))
def test_shares_are_those_of_all_segmentations(seed: int, length: int, breaks: set[int]) -> None:
    """Every way to cut a text counts as often as its cuts, drawn independently of each other, are found."""
    fresh = torch.tensor([place == 0 or place in breaks for place in range(length)])
    splits = splits_of(2 * torch.randn(length, generator=chance(seed)), fresh)
    found = log_segment_shares(splits, fresh).exp()
    expected = torch.zeros(length, LONGEST, dtype=torch.float64)
    for cuts in itertools.product((False, True), repeat=length):
        if any(certain_cut and not cut for cut, certain_cut in zip(cuts, fresh.tolist(), strict=True)):
            continue
        chances = [p if cut else 1 - p for cut, p in zip(cuts, splits.start_prob.double().tolist(), strict=True)]
        edges = [place for place in range(length) if cuts[place]] + [length]
        for begin, end in itertools.pairwise(edges):
            if end - begin <= LONGEST:
                expected[begin, end - begin - 1] += math.prod(chances)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1, 5 * LONGEST])
def test_what_is_in_no_entry_is_untold(length: int) -> None:
    """A segment that is longer than any entry costs much, but the text of others is all told."""
    whole = met_of(length)
    assert whole.sum() == pytest.approx(float(length <= LONGEST), abs=1e-6)
    cut = met_of(length, *range(0, length, 3))
    lengths = torch.arange(1, LONGEST + 1)
    assert (cut * lengths).sum() == pytest.approx(length)
    units = units_of(b"a" * length)
    told, _ = Lexicon(ROWS)(units, splits_of(certain(length), units.fresh_mask))
    if length > LONGEST:
        assert told == pytest.approx(UNTOLD * length)
    else:
        assert told == pytest.approx(length * math.log(UNIT_ROWS) + math.log(LONGEST), rel=1e-4)


# What they cost


@law
@given(seed=seeds, length=st.integers(1, 60), read=st.integers(0, 4), rows=st.sampled_from([2, 64, ROWS]))
def test_costs_are_never_negative(seed: int, length: int, read: int, rows: int) -> None:
    """Of whatever was counted, in tables that are much too small, too."""
    lexicon = Lexicon(rows)
    for number in range(read + 1):
        keys = torch.randint(3, (length,), generator=chance(seed + number))
        fresh = torch.rand(length, generator=chance(seed + number)) < 0.1
        fresh[0] = True
        logits = 20 * torch.randn(length, generator=chance(seed + number))
        met = log_segment_shares(splits_of(logits, fresh), fresh).exp()
        costs = lexicon.costs(keys, met)
        assert costs.shape == (length, LONGEST) and costs.isfinite().all() and (costs >= 0).all()
        lexicon.learn(keys, met, alone)


def test_costs_at_the_end_of_a_long_text_are_those_at_its_beginning() -> None:
    """Its spelling is less likely than the smallest number above 0."""
    lexicon = taught((TEXT.encode()[:30], [0, 4, 10]))
    keys = units_of(b"abcdefghijklmnopqrstuvwxyz" * 2000).keys
    nothing = torch.zeros(len(keys), LONGEST)
    costs = lexicon.costs(keys, nothing)
    assert costs.isfinite().all()
    torch.testing.assert_close(costs[:26], costs[-52:-26], atol=1e-3, rtol=1e-4)


def test_a_new_entry_costs_its_spelling() -> None:
    """Where nothing was counted, units are all alike, and each further one makes an entry less likely by as much."""
    lexicon = Lexicon(ROWS)
    costs = lexicon.costs(units_of(b"abcdefghijklmnopq").keys, torch.zeros(17, LONGEST))[0]
    assert costs[0] == pytest.approx(math.log(LONGEST) + math.log(UNIT_ROWS), rel=1e-4)
    torch.testing.assert_close(costs.diff(), torch.full((LONGEST - 1,), math.log(UNIT_ROWS)), rtol=1e-4, atol=1e-3)


def test_an_entry_is_the_cheaper_the_oftener_it_was_met() -> None:
    once, often = (taught((b"thehen", [0, 3]), times=times) for times in (1, 20))
    for text in (b"the", b"hen"):
        keys, nothing = units_of(text).keys, torch.zeros(3, LONGEST)
        new, seldom, known = (each.costs(keys, nothing)[0, 2] for each in (Lexicon(ROWS), once, often))
        assert known < seldom - 1 < new - 2
    keys, nothing = units_of(b"ehe").keys, torch.zeros(3, LONGEST)
    assert often.costs(keys, nothing)[0, 2] > 5, "a string across two entries is none"


@law
@given(times=st.integers(1, 9), own=st.floats(0, 1))
def test_the_own_occurrence_of_a_segment_is_taken_off_its_count(times: int, own: float) -> None:
    lexicon = taught((b"the", [0]), times=times)
    met = torch.zeros(3, LONGEST)
    met[0, 2] = own
    keys = units_of(b"the").keys
    cost = float(lexicon.costs(keys, met)[0, 2])
    unmet = Lexicon(ROWS)
    unmet.unit_counts.copy_(lexicon.unit_counts)
    new = math.exp(-float(unmet.costs(keys, torch.zeros(3, LONGEST))[0, 2]))
    total = float(lexicon.counts.sum())
    assert total == pytest.approx(times, rel=1e-4), "the one entry"
    count = max(0.0, total - own)
    share = count - DISCOUNT * min(1.0, count) + (STRENGTH + DISCOUNT) * new
    assert cost == pytest.approx(-math.log(share / (total + STRENGTH)), rel=1e-3, abs=1e-4)
    assert torch.equal(lexicon.costs(keys, met)[1:], lexicon.costs(keys, torch.zeros(3, LONGEST))[1:])


def test_what_was_met_once_is_as_new_to_itself() -> None:
    lexicon = taught((b"thehen", [0, 3]))
    keys, met = units_of(b"thehen").keys, met_of(6, 0, 3)
    assert lexicon.costs(keys, met)[0, 2] > lexicon.costs(keys, torch.zeros_like(met))[0, 2] + 3


# What it teaches


@law
@given(seed=seeds, breaks=st.sets(st.integers(1, 19), max_size=2))
def test_the_gradient_reaches_every_open_cut_and_no_other(seed: int, breaks: set[int]) -> None:
    text = TEXT.encode()[:20]
    rows = byte_rows(text)
    for place in breaks:
        rows.document_mask[0, place] = True
    units = unit_rows(rows)
    logits = torch.randn(len(units.keys), generator=chance(seed)).requires_grad_()
    lexicon = taught((text, [0, 4, 10]), times=3)
    told, met = lexicon(units, splits_of(logits, units.fresh_mask))
    (gradient,) = torch.autograd.grad(told, logits)
    assert told.isfinite() and gradient.isfinite().all() and not met.requires_grad
    assert (gradient[~units.fresh_mask] != 0).all()
    assert (gradient[units.fresh_mask] == 0).all()


@law
@given(seed=seeds, size=st.sampled_from([1.0, 30.0, 300.0]), length=st.integers(1, 400))
def test_no_logit_is_too_large(seed: int, size: float, length: int) -> None:
    """Also where nothing was met, and in texts of which hardly anything is told."""
    units = units_of((TEXT * 3).encode()[:length])
    logits = (size * torch.randn(len(units.keys), generator=chance(seed))).requires_grad_()
    told, met = Lexicon(ROWS)(units, splits_of(logits, units.fresh_mask))
    (gradient,) = torch.autograd.grad(told, logits, allow_unused=length == 1)
    assert told.isfinite() and met.isfinite().all()
    assert gradient is None or gradient.isfinite().all()


@law
@given(logit=st.floats(-4, 4))
def test_what_is_told_is_what_all_segmentations_cost_less_the_entropy_of_cuts(logit: float) -> None:
    units, logits = units_of(b"ab"), torch.tensor([0.0, logit])
    lexicon = Lexicon(ROWS)
    cut, whole, told = (
        float(lexicon(units, splits_of(each, units.fresh_mask))[0])
        for each in (certain(2, 0, 1), certain(2, 0), logits)
    )
    probable = 1 / (1 + math.exp(-logit))
    entropy = -probable * math.log(probable) - (1 - probable) * math.log(1 - probable)
    assert told == pytest.approx(probable * cut + (1 - probable) * whole - entropy, rel=1e-4)


def test_a_text_of_known_words_costs_least_where_it_is_cut_between_them() -> None:
    words = [b"heron", b"brook", b"sky"]
    lexicon = taught(*((word, [0]) for word in words), times=30)
    text = b"heronskybrook"
    units = units_of(text)
    costs = {
        cuts: float(lexicon(units, splits_of(certain(len(text), 0, *cuts), units.fresh_mask))[0])
        for count in range(4) for cuts in itertools.combinations(range(1, len(text)), count)
    }
    assert min(costs, key=costs.__getitem__) == (5, 8)


# What is counted


def test_only_likely_segments_are_counted() -> None:
    units = units_of(TEXT.encode()[:30])
    splits = splits_of(torch.randn(30, generator=chance(3)), units.fresh_mask)
    met = log_segment_shares(splits, units.fresh_mask).exp()
    lexicon = Lexicon(1 << 20)
    lexicon.learn(units.keys, met, alone)
    assert (met <= LIKELY).any() and lexicon.counts.sum() == pytest.approx(float(met[met > LIKELY].sum()), rel=1e-5)
    assert lexicon.unit_counts.sum() == 30


def test_counts_fade() -> None:
    """Each batch takes from what was counted before as large a share as it is of the text that is kept."""
    lexicon = taught((b"thehen", [0, 3]))
    before, units = lexicon.counts.clone(), lexicon.unit_counts.clone()
    keys, share = torch.full((1 << 16,), 97), (1 << 16) / KEPT_UNITS
    lexicon.learn(keys, torch.zeros(len(keys), LONGEST), alone)
    torch.testing.assert_close(lexicon.counts, before * (1 - share))
    assert lexicon.unit_counts.sum() == pytest.approx(float(units.sum()) * (1 - share) + len(keys), rel=1e-5)
    many = torch.full((KEPT_UNITS + 5,), 98)
    lexicon.learn(many, torch.zeros(1, 1).expand(len(many), LONGEST), alone)
    assert not lexicon.counts.any(), "nothing is left of what was read so long before"


def test_counts_are_of_all_processes() -> None:
    keys, met = units_of(b"thehen").keys, met_of(6, 0, 3)
    two, both = Lexicon(ROWS), Lexicon(ROWS)
    two.learn(keys, met, lambda values: 2 * values)
    both.learn(torch.cat([keys, keys]), torch.cat([met, met]), alone)
    torch.testing.assert_close(two.counts, both.counts)
    torch.testing.assert_close(two.unit_counts, both.unit_counts)


# The price of a cut


@law
@given(st.floats(-0.5, 0.5).filter(lambda value: abs(value) > 0.01))
def test_a_price_goes_up_where_cuts_are_too_many_and_down_where_too_few(excess: float) -> None:
    lexicon = Lexicon(ROWS)
    said = float(lexicon.price(torch.tensor([excess]), alone))
    assert said * excess > 0, "at once, and firmly"
    assert float(lexicon.cut_price) == pytest.approx(PRICE_RATE * excess, rel=1e-3)


def test_a_price_is_that_of_all_rows() -> None:
    """Rows with too many cuts and rows with too few make up for each other, and what goes on costs more and more."""
    lexicon, other = Lexicon(ROWS), Lexicon(ROWS)
    asked = [float(lexicon.price(torch.tensor([0.3, -0.1, 0.1]), alone)) for _ in range(20)]
    assert asked[-1] > asked[0] > 0
    assert float(lexicon.cut_price) == pytest.approx(20 * PRICE_RATE * 0.1, rel=1e-4)
    assert float(other.price(torch.tensor([0.2, -0.2]), alone)) == pytest.approx(0, abs=1e-6)


def test_a_price_is_bounded() -> None:
    lexicon = Lexicon(ROWS)
    for _ in range(100):
        lexicon.price(torch.tensor([-1.0]), alone)
    assert float(lexicon.cut_price) == -LARGEST_PRICE


def test_a_price_is_that_of_all_processes() -> None:
    two, both = Lexicon(ROWS), Lexicon(ROWS)
    said = two.price(torch.tensor([0.3, 0.1]), lambda values: 2 * values)
    torch.testing.assert_close(said, both.price(torch.tensor([0.3, 0.1, 0.3, 0.1]), alone))


def test_what_is_cut_too_often_pays_for_every_cut() -> None:
    level = small_model(1, lexicon=ROWS, segment_length=30.0).bottom
    units = unit_rows(byte_rows(TEXT.encode()[:80], TEXT.encode()[40:120]))
    start_prob = torch.full((len(units.keys),), 0.4).requires_grad_()
    losses = rate_losses(level, units, UnitKinds(units.keys), start_prob, torch.zeros(2, dtype=torch.long), chance(1))
    assert losses.keys() == {"cost", "price"}
    (gradient,) = torch.autograd.grad(losses["price"], start_prob)
    assert (gradient > 0).all() and level.lexicon is not None and float(level.lexicon.cut_price) >= 0


def test_a_price_is_a_number_where_units_tell_nothing() -> None:
    """Text of one kind of unit alone costs nothing, whatever a compressor has found of the rest."""
    level, units = small_model(1, lexicon=ROWS, bits_per_segment=8.0).bottom, units_of(b"a" * 60)
    assert level.lexicon is not None
    level.lexicon.information.fill_(3.0)
    losses = rate_losses(level, units, UnitKinds(units.keys), torch.full((60,), 0.4), torch.tensor([0]), chance(1))
    assert all(loss.isfinite() for loss in losses.values()) and level.lexicon.cut_price.isfinite()


# As a part of a model


def test_nothing_of_it_is_saved_with_a_model() -> None:
    model = small_model(2, lexicon=ROWS)
    bare = small_model(2)
    taught_by_reading = {name for name in bare.state_dict() if name.startswith("bottom.reader.")}
    assert model.state_dict().keys() == bare.state_dict().keys() - taught_by_reading
    assert unsaved_buffers(model).keys() - unsaved_buffers(bare).keys() == {
        f"bottom.lexicon.{name}" for name in ("counts", "unit_counts", "information", "cut_price", "excess")
    }
    learned, read = (dict(each.named_parameters()).keys() for each in (model, bare))
    assert read - learned == taught_by_reading and not learned - read


@few
@given(seed=seeds)
def test_a_run_goes_on_with_what_was_counted(seed: int) -> None:
    first, second = small_model(1, lexicon=ROWS, seed=1), small_model(1, lexicon=ROWS, seed=1)
    rows = byte_rows(TEXT.encode()[:64], TEXT.encode()[64:128])
    splitter_objective(first.bottom, rows, chance(seed))
    second.load_unsaved({name: tensor.clone() for name, tensor in first.unsaved().items()})
    one, two = (splitter_objective(each.bottom, rows, chance(seed + 1)) for each in (first, second))
    assert one["told"] == two["told"] and one["price"] == two["price"]
    fresh = splitter_objective(small_model(1, lexicon=ROWS, seed=1).bottom, rows, chance(seed + 1))
    assert fresh["told"] != one["told"]


# That it learns


def words_of(seed: int, count: int) -> list[str]:
    """A dictionary of words of two to five letters."""
    letters = [chr(97 + each) for each in torch.randint(12, (count * 5,), generator=chance(seed)).tolist()]
    sizes = torch.randint(2, 6, (count,), generator=chance(seed + 1)).tolist()
    return ["".join(letters[5 * index : 5 * index + size]) for index, size in enumerate(sizes)]


def spoken(words: list[str], rows: int, length: int, seed: int) -> tuple[PositionSequence, Tensor]:
    """Rows of words without anything between them, and a mask [B, L] of where these begin, but for the first."""
    draw, texts, begins = chance(seed), [], torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        text = ""
        while len(text) < length:
            if text:
                begins[row, len(text)] = True
            text += words[int(torch.randint(len(words), (1,), generator=draw))]
        texts.append(text[:length].encode())
    return byte_rows(*texts), begins


def test_words_are_found_in_a_text_without_spaces() -> None:
    """A real, if tiny, training: before it cuts have nothing to do with words."""
    words = words_of(5, 30)
    torch.manual_seed(0)
    mean = sum(map(len, words)) / len(words)
    model = Zonkey(ModelConfig(levels=(level_config(lexicon=ROWS, segment_length=mean, splitter_ngrams=1 << 14),)))
    level = model.bottom
    shown, begins = spoken(words, 8, 200, seed=99)

    def score() -> float:
        """F1 of the cuts of text that is not trained on."""
        with torch.no_grad():
            cuts = (level.split(shown).start_prob > 0.5) & shown.cut_open()
        right = int((cuts & begins).sum())
        return 2 * right / max(1, int(cuts.sum() + begins.sum()))

    before = score()
    assert level.splitter.ngrams is not None
    table = level.splitter.ngrams.table
    others = [part for part in level.parameters() if part is not table]
    optimizer = torch.optim.Adam([{"params": [table], "lr": 0.05}, {"params": others}], lr=0.005)
    for step in range(STEPS):
        rows, _ = spoken(words, 8, 100, seed=step)
        losses = splitter_objective(level, rows, chance(step), stability=0.0, certainty=0.0)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert before < 0.4
    assert score() > 0.9
