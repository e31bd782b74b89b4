"""Guides: what a splitter above bytes is to follow, where that moves under noise, and who learns from it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.model_helpers import TEXT, byte_rows, chance, few, latent_rows, normal, seeds, small_model
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import LocatedPositions, PositionSequence
from zonkey_core.model.segment_splitter import SegmentSplitter, Splits
from zonkey_core.training import stages
from zonkey_core.training.augmentation import UPPER_KIND_SHARES, NoisedRows, noise_rows
from zonkey_core.training.objectives import NOISED_ROWS, rows_to_noise
from zonkey_core.training.splitter_distillation import START_WEIGHT, TELLING, following_loss, telling_values
from zonkey_core.training.stages import guided_loss

LENGTH = 120


def text_rows(count: int) -> PositionSequence:
    """Rows in which a document begins at the first byte and at another."""
    data = (TEXT * 2).encode()
    rows = byte_rows(*(data[5 * start : 5 * start + LENGTH] for start in range(count)))
    rows.document_mask[:, 50] = True
    return rows


def guide_of(level: Level) -> SegmentSplitter:
    """The guide of a level above the lowest."""
    assert level.guide is not None
    return level.guide


class Scripted:
    """A level whose splitter says what it is told to, and what it is asked for in return."""

    def __init__(self, patch: pytest.MonkeyPatch, clean: LocatedPositions, noised: LocatedPositions) -> None:
        self.level = small_model(2).levels[1]
        self.parts = clean, noised
        self.logits = [torch.zeros(part.offsets.shape) for part in self.parts]
        patch.setattr(self.level, "split", self._split)

    def _split(self, sequence: PositionSequence) -> Splits:
        (logits,) = (logits for part, logits in zip(self.parts, self.logits, strict=True)
                     if part.sequence.values is sequence.values)
        return Splits(logits.sigmoid(), logits)

    def wanted(self, starts: Tensor, origins: Tensor) -> list[Tensor]:
        """The starts that clean and noised positions should have; NaN where none is asked for.

        They are read from the gradient at logits of 0: `(1 - t) / 2 - W t / 2` for each of the positions.
        """
        self.logits = [torch.zeros(part.offsets.shape, requires_grad=True) for part in self.parts]
        loss = following_loss(self.level, self.parts[0], starts, self.parts[1], origins)
        gradients = torch.autograd.grad(loss, self.logits)
        count = sum(int((gradient != 0).sum()) for gradient in gradients)
        return [
            ((0.5 - gradient * count) / (0.5 * (1 + START_WEIGHT))).where(gradient != 0, torch.nan)
            for gradient in gradients
        ]

    def loss(self, starts: Tensor, logits: list[Tensor], origins: Tensor) -> float:
        """What these logits cost."""
        self.logits = logits
        return following_loss(self.level, self.parts[0], starts, self.parts[1], origins).item()


def noised_text(model: Zonkey, seed: int) -> tuple[LocatedPositions, LocatedPositions, Tensor]:
    """Positions of clean rows and of noised ones, and where the bytes of the latter came from."""
    rows = text_rows(3)
    noised, origins = noise_rows(rows, chance(seed), UPPER_KIND_SHARES)
    return model.located_positions(rows, 1), model.located_positions(noised, 1), origins


def starts_of(located: LocatedPositions, seed: int) -> Tensor:
    """Random starts, certain as those of a splitter are at the beginning of documents and in padding."""
    starts = torch.rand(located.offsets.shape, generator=chance(seed))
    starts = starts.masked_fill(located.sequence.document_mask | ~located.sequence.exists_mask, 1.0)
    starts[:, 0] = 1
    return starts


def by_hand(starts: Tensor, clean: LocatedPositions, noised: LocatedPositions, origins: Tensor) -> list[Tensor]:
    """What `Scripted.wanted` should find, told byte by byte."""
    found = [torch.full(part.offsets.shape, torch.nan) for part in (clean, noised)]
    for row in range(len(starts)):
        probs = dict(zip(clean.offsets[row].tolist(), starts[row].tolist(), strict=True))
        probs |= {int(clean.offsets[row, place]): float(starts[row, place])
                  for place in clean.sequence.exists_mask[row].nonzero().flatten()}
        for which, part in enumerate((clean, noised)):
            for place in range(1, part.offsets.shape[1]):
                if not part.sequence.exists_mask[row, place] or part.sequence.document_mask[row, place]:
                    continue
                offset, before = int(part.offsets[row, place]), int(part.offsets[row, place - 1])
                first, last = before + 1, offset
                if which:
                    first, last = int(origins[row, before]) + 1, int(origins[row, offset])
                none = math.prod(1 - prob for byte, prob in probs.items() if first <= byte <= last)
                found[which][row, place] = 1 - none
    return found


@pytest.mark.parametrize("seed", range(8))
def test_starts_move_with_their_bytes_to_the_positions_that_hold_them(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, noised, origins = noised_text(small_model(2), seed)
    starts = starts_of(clean, seed)
    found = Scripted(monkeypatch, clean, noised).wanted(starts, origins)
    for one, other in zip(found, by_hand(starts, clean, noised, origins), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    ("lost", "offsets", "expected"),
    [
        (range(0), [0, 4, 8, 12], [0.1, 1.0, 0.2]),
        (range(8, 12), [0, 4, 8], [0.1, 1.0]),
        (range(6, 10), [0, 4, 8], [0.1, 1.0]),
        (range(4, 8), [0, 4, 8], [1.0, 0.2]),
        (range(12, 16), [0, 4, 8], [0.1, 1.0]),
        (range(2, 3), [0, 3, 7, 11], [0.1, 1.0, 0.2]),
        (range(2, 14), [0, 2], [1.0]),
    ],
)
def test_a_start_whose_bytes_are_lost_is_that_of_what_follows(
    lost: range, offsets: list[int], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen bytes in fours, of which the third four certainly begin a segment."""
    kept = [place for place in range(16) if place not in lost]
    origins = torch.tensor([kept + [15] * len(lost)])

    def located(places: list[int]) -> LocatedPositions:
        exists = torch.ones(1, len(places), dtype=torch.bool)
        values = normal(1, len(places), 4, seed=1, dtype=torch.float32)
        return LocatedPositions(PositionSequence(values, exists, ~exists), torch.tensor([places]))

    scripted = Scripted(monkeypatch, located([0, 4, 8, 12]), located(offsets))
    of_clean, of_noised = scripted.wanted(torch.tensor([[1.0, 0.1, 1.0, 0.2]]), origins)
    torch.testing.assert_close(of_clean[0, 1:], torch.tensor([0.1, 1.0, 0.2]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(of_noised[0, 1:], torch.tensor(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_splitter_that_says_what_a_certain_guide_says_costs_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, noised, origins = noised_text(small_model(2), seed)
    scripted = Scripted(monkeypatch, clean, noised)
    starts = (starts_of(clean, seed) > 0.7).float()
    wanted = [part.nan_to_num(0.5) for part in scripted.wanted(starts, origins)]
    assert scripted.loss(starts, [40 * part - 20 for part in wanted], origins) < 1e-6
    assert scripted.loss(starts, [20 - 40 * part for part in wanted], origins) > 10
    for which in (0, 1):
        logits = [40 * part - 20 for part in wanted]
        row, place = (wanted[which] > 0.9).nonzero()[0]
        logits[which][row, place] *= -1
        assert scripted.loss(starts, logits, origins) > 1e-3


def test_a_start_weighs_more_than_its_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, noised, origins = noised_text(small_model(2), 1)
    scripted = Scripted(monkeypatch, clean, noised)
    starts = starts_of(clean, 2).clamp(max=0.95)
    wanted = [part.nan_to_num(0.5) for part in scripted.wanted(starts, origins)]
    best = [part.clamp(1e-5, 1 - 1e-5).logit() + math.log(START_WEIGHT) for part in wanted]
    least = scripted.loss(starts, best, origins)
    for which in (0, 1):
        for change in (0.5, -0.5):
            logits = [logits + change * (index == which) for index, logits in enumerate(best)]
            assert scripted.loss(starts, logits, origins) > least + 1e-3


# The guide itself


def padded(located: LocatedPositions, more: int) -> LocatedPositions:
    """The same rows with more padding, which holds anything."""
    sequence, offsets = located
    batch, _, channels = sequence.values.shape
    anything = normal(batch, more, channels, seed=9, dtype=torch.float32)
    none = torch.zeros(batch, more, dtype=torch.bool)
    return LocatedPositions(
        PositionSequence(
            torch.cat([sequence.values, anything], 1),
            torch.cat([sequence.exists_mask, none], 1),
            torch.cat([sequence.document_mask, none], 1),
        ),
        torch.cat([offsets, torch.zeros(batch, more, dtype=torch.long)], 1),
    )


@few
@given(seeds)
def test_padding_changes_nothing_that_is_followed(seed: int) -> None:
    model = small_model(2)
    clean, noised, origins = noised_text(model, seed)
    level = model.levels[1]
    parameters = list(level.splitter.parameters())
    plain, more = (
        following_loss(level, one, guide_of(level)(one.sequence).start_prob.detach(), other, origins)
        for one, other in ((clean, noised), (padded(clean, 5), padded(noised, 3)))
    )
    torch.testing.assert_close(plain, more)
    gradients = (torch.autograd.grad(loss, parameters) for loss in (plain, more))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_following_moves_what_follows_alone() -> None:
    model = small_model(2)
    rows = text_rows(4)
    loss = guided_loss(model, 1, rows, model.located_positions(rows, 1), chance(1))
    torch.autograd.backward(loss)
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if name.startswith("bottom.above.splitter.")}


def test_a_splitter_learns_to_follow_its_guide() -> None:
    level = small_model(2, seed=2).levels[1]
    guide = guide_of(level)
    rows = latent_rows(level, [40] * 4, seed=1)
    located = LocatedPositions(rows, torch.arange(0, 160, 4).expand(4, -1))
    origins = torch.arange(160).expand(4, -1)
    with torch.no_grad():
        guide.head.weight.mul_(10)
        guide.shift(float(guide(rows).start_logits.median()))
    optimizer = torch.optim.Adam(level.splitter.parameters(), lr=0.01)
    asked = rows.exists_mask & ~rows.document_mask

    def agreement() -> float:
        starts = [cutter(rows).start_prob[asked] > 0.5 for cutter in (level.splitter, guide)]
        return float((starts[0] == starts[1]).double().mean())

    before = agreement()
    for _ in range(80):
        loss = following_loss(level, located, guide(rows).start_prob.detach(), located, origins)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert before < 0.7 and agreement() > 0.95


def test_a_share_of_the_rows_teaches_and_is_noised() -> None:
    model, rows = small_model(2, seed=1), text_rows(2 * NOISED_ROWS + 1)

    def loss_with(changed: int | None) -> float:
        values = rows.values.clone()
        if changed is not None:
            values[changed] = values[changed].flip(0)
        each = rows._replace(values=values)
        return guided_loss(model, 1, each, model.located_positions(each, 1), chance(4)).item()

    assert loss_with(None) == pytest.approx(loss_with(3), rel=1e-5)
    assert abs(loss_with(None) - loss_with(2)) > 1e-4
    assert len(rows_to_noise(rows).values) == 3


@torch.no_grad()
def test_a_guide_sees_each_position_alone() -> None:
    level = small_model(2).levels[1]
    guide = guide_of(level)
    rows = latent_rows(level, [20], seed=1)
    other = rows._replace(values=rows.values.clone())
    other.values[0, 7] *= -1
    moved = (guide(rows).start_logits != guide(other).start_logits)[0].nonzero().flatten().tolist()
    assert guide.reach == 0 and moved == [7]
    order = torch.randperm(20, generator=chance(1))
    shuffled = guide(rows._replace(values=rows.values[:, order])).start_logits
    torch.testing.assert_close(shuffled, guide(rows).start_logits[:, order])


def test_values_that_tell_are_those_that_mostly_begin_segments() -> None:
    rows = byte_rows(b"ab.ab.xa", b"ab.abaxa")
    rows.exists_mask[1, 6:] = False
    offsets = torch.tensor([[0, 2, 3, 5, 6], [0, 2, 3, 0, 0]])
    start_prob = torch.tensor([[1.0, 0.6, 0.0, 0.3, 1.0], [0.0, 0.0, 0.1, 0.0, 0.0]])
    shares = {"a": 1.1 / 6, ".": 0.9 / 3, "x": 1.0, "b": 0.0}
    told = telling_values(rows, offsets, start_prob)
    assert told.shape == (256,)
    expected = {name for name, share in shares.items() if share > TELLING}
    assert {chr(value) for value in told.nonzero().flatten()} == expected == {".", "x"}


def test_rows_lose_what_tells_by_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a guide cuts before one letter alone, that letter is lost from most of the rows that lose any."""
    model, rows = small_model(2), byte_rows(*[b"eeat" * 30] * 60)
    probs = torch.zeros(60, 120)
    probs[:, ::2] = 1
    view = model.ascend(rows, 0, start_probs=probs)[0]
    cuts = view.segmentation
    located = LocatedPositions(model.bottom.upper_sequence(view.latents, cuts), cuts.starts)
    starts = (rows.values.gather(1, located.offsets) == ord("a")).float()
    monkeypatch.setattr(guide_of(model.levels[1]), "forward", lambda seen: Splits(starts[: len(seen.values)], starts))
    lost: list[NoisedRows] = []

    def watched(*given: Any) -> NoisedRows:
        lost.append(noise_rows(*given))
        return lost[-1]

    monkeypatch.setattr(stages, "noise_rows", watched)
    guided_loss(model, 1, rows, located, chance(1))
    (noised,) = lost
    left = [set(bytes(row[exists].tolist()).lower()) for row, exists in zip(*noised.sequence[:2], strict=True)]
    assert len(left) == 30
    without = {letter: sum(ord(letter) not in row for row in left) / 30 for letter in "eat"}
    assert without["e"] == without["t"] == 0
    assert 0.25 < without["a"] < 0.7


def test_only_bytes_have_no_guide() -> None:
    assert [level.guide is None for level in small_model(3).levels] == [True, False, False]
