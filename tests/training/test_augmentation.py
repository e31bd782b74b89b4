"""Noise on rows of bytes: where each byte came from, what it may become, and that cuts are to follow it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.model_helpers import TEXT, byte_rows, chance, few, latent_rows, law, seeds, small_model, start_probs
from zonkey_core.model.level import Level
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_splitter import Splits
from zonkey_core.training.augmentation import (
    KIND_SHARES,
    LEAST_SHARE,
    LOST_SHARE,
    LOWERED,
    MOST_SHARE,
    RARE,
    UPPER_KIND_SHARES,
    NoisedRows,
    noise_rows,
    noised_start_prob,
)
from zonkey_core.training.losses import existence_loss
from zonkey_core.training.objectives import NOISED_ROWS, splitter_objective, stability_loss

LENGTH = 240
KINDS = ("dropped", "doubled", "any case", "upper case")


def many_rows(count: int = 120) -> PositionSequence:
    """Rows of text with documents that begin here and there; every third row ends early."""
    data = (TEXT * 3).encode()
    rows = byte_rows(*(data[start : start + LENGTH] for start in range(count)))
    rows.document_mask.copy_(torch.rand(count, LENGTH, generator=chance(9)) < 0.03)
    rows.exists_mask[::3, LENGTH - 40 :] = False
    return rows._replace(document_mask=rows.document_mask & rows.exists_mask)


ROWS = many_rows()
NOISED = noise_rows(ROWS, chance(1))
SIZES = ROWS.exists_mask.sum(1).tolist()


def origins_of(noised: NoisedRows, row: int) -> list[int]:
    """Where the bytes of a row that exist came from."""
    existing: list[int] = noised.origins[row][noised.sequence.exists_mask[row]].tolist()
    return existing


def kind_of(row: int) -> str:
    """How a row of `NOISED` was noised, told from the result alone."""
    steps = torch.tensor(origins_of(NOISED, row)).diff()
    if (steps > 1).any():
        return "dropped"
    if (steps == 0).any():
        return "doubled"
    text = bytes(NOISED.sequence.values[row, : SIZES[row]].tolist())
    return "upper case" if text == text.upper() else "any case"


def rows_of(kind: str) -> list[int]:
    """The rows that were noised in one way."""
    return [row for row in range(len(SIZES)) if kind_of(row) == kind]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_noised_in_each_way_as_often_as_is_said(kind: str) -> None:
    share = KIND_SHARES[KINDS.index(kind)]
    assert share - 0.1 < len(rows_of(kind)) / len(SIZES) < share + 0.1


@pytest.mark.parametrize("shares", [KIND_SHARES, UPPER_KIND_SHARES])
@few
@given(seed=seeds)
def test_a_noised_byte_is_the_one_that_it_came_from_up_to_case(shares: tuple[float, ...], seed: int) -> None:
    noised = noise_rows(ROWS, chance(seed), shares)
    exists = noised.sequence.exists_mask
    clean = ROWS.values.gather(1, noised.origins)
    assert bytes(noised.sequence.values[exists].tolist()).lower() == bytes(clean[exists].tolist()).lower()
    assert ROWS.exists_mask.gather(1, noised.origins)[exists].all(), "none from padding"
    assert (exists[:, :-1] | ~exists[:, 1:]).all(), "what exists comes first"
    assert exists.any(1).all() and (noised.origins.diff(dim=1) >= 0).all()


def test_dropped_bytes_leave_shorter_rows() -> None:
    shares = []
    for row in rows_of("dropped"):
        origins = origins_of(NOISED, row)
        assert len(origins) < SIZES[row] and (torch.tensor(origins).diff() > 0).all()
        assert torch.equal(NOISED.sequence.values[row, : len(origins)], ROWS.values[row, origins])
        shares.append(1 - len(origins) / SIZES[row])
    check_shares(shares)


def test_doubled_bytes_push_out_the_end_of_a_row() -> None:
    shares = []
    for row in rows_of("doubled"):
        origins = origins_of(NOISED, row)
        steps = torch.tensor(origins).diff()
        assert origins[0] == 0 and steps.max() == 1 and (steps[1:] + steps[:-1] >= 1).all(), "no more than two copies"
        assert torch.equal(NOISED.sequence.values[row, : len(origins)], ROWS.values[row, origins])
        if SIZES[row] == LENGTH:
            assert len(origins) == LENGTH and origins[-1] < LENGTH - 1, "cut off"
        else:
            assert len(origins) > SIZES[row], "grown into the padding"
        shares.append(float((steps == 0).sum()) / len(set(origins)))
    check_shares(shares)


def check_shares(shares: list[float]) -> None:
    """Shares of noise are spread over their range, up to chance."""
    margin = 4 * math.sqrt(MOST_SHARE * (1 - MOST_SHARE) / LENGTH)
    assert max(0.0, LEAST_SHARE - margin) < min(shares) < 0.1 and 0.2 < max(shares) < MOST_SHARE + margin
    assert sum(shares) / len(shares) == pytest.approx((LEAST_SHARE + MOST_SHARE) / 2, abs=0.05)


@pytest.mark.parametrize(("kind", "low", "high"), [("any case", 0.4, 0.6), ("upper case", 1.0, 1.0)])
def test_case_is_that_of_letters_alone(kind: str, low: float, high: float) -> None:
    large = letters = 0
    for row in rows_of(kind):
        size = SIZES[row]
        assert origins_of(NOISED, row) == list(range(size))
        clean, noised = (bytes(values[row, :size].tolist()) for values in (ROWS.values, NOISED.sequence.values))
        for before, after in zip(clean, noised, strict=True):
            if chr(before).isascii() and chr(before).isalpha():
                letters += 1
                large += chr(after).isupper()
            else:
                assert before == after
    assert low <= large / letters <= high


def test_every_byte_but_letters_keeps_its_value_under_case() -> None:
    rows = byte_rows(*[bytes(range(256))] * 80)
    noised, origins = noise_rows(rows, chance(3))
    whole = (origins == torch.arange(256)).all(1)
    assert whole.sum() > 10
    changed = (noised.values[whole] != torch.arange(256)).any(0).nonzero().flatten().tolist()
    assert bytes(changed) == b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_documents_begin_at_the_first_of_their_bytes_that_is_left() -> None:
    moved = 0
    for row in range(len(SIZES)):
        origins = origins_of(NOISED, row)
        expected = set()
        for start in ROWS.document_mask[row].nonzero().flatten().tolist():
            left = [place for place, origin in enumerate(origins) if origin >= start]
            expected.update(left[:1])
            moved += bool(left) and origins[left[0]] != start
        assert set(NOISED.sequence.document_mask[row].nonzero().flatten().tolist()) == expected
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


# Rare bytes that are lost

FREQUENT, MIDDLING, SELDOM = b"AaBb \n", bytes(range(128, 158)), bytes(range(158, 218))
"""Values that make up 0.7, 0.24 and 0.06 of a batch."""
ALL_LOSE = (0.0, 0.0, 0.0, 0.0, 1.0)


def tiered_rows(count: int = 250) -> PositionSequence:
    """Rows of bytes of three frequencies, with documents that begin within, padded with a rare value."""
    generator = chance(4)
    weights = torch.zeros(256)
    for values, share in ((FREQUENT, 0.7), (MIDDLING, 0.24), (SELDOM, 0.06)):
        weights[list(values)] = share / len(values)
    drawn = torch.multinomial(weights, count * LENGTH, replacement=True, generator=generator).view(count, LENGTH)
    rows = byte_rows(*(bytes(row) for row in drawn.tolist()))
    rows.exists_mask[1::2, LENGTH // 2 :] = False
    rows.document_mask[:, LENGTH // 3] = True
    rows.values[1::2, LENGTH // 2 :] = SELDOM[0]
    return rows


TIERED = tiered_rows()
POORER = noise_rows(TIERED, chance(7), ALL_LOSE)


def clean_and_kept(row: int) -> tuple[bytes, list[int], bool]:
    """A row as it was before it lost bytes, the places of those that it kept, and whether its letters are small."""
    origins = origins_of(POORER, row)
    clean = bytes(TIERED.values[row][TIERED.exists_mask[row]].tolist())
    found = bytes(POORER.sequence.values[row, : len(origins)].tolist())
    lowered = not set(found) & set(b"AB")
    clean = clean.replace(b"A", b"a").replace(b"B", b"b") if lowered else clean
    assert found == bytes(clean[origin] for origin in origins)
    return clean, origins, lowered


def test_a_row_loses_all_of_a_rare_value_or_none() -> None:
    lost_rows = 0
    for row in range(len(TIERED.values)):
        clean, kept, _ = clean_and_kept(row)
        assert kept == sorted(set(kept))
        gone = bytes(value for place, value in enumerate(clean) if place not in set(kept))
        assert not set(gone) & set(bytes(clean[place] for place in kept))
        assert not set(gone) & set(FREQUENT)
        lost_rows += bool(gone)
    assert lost_rows > 0.9 * len(TIERED.values)


@pytest.mark.parametrize(
    ("values", "share"),
    [(values, LOST_SHARE * (1 - share / RARE)) for values, share in ((MIDDLING, 0.008), (SELDOM, 0.001))]
    + [(SELDOM[:1], LOST_SHARE)],
    ids=["middling", "seldom", "that of the padding"],
)
def test_values_are_lost_the_more_often_the_rarer_they_are(values: bytes, share: float) -> None:
    there = lost = 0
    for row in range(len(TIERED.values)):
        clean, kept, _ = clean_and_kept(row)
        had = set(clean) & set(values)
        there += len(had)
        lost += len(had - {clean[place] for place in kept})
    assert lost / there == pytest.approx(share, abs=0.1 if len(values) > 1 else 0.25)


def test_what_is_rare_is_so_in_the_batch() -> None:
    """A row may lose what it is full of."""
    rows = byte_rows(*[b"ab" * 99 + b"a#"] * 99, b"#" * 40 + b"ab" * 79 + b"!!")
    sizes = [noise_rows(rows, chance(seed), ALL_LOSE).sequence.exists_mask.sum(1) for seed in range(100)]
    assert {int(size) for each in sizes for size in each[:99]} == {199, 200}
    assert {int(each[99]) for each in sizes} == {158, 160, 198, 200}


def test_what_tells_is_lost_as_often_as_what_is_rare() -> None:
    telling = torch.zeros(256, dtype=torch.bool)
    telling[list(b" A")] = True
    noised = noise_rows(TIERED, chance(8), ALL_LOSE, telling)
    without = {value: 0 for value in FREQUENT}
    large = 0
    for row in range(len(TIERED.values)):
        kept = origins_of(noised, row)
        found = noised.sequence.values[row, : len(kept)].tolist()
        large += ord("B") in found
        for value in FREQUENT:
            clean = TIERED.values[row][TIERED.exists_mask[row]].tolist()
            without[value] += value not in found
            assert value in b"AaBb" or found.count(value) in (0, clean.count(value))
    count = len(TIERED.values)
    assert without[ord(" ")] / count == pytest.approx(LOST_SHARE, abs=0.1)
    assert (without[ord("A")] - count + large) / large == pytest.approx(LOST_SHARE, abs=0.2)
    assert without[ord("b")] == without[ord("a")] == without[ord("\n")] == 0, "what is small does not tell"


def test_letters_become_small_in_a_share_of_the_rows_that_lose_bytes() -> None:
    small = sum(clean_and_kept(row)[2] for row in range(len(TIERED.values)))
    assert small / len(TIERED.values) == pytest.approx(LOWERED, abs=0.1)


def test_documents_begin_after_lost_bytes_too() -> None:
    moved = 0
    for row in range(len(TIERED.values)):
        _, kept, _ = clean_and_kept(row)
        expected = {min(place for place, origin in enumerate(kept) if origin >= start) for start in (0, LENGTH // 3)}
        moved += LENGTH // 3 not in kept
        assert set(POORER.sequence.document_mask[row].nonzero().flatten().tolist()) == expected
    assert moved


@pytest.mark.parametrize("kind", range(5))
def test_odds_choose_the_way(kind: int) -> None:
    """Rows are noised in no way that has no share."""
    shares = [float(each == kind) for each in range(5)]
    noised = noise_rows(TIERED, chance(3), shares)
    seen = set()
    for row in range(len(TIERED.values)):
        origins = torch.tensor(origins_of(noised, row))
        steps = origins.diff()
        letters = set(noised.sequence.values[row, : len(origins)].tolist()) & set(b"AaBb")
        seen.add((bool((steps > 1).any()), bool((steps == 0).any()), bytes(sorted(letters))))
    dropped, doubled, cases = (set(each) for each in zip(*seen, strict=True))
    assert True in dropped if kind in (0, 4) else dropped == {False}
    assert True in doubled if kind == 1 else doubled == {False}
    assert cases == {3: {b"AB"}, 4: {b"ABab", b"ab"}}.get(kind, {b"ABab"})


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


@pytest.mark.parametrize("index", [0, 1])
def test_stability_is_asked_of_bytes_where_it_is_weighed(index: int) -> None:
    level = small_model(2).levels[index]
    rows = text_rows(4) if index == 0 else latent_rows(level, [20, 20], seed=1)
    whole, half, none = (splitter_objective(level, rows, chance(1), stability=weight) for weight in (1.0, 0.5, 0.0))
    assert "stability" not in none
    if index == 0:
        assert whole["stability"] > 0
        torch.testing.assert_close(half["stability"], whole["stability"] / 2)
    assert whole.keys() - none.keys() == ({"stability"} if index == 0 else set())
