"""Training: exact resuming, the curriculum, what a run reports and leaves behind, and that it learns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from tests.model_helpers import TEXT, byte_rows, level_config
from tests.training_helpers import Run, assert_same_tensors, small_config
from zonkey_core.checkpoint import MODEL, TRAINING, load_model, read_model_card, read_tensors
from zonkey_core.config import Config, ModelConfig, StageShares, TrainingConfig
from zonkey_core.data import SourceSpec
from zonkey_core.errors import CheckpointError, ConfigError, ZonkeyError
from zonkey_core.model.level import Level
from zonkey_core.model.string_counter import StringCounter
from zonkey_core.training import (
    METRICS,
    CheckpointEvent,
    Event,
    FiguresEvent,
    GuideEvent,
    SampleEvent,
    SkippedStepEvent,
    SplitsEvent,
    StageEvent,
    StepEvent,
    fitting,
    resume,
    trainer,
)
from zonkey_core.training.stages import stage_losses
from zonkey_core.weight_rounding import restore_weights, round_weights

STEPS = 40
WHOLE = {
    "bottom.vocabulary.strings", "bottom.vocabulary.lengths",
    "bottom.splitter.ngrams.owners", "bottom.splitter.ngrams.stand_ins",
}
"""Whole numbers."""
FITTED = {*WHOLE, "bottom.vocabulary.log_shares"}
"""What is saved of a model, but learned by no gradient."""
CURRICULUM = [
    ("splitter", 0), ("autoencoder", 0), ("denoiser", 0), ("splitter", 1), ("autoencoder", 1), ("denoiser", 1),
    ("joint", None), ("denoiser", 1), ("plan", 0),
]


@pytest.fixture(scope="module", autouse=True)
def every_step_is_reported_and_vocabularies_are_fitted_to_little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "REPORT_SECONDS", 0.0)
        patch.setattr(fitting, "BYTES_PER_STRING", 60)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over all stages that was never stopped; its folder must not be changed."""
    run = Run(tmp_path_factory.mktemp("whole") / "model")
    result = run.train(small_config(), steps=STEPS, seed=3)
    assert not result.stopped and result.path == run.out and result.steps == run.steps()[-1].step
    return run


def ends_of_stages(run: Run) -> list[int]:
    """The last step of every stage."""
    return [
        list(group)[-1].step for _, group in itertools.groupby(run.steps(), key=lambda each: (each.stage, each.level))
    ]


# Stopping and going on


def test_stopping_leaves_no_trace(whole: Run, tmp_path: Path) -> None:
    ends = ends_of_stages(whole)
    middle_of_joint = ends[-4] + 1
    assert middle_of_joint < ends[-3]
    run = Run(tmp_path / "model")
    result = run.train(small_config(), steps=STEPS, seed=3, stop_at=1)
    assert result.stopped and result.steps == 1
    for stop in sorted({ends[0], ends[0] + 1, ends[1], ends[2] - 1, ends[4], middle_of_joint, ends[-1]}):
        result = run.resume(stop_at=stop)
        assert result.stopped and result.steps == stop
    result = run.resume()
    assert not result.stopped and result.steps == ends[-1]
    assert run.losses() == whole.losses()
    assert_same_tensors(run.tensors(), whole.tensors())
    assert (run.out / MODEL).read_bytes() == (whole.out / MODEL).read_bytes()
    first, second = (read_model_card(each.out).training for each in (run, whole))
    assert first is not None and second is not None
    for name in ("data", "stage", "steps", "bytes_seen", "data_state", "random_state", "figures"):
        assert getattr(first, name) == getattr(second, name), name


def test_another_seed_is_another_run(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(), steps=STEPS, seed=4, stop_at=1)
    assert run.steps()[0].losses != whole.steps()[0].losses


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    Run(tmp_path / "model").train(small_config(1), steps=4, stop_at=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_finished_run_may_be_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(1), steps=4)
    before, reported = run.tensors(), len(run.steps())
    result = run.resume()
    assert not result.stopped and len(run.steps()) == reported
    assert_same_tensors(before, run.tensors())


