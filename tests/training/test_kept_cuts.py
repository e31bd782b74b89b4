"""Kept cuts: some rows teach a splitter nothing but what it knew of them, also where a run is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.model_helpers import byte_rows, chance, few, fit_vocabulary, level_config, seeds, small_model
from tests.training_helpers import Run, assert_same_tensors
from zonkey_core.checkpoint import MODEL, read_tensors
from zonkey_core.config import Config, ModelConfig, TrainingConfig
from zonkey_core.data import SourceSpec
from zonkey_core.data.rows import RowBatch
from zonkey_core.errors import ConfigError
from zonkey_core.model.level import Level
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_splitter import frozen_copy
from zonkey_core.training import trainer
from zonkey_core.training.augmentation import noise_rows, noised_start_prob
from zonkey_core.training.batches import BatchPieces
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.losses import existence_loss_at_rates
from zonkey_core.training.objectives import KEPT, RowOrigins, kept_cuts_loss, noise_units, splitter_objective
from zonkey_core.training.saving import READER
from zonkey_core.training.stages import stage_losses

STEPS = 8
FORMER = "unsaved.bottom.former."
"""How the names begin of what a run keeps of the splitter that it started with."""
ASCII = "The heron stood in the shallows, as ever, and waited; the water went by. Then, very late, it flew away. "
CHINESE = "水面上有一只白鹭在等待着风停下来然后飞走了没有人看见它" * 8


def level_that_keeps(*, lexicon: int = 0) -> Level:
    """A level of bytes that is to keep the cuts that it makes now."""
    level = small_model(1, seed=5, lexicon=lexicon).bottom
    level.former = frozen_copy(level.splitter)
    return level


def text_rows(count: int, *, text: str = ASCII) -> PositionSequence:
    """Rows of a text."""
    data = (text * 3).encode()
    return byte_rows(*(data[3 * start : 3 * start + 81] for start in range(count)))


def gradients(loss: Tensor, level: Level) -> Tensor:
    """What a loss teaches the splitter."""
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(level.splitter.parameters()))])


# The loss


@few
@given(seed=seeds)
def test_a_splitter_that_is_as_it_was_learns_from_noised_text_alone(seed: int) -> None:
    level, rows = level_that_keeps(), text_rows(3)
    assert level.former is not None
    target = level.former(rows).start_prob
    clean = existence_loss_at_rates(level.split(rows).start_logits, target, rows.cut_open().float())
    assert gradients(clean, level).abs().max() < 1e-6
    noised, origins = noise_rows(rows, chance(seed))
    asked = noised.cut_open().float()
    wanted = existence_loss_at_rates(level.split(noised).start_logits, noised_start_prob(target, origins), asked)
    expected = gradients(wanted, level)
    torch.testing.assert_close(gradients(kept_cuts_loss(level, rows, chance(seed)), level), expected)
    assert expected.abs().max() > 1e-4


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_a_splitter_that_cuts_otherwise_is_drawn_back(shift: float) -> None:
    level, rows = level_that_keeps(), text_rows(3)
    as_it_was = kept_cuts_loss(level, rows, chance(1))
    level.splitter.shift(shift)
    loss = kept_cuts_loss(level, rows, chance(1))
    assert loss > as_it_was + 0.05
    assert level.former is not None
    target, (noised, origins) = level.former(rows).start_prob, noise_rows(rows, chance(1))
    parts = ((rows, target), (noised, noised_start_prob(target, origins)))
    both = [
        existence_loss_at_rates(level.split(part).start_logits, wanted, part.cut_open().float())
        for part, wanted in parts
    ]
    torch.testing.assert_close(loss, torch.stack(both).sum())
    (gradient,) = torch.autograd.grad(loss, level.splitter.head.bias)
    assert gradient * shift < 0, "the bias was lowered, so it is to rise"


def test_sure_cuts_that_stay_cost_nothing() -> None:
    level, rows = level_that_keeps(), text_rows(2)
    torch.nn.init.zeros_(level.splitter.head.weight)
    torch.nn.init.constant_(level.splitter.head.bias, -30.0)
    level.former = frozen_copy(level.splitter)
    assert kept_cuts_loss(level, rows, chance(1)) < 1e-6


def test_a_splitter_that_knows_what_stands_in_for_what_is_held_to_its_cuts_in_either_case() -> None:
    level, rows = level_that_keeps(), text_rows(40)
    assert level.splitter.ngrams is not None
    before = noise_units(level, rows, chance(3)).sequence.values
    assert torch.equal(before, noise_rows(rows, chance(3)).sequence.values)
    kinds = torch.tensor([ord("T")])
    level.splitter.ngrams.stand_in(kinds, kinds + 32)
    noised = noise_units(level, rows, chance(3))
    capital = torch.isin(noised.sequence.values, kinds)
    spelled = rows.values.gather(1, noised.origins)
    assert (capital & (spelled == noised.sequence.values + 32)).any(), "small letters have become capitals"
    assert (~capital & (spelled == noised.sequence.values - 32)).any(), "and capitals small letters"


# Which rows teach what


def from_two(kept_mask: torch.Tensor) -> RowOrigins:
    """Rows of two sources, of which the second's cuts are kept."""
    return RowOrigins(kept_mask.long(), kept_mask)


