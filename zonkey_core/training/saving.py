"""What is saved of a run, and when: soon after its start, then at a rhythm that costs it next to nothing."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from zonkey_core.checkpoint import (
    CONFIG,
    OPTIMIZER,
    TRAINING,
    describe,
    fill_model,
    pack_model,
    pack_tensors,
    read_tensors,
)
from zonkey_core.errors import CheckpointError
from zonkey_core.kept_checkpoints import PARTS, write_kept
from zonkey_core.training.events import CheckpointEvent, Event
from zonkey_core.training.optimizers import restore_optimizers, shared_resumable_tensors, split_resumable
from zonkey_core.training.processes import agree_on_most, gathered, local, on_first_alone, process_number
from zonkey_core.training.stages import stage_optimizers
from zonkey_core.training.state_parts import Files, StateWriter

if TYPE_CHECKING:
    from zonkey_core.training.trainer import Trainer

READER = "bottom.reader."
"""How the names of the tensors begin that only teach level 0's splitter."""
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
        self._longest = self._last = 0.0

    def due(self) -> bool:
        """Whether it is time to save."""
        if self._saved is None:
            return True
        wait = max(LEAST_SECONDS, self._longest / SHARE) if self._every is None else self._every
        return self._clock() - self._saved >= wait

    @contextlib.contextmanager
    def measured(self, *, goes_on: bool = False) -> Iterator[None]:
        """A save, which takes place in the body; with `goes_on`, its end, after training went on in between."""
        started = self._clock()
        yield
        self._saved = self._clock()
        self._last = self._saved - started + (self._last if goes_on else 0.0)
        self._longest = max(self._longest, self._last)


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time; of state that is shared out, while training goes on.

    All processes call its methods at once.
    """

    def __init__(self, trainer: Trainer, *, resumed: bool = False, saved_step: int | None = None) -> None:
        self._trainer = trainer
        self._rhythm = SavingRhythm(trainer.options.save_every, resumed=resumed)
        self._saved_step = saved_step
        """The step of the checkpoint in the output folder, if this run goes on from it."""
        self._begun: int | None = None
        """The step of a checkpoint whose parts are being written."""
        self._parts: StateWriter | None = None

    def due(self) -> bool:
        """Whether it is time to begin another checkpoint."""
        return self._begun is None and self._rhythm.due()

    def busy(self) -> bool:
        """Whether this process still writes its part of one."""
        return self._parts is not None and not self._parts.done()

    def save(self, data_state: dict[str, object], on_event: Callable[[Event], None]) -> None:
        """Write a checkpoint whole; weights that are no longer numbers end the run instead."""
        self.finish(on_event)
        self.begin(data_state, on_event)
        self.finish(on_event)

    def begin(self, data_state: dict[str, object], on_event: Callable[[Event], None]) -> None:
        """Begin a checkpoint of what is now; where state is not shared out, write it whole."""
        trainer, record = self._trainer, self._trainer.record
        broken = not all(bool(local(parameter).isfinite().all()) for parameter in trainer.model.parameters())
        if any(agree_on_most(broken)):
            raise trainer.diverged("the weights")
        record.data_state = data_state
        record.random_state = base64.b64encode(trainer.generator.get_state().numpy().tobytes()).decode()
        record.torch_version = str(torch.__version__)
        with self._rhythm.measured():
            described: Files = {
                CONFIG: describe(trainer.config, sum(each.numel() for each in trainer.model.parameters())),
                TRAINING: msgspec.json.format(msgspec.json.encode(record), indent=2),
            }
            tensors = shared_resumable_tensors(trainer.model, trainer.average, trainer.optimizers or [])
            averaged = {name: tensors[f"average.{name}"] for name in trainer.average.state_dict()}
            if trainer.shares_out:
                self._begin_parts(tensors, averaged, described)
                self._begun = record.steps
                return
            self._write(
                record.steps,
                lambda: {**pack_model(averaged), OPTIMIZER: pack_tensors(tensors), **described},
            )
        on_event(CheckpointEvent(str(trainer.out), record.steps))

    def finish(self, on_event: Callable[[Event], None]) -> None:
        """Put the checkpoint that was begun, if one was, into its place, once all of it is written."""
        if self._begun is None or self._parts is None:
            return
        steps, self._begun = self._begun, None
        with self._rhythm.measured(goes_on=True):
            files = self._parts.files(OPTIMIZER)
            self._write(steps, lambda: files)
        on_event(CheckpointEvent(str(self._trainer.out), steps))

    def _begin_parts(self, tensors: dict[str, Tensor], averaged: dict[str, Tensor], described: Files) -> None:
        """Copy what is to be written, and let all processes write their parts; the first has the released model."""
        if self._parts is None:
            self._parts = StateWriter(self._trainer.out / PARTS)
        whole = ((name, gathered(tensor)) for name, tensor in averaged.items())
        kept = {name: tensor.to("cpu", copy=True) for name, tensor in whole if process_number() == 0}
        self._parts.begin(tensors, lambda: {**pack_model(kept), **described})

    def _write(self, steps: int, files: Callable[[], Files]) -> None:
        """Put the files of a checkpoint into their places."""
        before, keep = self._saved_step, self._trainer.options.keep
        on_first_alone(lambda: write_kept(self._trainer.out, files(), steps=steps, before=before, keep=keep))
        self._saved_step = steps


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
    trainer.saving = CheckpointWriter(trainer, resumed=True, saved_step=record.steps if place == trainer.out else None)


def _damaged(trainer: Trainer, path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged ({what}); start anew with --from {trainer.out}")


def with_fitting_reader(weights: dict[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of another model whose reader, where it is not like that of a model with this `state`, is this one's.

    It only teaches level 0's splitter, so a model that learned by a lexicon may go on without, and the other way round.
    """
    reader, theirs = (
        {name: tensor for name, tensor in tensors.items() if name.startswith(READER)} for tensors in (state, weights)
    )
    if {name: each.shape for name, each in reader.items()} == {name: each.shape for name, each in theirs.items()}:
        return weights
    return {name: tensor for name, tensor in weights.items() if name not in theirs} | reader