def test_a_moved_folder_can_be_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path / "here")
    run.train(small_config(1), steps=8, stop_at=2)
    moved = Run(run.out.rename(tmp_path / "there"))
    assert moved.resume().path == moved.out
    assert not run.out.exists()


def test_a_run_without_its_record_cannot_be_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(1), steps=4, stop_at=1)
    (run.out / TRAINING).unlink()
    with pytest.raises(CheckpointError, match=r"training\.json"):
        run.resume()


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"out": 5}},
        {"options": {}},
        {"data": {"sources": "sample"}},
        {"random_state": "###"},
        {"random_state": "AAAA"},
        {"stage": -1},
        {"stage": 99},
        {"data_state": {"documents": {}, "offset": 0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_damaged_record_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(1), steps=4, stop_at=1)
    record = msgspec.json.decode((run.out / TRAINING).read_bytes())
    (run.out / TRAINING).write_bytes(msgspec.json.encode(record | change))
    with pytest.raises(ZonkeyError) as caught:
        run.resume()
    assert "\n" not in str(caught.value)


# What a run reports and leaves


def test_the_stages_come_in_order_and_are_all_trained(whole: Run) -> None:
    begun = [(event.stage, event.level) for event in whole.events if isinstance(event, StageEvent)]
    assert begun == CURRICULUM
    assert [key for key, _ in itertools.groupby((each.stage, each.level) for each in whole.steps())] == CURRICULUM
    assert [each.step for each in whole.steps()] == list(range(1, len(whole.steps()) + 1))


def test_reports_say_where_the_run_stands(whole: Run) -> None:
    steps = whole.steps()
    fractions = [each.fraction for each in steps]
    assert fractions == sorted(fractions) and 0 < fractions[0] < 0.5 and fractions[-1] == 1
    assert [each.bytes_seen for each in steps] == [128 * each.step for each in steps]
    assert all(each.seconds > 0 and each.bytes_per_second > 0 and each.seconds_left >= 0 for each in steps)
    assert steps[-1].seconds_left == 0
    for each in steps:
        levels = {name.split("/")[0] for name in each.losses}
        assert levels == ({"0", "1"} if each.level is None else {str(each.level)})
        assert all(math.isfinite(loss) for loss in each.losses.values())


def test_the_joint_stage_has_a_lower_rate(tmp_path: Path) -> None:
    rates = {}
    for stage in ("splitter", "joint"):
        run = Run(tmp_path / stage)
        run.train(small_config(1, joint_rate=0.25), steps=6, stage=stage, stop_at=4)
        rates[stage] = [each.learning_rate for each in run.steps()]
    assert rates["joint"] == pytest.approx([0.25 * rate for rate in rates["splitter"]])


def test_metrics_hold_every_event(whole: Run) -> None:
    lines = (whole.out / METRICS).read_bytes().splitlines()
    decoder = msgspec.json.Decoder(Event)
    assert [decoder.decode(line) for line in lines] == whole.events
    assert {type(event) for event in whole.events} == {
        StageEvent, GuideEvent, StepEvent, SplitsEvent, SampleEvent, FiguresEvent, CheckpointEvent,
    }


def test_a_checkpoint_holds_averages_and_figures(whole: Run) -> None:
    tensors = whole.tensors()
    averages = {name.removeprefix("average."): tensor for name, tensor in tensors.items() if name[:8] == "average."}
    half = read_tensors(whole.out, MODEL)
    assert half.keys() == averages.keys()
    for name, tensor in half.items():
        if name in WHOLE:
            assert torch.equal(tensor, averages[name]) and not tensor.is_floating_point()
            continue
        expected = restore_weights(round_weights({name: averages[name]}))
        assert expected.keys() == {name} and torch.equal(tensor, expected[name])
        torch.testing.assert_close(tensor.float(), averages[name], atol=1e-2, rtol=1e-2)
    card = read_model_card(whole.out)
    assert card.config == small_config()
    assert card.parameters == sum(tensor.numel() for name, tensor in averages.items() if name not in FITTED)
    assert card.training is not None
    figures = [event.figures for event in whole.events if isinstance(event, FiguresEvent)]
    assert figures == [card.training.figures]
    assert card.training.stage == len(CURRICULUM) and card.training.bytes_seen == 128 * card.training.steps


def test_a_stage_ends_on_the_averaged_weights(whole: Run) -> None:
    tensors = whole.tensors()
    for name, tensor in tensors.items():
        if name.startswith("live."):
            assert torch.equal(tensor, tensors["average." + name.removeprefix("live.")])
    assert not any(name.startswith("state.") for name in tensors)


def test_splits_shown_add_up_to_the_held_line(whole: Run) -> None:
    shown = ["".join(event.segments) for event in whole.events if isinstance(event, SplitsEvent)]
    assert len(set(shown)) == 1 and len(shown[0]) > 100


def test_a_source_without_held_out_text_is_not_measured(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The only line that there is.\n" * 40)
    run = Run(tmp_path / "model")
    assert not run.train(small_config(1), spec=SourceSpec(sources=(str(text),)), steps=4).stopped
    assert not any(isinstance(event, FiguresEvent) for event in run.events)
    card = read_model_card(run.out)
    assert card.training is not None and card.training.figures == {}


# Vocabularies


@pytest.fixture
def fillings(monkeypatch: pytest.MonkeyPatch) -> list[dict[bytes, int]]:
    """The segments that each vocabulary is chosen from, as it happens."""
    seen: list[dict[bytes, int]] = []
    collect = Level.collect

    def watched(level: Level, counter: StringCounter) -> None:
        seen.append(dict(counter.counts))
        collect(level, counter)

    monkeypatch.setattr(Level, "collect", watched)
    return seen


def vocabulary_tensors(run: Run, copy: str) -> dict[str, Tensor]:
    """What is saved of the vocabulary, of one copy of the model."""
    start = f"{copy}.bottom.vocabulary."
    return {name.removeprefix(start): tensor for name, tensor in run.tensors().items() if name.startswith(start)}


def test_a_vocabulary_is_collected_once_before_its_stage(tmp_path: Path, fillings: list[dict[bytes, int]]) -> None:
    run = Run(tmp_path / "model")
    config = small_config(shares=StageShares(splitter=(0.0,), autoencoder=(1.0, 0.0), denoiser=(1.0,), joint=1.0))
    run.train(config, steps=12, stop_at=2)
    assert not fillings and (vocabulary_tensors(run, "live")["lengths"] <= 1).all()
    run.resume(stop_at=4)
    (counts,) = fillings
    read = sum(len(segment) * count for segment, count in counts.items())
    assert 60 * level_config().vocabulary <= read < 60 * level_config().vocabulary + 128
    assert max(map(len, counts)) <= level_config().window
    live, average = vocabulary_tensors(run, "live"), vocabulary_tensors(run, "average")
    assert (live["lengths"] > 0).all(), "text has more strings than there is room for"
    for name in ("strings", "lengths", "log_shares"):
        assert torch.equal(live[name], average[name])
    torch.testing.assert_close(live["log_shares"].exp().sum(), torch.tensor(1.0))
    held = {bytes(string[:length].tolist()) for string, length in zip(live["strings"], live["lengths"], strict=True)}
    assert len(held) == level_config().vocabulary
    assert all(any(string in segment for segment in counts) for string in held if len(string) > 1)
    assert not run.resume().stopped
    assert len(fillings) == 1, "the joint stage goes on with it"
    after = vocabulary_tensors(run, "live")
    for name in ("strings", "lengths", "log_shares"):
        assert torch.equal(after[name], live[name])
    assert not torch.equal(after["table"], live["table"]) and not torch.equal(after["bias"], live["bias"])


@pytest.mark.parametrize("stage", ["joint", "denoiser"])
def test_a_run_of_one_stage_collects_its_vocabulary_too(
    tmp_path: Path, fillings: list[dict[bytes, int]], stage: str
) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(), steps=4, stage=stage, stop_at=1)
    assert len(fillings) == 1 and (vocabulary_tensors(run, "average")["lengths"] > 1).any()


def test_another_model_hands_on_its_vocabulary(
    whole: Run, tmp_path: Path, fillings: list[dict[bytes, int]]
) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(), steps=4, stage="denoiser", start_from=whole.out, stop_at=1)
    assert not fillings
    theirs = vocabulary_tensors(whole, "average")
    for copy in ("live", "average"):
        mine = vocabulary_tensors(run, copy)
        for name in ("strings", "lengths"):
            assert mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name])
        assert torch.equal(mine["log_shares"], theirs["log_shares"].half().float())