@pytest.mark.parametrize("lexicon", [0, 4096])
@few
@given(seed=seeds)
def test_kept_rows_teach_nothing_but_their_cuts(lexicon: int, seed: int) -> None:
    """Other text in their place, of as many units, leaves every other loss as it was, and what was counted."""
    kept = torch.tensor([True, False, True, False])
    rows = text_rows(4)
    values = rows.values.clone()
    values[kept] = values[kept].flip(1)
    found, counts = [], []
    for part in (rows, rows._replace(values=values)):
        level = level_that_keeps(lexicon=lexicon)
        found.append(splitter_objective(level, part, chance(seed), origins=from_two(kept)))
        counts.append(level.lexicon.unit_counts if level.lexicon is not None else torch.zeros(0))
    first, second = found
    assert first.keys() == second.keys() > {"kept", "told" if lexicon else "masked", "stability"}
    assert first["kept"] != second["kept"]
    assert all(torch.equal(first[name], second[name]) for name in first if name != "kept")
    assert torch.equal(*counts) and counts[0].any() == bool(lexicon)


@pytest.mark.parametrize("levels", [1, 2])
def test_the_joint_stage_knows_where_rows_are_from(levels: int) -> None:
    """What splits text is told as in the splitter's own stage, and all else is learned of every row."""
    model, kept = small_model(levels, seed=5, lexicon=4096), torch.tensor([True, False, True, False])
    fit_vocabulary(model)
    model.bottom.former = frozen_copy(model.bottom.splitter)
    stage, rows = Stage("joint", None, 1.0), text_rows(4)
    plain, some = (
        stage_losses(model, stage, rows, chance(2), 1.0, origins) for origins in (None, from_two(kept))
    )
    assert some.keys() == plain.keys() | {"0/kept"}
    told = splitter_objective(model.bottom, rows, chance(2), origins=from_two(kept))
    torch.testing.assert_close(some["0/kept"], told["kept"])
    every = stage_losses(model, stage, rows, chance(2), 1.0, from_two(torch.ones(4, dtype=torch.bool)))
    assert plain.keys() - every.keys() == {"0/told", "0/cost", "0/price", "0/stability", "0/overlong", "0/uncertainty"}


def test_rows_that_are_not_kept_do_not_enter_what_is() -> None:
    level, rows, kept = level_that_keeps(), text_rows(4), torch.tensor([True, False, True, False])
    losses = splitter_objective(level, rows, chance(1), origins=from_two(kept))
    alone = PositionSequence(*(part[kept] for part in rows))
    torch.testing.assert_close(losses["kept"], KEPT * kept_cuts_loss(level, alone, chance(1)))


