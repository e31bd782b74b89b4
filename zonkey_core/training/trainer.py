"""The training loop, with everything that is needed to stop and go on exactly where it was."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zonkey_core.checkpoint import TrainingRecord, fill_model
from zonkey_core.config import Config
from zonkey_core.data import SourceSpec
from zonkey_core.data.row_mixture import open_rows
from zonkey_core.data.rows import RowBatch
from zonkey_core.devices import autocast, choose_device, choose_precision
from zonkey_core.errors import ConfigError, ZonkeyError
from zonkey_core.model.model import Zonkey
from zonkey_core.model_building import require_trainable
from zonkey_core.training.batches import BatchPieces, SharedBatches, shared_batches, shortened
from zonkey_core.training.calibration import calibrate_cuts, calibrate_lengths
from zonkey_core.training.compiling import arrange_computation
from zonkey_core.training.curriculum import Stage, plan_stages
from zonkey_core.training.events import (
    Event,
    FiguresEvent,
    SkippedDataEvent,
    SkippedStepEvent,
    StageEvent,
    StepEvent,
)
from zonkey_core.training.fitting import (
    anchor_vocabularies,
    expect_sources,
    fit_information,
    fit_vocabularies,
    follow_compressors,
)
from zonkey_core.training.guides import RunGuides
from zonkey_core.training.ngram_claims import claim_ngrams
from zonkey_core.training.optimizers import follow_weights, learning_rate_factor, set_learning_rates, take_step
from zonkey_core.training.preview import Preview
from zonkey_core.training.processes import (
    agree_on_most,
    is_shared_out,
    on_first_alone,
    process_count,
    process_number,
    put_back_shares,
    share_out_blocks,
    take_from_first,
)
from zonkey_core.training.run_options import TrainingOptions, TrainingResult
from zonkey_core.training.saving import CheckpointWriter
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters
from zonkey_core.training.step_judge import StepJudge
from zonkey_core.training.validation import held_out_rows, quick_figures

REPORT_SECONDS = 1.0
CALIBRATION_BATCHES = 8
ENDING_BATCHES = 96
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
        kept = [number for number, source in enumerate(self.spec.sources) if source in self.spec.kept_cuts]
        rows, sources = config.training.batch_rows, len(self.spec.sources)
        self.pieces = BatchPieces(rows, self.options.accumulate, self.device, kept, sources)
        self.stages = plan_stages(config.model, config.training.shares, self.options.stage, self.options.level)
        self.generator = torch.Generator().manual_seed(self.options.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            self.model = Zonkey(config.model)
            self.average = Zonkey(config.model)
        self.average.load_state_dict(self.model.state_dict())
        self.pieces.require_whole()
        expect_sources(self.model, self.spec)
        self.model.to(self.device)
        self.average.to(self.device).requires_grad_(False)
        arrange_computation(self.model, self.options, self.device)
        self.optimizers: list[Optimizer] | None = None
        self.shares_out = self.options.shard == "full" and process_count() > 1
        self.saving = CheckpointWriter(self)
        self.guides = RunGuides(record.guides, self.pieces, config.training.guide_bytes)
        self.faults: deque[str] = deque()  # what was left out of the data, until it is told

    def start_from(self, weights: dict[str, Tensor], origin: Path) -> None:
        """Begin with the weights of another model of the same shape."""
        full = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        fill_model(self.model, full, origin=origin)
        expect_sources(self.model, self.spec)
        self.model.to(self.device)
        self.average.load_state_dict(self.model.state_dict())

    def share_out(self) -> None:
        """Divide both models among the processes where that is asked for, once their weights are there."""
        parameters = itertools.chain(self.model.parameters(), self.average.parameters())
        if self.shares_out and not any(map(is_shared_out, parameters)):
            share_out_blocks(self.model)
            share_out_blocks(self.average)

    def run(self, on_event: Callable[[Event], None], should_stop: Callable[[], bool]) -> TrainingResult:
        """Train to the end of the curriculum, or until `should_stop` says so; either way the state is saved."""
        stopped = False
        preview = Preview(self, on_event)
        with self._batches(self.record.data_state) as batches:
            self.share_out()
            while self.record.stage < len(self.stages) and not stopped:
                stopped = not self._run_stage(batches, on_event, should_stop, preview)
            if not stopped and process_number() == 0:
                self._measure(on_event)
            self._tell_faults(on_event)
            self.saving.save(batches.state(), on_event)
        return TrainingResult(self.out, stopped, self.record.steps)

    def _batches(self, state: dict[str, Any]) -> AbstractContextManager[SharedBatches]:
        """The text from where a saved state of it says, or from its beginning."""
        training = self.config.training
        opened = partial(
            open_rows,
            self.spec,
            seed=self.options.seed,
            shuffle_documents=training.shuffle_documents,
            row_bytes=training.row_bytes,
            batch_rows=training.batch_rows,
            state=state or None,
            on_bad=self.faults.append,
        )
        return shared_batches(opened, training.batch_rows, training.row_bytes)

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
        batches: SharedBatches,
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        preview: Preview,
    ) -> bool:
        """Run the current stage to its end; returns False when asked to stop before that."""
        record, stage = self.record, self.stages[self.record.stage]
        put_back_shares(self.model)
        parameters = stage_parameters(self.model, stage)
        if self.optimizers is None:
            self.optimizers = stage_optimizers(self.model, stage, self.config.training)
        if not record.stage_step:
            models = self.model, self.average
            sequences = self.pieces.whole(batches)
            claim_ngrams(models, stage, self.pieces.whole(batches, 1), self.config.training.guide_bytes)
            fit_vocabularies(models, stage, sequences, self.precision)
            on_first_alone(partial(fit_information, self.model, stage, self.spec))
            if stage.name in ("autoencoder", "joint"):
                anchor_vocabularies(self.model, self.precision)
            self._be_alike()
        self._train_only(parameters)
        on_event(StageEvent(stage.name, stage.level))
        for event in self.guides.prepare(self.model, stage, batches, self._batches, self.precision):
            on_event(event)
        last = reported = time.monotonic()
        bytes_before, seconds_before = record.bytes_seen, record.stage_seconds
        while self.stage_fraction() < 1:
            batch = shortened(batches.next_batch(), stage, self.generator)
            losses = self._step(batch, stage, parameters, on_event)
            now = time.monotonic()
            passed, stop, due, busy = agree_on_most(now - last, should_stop(), self.saving.due(), self.saving.busy())
            record.stage_seconds += passed
            record.seconds += passed
            last = now
            if now - reported >= REPORT_SECONDS or self.stage_fraction() >= 1:
                speed = (record.bytes_seen - bytes_before) / max(1e-9, record.stage_seconds - seconds_before)
                self._report(stage, losses, speed, on_event)
                if process_number() == 0:
                    preview.show(stage)
                self._tell_faults(on_event)
                reported = now
            if not busy:
                self.saving.finish(on_event)
            if stop:
                return False
            if due:
                self.saving.begin(batches.state(), on_event)
        steps = record.stage_step
        self._finish_stage(stage, parameters)
        self._calibrate(stage, batches, steps)
        self._be_alike()
        if any(agree_on_most(self.saving.due())):
            self.saving.begin(batches.state(), on_event)
        return True

    def _step(
        self, batch: RowBatch, stage: Stage, parameters: list[nn.Parameter], on_event: Callable[[Event], None]
    ) -> dict[str, Tensor]:
        """One update from one batch, unless it would do harm; returns its losses."""
        training, record = self.config.training, self.record
        assert self.optimizers is not None
        fraction = self.stage_fraction()
        if stage.level is None and record.stage_step and record.stage_step % FOLLOW_STEPS == 0:
            follow_compressors(self.model, self.precision)
        factor = learning_rate_factor(fraction, record.stage_step, training)
        set_learning_rates(self.optimizers, factor * (training.joint_rate if stage.level is None else 1.0))
        total = torch.zeros(())
        losses: dict[str, Tensor] = {}
        pieces = self.pieces.own(batch)
        chances, origins = self.pieces.generators(self.generator), self.pieces.origins(batch)
        for number, (piece, chance, origin) in enumerate(zip(pieces, chances, origins, strict=True)):
            if number:
                torch.autograd.backward(total)
            with autocast(self.device, self.precision):
                found = stage_losses(self.model, stage, piece, chance, fraction, origin, self.guides.fitted)
            total = torch.stack(list(found.values())).sum() / len(pieces)
            losses = {name: losses.get(name, 0) + loss.detach() / len(pieces) for name, loss in found.items()}
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
            raise self.diverged(fault)
        return losses

    def _be_alike(self) -> None:
        """Make what every process has found out for itself the same to the last bit."""
        take_from_first(
            tensor for model in (self.model, self.average) for tensor in (*model.parameters(), *model.buffers())
        )

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

    def _calibrate(self, stage: Stage, batches: SharedBatches, steps: int) -> None:
        """After a stage that moved splitters or denoisers, let cuts and lengths be as in further batches.

        They are about as many as the stage had, where these are few.
        """
        indices = range(len(self.model.levels)) if stage.level is None else (stage.level,)
        models = self.model, self.average
        with autocast(self.device, self.precision):
            if stage.name in ("denoiser", "plan", "joint"):
                count = min(ENDING_BATCHES, CALIBRATION_BATCHES + steps)
                calibrate_lengths(models, indices, list(itertools.islice(self.pieces.whole(batches), count)))
            if stage.name in ("splitter", "joint"):
                calibrate_cuts(models, indices, list(itertools.islice(self.pieces.whole(batches), CALIBRATION_BATCHES)))

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

    def diverged(self, what: str) -> ZonkeyError:
        """What a run ends with that has no numbers any more."""
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
