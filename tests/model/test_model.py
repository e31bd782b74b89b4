"""The model as a whole: levels by configuration alone, gradients from end to end, and batches that do not matter."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.model_helpers import TEXT, byte_rows, chance, few, fit_vocabulary, latent_rows, normal, seeds, small_model
from zonkey_core.config import PRESETS, load_preset
from zonkey_core.model.existence import LOG_FLOOR
from zonkey_core.model.level import Level
from zonkey_core.model.model import Ascent, Zonkey, text_sequence
from zonkey_core.model.positions import SHARPNESS, Choices, LocatedPositions, PositionSequence
from zonkey_core.training.augmentation import UPPER_KIND_SHARES, noise_rows
from zonkey_core.training.denoiser_objective import denoising_losses
from zonkey_core.training.objectives import autoencoder_losses, splitter_objective
from zonkey_core.training.splitter_distillation import guided_loss
from zonkey_core.training.stages import joint_losses

DATA = (TEXT * 4).encode()
ROWS = byte_rows(DATA[:240], DATA[33:273], DATA[301:541])


def upper_rows(model: Zonkey, index: int) -> PositionSequence:
    """The sample text as positions of a level."""
    if index == 0:
        return ROWS
    return model.located_positions(ROWS, index).sequence


def cut_rows(pieces: Sequence[Sequence[bytes]]) -> tuple[PositionSequence, Tensor]:
    """Rows of pieces, and the certain starts of the pieces; rows are padded with bytes that do not exist."""
    texts = [b"".join(row) for row in pieces]
    longest = max(map(len, texts))
    rows = byte_rows(*(text + bytes(range(longest - len(text))) for text in texts))
    probs = torch.zeros(len(texts), longest)
    for row, text in enumerate(texts):
        rows.exists_mask[row, len(text) :] = False
        ends = torch.tensor(list(map(len, pieces[row]))).cumsum(0)
        probs[row, [0, *ends[:-1].tolist()]] = 1
        probs[row, len(text) :] = 1
    return rows, probs


def assert_useful(losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> None:
    """Losses are finite, and together they move every one of the parameters."""
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    gradients = torch.autograd.grad(sum(losses.values(), torch.zeros(())), parameters, allow_unused=True)
    for gradient in gradients:
        assert gradient is not None and gradient.isfinite().all() and (gradient != 0).any()


def parts_reached(losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> list[bool]:
    """Whether losses reach each of the parameters at all."""
    gradients = torch.autograd.grad(sum(losses.values(), torch.zeros(())), parameters, allow_unused=True)
    return [gradient is not None for gradient in gradients]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("fitted", [False, True])
@torch.no_grad()
def test_levels_by_configuration_alone(count: int, fitted: bool) -> None:
    """The slots of each level are the positions of the next, and its segments are encoded as they stand."""
    model = small_model(count, seed=1)
    if fitted:
        fit_vocabulary(model)
    rows, _ = cut_rows([[DATA[:90], "über".encode(), DATA[91:140]], [DATA[200:275]]])
    views = model.ascend(rows, count - 1)
    assert len(views) == count
    split_on = rows
    for index, view in enumerate(views):
        level = model.levels[index]
        total = int(view.segmentation.slot_mask.sum())
        assert view.latents.shape == (total, level.channels)
        assert view.segmentation.document_mask[:, 0].all()
        torch.testing.assert_close(view.latents, level.encode(view.sequence, view.segmentation))
        assert (view.slots.latents.shape[-1],) == (level.channels,)
        probs = level.split(split_on).start_prob
        if index:
            below = views[index - 1]
            for mine, theirs in zip(view.sequence, below.slots.as_positions(), strict=True):
                assert torch.equal(mine, theirs)
            assert total < int(below.segmentation.slot_mask.sum())
            probs = below.slots.share_out(probs)
            assert_cuts_between_segments(view, below, level.config.window)
        chosen = level.choose_starts(view.sequence, probs)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(view.segmentation, chosen, strict=True))
        split_on = level.upper_sequence(view.latents, view.segmentation)


def assert_cuts_between_segments(view: Ascent, below: Ascent, window: int) -> None:
    """Blocks begin with segments, but where a window is full."""
    starts, mask = view.segmentation.starts, view.segmentation.slot_mask
    first = below.slots.first_mask.gather(1, starts)
    for row, place in (mask & ~first).nonzero().tolist():
        assert starts[row, place] - starts[row, place - 1] == window


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_a_view_by_slots_has_slots_for_segments(index: int) -> None:
    model = small_model(2)
    vocabulary = fit_vocabulary(model, TEXT[:60])
    view = model.ascend(ROWS, index)[index]
    by_slots = view.by_slots()
    assert by_slots.sequence is view.sequence and by_slots.slots is view.slots
    assert torch.equal(by_slots.segmentation.starts, view.slots.starts)
    assert torch.equal(by_slots.latents, view.slots.latents[view.slots.slot_mask])
    assert torch.equal(by_slots.segmentation.start_prob, by_slots.segmentation.start_mask().float())
    assert by_slots.segmentation.start_mask().sum() == len(by_slots.latents)
    if index:
        assert torch.equal(by_slots.latents, view.latents)
        return
    assert len(by_slots.latents) > len(view.latents), "some segments are rare"
    assert view.slots.entries is not None
    entries = view.slots.entries[view.slots.slot_mask]
    for windows in model.bottom.windows(by_slots.sequence, by_slots.segmentation):
        for values, log_existence, slot in zip(windows.values, windows.log_existence, windows.segments, strict=True):
            string = bytes(values[log_existence == 0].tolist())
            assert string == vocabulary.detokenize([int(entries[slot])])


@pytest.mark.parametrize("index", range(3))
def test_objectives_train_what_they_should_at_every_level(index: int) -> None:
    model = small_model(3, seed=1, bits_per_segment=9.0)
    level = model.levels[index]
    taught = list(level.splitter_parameters())
    if index:
        assert {id(parameter) for parameter in taught} == set(map(id, level.splitter.parameters()))
        losses = {"following": guided_loss(model, index, MANY, chance(1), None)}
    else:
        losses = splitter_objective(level, ROWS, chance(1))
    assert_useful(losses, taught)
    view = model.ascend(ROWS, index)[index]
    rebuilt = autoencoder_losses(level, view.sequence, view.segmentation, chance(2), choices=view.choices)
    assert_useful(rebuilt, list(level.autoencoder_parameters()))
    unread = unread_alone(level)
    others = {id(parameter) for parameter in unread}
    denoised = denoising_losses(level, [view], chance(5))
    assert_useful(denoised, [part for part in level.denoiser_parameters() if id(part) not in others])
    if unread:
        gradients = torch.autograd.grad(
            sum(denoising_losses(level, [view], chance(5)).values(), torch.zeros(())), unread, allow_unused=True
        )
        assert not any(gradient is not None and gradient.any() for gradient in gradients)


def unread_alone(level: Level) -> list[nn.Parameter]:
    """What a level reads plans with, and noise where it tells strings one after another: of no use to it alone."""
    denoiser = level.denoiser
    parts = [denoiser.plan_in, denoiser.plan_noise_in, denoiser.noise_in if level.reads_bytes else None]
    return [part.weight for part in parts if part is not None]


def test_some_of_the_segments_cost_what_all_do_on_average() -> None:
    model = small_model(1)
    (view,) = model.ascend(ROWS, 0)
    part = view.sequence, view.segmentation
    with torch.no_grad():
        all_of_them, some_of_them = (
            [autoencoder_losses(model.bottom, *part, chance(seed), share=share) for seed in range(60)]
            for share in (1.0, 0.5)
        )
    for name in ("positions", "existence"):
        full, some = (torch.stack([loss[name] for loss in each]) for each in (all_of_them, some_of_them))
        assert some.std() > 2 * full.std(), "others every time"
        assert some.mean() == pytest.approx(float(full.mean()), rel=0.05)


MANY = byte_rows(*(DATA[start : start + 120] for start in range(0, 480, 40)))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_joint_training_reaches_every_parameter(count: int) -> None:
    model = small_model(count, seed=1)
    fit_vocabulary(model)
    losses = joint_losses(model, MANY, chance(4), upper_gradient=1.0)
    shared = {"positions", "existence", "endings"}
    own = [{"masked", "rate", "overlong", "uncertainty", "stability", "drift", "choice", "cuts", "spelled", "cost"}]
    own += [{"following", "latents", "spread", "decoded", "lengths"}] * (count - 1)
    assert set(losses) == {f"{level}/{name}" for level in range(count) for name in shared | own[level]}
    unread = set(map(id, unread_alone(model.bottom))) if count == 1 else set()
    assert_useful(losses, [parameter for parameter in model.parameters() if id(parameter) not in unread])


@pytest.mark.parametrize("index", [1, 2])
def test_what_is_told_of_slots_teaches_the_levels_above_to_plan(index: int) -> None:
    """Through the plan itself, the draft that is unfolded from it, and existence."""
    model = small_model(3)
    fit_vocabulary(model)
    level = model.levels[index]
    losses = joint_losses(model, MANY, chance(5), upper_gradient=1.0)
    parts = (level.compressor, level.embedding, level.splitter, level.denoiser.latent_out, level.decoder.unfold)
    assert_useful({"0/choice": losses["0/choice"]}, [parameter for part in parts for parameter in part.parameters()])


def test_upper_losses_reach_the_lower_levels_cuts_and_latents() -> None:
    model = small_model(2)
    lower = model.levels[0]
    reached = [
        parameter
        for module in (lower.splitter, lower.embedding, lower.compressor)
        for parameter in module.parameters()
    ]
    names = [f"1/{name}" for name in ("positions", "latents", "decoded", "lengths")]
    for name in ("1/positions", "1/latents"):
        losses = joint_losses(model, ROWS, chance(5), upper_gradient=1.0)
        assert_useful({name: losses[name]}, reached)
    cut_off = joint_losses(model, ROWS, chance(5), upper_gradient=0.0)
    gradients = torch.autograd.grad(sum((cut_off[name] for name in names), torch.zeros(())), reached, allow_unused=True)
    assert all(gradient is None or (gradient == 0).all() for gradient in gradients)


def test_expected_losses_teach_the_splitter_where_cuts_are_drawn() -> None:
    level = small_model(1).levels[0]
    probs = level.split(ROWS).start_prob
    leaf = probs.detach().clone().requires_grad_()
    segmentation = level.choose_starts(ROWS, leaf, certain=False)
    loss = autoencoder_losses(level, ROWS, segmentation, chance(7))["positions"]
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
        segmentation = level.choose_starts(rows, splits.start_prob)
        losses = autoencoder_losses(level, rows, segmentation, chance(1))
        windows = [torch.cat([part.start_prob.flatten() for part in level.windows(rows, segmentation)])]
        found.append((splits.start_prob[:, :14], torch.stack(list(losses.values())), *windows))
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


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_segments_of_the_same_bytes_are_compressed_once_and_as_each_alone(seed: int) -> None:
    level = small_model(1, seed=seed).levels[0]
    words = [b"a", b"aa", b"the ", b"then ", b"the\n", "über".encode(), b"\0", b"\0\0", b"heron", b"heronry "]
    draws = torch.randint(len(words), (3, 40), generator=chance(seed)).tolist()
    pieces = [[words[index] for index in row] for row in draws]
    rows, probs = cut_rows(pieces)
    segmentation = level.choose_starts(rows, probs)
    with mock.patch.object(level, "compress", wraps=level.compress) as compress:
        latents = level.encode(rows, segmentation)
    flat = [piece for row in pieces for piece in row]
    assert len(latents) == len(flat)
    assert sum(len(call.args[0]) for call in compress.call_args_list) == len(set(flat))
    for piece, latent in zip(flat, latents, strict=True):
        alone = level.compress(torch.tensor([list(piece)]), torch.zeros(1, len(piece)))
        torch.testing.assert_close(latent, alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_segments_that_only_begin_alike_are_compressed_each(index: int) -> None:
    """Uncertain ends make windows of the same values differ, and latents are not bytes."""
    level = small_model(2).levels[index]
    if index == 0:
        rows = byte_rows(b"abcd" * 20, b"abcd" * 20)
    else:
        rows = latent_rows(level, [40, 40], seed=1)
        rows.values[:] = rows.values[0, :4].repeat(10, 1)
    probs = 0.1 + 0.8 * torch.rand(2, rows.values.shape[1], generator=chance(1))
    probs[:, ::4] = 1
    probs[:, 1::4] = 0
    segmentation = level.choose_starts(rows, probs, certain=False)
    latents = level.encode(rows, segmentation)
    for windows in level.windows(rows, segmentation):
        for place, segment in enumerate(windows.segments.tolist()):
            alone = level.compress(windows.values[place : place + 1], windows.log_existence[place : place + 1])
            torch.testing.assert_close(latents[segment], alone[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_gradients_flow_through_each_of_equal_segments() -> None:
    level = small_model(1).levels[0]
    rows, probs = cut_rows([[b"one ", b"two ", b"one ", b"one "]])
    segmentation = level.choose_starts(rows, probs)
    with torch.enable_grad():
        latents = level.encode(rows, segmentation)
        weights = normal(*latents.shape, seed=1, dtype=torch.float32)
        found = torch.autograd.grad((latents * weights).sum(), list(level.compressor.parameters()))
        windows = torch.tensor([list(text) for text in (b"one ", b"two ", b"one ", b"one ")])
        each = level.compress(windows, torch.zeros(4, 4))
        expected = torch.autograd.grad((each * weights).sum(), list(level.compressor.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_chosen_cuts_are_certain_and_drawn_ones_as_likely_as_before() -> None:
    level = small_model(1).levels[0]
    probs = level.split(ROWS).start_prob
    chosen = level.choose_starts(ROWS, probs)
    starts = torch.zeros_like(probs).scatter(1, chosen.starts, chosen.slot_mask.float())
    starts[:, 0] = 1
    assert torch.equal(chosen.start_prob, starts)
    assert torch.equal(level.choose_starts(ROWS, probs, certain=False).start_prob, probs)
    for windows in level.windows(ROWS, chosen):
        assert ((windows.log_existence == 0) | (windows.log_existence == LOG_FLOOR)).all()


@few
@given(seeds, st.booleans())
@torch.no_grad()
def test_positions_are_located_where_their_bytes_begin(seed: int, noised: bool) -> None:
    model = small_model(3, seed=3)
    begin = seed % 60
    rows = byte_rows(DATA[begin : begin + 120], DATA[begin + 7 : begin + 127])
    rows.document_mask[:, 33] = True
    if noised:
        rows = noise_rows(rows, chance(seed), UPPER_KIND_SHARES).sequence
    below = model.located_positions(rows, 0)
    assert below.sequence is rows and torch.equal(below.offsets, torch.arange(120).expand(2, -1))
    views = model.ascend(rows, 1)
    read = [below, LocatedPositions(views[0].slots.as_positions(), views[0].slots.starts)]
    for index in (1, 2):
        level, below = model.levels[index - 1], read[index - 1]
        located = model.located_positions(rows, index)
        exists = located.sequence.exists_mask
        assert located.offsets.shape == exists.shape and (located.offsets[~exists] == 0).all()
        for row in range(2):
            offsets = located.offsets[row][exists[row]].tolist()
            inner = below.offsets[row][below.sequence.exists_mask[row]].tolist()
            assert offsets[0] == 0 and set(offsets) <= set(inner)
            ends = [*offsets[1:], int(rows.exists_mask[row].sum())]
            for place, (start, end) in enumerate(zip(offsets, ends, strict=True)):
                assert start < end
                inside = [at for at, offset in enumerate(inner) if start <= offset < end]
                values = below.sequence.values[row, inside][None]
                alone = level.compress(values, torch.zeros(1, len(inside)))[0]
                torch.testing.assert_close(located.sequence.values[row, place], alone, atol=1e-4, rtol=1e-4)
                assert located.sequence.document_mask[row, place] == rows.document_mask[row, start]


@torch.no_grad()
def test_windows_hold_what_stands_in_the_row() -> None:
    level = small_model(1).levels[0]
    segmentation = level.choose_starts(ROWS, level.split(ROWS).start_prob, certain=False)
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


@torch.no_grad()
def test_what_stands_for_strings_says_which() -> None:
    model = small_model(3)
    vocabulary = fit_vocabulary(model)
    below, above, highest = model.ascend(ROWS, 2)
    assert below.choices is None and highest.choices is None
    assert above.choices is not None
    assert above.choices.entries is below.slots.entries
    assert torch.equal(above.choices.latents, vocabulary.used_latents())
    assert torch.equal(above.choices.log_shares, vocabulary.log_shares)


@torch.no_grad()
def test_windows_hold_which_strings_stand_in_the_row() -> None:
    model = small_model(2)
    fit_vocabulary(model)
    level, view = model.levels[1], model.ascend(ROWS, 1)[1]
    told, untold = (level.windows(view.sequence, view.segmentation, choices=each) for each in (view.choices, None))
    seen = 0
    for windows, plain in zip(told, untold, strict=True):
        assert windows.choices is not None and plain.choices is None
        entries, latents, _ = windows.choices
        assert entries.shape == windows.log_existence.shape and torch.equal(windows.values, plain.values)
        inside = windows.values.any(-1)
        assert inside[windows.log_existence == 0].all()
        assert torch.equal(latents[entries[inside]], windows.values[inside])
        seen += int((windows.log_existence == 0).sum())
    assert seen == view.sequence.exists_mask.sum()


def test_strings_are_read_out_by_the_cosines_with_their_latents_and_by_how_often_they_are_met() -> None:
    model = small_model(2)
    vocabulary = fit_vocabulary(model)
    readout, table, log_shares = model.levels[1].readout, vocabulary.latents().detach(), vocabulary.log_shares
    states, entries = normal(30, model.levels[1].config.width, seed=1, dtype=torch.float32), torch.arange(30) * 3
    cosines = functional.cosine_similarity(readout.linear(states).unsqueeze(1), table, dim=-1)
    expected = functional.cross_entropy(SHARPNESS * cosines + log_shares, entries, reduction="none")
    choices = Choices(entries, table, log_shares)
    torch.testing.assert_close(readout.loss(states, table[entries], choices), expected)
    assert readout.loss(states[:0], table[:0], choices._replace(entries=entries[:0])).shape == (0,)


def test_a_level_above_strings_learns_which_they_are() -> None:
    model = small_model(2, seed=1)
    vocabulary = fit_vocabulary(model)
    level, view = model.levels[1], model.ascend(MANY, 1)[1]

    def losses() -> dict[str, Tensor]:
        return autoencoder_losses(level, view.sequence, view.segmentation, chance(2), choices=view.choices)

    parts = (level.compressor, level.decoder, level.readout)
    assert_useful(losses(), [parameter for part in parts for parameter in part.parameters()])
    assert parts_reached(losses(), [vocabulary.table]) == [False]
    before = losses()["positions"].item()
    optimizer = torch.optim.Adam(level.autoencoder_parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        torch.autograd.backward(sum(losses().values(), torch.zeros(())))
        optimizer.step()
    assert losses()["positions"].item() < before - 0.2


@torch.no_grad()
def test_a_caller_may_fix_the_lowest_levels_cuts() -> None:
    model = small_model(2)
    rows = text_sequence(b"one two three", device=model.device)
    probs = torch.zeros(1, 13)
    probs[0, [0, 4, 8]] = 1
    views = model.ascend(rows, 1, start_probs=probs)
    assert views[0].segmentation.starts.tolist() == [[0, 4, 8]]
    assert views[0].slots.segments.tolist() == [[0] * 4 + [1] * 4 + [2] * 5], "of which the strings are single bytes"
    assert views[1].sequence.values.shape[1] == 13
    assert_cuts_between_segments(views[1], views[0], model.levels[1].config.window)


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


@pytest.mark.parametrize("index", [0, 1, 2])
def test_slots_are_counted_without_their_latents(index: int) -> None:
    model = small_model(3)
    slots = model.ascend(ROWS, index)[-1].slots
    with mock.patch.object(model.levels[index].compressor, "forward", side_effect=AssertionError):
        slot_mask, document_mask = model.slot_masks(ROWS, index)
    assert torch.equal(slot_mask, slots.slot_mask) and torch.equal(document_mask, slots.document_mask)
