"""What a splitter above bytes is to follow, where that moves under noise, and who learns from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.model_helpers import TEXT, byte_rows, chance, few, latent_rows, normal, seeds, small_model
from zonkey_core.model.positions import LocatedPositions, PositionSequence
from zonkey_core.model.segment_splitter import Splits
from zonkey_core.training import splitter_distillation
from zonkey_core.training.augmentation import NoisedRows, noise_rows
from zonkey_core.training.document_guide import DocumentGuide, line_of
from zonkey_core.training.splitter_distillation import (
    CLEAN_WEIGHT,
    NOISED_WEIGHT,
    FollowedRows,
    Guide,
    following_loss,
    guided_loss,
    halves,
    own_probs,
    place_probs,
    position_targets,
)
from zonkey_core.training.telling_units import TellingUnits

LENGTH = 120
NOTHING_TELLS = TellingUnits(np.array([0]), np.array([False]), np.array([0]))


def text_rows(count: int) -> PositionSequence:
    """Rows in which a document begins at the first byte and at another."""
    data = (TEXT * 2).encode()
    rows = byte_rows(*(data[5 * start : 5 * start + LENGTH] for start in range(count)))
    rows.document_mask[:, 50] = True
    return rows


def guide_from(text: str) -> DocumentGuide:
    """A guide that has read a text of documents that end with lines."""
    keys = np.array([ord(sign) for sign in text if sign != "\n"])
    last = np.array([text[place + 1] == "\n" for place, sign in enumerate(text[:-1]) if sign != "\n"])
    return DocumentGuide(line_of(keys, np.append(True, last[:-1]), last), 0.1)


def located(values: Tensor, offsets: list[list[int]], exists: list[list[bool]] | None = None) -> LocatedPositions:
    """Positions at these offsets; none begins a document."""
    mask = torch.ones(values.shape[:2], dtype=torch.bool) if exists is None else torch.tensor(exists)
    return LocatedPositions(PositionSequence(values, mask, torch.zeros_like(mask)), torch.tensor(offsets))


# Targets


def test_a_position_is_a_start_where_a_place_at_its_beginning_or_inside_is() -> None:
    of_bytes = torch.tensor([[1.0, 0.1, 0.2, 0.0, 0.7, 0.3, 0.0, 0.4], [0.9, 0.0, 0.0, 0.8, 0.0, 0.0, 0.0, 0.0]])
    values = normal(2, 4, 6, seed=1, dtype=torch.float32)
    exists = [[True] * 4, [True, True, False, False]]
    found = position_targets(of_bytes, located(values, [[0, 2, 5, 7], [0, 2, 0, 0]], exists))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.7, 0.3, 0.4], [0.9, 0.8, 0.0, 0.0]]))


def test_places_are_judged_before_the_first_bytes_of_units() -> None:
    guide = guide_from("ab.\nba.\naab.\nb.\n" * 40)
    rows = byte_rows("ab.éa.".encode() + b"b")
    probs = place_probs(guide, rows)[0]
    assert probs[0] == 1 and probs[4] == 0, "a row begins; a sign goes on"
    assert probs[3] > 0.5 and probs[7] > 0.5, "behind full stops"
    assert max(probs[1], probs[2], probs[5], probs[6]) < 0.3


def test_a_document_in_a_row_begins_for_certain_and_tells_nothing_of_the_one_before() -> None:
    guide = guide_from("ab.\nba.\naab.\nb.\n" * 40)
    rows = byte_rows(b"abab", b"a.ab")
    rows.document_mask[1, 2] = True
    probs = place_probs(guide, rows)
    assert probs[1, 2] == 1 and probs[1, 0] == 1
    torch.testing.assert_close(probs[1, 3], place_probs(guide, byte_rows(b"ab"))[0, 1])


def test_without_a_guide_a_splitters_own_starts_are_meant() -> None:
    model = small_model(2)
    rows = text_rows(2)
    positions = model.located_positions(rows, 1)
    of_bytes = own_probs(model.levels[1], positions, LENGTH)
    start_prob = model.levels[1].split(positions.sequence).start_prob * positions.sequence.exists_mask
    torch.testing.assert_close(position_targets(of_bytes, positions), start_prob.detach())


# The loss


def scripted(patch: pytest.MonkeyPatch, logits: list[Tensor]) -> tuple[Any, list[LocatedPositions]]:
    """A level whose splitter says what it is told to of two batches of positions, and these."""
    level = small_model(2).levels[1]
    parts = [located(normal(1, 3, 4, seed=seed, dtype=torch.float32), [[0, 1, 2]]) for seed in (1, 2)]

    def split(sequence: PositionSequence) -> Splits:
        (found,) = (each for part, each in zip(parts, logits, strict=True) if part.sequence.values is sequence.values)
        return Splits(found.sigmoid(), found)

    patch.setattr(level, "split", split)
    return level, parts


def test_a_start_weighs_more_than_its_absence_and_most_in_noised_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [torch.tensor([[1.0, 0.3, 0.6]]), torch.tensor([[1.0, 0.2, 0.5]])]
    weights = CLEAN_WEIGHT, NOISED_WEIGHT
    logits = [torch.zeros(1, 3, requires_grad=True) for _ in weights]
    level, parts = scripted(monkeypatch, logits)
    loss = following_loss(
        level, [FollowedRows(part, *told) for part, *told in zip(parts, targets, weights, strict=True)]
    )
    for gradient, target, weight in zip(torch.autograd.grad(loss, logits), targets, weights, strict=True):
        wanted = (0.5 * (1 - target) - 0.5 * weight * target) / 4
        wanted[0, 0] = 0  # a row begins there in any case
        torch.testing.assert_close(gradient, wanted)


def test_a_splitter_that_says_what_a_certain_guide_says_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    target = torch.tensor([[1.0, 0.0, 1.0]])
    for sign, least, most in ((1, 0.0, 1e-6), (-1, 10.0, math.inf)):
        logits = [sign * (40 * target - 20)] * 2
        level, parts = scripted(monkeypatch, logits)
        loss = following_loss(level, [FollowedRows(part, target, 2.0) for part in parts])
        assert least <= loss.item() <= most


@few
@given(seeds)
def test_padding_changes_nothing_that_is_followed(seed: int) -> None:
    level = small_model(2).levels[1]
    rows = latent_rows(level, [9, 5], seed=seed)
    longer = latent_rows(level, [9, 5], seed=seed, padding=4)
    target = torch.rand(2, 9, generator=chance(seed))
    more = torch.cat([target, torch.ones(2, 4)], 1)
    losses = []
    for sequence, wanted in ((rows, target), (longer, more)):
        offsets = torch.zeros(sequence.exists_mask.shape, dtype=torch.long)
        losses.append(following_loss(level, [FollowedRows(LocatedPositions(sequence, offsets), wanted, 2.0)]))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("guided", [True, False])
def test_following_moves_what_follows_alone(guided: bool) -> None:
    model = small_model(2)
    guide = Guide(guide_from("The heron stood.\nIt waited.\nThen it flew.\n" * 20), NOTHING_TELLS) if guided else None
    torch.autograd.backward(guided_loss(model, 1, text_rows(4), chance(1), guide))
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if name.startswith("bottom.above.splitter.")}


def test_a_splitter_learns_to_follow_what_it_is_told() -> None:
    level = small_model(2, seed=2).levels[1]
    rows = latent_rows(level, [40] * 4, seed=1)
    asked = rows.cut_open()
    target = torch.where(rows.values[..., 0] > 0, 0.95, 0.05)
    part = FollowedRows(LocatedPositions(rows, torch.zeros(4, 40, dtype=torch.long)), target, 1.0)
    optimizer = torch.optim.Adam(level.splitter.parameters(), lr=0.01)

    def agreement() -> float:
        said = level.split(rows).start_prob[asked] > 0.5
        return float((said == (target[asked] > 0.5)).double().mean())

    before = agreement()
    for _ in range(80):
        loss = following_loss(level, [part])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert before < 0.7 and agreement() > 0.95


def test_one_half_of_the_rows_is_noised_and_the_other_read_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, changed = halves(text_rows(5))
    assert len(clean.values) == 2 and len(changed.values) == 3
    alone = halves(text_rows(1))
    assert all(torch.equal(part.values, text_rows(1).values) for part in alone)
    given_rows: list[Tensor] = []

    def watched(rows: PositionSequence, *others: Any) -> NoisedRows:
        given_rows.append(rows.values)
        return noise_rows(rows, *others)

    monkeypatch.setattr(splitter_distillation, "noise_rows", watched)
    guided_loss(small_model(2), 1, text_rows(5), chance(1), None)
    assert torch.equal(given_rows[0], changed.values)


def test_starts_of_noised_rows_are_those_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where full stops are lost, what stood behind them begins segments still."""
    stops = TellingUnits(np.array([46]), np.array([True]), np.array([46]))
    guide = Guide(guide_from("ab.\nba.\naab.\nb.\n" * 40), stops)
    wanted: list[FollowedRows] = []
    follow = following_loss

    def watched(level: Any, parts: Any) -> Tensor:
        wanted.extend(parts)
        return follow(level, parts)

    monkeypatch.setattr(splitter_distillation, "following_loss", watched)
    monkeypatch.setattr(splitter_distillation, "UPPER_KIND_SHARES", (0.0, 0.0, 0.0, 0.0, 1.0))
    model = small_model(2)
    guided_loss(model, 1, byte_rows(*[b"abba.aab.babab.bab" * 3] * 20), chance(3), guide)
    noised = wanted[1]
    bare = noised.located.sequence.exists_mask.sum(1)
    assert len(set(bare.tolist())) > 1, "some rows have lost their stops"
    assert (noised.target[:, 1:] > 0.5).any(1).all()


def test_only_bytes_have_no_guide() -> None:
    model = small_model(3)
    for index in (1, 2):
        assert guided_loss(model, index, text_rows(2), chance(1), None).isfinite()
