"""The training loop, with everything that is needed to stop and go on exactly where it was."""

from __future__ import annotations

import base64
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zonkey_core.checkpoint import OPTIMIZER, TRAINING, TrainingRecord, fill_model, read_tensors
from zonkey_core.config import Config
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import Prefetcher, RowBatch, RowStream
from zonkey_core.devices import autocast, choose_device, choose_precision
from zonkey_core.errors import CheckpointError, ConfigError, ZonkeyError
from zonkey_core.kept_checkpoints import write_kept
from zonkey_core.model.model import Zonkey, byte_sequence
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model_building import require_trainable
from zonkey_core.training.calibration import calibrate_cuts, calibrate_lengths
from zonkey_core.training.curriculum import Stage, plan_stages
from zonkey_core.training.events import (
    CheckpointEvent,
    Event,
    FiguresEvent,
    SkippedDataEvent,
    SkippedStepEvent,
    StageEvent,
    StepEvent,
)
from zonkey_core.training.fitting import anchor_vocabularies, fit_codebooks, fit_vocabularies, follow_compressors
from zonkey_core.training.optimizers import (
    follow_weights,
    learning_rate_factor,
    restore_optimizers,
    set_learning_rates,
    split_resumable,
    take_step,
)
from zonkey_core.training.preview import Preview
from zonkey_core.training.run_options import TrainingOptions, TrainingResult
from zonkey_core.training.saving import SavingRhythm, checkpoint_files
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters
from zonkey_core.training.step_judge import StepJudge
from zonkey_core.training.validation import held_out_rows, quick_figures

REPORT_SECONDS = 1.0
CALIBRATION_BATCHES = 8
ENDING_BATCHES = 96
FITTING_PASSES = 16
"""Times that a text is read at most to fit a vocabulary, a codebook or a calibration."""
FOLLOW_STEPS = 50
"""Joint steps after which vocabularies follow their compressors anew."""


