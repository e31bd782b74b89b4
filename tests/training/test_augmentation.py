"""Noise on rows of text: where each byte came from, what it may become, and that cuts are to follow it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.model_helpers import TEXT, byte_rows, chance, few, law, seeds, small_model, start_probs
from zonkey_core.model.level import Level
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_splitter import Splits
from zonkey_core.model.unit_rows import unit_rows
from zonkey_core.training.augmentation import (
    CHANGED,
    KIND_SHARES,
    LEAST_SHARE,
    LOST_WHOLLY,
    MOST_SHARE,
    UPPER_KIND_SHARES,
    NoisedRows,
    _changed,
    noise_rows,
    noised_start_prob,
)
from zonkey_core.training.losses import existence_loss
from zonkey_core.training.objectives import NOISED_ROWS, splitter_objective, stability_loss
from zonkey_core.training.telling_units import TellingUnits

LENGTH = 240
SIGNS = "\u3042\u3044\u4e2d\u6587ab c\u00e9\u0e01\u0e02\u05d0\u05d1\U0001f600xyz\u0436\u0437"


def many_rows(count: int = 120, *, text: str = TEXT * 3) -> PositionSequence:
    """Rows of text with documents that begin here and there; every third row ends early."""
    data = text.encode()
    rows = byte_rows(*(data[start : start + LENGTH] for start in range(count)))
    rows.document_mask.copy_(torch.rand(count, LENGTH, generator=chance(9)) < 0.03)
    rows.exists_mask[::3, LENGTH - 40 :] = False
    return rows._replace(document_mask=rows.document_mask & rows.exists_mask)


ROWS = many_rows()
SIZES = ROWS.exists_mask.sum(1).tolist()


def rows_of_signs(count: int, *, seed: int = 2) -> PositionSequence:
    """Rows of signs of many scripts, all of them whole; one is rarer than the others."""
    signs, rows = SIGNS + "\u304b", []
    odds = torch.tensor([1.0] * len(SIGNS) + [0.05])
    for drawn in torch.multinomial(odds.expand(count, -1), LENGTH // 4, replacement=True, generator=chance(seed)):
        rows.append("".join(signs[each] for each in drawn.tolist()).encode())
    found = byte_rows(*(row.ljust(LENGTH, b" ") for row in rows))
    found.exists_mask.copy_(torch.arange(LENGTH) < torch.tensor([[len(row)] for row in rows]))
    return found


def only(kind: int) -> list[float]:
    """Odds of one kind of noise alone."""
    return [float(each == kind) for each in range(5)]


def spelled(rows: PositionSequence, row: int) -> list[bytes]:
    """The units of a row."""
    units = unit_rows(rows)
    chosen = units.rows == row
    values = rows.values.flatten().tolist()
    ends = (units.offsets + units.sizes)[chosen].tolist()
    return [bytes(values[a:b]) for a, b in zip(units.offsets[chosen].tolist(), ends, strict=True)]


def origins_of(noised: NoisedRows, row: int) -> list[int]:
    """Where the bytes of a row that exist came from."""
    existing: list[int] = noised.origins[row][noised.sequence.exists_mask[row]].tolist()
    return existing


@pytest.mark.parametrize("shares", [KIND_SHARES, UPPER_KIND_SHARES, only(2), only(3)])
@few
@given(seed=seeds)
def test_noised_rows_consist_of_what_their_row_held(shares: tuple[float, ...], seed: int) -> None:
    noised = noise_rows(ROWS, chance(seed), shares)
    exists = noised.sequence.exists_mask
    assert ROWS.exists_mask.gather(1, noised.origins)[exists].all(), "none from padding"
    assert (exists[:, :-1] | ~exists[:, 1:]).all(), "what exists comes first"
    assert exists.any(1).all()
    for row in range(0, len(SIZES), 17):
        assert set(noised.sequence.values[row][exists[row]].tolist()) <= set(ROWS.values[row].tolist())


@pytest.mark.parametrize(("kind", "shorter"), [(0, True), (1, False)])
def test_units_are_dropped_or_written_twice(kind: int, shorter: bool) -> None:
    noised = noise_rows(ROWS, chance(1), only(kind))
    shares = []
    for row, size in enumerate(SIZES):
        origins = origins_of(noised, row)
        clean = ROWS.values[row, origins]
        assert torch.equal(noised.sequence.values[row, : len(origins)], clean)
        steps = torch.tensor(origins).diff()
        if shorter:
            assert len(origins) < size and (steps > 0).all()
            shares.append(1 - len(origins) / size)
        else:
            assert len(origins) == LENGTH if size == LENGTH else len(origins) > size
            shares.append(float((steps <= 0).sum()) / len(set(origins)))
    margin = 4 * math.sqrt(MOST_SHARE * (1 - MOST_SHARE) / LENGTH)
    assert max(0.0, LEAST_SHARE - margin) < min(shares) < 0.1 and 0.2 < max(shares) < MOST_SHARE + margin
    assert sum(shares) / len(shares) == pytest.approx((LEAST_SHARE + MOST_SHARE) / 2, abs=0.05)


@pytest.mark.parametrize("kind", range(5))
def test_units_of_any_script_stay_whole(kind: int) -> None:
    rows = rows_of_signs(20)
    noised = noise_rows(rows, chance(3), only(kind), telling_signs("\u3042x", {"\u4e2d": "a"})).sequence
    changed = 0
    for row in range(len(rows.values)):
        whole = spelled(rows, row)
        found = spelled(noised, row)
        assert set(found[:-1]) <= set(whole), "the last may be cut off"
        changed += found != whole
    assert changed > 10


def test_units_give_way_to_others_of_their_row() -> None:
    rows = many_rows(60)
    rows.exists_mask[:] = True
    noised = noise_rows(rows, chance(4), only(2))
    shares = []
    for row in range(len(rows.values)):
        clean, found = spelled(rows, row), spelled(noised.sequence, row)
        changed = [one != two for one, two in zip(clean, found, strict=False)]
        shares.append(sum(changed) / len(changed))
    assert min(shares) > 0.02 and max(shares) < 0.4 and sum(shares) > 0.05 * len(shares)


def test_only_rarer_units_give_way_where_the_bound_is_on_how_often_they_occur() -> None:
    text = "a b" * 60 + "cdefg" * 2 + "a b" * 100
    rows = byte_rows(*[text.encode()[:LENGTH]] * 30)
    noised = noise_rows(rows, chance(5), only(3)).sequence
    seen = set()
    for row in range(30):
        clean, found = spelled(rows, row), spelled(noised, row)
        seen |= {one for one, two in zip(clean, found, strict=True) if one != two}
    assert seen == {b"c", b"d", b"e", b"f", b"g"}


@law
@given(seed=seeds)
def test_rare_kinds_of_a_row_change_places_with_each_other(seed: int) -> None:
    rows, batch = rows_of_signs(6, seed=seed), 6
    units = unit_rows(rows)
    sources = _changed(units, batch, chance(seed))
    assert torch.equal(units.rows[sources], units.rows), "of the same row"
    for row in range(batch):
        mine = units.rows == row
        clean, found = units.keys[mine].tolist(), units.keys[sources][mine].tolist()
        told = dict(zip(clean, found, strict=True))
        assert [told[key] for key in clean] == found, "the same wherever it occurs"
        assert sorted(told.values()) == sorted(told), "each is what one of them becomes"
        assert all(clean.count(key) < CHANGED * len(clean) for key in told if told[key] != key)


@few
@given(seed=seeds)
def test_frequent_kinds_stay_as_they_are(seed: int) -> None:
    """Half of a row is of one kind; each of the others, a 50th of it, is below most of the bounds."""
    text = "".join("a" + sign for sign in "bcdefghijklmnopqrstuvwxyz" * 5)[:LENGTH]
    rows = byte_rows(*[text.encode()] * 20)
    noised = noise_rows(rows, chance(seed), only(3)).sequence
    frequent = rows.values == ord("a")
    assert torch.equal(noised.values == ord("a"), frequent)
    others = (noised.values != rows.values).sum(1)
    assert (others > 60).sum() > 8


def telling_signs(lost: str, stand_ins: dict[str, str]) -> TellingUnits:
    """Signs that are lost, and signs that give way to others."""
    kinds = sorted(map(ord, {*lost, *stand_ins}))
    others = [ord(stand_ins.get(chr(kind), chr(kind))) for kind in kinds]
    return TellingUnits(np.array(kinds), np.array([chr(kind) in lost for kind in kinds]), np.array(others))


def test_a_row_loses_all_of_a_kind_or_none() -> None:
    rows = byte_rows(*[TEXT.encode()[:LENGTH]] * 200)
    noised = noise_rows(rows, chance(8), only(4), telling_signs(" ,", {})).sequence
    without = {b" ": 0, b",": 0}
    for row in range(200):
        clean, found = spelled(rows, row), spelled(noised, row)
        for unit in set(clean):
            assert found.count(unit) in (0, clean.count(unit)) if unit in without else found.count(unit) > 0
        for unit in without:
            without[unit] += unit not in found
    for count in without.values():
        assert count / 200 == pytest.approx(LOST_WHOLLY + (1 - LOST_WHOLLY) / 2, abs=0.1)


def test_kinds_that_give_way_are_spelled_as_what_stands_in_for_them() -> None:
    rows = byte_rows(*[b"The cat. The dog. A cow. " * 8] * 100)
    noised = noise_rows(rows, chance(2), only(4), telling_signs(".", {"T": "t", "A": "a", "c": "?"})).sequence
    found = {b"".join(spelled(noised, row)) for row in range(100)}
    assert b"the cat the dog a cow " * 8 in found, "some rows are without any of it"
    assert b"The cat. The dog. A cow. " * 8 not in found or len(found) > 4
    assert all(b"c" in text and b"?" not in text for text in found), "what the batch does not hold stands in for none"
    for text in found:
        assert (b"T" in text) != (b"the " in text) and (b"A" in text) != (b" a " in text)


def test_a_stand_in_is_found_in_any_row() -> None:
    rows = byte_rows(b"QQQQQQQQ", b"qqqqqqqq")
    noised = noise_rows(rows, chance(1), only(4), telling_signs("", {"Q": "q"}))
    assert (noised.sequence.values == ord("q")).all()
    assert torch.equal(noised.origins, torch.arange(8).expand(2, -1))


def test_documents_begin_at_the_first_of_their_bytes_that_is_left() -> None:
    moved = 0
    noised = noise_rows(ROWS, chance(1), only(0))
    for row in range(len(SIZES)):
        origins = origins_of(noised, row)
        expected = set()
        for start in ROWS.document_mask[row].nonzero().flatten().tolist():
            left = [place for place, origin in enumerate(origins) if origin >= start]
            expected.update(left[:1])
            moved += bool(left) and origins[left[0]] != start
        assert set(noised.sequence.document_mask[row].nonzero().flatten().tolist()) == expected
    assert moved, "some first bytes were dropped"


@pytest.mark.parametrize("shares", [KIND_SHARES, UPPER_KIND_SHARES])
def test_noise_is_drawn_from_the_generator_alone_and_leaves_its_input(shares: tuple[float, ...]) -> None:
    rows = many_rows(8)
    torch.manual_seed(0)
    first = noise_rows(rows, chance(5), shares)
    torch.manual_seed(1)
    second = noise_rows(rows, chance(5), shares)
    assert not torch.equal(first.sequence.values, noise_rows(rows, chance(6), shares).sequence.values)
    assert torch.equal(first.origins, second.origins)
    for one, two in zip(first.sequence, second.sequence, strict=True):
        assert torch.equal(one, two)
    for kept, fresh in zip(rows, many_rows(8), strict=True):
        assert torch.equal(kept, fresh)


# Starts of noised rows


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        ([0, 1, 2, 3, 4], [1.0, 0.2, 0.5, 0.0, 0.3]),
        ([0, 2, 3, 4, 4], [1.0, 1 - 0.8 * 0.5, 0.0, 0.3, 0.0]),
        ([0, 0, 1, 1, 2], [1.0, 0.0, 0.2, 0.0, 0.5]),
        ([1, 4, 4, 4, 4], [1.0, 1 - 0.5 * 1.0 * 0.7, 0.0, 0.0, 0.0]),
        ([2, 3, 4, 4, 4], [1.0, 0.0, 0.3, 0.0, 0.0]),
    ],
)
def test_starts_move_with_their_bytes(origins: list[int], expected: list[float]) -> None:
    clean = torch.tensor([[1.0, 0.2, 0.5, 0.0, 0.3]])
    torch.testing.assert_close(noised_start_prob(clean, torch.tensor([origins])), torch.tensor([expected]))


def test_a_certain_start_that_is_dropped_is_that_of_the_next_byte() -> None:
    clean = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]])
    found = noised_start_prob(clean, torch.tensor([[0, 1, 3, 4, 4]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]]))


@law
@given(seeds)
def test_noise_keeps_how_sure_two_bytes_are_of_one_segment(seed: int) -> None:
    rows = byte_rows(*[TEXT.encode()[:30]] * 4)
    clean = start_probs(30, rows=4, seed=seed)
    noised = noise_rows(rows, chance(seed))
    found = noised_start_prob(clean, noised.origins)
    assert ((found >= 0) & (found <= 1)).all() and (found[:, 0] == 1).all()
    for row in range(4):
        origins = origins_of(noised, row)
        for first, last in ((0, len(origins) - 1), (3, 9)):
            between = (1 - clean[row, origins[first] + 1 : origins[last] + 1]).prod()
            torch.testing.assert_close((1 - found[row, first + 1 : last + 1]).prod(), between)


def test_a_row_of_one_byte_is_a_segment() -> None:
    found = noised_start_prob(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long))
    assert found.tolist() == [[1.0], [1.0]]


# The loss


def text_rows(count: int) -> PositionSequence:
    """Rows that each begin a document."""
    data = (TEXT * 2).encode()
    return byte_rows(*(data[3 * start : 3 * start + 80] for start in range(count)))


def part_to_noise(rows: PositionSequence) -> PositionSequence:
    """The rows of a batch that the loss noises."""
    count = math.ceil(len(rows.values) / NOISED_ROWS)
    return PositionSequence(*(part[:count] for part in rows))


def with_answers(level: Level, monkeypatch: pytest.MonkeyPatch, clean: Tensor, noised: Tensor) -> None:
    """Let a level say `clean` starts first and `noised` logits then."""
    answers = iter([Splits(clean, torch.logit(clean)), Splits(noised.sigmoid(), noised)])
    monkeypatch.setattr(level, "split", lambda _sequence: next(answers))


@pytest.mark.parametrize("seed", range(6))
def test_cuts_that_move_with_their_bytes_cost_least(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    level, rows = small_model(1).levels[0], text_rows(4)
    part = part_to_noise(rows)
    clean = start_probs(80, rows=len(part.values), seed=seed).float()
    moved = noised_start_prob(clean, noise_rows(part, chance(seed)).origins)
    logits = moved.clamp(1e-6, 1 - 1e-6).logit().requires_grad_()
    with_answers(level, monkeypatch, clean, logits)
    loss = stability_loss(level, rows, chance(seed))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-6
    for change in (0.5, -0.5):
        with_answers(level, monkeypatch, clean, logits.detach() + change)
        assert stability_loss(level, rows, chance(seed)) > loss + 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_certain_cuts_that_move_with_their_bytes_cost_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    level, rows = small_model(1).levels[0], text_rows(1)
    clean = (start_probs(80, seed=seed) > 0.7).float()
    moved = noised_start_prob(clean, noise_rows(rows, chance(seed)).origins)
    with_answers(level, monkeypatch, clean, 40 * moved - 20)
    assert stability_loss(level, rows, chance(seed)) < 1e-6
    with_answers(level, monkeypatch, clean, 20 - 40 * moved)
    assert stability_loss(level, rows, chance(seed)) > 10


def test_the_clean_cuts_are_a_fixed_target() -> None:
    level, rows = small_model(1).levels[0], text_rows(3)
    parameters = list(level.splitter.parameters())
    clean = part_to_noise(rows)
    noised, origins = noise_rows(clean, chance(2))
    asked = (noised.exists_mask & noised.cut_allowed() & ~noised.document_mask).float()

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)])

    def against(target: Tensor) -> Tensor:
        return existence_loss(level.split(noised).start_logits, noised_start_prob(target, origins), asked)

    found = gradient(stability_loss(level, rows, chance(2)))
    target = level.split(clean).start_prob
    torch.testing.assert_close(found, gradient(against(target.detach())))
    assert not torch.allclose(found, gradient(against(target)), atol=1e-4)


def test_a_share_of_the_rows_is_noised() -> None:
    level, rows = small_model(1).levels[0], text_rows(2 * NOISED_ROWS + 1)

    def loss_with(changed: int | None) -> float:
        values = rows.values.clone()
        if changed is not None:
            values[changed] = values[changed].flip(0)
        return stability_loss(level, rows._replace(values=values), chance(4)).item()

    assert loss_with(None) == loss_with(3) != loss_with(2)


def test_the_beginning_of_a_row_teaches_nothing() -> None:
    """A cut is certain there in any case, and in the middle of a document there is no reason for it."""
    level, rows = small_model(1).levels[0], text_rows(1)
    rows.document_mask[:] = False
    torch.nn.init.zeros_(level.splitter.head.weight)
    torch.nn.init.constant_(level.splitter.head.bias, -20.0)
    assert stability_loss(level, rows, chance(1)) < 1e-4


def test_stability_is_asked_where_it_is_weighed() -> None:
    level, rows = small_model(1).bottom, text_rows(4)
    whole, half, none = (splitter_objective(level, rows, chance(1), stability=weight) for weight in (1.0, 0.5, 0.0))
    assert whole.keys() - none.keys() == {"stability"} and whole["stability"] > 0
    torch.testing.assert_close(half["stability"], whole["stability"] / 2)
