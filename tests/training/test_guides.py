"""The guides of runs: fitted when they are needed, the same after a run was taken up again, and told of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training_helpers import Run, assert_same_tensors, small_config
from zonkey_cli.training_view import guide_line
from zonkey_core.checkpoint import GuideOrigin, TrainingRecord, read_model_card
from zonkey_core.config import StageShares
from zonkey_core.data import SourceSpec
from zonkey_core.model.model import Zonkey
from zonkey_core.training import guides, trainer
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.document_guide import LEAST_ENDS, DocumentGuide, Line
from zonkey_core.training.events import GuideEvent
from zonkey_core.training.guides import guided_levels


@pytest.fixture(autouse=True)
def every_step_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "REPORT_SECONDS", 0.0)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Line, float]]:
    """What guides are fitted to, as it happens."""
    seen: list[tuple[Line, float]] = []

    class Watched(DocumentGuide):
        def __init__(self, line: Line, rate: float) -> None:
            seen.append((line, rate))
            super().__init__(line, rate)

    monkeypatch.setattr(guides, "DocumentGuide", Watched)
    return seen


def record_of(run: Run) -> TrainingRecord:
    """What is remembered of a run."""
    record = read_model_card(run.out).training
    assert record is not None
    return record


def test_each_level_above_bytes_has_a_guide_once_its_stage_begins(
    tmp_path: Path, fitted: list[tuple[Line, float]]
) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(3, shares=StageShares(splitter=(1.0,))), steps=9, stage="splitter", stop_at=3)
    assert not fitted and not record_of(run).guides, "bytes have none"
    assert not run.resume().stopped
    assert len(fitted) == 2 and record_of(run).guides.keys() == {"1", "2"}
    told = [event for event in run.events if isinstance(event, GuideEvent)]
    assert [event.level for event in told] == [1, 2] and all(event.fitted for event in told)
    assert all(event.documents == len(line.ends) >= LEAST_ENDS for event, (line, _) in zip(told, fitted, strict=True))
    read = [len(line.places) for line, _ in fitted]
    assert all(0.9 * 40_000 < count <= 40_000 + 128 for count in read), "as many bytes as configured, nearly all units"


def test_starts_come_at_the_rate_of_the_level(tmp_path: Path, fitted: list[tuple[Line, float]]) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(2), steps=2, stage="splitter")
    ((_, rate),) = fitted
    length = small_config().model.levels[1].segment_length
    bytes_each = 1 / (rate * length)
    assert 1.5 < bytes_each < small_config().model.levels[0].window
    assert rate == record_of(run).guides["1"].rate


@pytest.mark.parametrize("stage", ["splitter", "joint"])
def test_a_run_that_was_stopped_goes_on_with_the_same_guide(
    tmp_path: Path, stage: str, fitted: list[tuple[Line, float]]
) -> None:
    config = small_config(2, shares=StageShares(splitter=(0.0, 1.0)))
    whole, parted = Run(tmp_path / "whole"), Run(tmp_path / "parted")
    whole.train(config, steps=6, stage=stage, precision="fp32")
    parted.train(config, steps=6, stage=stage, precision="fp32", stop_at=3)
    told = [event for event in parted.events if isinstance(event, GuideEvent)]
    assert not parted.resume().stopped
    assert [event for event in parted.events if isinstance(event, GuideEvent)] == told, "it is told of once"
    (first, rate), (second, rate_again), (third, rate_resumed) = fitted
    assert rate == rate_again == rate_resumed
    for line in (second, third):
        assert all(np.array_equal(one, other) for one, other in zip(first, line, strict=True))
    assert whole.losses() == parted.losses()
    assert_same_tensors(whole.tensors(), parted.tensors())


def test_a_guide_serves_all_stages_of_a_run(tmp_path: Path, fitted: list[tuple[Line, float]]) -> None:
    run = Run(tmp_path / "model")
    shares = StageShares(splitter=(0.0, 1.0), autoencoder=(0.0,), denoiser=(0.0,), plan=(0.0,), joint=1.0)
    run.train(small_config(2, shares=shares), steps=4)
    assert {event.stage for event in run.steps()} == {"splitter", "joint"} and len(fitted) == 1
    assert all("1/following" in event.losses for event in run.steps())


def test_a_text_without_ends_of_documents_leaves_cuts_as_they_are(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The heron stood in the shallows. It waited, and the water went by. " * 400)
    run = Run(tmp_path / "model")
    run.train(small_config(2), spec=SourceSpec(sources=(str(text),), split="all"), steps=4, stage="splitter")
    (told,) = (event for event in run.events if isinstance(event, GuideEvent))
    assert not told.fitted and told.documents < LEAST_ENDS
    assert all(event.losses["1/following"] >= 0 for event in run.steps() if event.level == 1)


def test_people_are_told_in_a_line_what_a_level_learns_from() -> None:
    learned = guide_line(GuideEvent(1, 1234, True))
    kept = guide_line(GuideEvent(1, 3, False))
    assert "level 1" in learned and "1,234 documents" in learned
    assert "level 1" in kept and "keeps its own cuts" in kept and "\n" not in learned + kept


def test_guides_belong_to_stages_that_train_splitters_above_bytes() -> None:
    model = Zonkey(small_config(3).model)
    stages = {(name, level): list(guided_levels(model, Stage(name, level, 1.0)))
              for name in ("splitter", "autoencoder", "denoiser", "plan") for level in (0, 1, 2)}
    assert stages.pop(("splitter", 1)) == [1] and stages.pop(("splitter", 2)) == [2]
    assert not any(stages.values())
    assert list(guided_levels(model, Stage("joint", None, 1.0))) == [1, 2]


def test_the_record_of_a_guide_is_plain_json(tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(2), steps=2, stage="splitter")
    content = json.loads((run.out / "training.json").read_bytes())
    assert content["guides"]["1"].keys() == set(GuideOrigin.__struct_fields__)
    torch.testing.assert_close(content["guides"]["1"]["rate"], record_of(run).guides["1"].rate)