@pytest.mark.parametrize("lexicon", [0, 4096])
def test_a_batch_may_be_of_one_sort(lexicon: int) -> None:
    level, rows = level_that_keeps(lexicon=lexicon), text_rows(3)
    every, none = (torch.full((3,), kept) for kept in (True, False))
    assert splitter_objective(level, rows, chance(1), origins=from_two(every)).keys() == {"kept"}
    none_kept = splitter_objective(level_that_keeps(lexicon=lexicon), rows, chance(1), origins=from_two(none))
    plain = splitter_objective(level_that_keeps(lexicon=lexicon), rows, chance(1))
    assert none_kept.keys() == plain.keys()
    assert all(torch.equal(none_kept[name], plain[name]) for name in plain)


def test_cuts_that_are_kept_move_less() -> None:
    """A splitter that learns other text cuts English as before where it is told to, and else does not."""
    english, kept = text_rows(2), torch.tensor([True, True, False, False])
    batch = PositionSequence(*(torch.cat(pair) for pair in zip(english, text_rows(2, text=CHINESE), strict=True)))
    moved = []
    for rows, mask in ((batch, kept), (PositionSequence(*(part[~kept] for part in batch)), None)):
        level = level_that_keeps()
        optimizer = torch.optim.Adam(level.parameters(), lr=0.01)
        for step in range(40):
            origins = None if mask is None else from_two(mask)
            losses = splitter_objective(level, rows, chance(step), origins=origins)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
        assert level.former is not None
        with torch.no_grad():
            moved.append((level.split(english).start_prob - level.former(english).start_prob).abs().mean())
    assert moved[0] < 0.5 * moved[1]


# Runs


@pytest.fixture(scope="module", autouse=True)
def every_step_is_reported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "REPORT_SECONDS", 0.0)
        yield


def config_with(lexicon: int) -> Config:
    """A very small model of one level, with rows of two sources in each batch."""
    training = TrainingConfig(row_bytes=64, batch_rows=2, shuffle_documents=20)
    return Config(model=ModelConfig(levels=(level_config(lexicon=lexicon),)), training=training)


def mixed(folder: Path) -> SourceSpec:
    """A text to be learned, and one whose cuts stay."""
    (folder / "zh.txt").write_text(CHINESE * 4, encoding="utf-8")
    return SourceSpec(sources=(str(folder / "zh.txt"), "sample"), weights=(1.0, 1.0), kept_cuts=("sample",))


@pytest.mark.parametrize("lexicon", [0, 4096])
def test_stopping_leaves_no_trace(tmp_path: Path, lexicon: int) -> None:
    """Also of what was counted, and of the splitter that the run began with."""
    config, spec, start = config_with(lexicon), mixed(tmp_path), Run(tmp_path / "start")
    start.train(config, steps=4, stage="splitter", seed=1)
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "model")
    given = {"spec": spec, "start_from": start.out, "steps": STEPS, "stage": "splitter", "seed": 3}
    assert not whole.train(config, **given).stopped
    assert all("0/kept" in each.losses for each in whole.steps())
    assert run.train(config, **given, stop_at=1).stopped
    for stop in (2, 5):
        assert run.resume(stop_at=stop).steps == stop
    assert not run.resume().stopped
    assert run.losses() == whole.losses()
    assert_same_tensors(run.tensors(), whole.tensors())
    assert (run.out / MODEL).read_bytes() == (whole.out / MODEL).read_bytes()
    tensors, began, released = run.tensors(), read_tensors(start.out, MODEL), read_tensors(run.out, MODEL)
    former = {name.partition(FORMER)[2]: tensor for name, tensor in tensors.items() if name.startswith(FORMER)}
    assert former and not any(".former." in name or ".lexicon." in name for name in released)
    for name, tensor in former.items():
        assert torch.equal(tensor, began[f"bottom.splitter.{name}"].float())
        alike = torch.equal(tensor, tensors[f"live.bottom.splitter.{name}"])
        assert alike == (
            name == "ngrams.stand_ins" or (name in ("ngrams.owners", "ngrams.unknown") and not lexicon)
        ), "rows that are for all stay so"
    assert ("unsaved.bottom.lexicon.counts" in tensors) == bool(lexicon)
    known = tensors.get("unsaved.bottom.lexicon.information", torch.zeros(2)) > 0
    assert known.tolist() == [bool(lexicon), False], "of what is learned alone"


