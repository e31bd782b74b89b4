"""Calibration: after it a level cuts as often as it is asked to, and training leaves both copies calibrated."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model_helpers import byte_rows, chance, latent_rows, small_model
from tests.training_helpers import Run, small_config
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.training import calibration, trainer
from zonkey_core.training.calibration import calibrate, wanted_segments
from zonkey_core.training.stages import stage_losses


def random_rows(level: Level, seed: int) -> PositionSequence:
    """Rows of which a part is padding, with documents that begin within."""
    if not level.reads_bytes:
        rows = latent_rows(level, [150, 90, 120], seed=seed, padding=5)
        rows.document_mask[0, 70] = True
        return rows
    values = torch.randint(40, 250, (4, 150), generator=chance(seed))
    rows = byte_rows(*(bytes(row) for row in values.tolist()))
    rows.document_mask[1, [50, 51, 52, 90]] = True
    rows.document_mask[2, 0] = False
    rows.exists_mask[3, 100:] = False
    return rows


@torch.no_grad()
def rate_of(level: Level, batches: Iterable[PositionSequence]) -> float:
    """Cuts above one half per position, the beginnings of documents left out."""
    cuts = positions = 0
    for rows in batches:
        free = rows.exists_mask & ~rows.document_mask
        positions += int(free.sum())
        free[:, 0] = False
        cuts += int((level.split(rows).start_prob[free] > 0.5).sum())
    return cuts / positions


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("shift", [-20.0, -1.0, 0.0, 20.0])
@pytest.mark.parametrize("length", [2.5, 6.0])
def test_a_level_cuts_at_its_rate(index: int, shift: float, length: float) -> None:
    level = small_model(2, segment_length=length).levels[index]
    level.splitter.shift(shift)
    batches = [random_rows(level, seed) for seed in (10, 20)]
    if abs(shift) > 10:
        assert rate_of(level, batches) in (0, pytest.approx(1, abs=0.3))
    calibrate(level, iter(batches))
    assert rate_of(level, batches) == pytest.approx(1 / length, abs=0.003)


def test_calibration_moves_all_logits_alike() -> None:
    level = small_model(1).levels[0]
    rows = random_rows(level, 1)
    before = {name: tensor.clone() for name, tensor in level.state_dict().items()}
    logits = level.split(rows).start_logits
    calibrate(level, [rows])
    changed = [name for name, tensor in level.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["splitter.head.bias"]
    open_mask = rows.cut_open()
    moves = (level.split(rows).start_logits - logits)[open_mask]
    assert moves.std() < 1e-5 and moves.abs().max() > 1e-3
    calibrate(level, [rows])
    again = (level.split(rows).start_logits - logits)[open_mask]
    assert (again - moves).abs().max() < 1e-4, "once is enough"


def test_text_is_cut_as_often_as_its_information_says() -> None:
    level = small_model(1, bits_per_segment=20.0).levels[0]
    rows = random_rows(level, 1)
    wanted = wanted_segments(level, rows)
    assert rows.exists_mask.sum() * 0.15 < wanted < rows.exists_mask.sum() * 0.6
    calibrate(level, [rows])
    found = int((level.split(rows).start_prob[rows.cut_open()] > 0.5).sum())
    assert found == pytest.approx(wanted, abs=2)
    dull = byte_rows(*[b"a" * 150] * 4)
    assert wanted_segments(level, dull) < 1, "what is known costs nothing"


def test_padding_and_what_begins_anyway_do_not_count() -> None:
    level = small_model(1).levels[0]
    rows = random_rows(level, 1)
    other = rows._replace(values=rows.values.clone())
    other.values[~rows.exists_mask] = 0
    found = []
    for each in (rows, other):
        level.splitter.shift(float(level.splitter.head.bias.detach()))
        calibrate(level, [each])
        found.append(level.splitter.head.bias.item())
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize(
    ("text", "length"), [(b"a", 3.0), (b"abc", 7.0), ("日本語日本語".encode(), 2.5)], ids=["one", "few", "uncuttable"]
)
def test_a_rate_out_of_reach_leaves_a_level_as_it_is(text: bytes, length: float) -> None:
    level = small_model(1, segment_length=length).levels[0]
    before = level.splitter.head.bias.item()
    calibrate(level, [byte_rows(text)])
    assert level.splitter.head.bias.item() == before


# In training


class Calibrations:
    """Keeps what was calibrated, in training, on which positions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[PositionSequence]] = []
        monkeypatch.setattr(calibration, "calibrate", self)

    def __call__(self, level: Level, sequences: Iterable[PositionSequence]) -> None:
        self.batches.append(list(sequences))
        calibrate(level, self.batches[-1])


def saved_models(run: Run) -> dict[str, Zonkey]:
    """The live and the averaged model that a run left."""
    models = {}
    for name in ("live", "average"):
        models[name] = small_model(2)
        weights: dict[str, Tensor] = {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in run.tensors().items() if key.startswith(f"{name}.")
        }
        models[name].load_state_dict(weights)
    return models


@pytest.mark.parametrize("stage", ["splitter", "joint"])
def test_a_stage_that_moves_splitters_leaves_them_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    seen = Calibrations(monkeypatch)
    run = Run(tmp_path / "model")
    run.train(small_config(), steps=4, stage=stage, precision="fp32")
    assert len(seen.batches) == 2 and [len(each) for each in seen.batches] == [trainer.CALIBRATION_BATCHES] * 2
    for model in saved_models(run).values():
        for level, batches in zip(model.levels, seen.batches, strict=True):
            assert rate_of(level, batches) == pytest.approx(1 / level.config.segment_length, abs=0.02)
    tensors = run.tensors()
    for index in range(2):
        name = f"bottom.{'above.' * index}splitter.head.bias"
        assert torch.equal(tensors[f"live.{name}"], tensors[f"average.{name}"])


def test_an_upper_level_is_calibrated_on_segments_of_a_calibrated_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Calibrations(monkeypatch)
    Run(tmp_path / "model").train(small_config(), steps=2, stage="joint", precision="fp32")
    below, above = (sum(int(rows.exists_mask.sum()) for rows in each) for each in seen.batches)
    assert above / below == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_other_stages_leave_cuts_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    seen = Calibrations(monkeypatch)
    run = Run(tmp_path / "model")
    run.train(small_config(1), steps=2, stage=stage)
    assert not seen.batches


def test_calibration_draws_batches_that_were_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Calibrations(monkeypatch)
    run = Run(tmp_path / "model")
    trained: list[Tensor] = []

    def watched(*given: Any) -> dict[str, Tensor]:
        trained.extend(given[2].values)
        return stage_losses(*given)

    monkeypatch.setattr(trainer, "stage_losses", watched)
    run.train(small_config(1), steps=4, stage="splitter")
    known = {bytes(row.tolist()) for row in trained}
    assert len(known) == 8
    assert not known & {bytes(row.tolist()) for rows in seen.batches[0] for row in rows.values}
