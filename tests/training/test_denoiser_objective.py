"""What denoisers minimise: which parts each loss reaches, what it costs to know nothing, and that a pass more helps."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.model_helpers import TEXT, byte_rows, chance, few, fit_vocabulary, level_config, seeds, small_model
from zonkey_core.model.denoiser import DenoisedSlots, Denoiser
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.length_model import ending_losses
from zonkey_core.model.level import Level
from zonkey_core.model.model import Ascent, Zonkey
from zonkey_core.model.pointer import NEVER
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segmentation import Segmentation
from zonkey_core.model.slot_batches import at_slots, gather_slots, slot_batch
from zonkey_core.slots import SlotBatch, SlotKind
from zonkey_core.training import denoiser_objective, order_sampling
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.denoiser_objective import (
    ENDINGS_WEIGHT,
    LATER_ENDINGS,
    denoising_losses,
    surely_first,
)
from zonkey_core.training.losses import latent_regression
from zonkey_core.training.objectives import autoencoder_losses
from zonkey_core.training.order_sampling import ALONE, BLOCKS, draw_orders, known_and_open
from zonkey_core.training.stages import joint_losses, stage_losses, stage_parameters

DATA = (TEXT * 2).encode()
OWN = {"choice", "cuts", "endings", "spelled"}
"""What the lowest level minimises."""
OF_BLOCKS = {"latents", "spread", "endings", "decoded", "lengths"}
"""What the levels above do."""


def rows_of_text(count: int = 6, length: int = 120) -> PositionSequence:
    """Rows of the text, each with a document that ends within it."""
    rows = byte_rows(*[DATA[9 * index : 9 * index + length] for index in range(count)])
    rows.document_mask[:, length // 2] = True
    return rows


def views_of(model: Zonkey, rows: PositionSequence) -> list[Ascent]:
    """The views of all levels."""
    return model.ascend(rows, len(model.levels) - 1)


def only(patch: pytest.MonkeyPatch, mode: int) -> None:
    """Let all documents be told in one mode."""
    patch.setattr(order_sampling, "SHARES", tuple(float(each == mode) for each in range(4)))


# What each loss reaches


def reached(losses: dict[str, Tensor], model: Zonkey) -> dict[tuple[str, str], float]:
    """The sum of the sizes of each loss's gradient to each part of each level; no entry where it does not reach it."""
    parts = {
        f"{index}.{name}": list(part.parameters())
        for index, level in enumerate(model.levels) for name, part in level.named_children()
        if name in ("splitter", "compressor", "denoiser", "decoder", "vocabulary")
    }
    found = {}
    for loss, part in itertools.product(losses, parts):
        gradients = torch.autograd.grad(losses[loss], parts[part], retain_graph=True, allow_unused=True)
        there = [gradient for gradient in gradients if gradient is not None]
        assert all(gradient.isfinite().all() for gradient in there), (loss, part)
        if there:
            found[loss, part] = float(sum(gradient.abs().sum() for gradient in there))
    return found


@functools.lru_cache(maxsize=2)
def joint_gradients(levels: int) -> dict[tuple[str, str], float]:
    """What the losses of the joint stage that denoisers minimise reach, with everything let down."""
    model = small_model(levels, seed=levels)
    fit_vocabulary(model)
    losses = joint_losses(model, rows_of_text(), chance(3), upper_gradient=1.0)  # all that may be asked is asked
    of_blocks = {f"{level}/{name}" for level in range(1, levels) for name in OF_BLOCKS}
    wanted = {name: loss for name, loss in losses.items() if name in of_blocks | {f"0/{name}" for name in OWN}}
    assert wanted.keys() == of_blocks | {f"0/{name}" for name in OWN}
    return reached(wanted, model)