class Trainer:
    """Holds a run's state; `run` goes on until the curriculum ends or it is asked to stop."""

    def __init__(self, config: Config, record: TrainingRecord) -> None:
        require_trainable(config)
        self.config = config
        self.record = record
        self.judge = StepJudge(record)
        self.options = msgspec.convert(record.options, TrainingOptions)
        if (self.options.steps is None) == (self.options.minutes is None):
            raise ConfigError("give either a number of steps or a number of minutes")
        self.spec = msgspec.convert(record.data, SourceSpec)
        self.out = Path(self.options.out)
        self.device = choose_device(self.options.device)
        self.precision = choose_precision(self.options.precision, self.device)
        self.stages = plan_stages(config.model, config.training.shares, self.options.stage)
        self.generator = torch.Generator().manual_seed(self.options.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            self.model = Zonkey(config.model)
            self.average = Zonkey(config.model)
        self.average.load_state_dict(self.model.state_dict())
        self.model.to(self.device)
        self.average.to(self.device).requires_grad_(False)
        self.optimizers: list[Optimizer] | None = None
        self.rhythm = SavingRhythm(self.options.save_every, resumed=False)
        self.saved_step: int | None = None
        """The step of the checkpoint in the output folder, if this run goes on from it."""
        self.faults: deque[str] = deque()
        """What was left out of the data, until it is told."""

    def start_from(self, weights: dict[str, Tensor], origin: Path) -> None:
        """Begin with the weights of another model of the same shape."""
        full = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        fill_model(self.model, full, origin=origin)
        self.model.to(self.device)
        self.average.load_state_dict(self.model.state_dict())

    def restore(self, place: Path) -> None:
        """Take up the state that `save` left in the output folder, or that was kept at `place` in it."""
        parts = split_resumable(read_tensors(place, OPTIMIZER))
        fill_model(self.model, parts["live"], origin=place / OPTIMIZER)
        try:
            self.model.load_unsaved(parts["unsaved"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{place / OPTIMIZER}: damaged; start anew with --from {self.out}") from error
        fill_model(self.average, parts["average"], origin=place / OPTIMIZER)
        self.model.to(self.device)
        self.average.to(self.device).requires_grad_(False)
        try:
            state = torch.frombuffer(bytearray(base64.b64decode(self.record.random_state)), dtype=torch.uint8)
            self.generator.set_state(state)
        except (ValueError, RuntimeError, TypeError) as error:
            raise self._damaged(place / TRAINING, "random_state") from error
        if not 0 <= self.record.stage <= len(self.stages):
            raise self._damaged(place / TRAINING, "stage")
        if self.record.stage_step and self.record.stage < len(self.stages):
            self.optimizers = stage_optimizers(self.model, self.stages[self.record.stage], self.config.training)
            try:
                restore_optimizers(self.optimizers, parts["state"])
            except CheckpointError as error:
                raise self._damaged(place / OPTIMIZER, str(error)) from error
        self.rhythm = SavingRhythm(self.options.save_every, resumed=True)
        self.saved_step = self.record.steps if place == self.out else None

    def _damaged(self, path: Path, what: str) -> CheckpointError:
        return CheckpointError(f"{path}: damaged ({what}); start anew with --from {self.out}")

    def save(self, data_state: dict[str, object], on_event: Callable[[Event], None]) -> None:
        """Write the checkpoint whole; weights that are no longer numbers end the run instead."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged("the weights")
        self.record.data_state = data_state
        self.record.random_state = base64.b64encode(self.generator.get_state().numpy().tobytes()).decode()
        self.record.torch_version = str(torch.__version__)
        with self.rhythm.measured():
            files = checkpoint_files(self.config, self.record, self.model, self.average, self.optimizers or [])
            write_kept(self.out, files, steps=self.record.steps, before=self.saved_step, keep=self.options.keep)
        self.saved_step = self.record.steps
        on_event(CheckpointEvent(str(self.out), self.record.steps))

    def run(self, on_event: Callable[[Event], None], should_stop: Callable[[], bool]) -> TrainingResult:
        """Train to the end of the curriculum, or until `should_stop` says so; either way the state is saved."""
        training = self.config.training
        documents = open_stream(
            self.spec,
            seed=self.options.seed,
            shuffle_documents=training.shuffle_documents,
            state=self.record.data_state.get("documents"),
            on_bad=self.faults.append,
        )
        rows = RowStream(documents, training.row_bytes, training.batch_rows, self.record.data_state or None)
        stopped = False
        preview = Preview(self, on_event)
        with Prefetcher(rows) as batches:
            while self.record.stage < len(self.stages) and not stopped:
                stopped = not self._run_stage(batches, on_event, should_stop, preview)
            if not stopped:
                self._measure(on_event)
            self._tell_faults(on_event)
            self.save(batches.state(), on_event)
        return TrainingResult(self.out, stopped, self.record.steps)

    def stage_fraction(self) -> float:
        """How much of the current stage is done, 0 to 1."""
        share = self.stages[self.record.stage].share
        if self.options.steps is not None:
            before = sum(stage.share for stage in self.stages[: self.record.stage])
            steps = round((before + share) * self.options.steps) - round(before * self.options.steps)
            return min(1.0, self.record.stage_step / steps) if steps else 1.0
        assert self.options.minutes is not None
        return min(1.0, self.record.stage_seconds / max(1e-9, share * self.options.minutes * 60))

    def run_fraction(self) -> float:
        """How much of the whole run is done, 0 to 1."""
        if self.record.stage == len(self.stages):
            return 1.0
        left = sum(stage.share for stage in self.stages[self.record.stage + 1 :])
        return max(0.0, 1 - left - self.stages[self.record.stage].share * (1 - self.stage_fraction()))

    def _run_stage(
        self,
        batches: Prefetcher,
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        preview: Preview,
    ) -> bool:
        """Run the current stage to its end; returns False when asked to stop before that."""
        record, stage = self.record, self.stages[self.record.stage]
        parameters = stage_parameters(self.model, stage)
        if self.optimizers is None:
            self.optimizers = stage_optimizers(self.model, stage, self.config.training)
        if not record.stage_step:
            models = self.model, self.average
            sequences = self._sequences(batches)
            fit_codebooks(models, stage, sequences, self.precision, self.generator)
            fit_vocabularies(models, stage, sequences, self.precision)
            if stage.name in ("autoencoder", "joint"):
                anchor_vocabularies(self.model, self.precision)
        self._train_only(parameters)
        on_event(StageEvent(stage.name, stage.level))
        last = reported = time.monotonic()
        bytes_before, seconds_before = record.bytes_seen, record.stage_seconds
        while self.stage_fraction() < 1:
            batch = batches.next_batch()
            losses = self._step(batch, stage, parameters, on_event)
            now = time.monotonic()
            record.stage_seconds += now - last
            record.seconds += now - last
            last = now
            if now - reported >= REPORT_SECONDS or self.stage_fraction() >= 1:
                speed = (record.bytes_seen - bytes_before) / max(1e-9, record.stage_seconds - seconds_before)
                self._report(stage, losses, speed, on_event)
                preview.show(stage)
                self._tell_faults(on_event)
                reported = now
            if should_stop():
                return False
            if self.rhythm.due():
                self.save(batches.state(), on_event)
        self._finish_stage(stage, parameters)
        self._calibrate(stage, batches)
        if self.rhythm.due():
            self.save(batches.state(), on_event)
        return True

    def _step(
        self, batch: RowBatch, stage: Stage, parameters: list[nn.Parameter], on_event: Callable[[Event], None]
    ) -> dict[str, Tensor]:
        """One update from one batch, unless it would do harm; returns its losses."""
        training, record = self.config.training, self.record
        assert self.optimizers is not None
        sequence = self._sequence(batch)
        fraction = self.stage_fraction()
        if stage.level is None and record.stage_step and record.stage_step % FOLLOW_STEPS == 0:
            follow_compressors(self.model, self.precision)
        factor = learning_rate_factor(fraction, record.stage_step, training)
        set_learning_rates(self.optimizers, factor * (training.joint_rate if stage.level is None else 1.0))
        with autocast(self.device, self.precision):
            losses = stage_losses(self.model, stage, sequence, self.generator, fraction)
        total = torch.stack(list(losses.values())).sum()
        fault = take_step(total, parameters, self.optimizers, training.gradient_clip, self.judge.fault)
        record.stage_step += 1
        record.steps += 1
        record.bytes_seen += batch.bytes.size
        if fault is None:
            follow_weights(self._averages_of(parameters), parameters, record.stage_step, training)
            return losses
        record.skipped_steps += 1
        on_event(SkippedStepEvent(record.steps, fault))
        if self.judge.hopeless:
            raise self._diverged(fault)
        return losses

    def _sequences(self, batches: Prefetcher) -> Iterator[PositionSequence]:
        """Further batches, to fit or to calibrate something: one at least, and no more than a few passes of the text.

        A small text tells nothing new however often it is read.
        """
        batch = batches.next_batch()
        last = batch.epochs + FITTING_PASSES
        while True:
            yield self._sequence(batch)
            batch = batches.next_batch()
            if batch.epochs >= last:
                return

    def _sequence(self, batch: RowBatch) -> PositionSequence:
        """A batch on the device; pinned memory lets the copy to a GPU overlap with the step before."""
        parts = torch.from_numpy(batch.bytes), torch.from_numpy(batch.document_starts)
        if self.device.type == "cuda":
            parts = parts[0].pin_memory(), parts[1].pin_memory()
        return byte_sequence(*(part.to(self.device, non_blocking=True) for part in parts))

    def _train_only(self, parameters: list[nn.Parameter]) -> None:
        """Let gradients flow to these parameters alone, and pair each with its average."""
        self.model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        averages = dict(zip(self.model.parameters(), self.average.parameters(), strict=True))
        self._pairs = {parameter: averages[parameter] for parameter in parameters}

    def _averages_of(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        return [self._pairs[parameter] for parameter in parameters]

    def _finish_stage(self, stage: Stage, parameters: list[nn.Parameter]) -> None:
        """Go on from the averaged weights, with fresh optimisers."""
        with torch.no_grad():
            for parameter, average in zip(parameters, self._averages_of(parameters), strict=True):
                parameter.copy_(average)
        if stage.name == "autoencoder":
            follow_compressors(self.model, self.precision, told=self.average)
        self.optimizers = None
        self.record.stage += 1
        self.record.stage_step, self.record.stage_seconds = 0, 0.0
        self.record.gradient_norm, self.record.faults_in_row = 0.0, 0

    def _calibrate(self, stage: Stage, batches: Prefetcher) -> None:
        """After a stage that moved splitters or denoisers, let cuts and lengths be as in further batches."""
        indices = range(len(self.model.levels)) if stage.level is None else (stage.level,)
        models = self.model, self.average
        with autocast(self.device, self.precision):
            if stage.name in ("denoiser", "joint"):
                calibrate_lengths(models, indices, list(itertools.islice(self._sequences(batches), ENDING_BATCHES)))
            if stage.name in ("splitter", "joint"):
                calibrate_cuts(models, indices, list(itertools.islice(self._sequences(batches), CALIBRATION_BATCHES)))

    def _report(
        self, stage: Stage, losses: dict[str, Tensor], speed: float, on_event: Callable[[Event], None]
    ) -> None:
        """Send a `StepEvent`."""
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        done = self.run_fraction()
        assert self.optimizers is not None
        on_event(
            StepEvent(
                stage=stage.name,
                level=stage.level,
                step=self.record.steps,
                fraction=done,
                losses=values,
                bytes_per_second=speed,
                bytes_seen=self.record.bytes_seen,
                seconds=self.record.seconds,
                seconds_left=self.record.seconds * (1 - done) / max(done, 1e-6),
                learning_rate=self.optimizers[0].param_groups[0]["lr"],
            )
        )

    def _tell_faults(self, on_event: Callable[[Event], None]) -> None:
        """Send an event for everything that was left out of the data since the last call."""
        while self.faults:
            on_event(SkippedDataEvent(self.faults.popleft()))

    def _diverged(self, what: str) -> ZonkeyError:
        return ZonkeyError(
            f"training diverged at step {self.record.steps} ({what}); lower training.learning_rate "
            f"and training.matrix_learning_rate and go on from the last checkpoint with --resume"
        )

    def _measure(self, on_event: Callable[[Event], None]) -> None:
        """Measure the averaged model on held-out text, where the source has any."""
        rows = held_out_rows(self.spec, self.config.training.row_bytes)
        if rows is not None:
            self.average.eval()
            with autocast(self.device, self.precision):
                self.record.figures = quick_figures(self.average, rows)
            on_event(FiguresEvent(self.record.figures))
