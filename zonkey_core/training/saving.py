"""What is saved of a run, and when: soon after its start, then at a rhythm that costs it next to nothing."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from torch.optim import Optimizer

from zonkey_core.checkpoint import (
    CONFIG,
    MODEL,
    OPTIMIZER,
    TRAINING,
    TrainingRecord,
    describe,
    fill_model,
    pack_tensors,
    read_tensors,
)
from zonkey_core.config import Config
from zonkey_core.errors import CheckpointError
from zonkey_core.model.model import Zonkey
from zonkey_core.training.optimizers import restore_optimizers, resumable_tensors, split_resumable
from zonkey_core.training.stages import stage_optimizers

if TYPE_CHECKING:
    from zonkey_core.training.trainer import Trainer

SHARE = 0.02
"""The part of a run's time that saving may take."""
LEAST_SECONDS = 5.0
"""Between saves, however short they are."""


class SavingRhythm:
    """Says when a save is due.

    The first is at once, so that a run killed in its first minute has left something and a disk that is too small
    shows. With `every` the next ones come so many seconds apart, and else as far as the longest of them took, over
    `SHARE`. With `resumed` there is a checkpoint already, and the first save is like the others.
    """

    def __init__(
        self, every: float | None, *, resumed: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every = every
        self._clock = clock
        self._saved: float | None = clock() if resumed else None
        self._longest = 0.0

    def due(self) -> bool:
        """Whether it is time to save."""
        if self._saved is None:
            return True
        wait = max(LEAST_SECONDS, self._longest / SHARE) if self._every is None else self._every
        return self._clock() - self._saved >= wait

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """A save, which takes place in the body."""
        started = self._clock()
        yield
        self._saved = self._clock()
        self._longest = max(self._longest, self._saved - started)


def checkpoint_files(
    config: Config, record: TrainingRecord, model: Zonkey, average: Zonkey, optimizers: Iterable[Optimizer]
) -> Callable[[], dict[str, bytes]]:
    """What makes the files of a checkpoint: the averaged weights, and all that a run goes on from.

    All processes call this at once, as it gathers what is shared out; one alone need make the files.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tensors = resumable_tensors(model, average, optimizers)
    averaged = {name: tensors[f"average.{name}"] for name in average.state_dict()}
    return lambda: {
        MODEL: pack_tensors(averaged, half=True),
        OPTIMIZER: pack_tensors(tensors),
        CONFIG: describe(config, parameters),
        TRAINING: msgspec.json.format(msgspec.json.encode(record), indent=2),
    }


def restore_run(trainer: Trainer, place: Path) -> None:
    """Let a trainer take up the state that was saved in its output folder, or that was kept at `place` in it."""
    parts = split_resumable(read_tensors(place, OPTIMIZER))
    fill_model(trainer.model, parts["live"], origin=place / OPTIMIZER)
    try:
        trainer.model.load_unsaved(parts["unsaved"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{place / OPTIMIZER}: damaged; start anew with --from {trainer.out}") from error
    fill_model(trainer.average, parts["average"], origin=place / OPTIMIZER)
    trainer.model.to(trainer.device)
    trainer.average.to(trainer.device).requires_grad_(False)
    trainer.share_out()
    record = trainer.record
    try:
        state = torch.frombuffer(bytearray(base64.b64decode(record.random_state)), dtype=torch.uint8)
        trainer.generator.set_state(state)
    except (ValueError, RuntimeError, TypeError) as error:
        raise _damaged(trainer, place / TRAINING, "random_state") from error
    if not 0 <= record.stage <= len(trainer.stages):
        raise _damaged(trainer, place / TRAINING, "stage")
    if record.stage_step and record.stage < len(trainer.stages):
        trainer.optimizers = stage_optimizers(trainer.model, trainer.stages[record.stage], trainer.config.training)
        try:
            restore_optimizers(trainer.optimizers, parts["state"])
        except CheckpointError as error:
            raise _damaged(trainer, place / OPTIMIZER, str(error)) from error
    trainer.rhythm = SavingRhythm(trainer.options.save_every, resumed=True)
    trainer.saved_step = record.steps if place == trainer.out else None


def _damaged(trainer: Trainer, path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged ({what}); start anew with --from {trainer.out}")