def test_text_is_read_with_the_strings_that_were_collected(whole: Run) -> None:
    level = load_model(whole.out).bottom
    assert level.vocabulary is not None and level.vocabulary.fitted
    rows = byte_rows(TEXT.encode())
    with torch.no_grad():
        slots = level.read_tokens(rows, level.choose_starts(rows, level.split(rows).start_prob))
    assert slots.entries is not None
    assert level.vocabulary.detokenize(slots.entries[0].tolist()) == TEXT.encode()
    assert len(slots.entries[0]) < len(TEXT.encode())


# Budgets and outputs


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_takes_its_number_of_steps(whole: Run, tmp_path: Path, steps: int) -> None:
    assert whole.steps()[-1].step == STEPS
    run = Run(tmp_path / "model")
    assert run.train(small_config(1), steps=steps).steps == len(run.steps()) == steps


def test_a_run_takes_its_minutes(tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    config = small_config(1)
    result = run.train(config, minutes=0.02)
    seconds = run.steps()[-1].seconds
    assert not result.stopped and 1.2 <= seconds < 60
    begun = [(event.stage, event.level) for event in run.events if isinstance(event, StageEvent)]
    assert begun == [("splitter", 0), ("autoencoder", 0), ("denoiser", 0), ("joint", None)]


@pytest.mark.parametrize("budget", [{}, {"steps": 5, "minutes": 1.0}])
def test_a_budget_is_steps_or_minutes(tmp_path: Path, budget: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="either"):
        Run(tmp_path / "model").train(small_config(1), **budget)
    assert not (tmp_path / "model").exists()


def test_a_model_is_not_overwritten(whole: Run) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in whole.out.rglob("*") if path.is_file()}

    before = files()
    with pytest.raises(CheckpointError, match="holds a model already"):
        Run(whole.out).train(small_config(), steps=5)
    assert files() == before