@pytest.mark.parametrize("name", sorted(OF_BLOCKS))
@pytest.mark.parametrize("part", ["0.splitter", "0.compressor", "1.splitter", "1.compressor"])
def test_what_a_level_of_blocks_minimises_reaches_what_makes_its_slots(name: str, part: str) -> None:
    assert joint_gradients(2)[f"1/{name}", part] > 0


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("choice", ("0.splitter", "0.compressor", "0.denoiser", "0.vocabulary")),
        ("choice", ("1.splitter", "1.compressor", "1.denoiser", "1.decoder")),
        ("cuts", ("0.splitter",)),
        ("endings", ("0.compressor", "0.denoiser")),
        ("spelled", ("0.compressor", "0.decoder")),
    ],
)  # fmt: skip
def test_what_the_lowest_level_minimises_reaches_what_makes_slots_and_plans(name: str, parts: tuple[str, ...]) -> None:
    assert all(joint_gradients(2)[f"0/{name}", part] > 0 for part in parts)


@pytest.mark.parametrize("name", ["latents", "decoded"])
@pytest.mark.parametrize("part", ["splitter", "compressor"])
def test_the_top_of_three_levels_reaches_the_bytes(name: str, part: str) -> None:
    for level in range(3):
        assert joint_gradients(3)[f"2/{name}", f"{level}.{part}"] > 0
    assert joint_gradients(3)["0/choice", f"2.{part}"] > 0, "and what tells strings reaches the plans of plans"