def test_a_released_model_starts_another_run(tmp_path: Path) -> None:
    """One that keeps nothing, and one that keeps cuts of its own."""
    config, spec, start = config_with(4096), mixed(tmp_path), Run(tmp_path / "start")
    start.train(config, spec=spec, steps=2, stage="splitter")
    for name, each in (("plain", SourceSpec(sources=("sample",))), ("kept", spec)):
        run = Run(tmp_path / name)
        run.train(config, spec=each, start_from=start.out, steps=2, stage="splitter")
        assert any(tensor.startswith(FORMER) for tensor in run.tensors()) == (name == "kept")


def test_batches_that_are_shared_out_are_refused_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    with pytest.raises(ConfigError, match="--keep-cuts of some of the text is for one process"):
        run.train(config_with(0), spec=mixed(tmp_path), steps=2, stage="splitter", accumulate=2)
    assert not run.out.exists()


def test_the_pieces_of_a_batch_know_where_their_rows_are_from() -> None:
    values, starts = np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.bool_)
    device, sources = torch.device("cpu"), np.array([0, 1, 2, 1])
    (whole,) = BatchPieces(4, 1, device, [1]).origins(RowBatch(values, starts, 0, sources))
    assert whole.sources.tolist() == [0, 1, 2, 1] and whole.kept_mask.tolist() == [False, True, False, True]
    first, second = BatchPieces(4, 2, device).origins(RowBatch(values, starts, 0, sources))
    assert first.sources.tolist() == [0, 1] and second.sources.tolist() == [2, 1]
    (alone,) = BatchPieces(4, 1, device).origins(RowBatch(values, starts))
    assert alone.sources.tolist() == [0] * 4 and not alone.kept_mask.any()


def test_kept_cuts_of_some_text_are_for_whole_batches() -> None:
    for kept in ([], [0, 1]):
        BatchPieces(2, 2, torch.device("cpu"), kept, 2).require_whole()
    with pytest.raises(ConfigError, match="leave out --accumulate"):
        BatchPieces(2, 2, torch.device("cpu"), [0], 2).require_whole()


@pytest.mark.parametrize(("before", "after"), [(0, 4096), (4096, 0)])
def test_what_teaches_the_splitter_may_be_another(tmp_path: Path, before: int, after: int) -> None:
    """So a model of English goes on with other languages, and all of it but its reader stays."""
    start, run = Run(tmp_path / "start"), Run(tmp_path / "model")
    start.train(config_with(before), steps=4, stage="splitter", seed=1)
    run.train(config_with(after), spec=mixed(tmp_path), start_from=start.out, steps=2, stage="splitter", seed=3)
    began, made = read_tensors(start.out, MODEL), read_tensors(run.out, MODEL)
    readers = [{name for name in tensors if name.startswith(READER)} for tensors in (began, made)]
    assert [bool(names) for names in readers] == [not before, not after]
    assert began.keys() - readers[0] == made.keys() - readers[1]
    untouched = [name for name in began if name.startswith(("bottom.denoiser.", "bottom.compressor."))]
    assert untouched and all(torch.equal(began[name], made[name]) for name in untouched)
    assert "0/told" in run.losses()[0][3] if after else "0/masked" in run.losses()[0][3]
    assert run.resume(stop_at=1).steps == 2


def test_a_reader_of_another_size_begins_anew(tmp_path: Path) -> None:
    start, run = Run(tmp_path / "start"), Run(tmp_path / "model")
    start.train(config_with(0), steps=2, stage="splitter", seed=1)
    larger = ModelConfig(levels=(level_config(lexicon=0, reader_contexts=512),))
    config = Config(model=larger, training=config_with(0).training)
    run.train(config, spec=mixed(tmp_path), start_from=start.out, steps=2, stage="splitter", seed=3)
    assert read_tensors(run.out, MODEL)["bottom.reader.contexts"].shape[1] == 512
