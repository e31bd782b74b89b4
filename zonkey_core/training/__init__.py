"""Training: a curriculum of stages, run so that it can be stopped and taken up again without a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from zonkey_core.checkpoint import (
    CONFIG,
    MODEL,
    OPTIMIZER,
    TRAINING,
    TrainingRecord,
    read_model_card,
    read_tensors,
    require_fit,
)
from zonkey_core.committed_files import file_path
from zonkey_core.config import Config
from zonkey_core.data import SourceSpec
from zonkey_core.errors import CheckpointError
from zonkey_core.kept_checkpoints import kept_checkpoint
from zonkey_core.safe_files import open_to_append
from zonkey_core.training.events import (
    CheckpointEvent,
    Event,
    FiguresEvent,
    GuideEvent,
    SampleEvent,
    SkippedDataEvent,
    SkippedStepEvent,
    SplitsEvent,
    StageEvent,
    StepEvent,
)
from zonkey_core.training.processes import joined_processes, process_number
from zonkey_core.training.run_options import TrainingOptions, TrainingResult
from zonkey_core.training.saving import READER, restore_run, with_fitting_reader
from zonkey_core.training.trainer import Trainer

METRICS = "metrics.jsonl"

__all__ = [
    "CheckpointEvent",
    "Event",
    "FiguresEvent",
    "GuideEvent",
    "SampleEvent",
    "SkippedDataEvent",
    "SkippedStepEvent",
    "SplitsEvent",
    "StageEvent",
    "StepEvent",
    "TrainingOptions",
    "TrainingResult",
    "joined_processes",
    "process_number",
    "resume",
    "train",
]


def train(
    config: Config,
    spec: SourceSpec,
    options: TrainingOptions,
    *,
    start_from: Path | None = None,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> TrainingResult:
    """Train a new model, or with `start_from` go on from another's weights on this data, into `options.out`.

    With `start_from`, `config.model` must have the shape of that model; what teaches level 0's splitter may be another.

    Raises `CheckpointError` where the output folder holds a model already, `ConfigError` for a budget that is not
    either steps or minutes, and what opening the data raises.
    """
    out = Path(options.out)
    if file_path(out, CONFIG).exists():
        raise CheckpointError(f"{out}: holds a model already; go on with --resume or choose another --out")
    weights = None
    if start_from is not None:
        require_fit(config, start_from, anew=READER)
        weights = read_tensors(start_from, MODEL)
    record = TrainingRecord(
        data=msgspec.to_builtins(spec),
        options=msgspec.to_builtins(options),
        parent=start_from.name if start_from else None,
    )
    trainer = Trainer(config, record)
    if weights is not None and start_from is not None:
        trainer.start_from(with_fitting_reader(weights, trainer.model.state_dict()), start_from / MODEL)
    return _run(trainer, on_event, should_stop)


def resume(
    directory: Path,
    *,
    back_to: int | None = None,
    changes: Mapping[str, Any] | None = None,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> TrainingResult:
    """Go on with a run exactly where its last checkpoint left it; the folder may have been moved.

    With `back_to`, go on from the kept checkpoint of that step. `changes` are fields of `TrainingOptions` and
    `SourceSpec` that say how the run goes on and not what comes of it: `save_every`, `keep`, `accumulate`,
    `checkpoint_activations`, `shard`, `on_bad_data`.
    """
    place = directory if back_to is None else kept_checkpoint(directory, back_to)
    card = read_model_card(place)
    if card.training is None:
        raise CheckpointError(f"{place}: has no training.json to resume from; start anew with --from {place}")
    card.training.options["out"] = str(directory)
    for name, value in (changes or {}).items():
        (card.training.data if name in SourceSpec.__struct_fields__ else card.training.options)[name] = value
    require_fit(card.config, place, OPTIMIZER, prefix="live.")
    try:
        trainer = Trainer(card.config, card.training)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{place / TRAINING}: damaged ({error}); start anew with --from {place}") from error
    restore_run(trainer, place)
    return _run(trainer, on_event, should_stop)


def _run(trainer: Trainer, on_event: Callable[[Event], None], should_stop: Callable[[], bool]) -> TrainingResult:
    """Run with every event also written to the metrics file, which appears with the first of them.

    Of several processes that train together, the first alone tells of events.
    """
    if process_number():
        return trainer.run(lambda event: None, should_stop)
    encoder = msgspec.json.Encoder()
    with contextlib.ExitStack() as stack:
        opened: list[BinaryIO] = []

        def record(event: Event) -> None:
            if not opened:
                trainer.out.mkdir(parents=True, exist_ok=True)
                opened.append(stack.enter_context(open_to_append(trainer.out / METRICS)))
            opened[0].write(encoder.encode(event) + b"\n")
            opened[0].flush()
            on_event(event)

        return trainer.run(record, should_stop)
