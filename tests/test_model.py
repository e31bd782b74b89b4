"""The model as a whole: levels by configuration alone, gradients from end to end, and batches that do not matter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.model_helpers import TEXT, byte_rows, chance, few, latent_rows, seeds, small_model
from zonkey_core.config import PRESETS, load_preset
from zonkey_core.level import Level
from zonkey_core.model import Zonkey, text_sequence
from zonkey_core.objectives import (
    autoencoder_objective,
    denoiser_objective,
    draw_noise_levels,
    open_slots,
    splitter_objective,
)
from zonkey_core.positions import PositionSequence
from zonkey_core.training.stages import joint_losses

DATA = (TEXT * 4).encode()
ROWS = byte_rows(DATA[:240], DATA[33:273], DATA[301:541])


def upper_rows(model: Zonkey, index: int) -> PositionSequence:
    """The sample text as positions of a level."""
    if index == 0:
        return ROWS
    below = model.ascend(ROWS, index - 1)[-1]
    return model.levels[index - 1].upper_sequence(below.latents, below.segmentation)


def assert_useful(losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> None:
    """Losses are finite, and together they move every one of the parameters."""
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    gradients = torch.autograd.grad(sum(losses.values(), torch.zeros(())), parameters, allow_unused=True)
    for gradient in gradients:
        assert gradient is not None and gradient.isfinite().all() and (gradient != 0).any()


@torch.no_grad()
def test_three_levels_by_configuration_alone() -> None:
    model = small_model(3, seed=2)
    views = model.ascend(ROWS, 2)
    assert len(views) == 3
    for index, view in enumerate(views):
        count = int(view.segmentation.slot_mask.sum())
        assert view.latents.shape == (count, model.levels[index].channels)
        assert view.segmentation.document_mask[:, 0].all()
        if index:
            below = views[index - 1]
            assert torch.equal(view.sequence.values[view.sequence.exists_mask], below.latents)
            assert count < len(below.latents)


@pytest.mark.parametrize("index", range(3))
def test_objectives_train_what_they_should_at_every_level(index: int) -> None:
    model = small_model(3)
    level, rows = model.levels[index], upper_rows(model, index)
    assert_useful(splitter_objective(level, rows, chance(1)), list(level.splitter_parameters()))
    with torch.no_grad():
        segmentation = level.choose_starts(rows, level.split(rows).start_prob)
    encoded = autoencoder_objective(level, rows, segmentation, chance(2))
    assert_useful(encoded.losses, list(level.autoencoder_parameters()))
    torch.testing.assert_close(encoded.latents, level.encode(rows, segmentation))
    denoised = denoiser_objective(level, rows, segmentation, encoded.latents.detach(), chance(3))
    modules = (level.trunk, level.decoder, level.readout)
    assert_useful(denoised, [parameter for module in modules for parameter in module.parameters()])


def test_joint_training_reaches_every_parameter() -> None:
    model = small_model(3)
    losses = joint_losses(model, ROWS, chance(4), upper_gradient=1.0)
    assert len(losses) == 3 * 11 + 1, "the same at every level, and at level 0 stability"
    assert_useful(losses, list(model.parameters()))


def test_upper_losses_reach_the_lower_levels_cuts_and_latents() -> None:
    model = small_model(2)
    lower = model.levels[0]
    reached = [
        parameter
        for module in (lower.splitter, lower.embedding, lower.compressor)
        for parameter in module.parameters()
    ]
    names = [f"1/{name}" for name in ("masked", "positions", "latents", "decoded")]
    losses = joint_losses(model, ROWS, chance(5), upper_gradient=1.0)
    assert_useful({"1/positions": losses["1/positions"]}, reached)
    cut_off = joint_losses(model, ROWS, chance(5), upper_gradient=0.0)
    gradients = torch.autograd.grad(sum((cut_off[name] for name in names), torch.zeros(())), reached, allow_unused=True)
    assert all(gradient is None or (gradient == 0).all() for gradient in gradients)


def test_expected_losses_teach_the_splitter_where_cuts_are_drawn() -> None:
    level = small_model(1).levels[0]
    probs = level.split(ROWS).start_prob
    leaf = probs.detach().clone().requires_grad_()
    segmentation = level.choose_starts(ROWS, leaf, generator=chance(6))
    loss = autoencoder_objective(level, ROWS, segmentation, chance(7)).losses["positions"]
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.isfinite().all()
    certain = (probs == 0) | (probs == 1)
    assert (gradient[~certain] != 0).double().mean() > 0.9


@torch.no_grad()
def encode_rows(level: Level, rows: PositionSequence) -> list[Tensor]:
    """Latents of each row's segments."""
    segmentation = level.choose_starts(rows, level.split(rows).start_prob)
    latents = level.encode(rows, segmentation)
    return list(torch.split_with_sizes(latents, segmentation.slot_mask.sum(1).tolist()))


