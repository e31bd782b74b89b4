"""Steps of training as `zonkey train` makes them, to be timed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from zonkey_core.checkpoint import read_model_card
from zonkey_core.data.rows import RowStream
from zonkey_core.devices import autocast, choose_precision
from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.model.model import byte_sequence
from zonkey_core.training.curriculum import STAGES, Stage
from zonkey_core.training.optimizers import learning_rate_factor, set_learning_rates, take_step
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters


class TrainingSteps:
    """Steps of level 0's stages with the model's own configuration, each on a new batch, on a copy of the model."""

    def __init__(self, context: EvaluationContext) -> None:
        self.training = read_model_card(context.model_path).config.training
        self.model = copy.deepcopy(context.model).train()
        self.device = context.model.device
        self.generator = torch.Generator().manual_seed(context.options.seed)
        documents = _Endless(context.texts.training)
        self.rows = RowStream(documents, self.training.row_bytes, self.training.batch_rows)
        self.stages = [Stage(name, 0, 1.0) for name in STAGES[:3]]
        self.parameters = [stage_parameters(self.model, stage) for stage in self.stages]
        self.averages = [[each.detach().clone() for each in chosen] for chosen in self.parameters]
        self.optimizers = [stage_optimizers(self.model, stage, self.training) for stage in self.stages]

    def run(self, number: int) -> int:
        """A step of every stage of level 0; returns the bytes of their batches."""
        return sum(self._step(index, number) for index in range(len(self.stages)))

    def _step(self, index: int, number: int) -> int:
        """One update, as the trainer's."""
        parameters, optimizers = self.parameters[index], self.optimizers[index]
        self.model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        batch = self.rows.next_batch()
        parts = torch.from_numpy(batch.bytes), torch.from_numpy(batch.document_starts)
        sequence = byte_sequence(*(part.to(self.device) for part in parts))
        set_learning_rates(optimizers, learning_rate_factor(0.0, number, self.training))
        with autocast(self.device, choose_precision("auto", self.device)):
            losses = stage_losses(self.model, self.stages[index], sequence, self.generator, 0.0)
        take_step(torch.stack(list(losses.values())).sum(), parameters, optimizers, self.training.gradient_clip)
        torch._foreach_lerp_(self.averages[index], [each.detach() for each in parameters], 1e-3)
        return batch.bytes.size


class _Endless:
    """Documents again and again, for `RowStream`."""

    epochs = 0

    def __init__(self, documents: Sequence[bytes]) -> None:
        self.documents = itertools.cycle(documents)

    def __next__(self) -> bytes:
        return next(self.documents)

    def state(self) -> dict[str, Any]:
        return {}