def test_the_share_that_is_let_down_scales_what_an_upper_level_gives_the_lower_one() -> None:
    model = small_model(2, seed=2)
    fit_vocabulary(model)
    found = []
    for share in (0.0, 0.5, 1.0):
        losses = joint_losses(model, rows_of_text(), chance(1), upper_gradient=share)
        kept = {"1/latents": losses["1/latents"]}
        found.append(reached(kept, model)["1/latents", "0.compressor"])
    assert found[0] == 0 < found[1] < found[2]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_denoiser_alone_moves_what_its_stage_moves(levels: int) -> None:
    model = small_model(levels, seed=levels)
    fit_vocabulary(model)
    index = levels - 1
    model.requires_grad_(False)
    moved = stage_parameters(model, Stage("denoiser", index, 1.0))
    for parameter in moved:
        parameter.requires_grad_(True)
    losses = denoising_losses(model.levels[index], views_of(model, rows_of_text())[index:], chance(1))
    assert {name.partition("/")[2] for name in losses} == (OWN - {"cuts"} if index == 0 else OF_BLOCKS)
    torch.stack([loss for loss in losses.values() if loss.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]
    still = {name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None}
    nothing_above = {name for name in still if ".plan_" in name}
    assert still == nothing_above
    assert all(parameter.grad.isfinite().all() for parameter in moved if parameter.grad is not None)


@pytest.mark.parametrize("index", [0, 1])
def test_where_levels_above_only_plan_a_denoiser_learns_from_their_plans(index: int) -> None:
    model = small_model(3, seed=1)
    fit_vocabulary(model)
    model.requires_grad_(False)
    moved = stage_parameters(model, Stage("plan", index, 1.0))
    for parameter in moved:
        parameter.requires_grad_(True)
    losses = stage_losses(model, Stage("plan", index, 1.0), rows_of_text(), chance(1), 0.5)
    own = {"choice", "endings"} if index == 0 else {"latents", "spread", "endings"}
    assert losses.keys() == {f"{index}/{name}" for name in own}
    sum(losses.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    denoiser = model.levels[index].denoiser
    assert set(moved) == set(denoiser.parameters()) and denoiser.plan_in is not None
    assert denoiser.plan_in.weight.grad is not None and denoiser.plan_in.weight.grad.abs().sum() > 0
    with torch.no_grad():
        for parameter in model.levels[index + 1].denoiser.parameters():
            parameter.mul_(2)
    changed = stage_losses(model, Stage("plan", index, 1.0), rows_of_text(), chance(1), 0.5)
    main = f"{index}/{'choice' if index == 0 else 'latents'}"
    assert not torch.equal(changed[main], losses[main]), "what plans is the denoiser above"


@few
@given(seeds)
def test_streams_open_with_segments_that_surely_begin(seed: int) -> None:
    model = small_model(1, seed=seed % 7)
    fit_vocabulary(model)
    (view,) = views_of(model, rows_of_text(2, 40))
    view = view._replace(split_prob=torch.rand(view.split_prob.shape, generator=chance(seed)))
    chosen, slots = surely_first(view), view.slots
    start_prob = view.split_prob.gather(1, slots.starts)
    for row in range(2):
        first = slots.first_mask[row]
        assert not (chosen[row] & ~first).any()
        left_out = first & ~chosen[row]
        assert chosen[row].sum() == -(-3 * first.sum() // 4)
        if left_out.any():
            assert start_prob[row, chosen[row]].min() >= start_prob[row, left_out].max()


# What it costs


@few
@given(st.integers(1, 3), seeds)
def test_any_text_gives_finite_losses_decided_by_the_generator(levels: int, seed: int) -> None:
    model = small_model(levels, seed=levels)
    fit_vocabulary(model)
    views, found = views_of(model, rows_of_text(2, 40)), []
    for each in (seed, seed, seed + 1):
        torch.manual_seed(len(found))
        state = torch.random.get_rng_state()
        with torch.no_grad():
            found.append(denoising_losses(model.bottom, views, chance(each)))
        assert torch.equal(state, torch.random.get_rng_state())
    assert {name.partition("/")[0] for name in found[0]} == {str(level) for level in range(levels)}
    assert all(loss.shape == () and loss.isfinite() for loss in found[0].values())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


@few
@given(seeds)
@torch.no_grad()
def test_a_choice_that_knows_nothing_costs_what_the_shares_say(seed: int) -> None:
    model = small_model(1)
    fit_vocabulary(model)
    level = model.bottom
    assert level.vocabulary is not None
    for layer in (level.denoiser.latent_out, level.denoiser.ending_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.normal_(level.denoiser.ending_out.bias)
    nn.init.normal_(level.denoiser.ending_bias)
    assert level.denoiser.pointer is not None
    nn.init.constant_(level.denoiser.pointer.gate.bias, NEVER)
    (view,) = views_of(model, rows_of_text(2, 60))
    losses = denoising_losses(level, [view], chance(seed))
    drawn = draw_orders(view.slots.slot_mask, view.slots.document_mask, surely_first(view), None, chance(seed))
    assert view.slots.entries is not None
    asked = drawn.rows.told >= 0
    entries = view.slots.entries.gather(1, drawn.rows.told.clamp(min=0))[asked]
    costs = -level.vocabulary.bias.log_softmax(-1)[entries]
    torch.testing.assert_close(losses["0/choice"], costs.mean() if len(costs) else torch.tensor(0.0))
    measured = drawn.rows.remaining >= 0
    kinds = drawn.rows.layout.kinds[measured]
    hazards = level.denoiser.ending_out.bias + level.denoiser.ending_bias[kinds]
    each = ending_losses(hazards, drawn.rows.remaining[measured], drawn.rows.certain_mask[measured])
    weights = torch.where(kinds == SlotKind.TEXT, LATER_ENDINGS, 1.0)
    expected = (each * weights).sum() / weights.sum() if len(each) else torch.tensor(0.0)
    torch.testing.assert_close(losses["0/endings"], ENDINGS_WEIGHT * expected)


def batches_read(model: Zonkey, index: int, seed: int) -> list[SlotBatch]:
    """What the denoiser of one level is given to read."""
    seen: list[SlotBatch] = []
    forward = Denoiser.forward

    def watching(denoiser: Denoiser, slots: SlotBatch, cache: KVCache | None = None) -> DenoisedSlots:
        if denoiser is model.levels[index].denoiser:
            seen.append(slots)
        return forward(denoiser, slots, cache)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "forward", watching)
        denoising_losses(model.bottom, views_of(model, rows_of_text()), chance(seed))
    return seen


def test_documents_told_alone_are_given_nothing_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what the level above makes of them does not matter."""
    only(monkeypatch, ALONE)
    found = []
    for seed in (1, 2):
        model = small_model(2, seed=3)
        fit_vocabulary(model)
        for part in (model.levels[1].denoiser, model.levels[1].decoder):
            for parameter in part.parameters():
                nn.init.normal_(parameter, generator=chance(seed))
        (batch,) = batches_read(model, 0, 5)
        assert batch.plan_alpha is not None and batch.plan is not None
        assert not batch.plan_alpha.any() and not batch.plan.any() and not batch.estimate.any() and not batch.left.any()
        with torch.no_grad():
            found.append(denoising_losses(model.bottom, views_of(model, rows_of_text()), chance(5)))
    for name in OWN - {"cuts"}:
        assert torch.equal(found[0][f"0/{name}"], found[1][f"0/{name}"])
    assert not torch.equal(found[0]["1/endings"], found[1]["1/endings"])


def test_documents_told_in_blocks_are_given_plans_and_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, BLOCKS)
    monkeypatch.setattr(denoiser_objective, "PURE", 0.0)
    model = small_model(2, seed=3)
    fit_vocabulary(model)
    (batch,) = batches_read(model, 0, 5)
    assert batch.plan_alpha is not None and batch.plan is not None
    asking = batch.left > 0
    assert (batch.plan_alpha[asking] > 0).all() and batch.plan[asking].any(-1).all()
    shares = batch.plan_alpha[asking]
    assert 0 < float(shares.min()) < 0.5 < float(shares.max()) <= 1, "noise of every strength"
    first, second = batches_read(model, 1, 5)
    assert torch.equal(first.noisy, second.noisy) and torch.equal(first.known, second.known)
    assert not first.estimate.any() and second.estimate.any(), "a second pass is given the first one's estimate"
    assert not second.estimate[second.layout.kinds == SlotKind.TEXT].any(), "of what is open alone"


def test_a_plan_that_tells_all_is_learned_from() -> None:
    """The lowest level learns to read its plans: with them its slots cost less than without, after a short training."""
    torch.manual_seed(0)
    level = Level([level_config(), level_config()], None)
    plans = nn.Embedding(12, level.denoiser.plan_in.in_features) if level.denoiser.plan_in is not None else None
    assert plans is not None
    words = to_sphere(torch.randn(12, level.channels, generator=chance(0)))
    optimizer, generator = torch.optim.Adam(level.denoiser.parameters(), lr=0.01), chance(1)
    plans.requires_grad_(False)

    def costs() -> tuple[Tensor, Tensor]:
        which = torch.randint(12, (16, 6), generator=generator)
        mask, begins = torch.ones_like(which, dtype=torch.bool), torch.arange(6).expand(16, 6) == 0
        rows = known_and_open(mask, begins, mask & False, mask & False, None)
        batch = slot_batch(torch.zeros(16, 6, level.channels), rows)
        given = gather_slots(plans(which), rows.told)
        share = torch.where(rows.told >= 0, 1.0, 0.0)
        truth = gather_slots(words[which], rows.told)
        with_plan = level.denoiser(batch._replace(plan=given, plan_alpha=share))
        without = level.denoiser(batch._replace(plan=given, plan_alpha=0 * share))
        return tuple(latent_regression(found.latents, truth, share) for found in (with_plan, without))  # type: ignore[return-value]

    for _ in range(80):
        first, second = costs()
        optimizer.zero_grad()
        (first + second).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert first < 0.5 * second


# The pass that refines its own estimate


class Sentences(NamedTuple):
    """A level of blocks, and batches of its positions: rows of blocks that are one of a few, whole and in order."""

    level: Level
    kinds: Tensor
    """[8, 3, C'] the positions of each kind of block."""

    def view(self, generator: torch.Generator, rows: int = 12, blocks: int = 6) -> Ascent:
        """Each block is followed by one of two."""
        which = torch.randint(8, (rows, 1), generator=generator)
        for _ in range(blocks - 1):
            step = torch.randint(1, 3, (rows, 1), generator=generator)
            which = torch.cat([which, (which[:, -1:] + step) % 8], 1)
        values = self.kinds[which].flatten(1, 2)
        exists = torch.ones(values.shape[:2], dtype=torch.bool)
        begins = torch.arange(3 * blocks).expand_as(exists) == 0
        cuts = (torch.arange(3 * blocks) % 3 == 0).expand_as(exists)
        starts = (3 * torch.arange(blocks)).expand(rows, -1)
        every = torch.ones_like(starts, dtype=torch.bool)
        segmentation = Segmentation(starts, every, starts == 0, cuts.float())
        sequence = PositionSequence(values, exists, begins)
        with torch.no_grad():
            latents = self.level.encode(sequence, segmentation)
            slots = self.level.read_slots(sequence, segmentation, latents)
        return Ascent(sequence, segmentation, segmentation.start_prob, latents, slots)


@pytest.mark.slow
def test_an_estimate_decoded_and_compressed_again_is_bettered_by_a_second_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(denoiser_objective, "LOWEST_RATIO", 1.0)
    monkeypatch.setattr(denoiser_objective, "HIGHEST_RATIO", 6.0)
    torch.manual_seed(0)
    level = Level([level_config(denoiser_width=64)], 8)
    source = Sentences(level, to_sphere(torch.randn(8, 3, 8, generator=chance(0))))
    generator = chance(1)

    def rebuild(view: Ascent) -> dict[str, Tensor]:
        return autoencoder_losses(level, view.sequence, view.segmentation, generator)

    def denoise(view: Ascent) -> dict[str, Tensor]:
        return denoising_losses(level, [view], generator)

    train(source, list(level.autoencoder_parameters()), rebuild, 100, generator)
    train(source, list(level.denoiser_parameters()), denoise, 400, generator)
    first, second = passes(source, ratio=3.0)
    assert second < 0.97 * first < 0.5


def train(
    source: Sentences,
    parameters: list[nn.Parameter],
    objective: Callable[[Ascent], dict[str, Tensor]],
    steps: int,
    generator: torch.Generator,
) -> None:
    """So many updates, at a rate that falls."""
    optimizer = torch.optim.Adam(parameters, lr=0.005)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.0002 + 0.005 * (1 - step / steps)
        losses = objective(source.view(generator))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def passes(source: Sentences, *, ratio: float) -> tuple[float, float]:
    """What a first pass over noisy slots costs, and one that is given the first one's windows compressed again."""
    level, view = source.level, source.view(chance(9), rows=200)
    slots = view.slots
    nothing = torch.zeros_like(slots.slot_mask)
    rows = known_and_open(slots.slot_mask, slots.document_mask, nothing, nothing, None)
    alpha = torch.full(slots.slot_mask.shape, (1 + ratio**2) ** -0.5)
    noise = torch.randn(slots.latents.shape, generator=chance(10))
    noisy = alpha.unsqueeze(-1) * slots.latents + (1 - alpha.square()).sqrt().unsqueeze(-1) * noise
    batch = slot_batch(slots.latents, rows, noisy=noisy, alpha=alpha)
    truth, asked = gather_slots(slots.latents, rows.told), (rows.told >= 0).float()
    first = level.denoiser(batch).latents
    estimate = at_slots(first, rows.told, slots.latents)
    windows = level.recompress(level.decode(estimate.flatten(0, 1))).view_as(estimate)
    second = level.denoiser(batch._replace(estimate=gather_slots(windows, rows.told))).latents
    return tuple(float(latent_regression(found, truth, asked)) for found in (first, second))  # type: ignore[return-value]