@few
@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(0, 12), seeds)
def test_padding_a_batch_changes_no_latent(lengths: list[int], padding: int, seed: int) -> None:
    level = small_model(2).levels[1]
    for bias in (-30.0, 0.0):
        torch.nn.init.constant_(level.splitter.head.bias, bias)
        together = encode_rows(level, latent_rows(level, lengths, seed=seed, padding=padding))
        for row, length in enumerate(lengths):
            alone = encode_rows(level, latent_rows(level, [length], seed=seed + row))
            torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)


def test_padding_a_batch_changes_no_loss_of_the_splitter_or_the_autoencoder() -> None:
    level = small_model(2).levels[1]
    plain, padded = (latent_rows(level, [14], seed=2, padding=padding) for padding in (0, 6))
    found = []
    for rows in (plain, padded):
        splits = level.split(rows)
        hidden = rows.exists_mask & (torch.arange(rows.exists_mask.shape[1]) % 3 == 1)
        states = level.reader(rows.values, hidden, splits.start_prob)
        segmentation = level.choose_starts(rows, splits.start_prob)
        losses = autoencoder_objective(level, rows, segmentation, chance(1)).losses
        windows = [torch.cat([part.start_prob.flatten() for part in level.windows(rows, segmentation)])]
        found.append((splits.start_prob[:, :14], states, torch.stack(list(losses.values())), *windows))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@few
@given(seeds)
@torch.no_grad()
def test_a_row_is_encoded_alike_alone_and_among_others(seed: int) -> None:
    level = small_model(1, seed=seed).levels[0]
    together = encode_rows(level, ROWS)
    for row, latents in enumerate(together):
        torch.testing.assert_close(
            latents, encode_rows(level, byte_rows(bytes(ROWS.values[row].tolist())))[0], atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
def test_windows_hold_what_stands_in_the_row() -> None:
    level = small_model(1).levels[0]
    segmentation = level.choose_starts(ROWS, level.split(ROWS).start_prob, generator=chance(8))
    flat = [(row, int(start)) for row in range(3) for start, real in
            zip(segmentation.starts[row], segmentation.slot_mask[row], strict=True) if real]
    seen: list[int] = []
    for windows in level.windows(ROWS, segmentation):
        seen += windows.segments.tolist()
        for position, index in enumerate(windows.segments.tolist()):
            row, start = flat[index]
            size = min(windows.values.shape[1], ROWS.values.shape[1] - start)
            assert torch.equal(windows.values[position, :size], ROWS.values[row, start : start + size])
            probs = segmentation.start_prob[row, start : start + size]
            assert torch.equal(windows.start_prob[position, :size], probs)
            torch.testing.assert_close(
                windows.log_existence[position, :size].exp(),
                torch.cat([torch.ones(1), (1 - probs[1:]).cumprod(0)]), atol=1e-5, rtol=1e-3,
            )
            assert (windows.log_existence[position, size:].exp() < 1e-20).all()
    assert sorted(seen) == list(range(len(flat)))


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


@torch.no_grad()
def test_a_caller_may_fix_the_lowest_levels_cuts() -> None:
    model = small_model(2)
    rows = text_sequence(b"one two three", device=model.device)
    probs = torch.zeros(1, 13)
    probs[0, [0, 4, 8]] = 1
    views = model.ascend(rows, 1, start_probs=probs)
    assert views[0].segmentation.starts.tolist() == [[0, 4, 8]]
    assert views[1].sequence.values.shape[1] == 3


@pytest.mark.parametrize("name", PRESETS)
def test_presets_describe_models_that_can_be_built(name: str) -> None:
    config = load_preset(name)
    with torch.device("meta"):
        model = Zonkey(config.model)
    sizes = {"tiny": (3e5, 4e6), "small": (3e6, 2e7), "base": (5e7, 2e8), "large": (5e8, 2e9)}
    low, high = sizes[name]
    assert low < sum(parameter.numel() for parameter in model.parameters()) < high
    channels = [None, *(below.channels for below in model.levels[:-1])]
    assert [level.embedding.channels for level in model.levels] == channels