def test_an_existing_folder_may_be_trained_into(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    Run(tmp_path).train(small_config(1), steps=2, stop_at=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert load_model(tmp_path).config == small_config(1).model


def test_checkpoints_are_written_as_often_as_asked(tmp_path: Path) -> None:
    often, seldom = Run(tmp_path / "often"), Run(tmp_path / "seldom")
    often.train(small_config(1), steps=8, stage="splitter", save_every=0.0)
    seldom.train(small_config(1), steps=8, stage="splitter", save_every=1e6)
    saved = [[event.step for event in run.events if isinstance(event, CheckpointEvent)] for run in (often, seldom)]
    assert saved == [[*range(1, 9), 8, 8], [1, 8]]


# Divergence


def broken_at(*steps: int) -> Callable[..., dict[str, Tensor]]:
    """`stage_losses` whose losses are no numbers at these calls of it."""
    calls = itertools.count(1)

    def losses(*arguments: Any) -> dict[str, Tensor]:
        found = stage_losses(*arguments)
        return {name: loss * torch.nan for name, loss in found.items()} if next(calls) in steps else found

    return losses


@pytest.mark.parametrize("report_seconds", [0.0, 1e9])
def test_a_loss_that_is_no_number_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report_seconds: float
) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(1), steps=40, stop_at=2)
    before = run.tensors()
    monkeypatch.setattr(trainer, "REPORT_SECONDS", report_seconds)
    monkeypatch.setattr(trainer, "stage_losses", broken_at(1, 3))
    run.resume(stop_at=1)
    assert_same_tensors(before, run.tensors())
    run.resume(stop_at=6)
    skipped = [event for event in run.events if isinstance(event, SkippedStepEvent)]
    assert [event.step for event in skipped] == [3, 5] and all("nan" in event.reason for event in skipped)
    record = read_model_card(run.out).training
    assert record is not None and (record.steps, record.skipped_steps) == (6, 2)
    assert all(tensor.isfinite().all() for tensor in run.tensors().values())


