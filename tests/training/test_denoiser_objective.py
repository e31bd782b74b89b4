"""What denoisers are asked in training: what the writer is to tell, what it costs, and noise in slots of latents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import byte_rows, chance, few, latent_rows, normal, pieces_of, seeds, small_model
from zonkey_core.diffusion import decoding_order
from zonkey_core.diffusion.decoding_order import Kind, Plan, draw_plan
from zonkey_core.diffusion.noise_schedule import NoiseSchedule
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.length_model import ending_losses
from zonkey_core.model.level import Level
from zonkey_core.model.segment_vocabulary import SegmentTokens, SegmentVocabulary
from zonkey_core.model.writer import OrderedSlots, Told, Writer
from zonkey_core.training import denoiser_objective
from zonkey_core.training.denoiser_objective import (
    ENDINGS_WEIGHT,
    HINTED,
    LATER_ENDINGS,
    choosing_objective,
    draw_hint_levels,
    draw_noise_levels,
    open_slots,
)

SCHEDULE = NoiseSchedule(5.0)


def level_that_chooses(*, seed: int = 0) -> tuple[Level, SegmentVocabulary, Writer]:
    """A level with a dictionary that is all used."""
    level = small_model(1, seed=seed, dictionary=300).levels[0]
    assert level.dictionary is not None and level.writer is not None
    with torch.no_grad():
        level.dictionary.bias.copy_(normal(300, seed=seed, dtype=torch.float32))
    return level, level.dictionary, level.writer


rows_of_documents = st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=4), min_size=1, max_size=4)


# The choice


@few
@given(rows_of_documents, seeds)
def test_any_documents_give_losses_that_teach(lengths: list[list[int]], seed: int) -> None:
    level, dictionary, writer = level_that_chooses()
    losses = choosing_objective(level, pieces_of(lengths), chance(seed))
    assert losses.keys() == {"choice", "endings"}
    assert all(loss.shape == () and loss.isfinite() and loss >= 0 for loss in losses.values())
    torch.autograd.backward(sum(losses.values(), torch.zeros(())))
    for parameter in (*writer.parameters(), *dictionary.parameters()):
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert writer.kinds.grad is not None and writer.kinds.grad.any()


@pytest.mark.parametrize("lengths", [[[1]], [[1, 1, 1]], [[1], [1, 1]], [[2]]], ids=str)
def test_the_smallest_rows_are_asked_as_well(lengths: list[list[int]]) -> None:
    for seed in range(12):
        level, dictionary, _ = level_that_chooses()
        pieces = pieces_of(lengths)
        losses = choosing_objective(level, pieces, chance(seed))
        told = int((draw_plan(pieces.slot_mask, pieces.document_mask, chance(seed)).told >= 0).sum())
        torch.autograd.backward(sum(losses.values(), torch.zeros(())))
        assert all(loss.isfinite() for loss in losses.values())
        assert (losses["choice"] > 0) == (told > 0)
        assert losses["endings"] > 0, "how long a document is, is asked of every one"
        assert dictionary.bias.grad is not None and bool(dictionary.bias.grad.any()) == (told > 0)


@few
@given(rows_of_documents, seeds)
@torch.no_grad()
def test_a_choice_that_knows_nothing_costs_what_the_shares_say(lengths: list[list[int]], seed: int) -> None:
    level, dictionary, writer = level_that_chooses()
    for layer in (writer.latent_out, writer.ending_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.nn.init.normal_(writer.ending_out.bias)
    pieces = pieces_of(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser_objective, "HINTED", 0.0)
        losses = choosing_objective(level, pieces, chance(seed))
    plan = draw_plan(pieces.slot_mask, pieces.document_mask, chance(seed))
    costs = -dictionary.bias.log_softmax(-1)
    told = [
        costs[pieces.entries[row, slot]]
        for row, slots in enumerate(plan.told.tolist()) for slot in slots if slot >= 0
    ]
    torch.testing.assert_close(losses["choice"], torch.stack(told).mean() if told else torch.tensor(0.0))
    asked = plan.remaining >= 0
    hazards = writer.ending_out.bias.expand(int(asked.sum()), -1)
    each = ending_losses(hazards, plan.remaining[asked], plan.certain_mask[asked])
    weights = torch.tensor([LATER_ENDINGS if kind == Kind.TEXT else 1.0 for kind in plan.layout.kinds[asked].tolist()])
    expected = (each * weights).sum() / weights.sum() if len(each) else torch.tensor(0.0)
    torch.testing.assert_close(losses["endings"], ENDINGS_WEIGHT * expected)


def reading_of(level: Level, pieces: SegmentTokens, seed: int) -> tuple[OrderedSlots, Plan]:
    """What the writer is given to read, and the plan behind it."""
    seen: list[OrderedSlots] = []
    forward = Writer.forward

    def watching(writer: Writer, slots: OrderedSlots, cache: KVCache | None = None) -> Told:
        seen.append(OrderedSlots(slots.layout, *(field.detach() for field in slots[1:])))
        return forward(writer, slots, cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "forward", watching)
        choosing_objective(level, pieces, chance(seed))
    (slots,) = seen
    return slots, draw_plan(pieces.slot_mask, pieces.document_mask, chance(seed))


@few
@given(rows_of_documents, seeds)
@torch.no_grad()
def test_what_is_held_is_read_and_what_is_told_is_hinted_at(lengths: list[list[int]], seed: int) -> None:
    level, dictionary, _ = level_that_chooses()
    pieces = pieces_of(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser_objective, "HINTED", 1.0)
        patch.setattr(NoiseSchedule, "levels_for_ratios", lambda _schedule, ratios: torch.full_like(ratios, 1e-6))
        slots, plan = reading_of(level, pieces, seed)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(slots.layout, plan.layout, strict=True))
    latents = dictionary.latents()
    for which, found in ((plan.source, slots.latents), (plan.told, slots.hints)):
        named = which >= 0
        rows = named.nonzero()[:, 0]
        torch.testing.assert_close(
            found[named], latents[pieces.entries[rows, which[named]]], atol=1e-3, rtol=1e-3
        )
        assert not found[~named].any()
    assert torch.equal(slots.noise_level < 1, plan.told >= 0)


def test_hints_that_tell_enough_are_no_riddle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser_objective, "HINTED", 1.0)
    monkeypatch.setattr(NoiseSchedule, "levels_for_ratios", lambda _schedule, ratios: torch.full_like(ratios, 0.02))
    level, _, _ = level_that_chooses()
    assert choosing_objective(level, pieces_of([[25], [40, 9]]), chance(4))["choice"] < 1e-3


def test_a_share_of_the_rows_is_hinted_at_one_level_or_many() -> None:
    asked = torch.ones(3000, 40, dtype=torch.bool)
    asked[:, 30:] = False
    levels = draw_hint_levels(asked, SCHEDULE, chance(1))
    assert (levels[~asked] == 1).all() and (levels > 0).all() and (levels <= 1).all()
    hinted = (levels[:, :30] < 1).any(1)
    assert ((levels[:, :30] < 1).all(1) == hinted).all()
    assert hinted.double().mean() == pytest.approx(HINTED, abs=0.02)
    shared = torch.tensor([len(row.unique()) == 1 for row in levels[hinted][:, :30]])
    assert shared.double().mean() == pytest.approx(0.5, abs=0.07)
    typical = SCHEDULE.sigma(levels[hinted][:, 0]) / SCHEDULE.alpha(levels[hinted][:, 0])
    assert 2 < typical.median() < 5, "where a hint helps and does not decide"


def test_an_objective_is_decided_by_its_generator() -> None:
    level, _, _ = level_that_chooses()
    pieces = pieces_of([[12, 30], [9]])
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(found))
        state = torch.random.get_rng_state()
        found.append(choosing_objective(level, pieces, chance(seed)))
        assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert found[0]["choice"] != found[2]["choice"]


def test_a_document_costs_what_it_costs_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of one row are told apart, so the mean over a row is that over its documents."""
    monkeypatch.setattr(denoiser_objective, "HINTED", 0.0)
    level, _, _ = level_that_chooses()
    monkeypatch.setattr(decoding_order, "GAPPED", 0.0)
    monkeypatch.setattr(decoding_order, "ONE_STREAM", 1.0)
    both = pieces_of([[12, 12]])
    halves = [SegmentTokens(*(field[:, part] for field in both)) for part in (slice(12), slice(12, None))]
    monkeypatch.setattr(decoding_order, "AT_ONCE", 1.0)
    monkeypatch.setattr(decoding_order, "FAR", 0)
    monkeypatch.setattr(decoding_order, "HIDDEN_END", 1.0)
    together = choosing_objective(level, both, chance(1))["choice"]
    alone = [choosing_objective(level, half, chance(1))["choice"] for half in halves]
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-4, rtol=1e-4)


def test_training_the_choice_learns_it_and_where_texts_end() -> None:
    torch.manual_seed(0)
    level, _, _ = level_that_chooses()
    rows = byte_rows(b"abcabcabcabcabcabcabcabc" * 2)
    rows.document_mask[:, ::12] = True
    optimizer = torch.optim.Adam(list(level.denoiser_parameters()), lr=0.01)
    generator = chance(1)
    costs: dict[str, list[float]] = {"choice": [], "endings": []}
    pieces = level.pieces(rows, torch.ones(1, 48))
    wide = SegmentTokens(*(field.expand(8, -1) for field in pieces))
    for _ in range(60):
        losses = choosing_objective(level, wide, generator)
        optimizer.zero_grad()
        total: Tensor = losses["choice"] + losses["endings"]
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, loss in losses.items():
            costs[name].append(float(loss.detach()))
    first, last = ({name: sum(course[:5]) / 5 for name, course in each.items()} for each in (
        costs, {name: course[::-1] for name, course in costs.items()},
    ))
    assert first["choice"] > 4 and last["choice"] < 1
    assert last["endings"] < 0.5 * first["endings"]


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
