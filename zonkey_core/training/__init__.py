"""Training: a curriculum of stages, run so that it can be stopped and taken up again without a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from zonkey_core.checkpoint import CONFIG, MODEL, TRAINING, TrainingRecord, file_path, read_model_card, read_tensors
from zonkey_core.config import Config
from zonkey_core.data import SourceSpec
from zonkey_core.errors import CheckpointError
from zonkey_core.training.events import (
    CheckpointEvent,
    Event,
    FiguresEvent,
    SampleEvent,
    SplitsEvent,
    StageEvent,
    StepEvent,
)
from zonkey_core.training.trainer import Trainer, TrainingOptions, TrainingResult

METRICS = "metrics.jsonl"

__all__ = [
    "CheckpointEvent",
    "Event",
    "FiguresEvent",
    "SampleEvent",
    "SplitsEvent",
    "StageEvent",
    "StepEvent",
    "TrainingOptions",
    "TrainingResult",
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

    With `start_from`, `config.model` must have the shape of that model.

    Raises `CheckpointError` where the output folder holds a model already, `ConfigError` for a budget that is not
    either steps or minutes, and what opening the data raises.
    """
    out = Path(options.out)
    if file_path(out, CONFIG).exists():
        raise CheckpointError(f"{out}: holds a model already; go on with --resume or choose another --out")
    weights = None
    if start_from is not None:
        weights = read_tensors(start_from, MODEL)
    record = TrainingRecord(
        data=msgspec.to_builtins(spec),
        options=msgspec.to_builtins(options),
        parent=start_from.name if start_from else None,
    )
    trainer = Trainer(config, record)
    if weights is not None and start_from is not None:
        trainer.start_from(weights, start_from / MODEL)
    return _run(trainer, on_event, should_stop)


def resume(
    directory: Path,
    *,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> TrainingResult:
    """Go on with a run exactly where its last checkpoint left it; the folder may have been moved."""
    card = read_model_card(directory)
    if card.training is None:
        raise CheckpointError(f"{directory}: has no training.json to resume from; start anew with --from {directory}")
    card.training.options["out"] = str(directory)
    try:
        trainer = Trainer(card.config, card.training)
    except msgspec.ValidationError as error:
        place = directory / TRAINING
        raise CheckpointError(f"{place}: damaged ({error}); start anew with --from {directory}") from error
    trainer.restore()
    return _run(trainer, on_event, should_stop)


def _run(trainer: Trainer, on_event: Callable[[Event], None], should_stop: Callable[[], bool]) -> TrainingResult:
    """Run with every event also written to the metrics file, which appears with the first of them."""
    encoder = msgspec.json.Encoder()
    with contextlib.ExitStack() as stack:
        opened: list[BinaryIO] = []

        def record(event: Event) -> None:
            if not opened:
                trainer.out.mkdir(parents=True, exist_ok=True)
                opened.append(stack.enter_context((trainer.out / METRICS).open("ab")))
            opened[0].write(encoder.encode(event) + b"\n")
            opened[0].flush()
            on_event(event)

        return trainer.run(record, should_stop)