def test_a_run_whose_losses_stay_no_numbers_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(1), steps=80, stage="splitter", stop_at=2)
    before = run.tensors()
    monkeypatch.setattr(trainer, "stage_losses", broken_at(*range(1, 100)))
    with pytest.raises(ZonkeyError, match="diverged") as caught:
        run.resume()
    assert "\n" not in str(caught.value)
    assert_same_tensors(before, run.tensors())


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(1), steps=40, stop_at=2)
    before = run.tensors()

    def broken(losses: Tensor, parameters: list[torch.nn.Parameter], *others: Any) -> None:
        parameters[0].data[:] = torch.nan

    monkeypatch.setattr(trainer, "take_step", broken)
    with pytest.raises(ZonkeyError, match="diverged"):
        resume(run.out, on_event=run.events.append, should_stop=lambda: True)
    assert_same_tensors(before, run.tensors())


# From another model


def test_training_goes_on_from_another_model(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(), steps=STEPS, seed=9, stage="splitter", start_from=whole.out, stop_at=1)
    start, now = whole.tensors(), run.tensors()
    names = [name for name in start if name.startswith("live.bottom.denoiser")]
    assert names
    for name in names:
        assert torch.equal(now[name], restore_weights(round_weights({name: start[name]}))[name].float())
    card = read_model_card(run.out)
    assert card.training is not None
    assert card.training.parent == whole.out.name and card.training.steps == 1
    assert run.resume(stop_at=2).steps == 2


def test_a_model_of_another_shape_is_no_start(whole: Run, tmp_path: Path) -> None:
    config = Config(
        model=ModelConfig(levels=(level_config(width=32), level_config())), training=small_config().training
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*weights do not fit") as caught:
        Run(tmp_path / "model").train(config, steps=5, start_from=whole.out)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="do not fit"):
        Run(tmp_path / "model").train(small_config(1), steps=5, start_from=whole.out)
    with pytest.raises(CheckpointError, match="missing"):
        Run(tmp_path / "model").train(small_config(), steps=5, start_from=tmp_path / "nowhere")
    assert not (tmp_path / "model").exists()


# That it learns


def test_training_learns(tmp_path: Path) -> None:
    """A real, if tiny, training on the bundled text: what each stage minimises falls well below where it began."""
    level = level_config(width=32, splitter_width=32, denoiser_width=32, segment_length=4.0)
    training = TrainingConfig(
        row_bytes=160, batch_rows=4, shuffle_documents=100, learning_rate=0.01, matrix_learning_rate=0.02,
        table_learning_rate=0.03, shares=StageShares(splitter=(1.0,), autoencoder=(1.0,), denoiser=(0.8,), joint=0.1),
    )
    run = Run(tmp_path / "model")
    run.train(Config(model=ModelConfig(levels=(level,)), training=training), steps=130, precision="fp32")

    def course(stage: str, loss: str) -> tuple[float, float]:
        """Mean at the beginning and at the end of a stage."""
        values = [each.losses[f"0/{loss}"] for each in run.steps() if each.stage == stage]
        return sum(values[:4]) / 4, sum(values[-4:]) / 4

    for stage, loss, share in (
        ("splitter", "masked", 0.95),
        ("autoencoder", "positions", 0.75),
        ("denoiser", "endings", 0.8),
    ):
        begin, end = course(stage, loss)
        assert end < share * begin, (stage, loss, begin, end)
    card = read_model_card(run.out)
    assert card.training is not None
    assert card.training.figures["level 0: byte accuracy"] > 0.05
