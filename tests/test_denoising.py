"""What denoisers are asked in training: which slots are hidden, which are empty, how noisy they are, what it costs."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.model_helpers import byte_rows, chance, few, latent_rows, law, normal, seeds, small_model
from zonkey_core import denoising
from zonkey_core.denoiser import Estimate, NoisySlots
from zonkey_core.denoising import (
    FROM_START,
    LONGEST_BURST,
    OPEN_ENDED,
    PURE_NOISE,
    SCATTERED,
    Task,
    choosing_objective,
    draw_noise_levels,
    draw_task,
    draw_unknown_levels,
    expected_latents,
    open_slots,
)
from zonkey_core.dictionary import Dictionary, Pieces
from zonkey_core.level import Level
from zonkey_core.noise_schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(5.0)


def pieces_of(lengths: list[int], *, seed: int = 0, documents: float = 0.1, padding: int = 0) -> Pieces:
    """Rows of so many pieces, each of an entry of its own, with documents begun here and there."""
    longest = max(lengths) + padding
    slot_mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    document_mask = torch.rand(slot_mask.shape, generator=chance(seed)) < documents
    document_mask[:, 0] = True
    order = torch.arange(longest).expand_as(slot_mask)
    return Pieces((order + 7) * slot_mask, order * slot_mask, slot_mask, document_mask & slot_mask)


def kinds_of(pieces: Pieces, task: Task) -> list[str]:
    """How each row of a task lost what it lost: "gap", "end" or "scattered", as far as it shows."""
    kinds = []
    for row, count in enumerate(pieces.slot_mask.sum(1).tolist()):
        unknown = task.unknown_mask[row, : int(task.slot_mask[row].sum())].tolist()
        if len(unknown) > count:
            kinds.append("gap")
        else:
            first = unknown.index(True) if True in unknown else len(unknown)
            kinds.append("end" if first < len(unknown) and all(unknown[first:]) else "scattered")
    return kinds


tasks = st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=6), seeds, st.sampled_from([0.0, 0.1, 0.4]))


def drawn(
    case: tuple[list[int], int, float], *, scattered: float = SCATTERED, open_ended: float = OPEN_ENDED
) -> tuple[Pieces, Task]:
    """Pieces and a task of them, where the kinds of rows have these shares."""
    lengths, seed, documents = case
    pieces = pieces_of(lengths, seed=seed, documents=documents, padding=seed % 3)
    with mock.patch.multiple(denoising, SCATTERED=scattered, OPEN_ENDED=open_ended):
        return pieces, draw_task(pieces, chance(seed))


# Tasks


@law
@given(tasks)
def test_what_is_kept_stays_in_order(case: tuple[list[int], int, float]) -> None:
    pieces, task = drawn(case)
    for row, count in enumerate(case[0]):
        exists = task.exists_mask[row]
        kept = int(exists.sum())
        assert 0 < kept <= count
        assert torch.equal(task.entries[row][exists], pieces.entries[row, :kept])
        assert torch.equal(task.document_mask[row][exists], pieces.document_mask[row, :kept])
        assert not task.document_mask[row][~exists].any()
        total = int(task.slot_mask[row].sum())
        assert task.slot_mask[row, :total].all() and count <= total


@law
@given(tasks)
def test_known_slots_exist_and_padding_is_never_asked(case: tuple[list[int], int, float]) -> None:
    _, task = drawn(case)
    known = task.slot_mask & ~task.unknown_mask
    assert task.exists_mask[known].all(), "empty slots are never known"
    assert not (task.unknown_mask & ~task.slot_mask).any() and not (task.exists_mask & ~task.slot_mask).any()


@law
@given(tasks)
def test_a_gap_has_its_empty_slots_at_its_end(case: tuple[list[int], int, float]) -> None:
    _, task = drawn(case, scattered=0.0, open_ended=0.0)
    for row, count in enumerate(case[0]):
        unknown = task.unknown_mask[row].nonzero().flatten().tolist()
        empty = (task.slot_mask[row] & ~task.exists_mask[row]).nonzero().flatten().tolist()
        assert unknown == list(range(unknown[0], unknown[-1] + 1)), "one stretch"
        assert empty == unknown[-len(empty) :] and len(empty) < len(unknown), "which holds something, then nothing"
        assert 1 <= len(empty) <= LONGEST_BURST
        assert int(task.exists_mask[row].sum()) == count, "and nothing is lost"


@law
@given(tasks)
def test_nothing_follows_the_document_in_which_an_open_end_begins(case: tuple[list[int], int, float]) -> None:
    pieces, task = drawn(case, scattered=0.0, open_ended=1.0)
    for row, count in enumerate(case[0]):
        unknown = task.unknown_mask[row].nonzero().flatten().tolist()
        assert unknown == list(range(unknown[0], count)), "all from somewhere on, and no slot is added"
        documents = [place for place in range(unknown[0] + 1, count) if pieces.document_mask[row, place]]
        end = documents[0] if documents else count
        assert task.exists_mask[row].nonzero().flatten().tolist() == list(range(end))


@law
@given(tasks)
def test_scattered_slots_are_neither_added_nor_lost(case: tuple[list[int], int, float]) -> None:
    pieces, task = drawn(case, scattered=1.0, open_ended=0.0)
    assert torch.equal(task.exists_mask, task.slot_mask)
    assert task.slot_mask.sum(1).tolist() == case[0]
    assert torch.equal(task.entries[task.slot_mask], pieces.entries[pieces.slot_mask])


def test_each_kind_of_row_has_its_share() -> None:
    pieces = pieces_of([200] * 3000, documents=0.0)
    task = draw_task(pieces, chance(2))
    kinds = kinds_of(pieces, task)
    shares = {kind: kinds.count(kind) / len(kinds) for kind in ("scattered", "end", "gap")}
    expected = {"scattered": SCATTERED, "end": OPEN_ENDED, "gap": 1 - SCATTERED - OPEN_ENDED}
    assert shares == pytest.approx(expected, abs=0.035)
    hidden = task.unknown_mask[:, :200].double().mean(1)
    scattered = torch.tensor([kind == "scattered" for kind in kinds])
    assert hidden[scattered].mean() == pytest.approx(0.5, abs=0.05)
    assert (hidden[scattered] < 0.1).double().mean() == pytest.approx(0.1, abs=0.03), "from none to all, evenly"
    bursts = (task.slot_mask.sum(1) - 200)[task.slot_mask.sum(1) > 200]
    assert bursts.min() == 1 and LONGEST_BURST - 4 <= bursts.max() <= LONGEST_BURST
    assert (bursts <= 4).double().mean() == pytest.approx(0.5, abs=0.07), "short ones more often"


def test_half_of_the_open_ends_begin_with_a_document() -> None:
    pieces = pieces_of([200] * 3000, documents=0.0)
    pieces.document_mask[:, 120] = True
    task = draw_task(pieces, chance(3))
    firsts = [int(task.unknown_mask[row].nonzero()[0])
              for row, kind in enumerate(kinds_of(pieces, task)) if kind == "end"]
    share = [firsts.count(place) / len(firsts) for place in (0, 120)]
    assert share == pytest.approx([FROM_START / 2, FROM_START / 2], abs=0.06)
    without = pieces._replace(document_mask=torch.zeros_like(pieces.document_mask))
    task = draw_task(without, chance(3))
    firsts = [int(task.unknown_mask[row].nonzero()[0])
              for row, kind in enumerate(kinds_of(without, task)) if kind == "end"]
    assert max(firsts.count(place) for place in (0, 120)) < 0.05 * len(firsts), "none begins, so any place is as good"


def test_a_task_is_decided_by_its_generator() -> None:
    pieces = pieces_of([20, 3, 11])
    first, second, other = (draw_task(pieces, chance(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))
    assert not torch.equal(first.unknown_mask, other.unknown_mask)


# Noise levels of unknown slots


def test_only_what_is_known_is_without_noise() -> None:
    task = draw_task(pieces_of([40, 31, 12] * 40), chance(1))
    levels = draw_unknown_levels(task, SCHEDULE, chance(2))
    assert torch.equal(levels > 0, task.unknown_mask) and (levels <= 1).all()


def test_most_rows_are_pure_noise_and_the_others_at_one_level_or_many() -> None:
    task = draw_task(pieces_of([60] * 3000), chance(1))
    levels = draw_unknown_levels(task, SCHEDULE, chance(2))
    found = [row[mask].unique() for row, mask in zip(levels, task.unknown_mask, strict=True) if mask.sum() > 5]
    pure = [row for row in found if (row == 1).all()]
    noised = [row for row in found if (row < 1).all()]
    assert len(pure) + len(noised) == len(found)
    assert len(pure) / len(found) == pytest.approx(PURE_NOISE, abs=0.03)
    assert sum(len(row) == 1 for row in noised) / len(noised) == pytest.approx(0.5, abs=0.1)


# The choice


def level_that_chooses(*, seed: int = 0) -> tuple[Level, Dictionary]:
    """A level with a dictionary that is all used."""
    level = small_model(1, seed=seed, dictionary=300).levels[0]
    assert level.dictionary is not None
    with torch.no_grad():
        level.dictionary.bias.copy_(normal(300, seed=seed, dtype=torch.float32))
    return level, level.dictionary


def test_a_choice_that_knows_nothing_costs_what_the_shares_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "PURE_NOISE", 1.0)
    level, dictionary = level_that_chooses()
    for layer in (level.trunk.latent_out, level.trunk.existence_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    level.trunk.existence_out.bias.data.fill_(0.7)
    pieces = pieces_of([25, 40, 9, 33], documents=0.2)
    losses = choosing_objective(level, pieces, chance(4))
    task = draw_task(pieces, chance(4))
    asked = task.unknown_mask & task.exists_mask
    costs = -dictionary.bias.log_softmax(-1)[task.entries[asked]]
    torch.testing.assert_close(losses["choice"], costs.mean())
    exists = task.exists_mask[task.unknown_mask].float()
    expected = functional.binary_cross_entropy_with_logits(torch.full_like(exists, 0.7), exists)
    torch.testing.assert_close(losses["slots"], expected)
    assert 0 < exists.mean() < 1


def test_noise_that_tells_enough_is_no_riddle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "PURE_NOISE", 0.0)
    monkeypatch.setattr(NoiseSchedule, "levels_for_ratios", lambda _schedule, ratios: torch.full_like(ratios, 0.02))
    level, _ = level_that_chooses()
    assert choosing_objective(level, pieces_of([25, 40, 9]), chance(4))["choice"] < 1e-3


@few
@given(seeds)
def test_a_row_of_which_nothing_is_hidden_costs_nothing(seed: int) -> None:
    level, _ = level_that_chooses()
    pieces = pieces_of([2])
    quiet = next(
        number for number in range(seed, seed + 10_000)
        if not draw_task(pieces, chance(number)).unknown_mask.any()
    )
    losses = choosing_objective(level, pieces, chance(quiet))
    assert {name: float(loss.detach()) for name, loss in losses.items()} == {"choice": 0, "slots": 0}
    moved = torch.autograd.grad(sum(losses.values(), torch.zeros(())), list(level.denoiser_parameters()))
    assert not any(gradient.any() for gradient in moved)


def test_some_noised_rows_are_read_beside_what_they_seemed_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    level, dictionary = level_that_chooses()
    pieces = pieces_of([12] * 200)
    seen: list[NoisySlots] = []
    said: list[Estimate] = []
    forward = level.trunk.forward

    def watched(slots: NoisySlots) -> Estimate:
        seen.append(NoisySlots(*(field.detach().clone() for field in slots)))
        said.append(forward(slots))
        return said[-1]

    monkeypatch.setattr(level.trunk, "forward", watched)
    choosing_objective(level, pieces, chance(1))
    first, last = seen
    task = draw_task(pieces, chance(1))
    given_rows = last.estimate.flatten(1).any(1)
    noised = ((last.noise_level > 0) & (last.noise_level < 1)).any(1)
    assert not given_rows[~noised].any(), "pure noise seems to be nothing"
    assert 0.3 < given_rows[noised].double().mean() < 0.7
    assert torch.equal(first.latents, last.latents[given_rows]) and not first.estimate.any()
    with torch.no_grad():
        latents = dictionary.latents()
        expected = expected_latents(dictionary, latents, first, said[0].latents, level.schedule)
    torch.testing.assert_close(last.estimate[given_rows], expected)
    known = (task.slot_mask & ~task.unknown_mask)[given_rows]
    torch.testing.assert_close(last.estimate[given_rows][known], latents[task.entries[given_rows][known]])
    assert (last.latents[~task.unknown_mask & ~task.slot_mask] == 0).all()


@few
@given(seeds)
@torch.no_grad()
def test_expected_latents_are_means_of_the_unknown_alone(seed: int) -> None:
    _, dictionary = level_that_chooses(seed=seed)
    latents = dictionary.latents()
    held = torch.randint(300, (2, 5), generator=chance(seed))
    noise_level = torch.tensor([[0.0, 1.0, 0.3, 0.0, 1.0], [1e-4, 0.0, 1.0, 1.0, 1.0]])
    slot_mask = torch.tensor([[True] * 5, [True] * 4 + [False]])
    noisy = SCHEDULE.add_noise(latents[held], normal(*latents[held].shape, seed=seed, dtype=torch.float32), noise_level)
    reads = NoisySlots(noisy, noise_level, torch.zeros_like(noisy), torch.zeros_like(slot_mask), slot_mask)
    estimate = SCHEDULE.alpha(noise_level).unsqueeze(-1) * noisy
    found = expected_latents(dictionary, latents, reads, estimate, SCHEDULE)
    unknown = slot_mask & (noise_level > 0)
    assert torch.equal(found[~unknown], noisy[~unknown])
    prior = dictionary.bias.softmax(-1) @ latents
    pure = slot_mask & (noise_level == 1)
    torch.testing.assert_close(found[pure], prior.expand_as(found[pure]))
    torch.testing.assert_close(found[1, 0], latents[held[1, 0]], atol=1e-3, rtol=1e-3)
    assert found[0, 2].norm() < latents[0].norm()


def test_training_the_choice_learns_it() -> None:
    torch.manual_seed(0)
    level, _ = level_that_chooses()
    rows = byte_rows(b"abcabcabcabcabcabcabcabc" * 2)
    probs = torch.ones(1, 48)
    optimizer = torch.optim.Adam(list(level.denoiser_parameters()), lr=0.01)
    generator = chance(1)
    costs: list[float] = []
    pieces = level.pieces(rows, probs)
    wide = Pieces(*(field.expand(8, -1) for field in pieces))
    for _ in range(60):
        losses = choosing_objective(level, wide, generator)
        optimizer.zero_grad()
        total: Tensor = losses["choice"] + losses["slots"]
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        costs.append(float(losses["choice"].detach()))
    assert sum(costs[:5]) / 5 > 4 and sum(costs[-5:]) / 5 < 1


# Slots of latents


@few
@given(seeds)
def test_opened_slots_keep_every_latent_in_order(seed: int) -> None:
    level = small_model(2).levels[1]
    rows = latent_rows(level, [9, 5], seed=seed)
    rows.document_mask[0, 4] = True
    slots = open_slots(rows, chance(seed), share=0.3)
    assert torch.equal(slots.latents[slots.exists_mask], rows.values[rows.exists_mask])
    assert torch.equal(slots.document_mask[slots.exists_mask], rows.document_mask[rows.exists_mask])
    assert (slots.latents[~slots.exists_mask] == 0).all() and not slots.document_mask[~slots.exists_mask].any()
    assert (slots.slot_mask | ~slots.exists_mask).all()
    boundary = int(slots.document_mask[0].nonzero()[1])
    assert not slots.exists_mask[0, boundary - 1], "the end of a document is followed by an empty slot"


def test_noise_levels_know_some_slots_and_never_empty_ones() -> None:
    level = small_model(2).levels[1]
    slots = open_slots(latent_rows(level, [20] * 200, seed=1), chance(2))
    levels = draw_noise_levels(slots, level.schedule, chance(3))
    assert ((levels >= 0) & (levels <= 1)).all()
    known = (levels == 0) & slots.slot_mask
    assert not known[~slots.exists_mask].any()
    assert 0.1 < known[slots.exists_mask].double().mean() < 0.5
    assert (levels[slots.slot_mask] == 1).double().mean() > 0.1
    spread = levels.masked_fill(~slots.slot_mask, torch.nan)
    shared = sum(len(row[~row.isnan() & (row > 0)].unique()) <= 1 for row in spread)
    assert 100 < shared < 190
