"""What a run shows of itself now and then: a held line of text with its splits, and a sample."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from zonkey_core.devices import autocast
from zonkey_core.inference.generation import SamplingOptions, generate
from zonkey_core.model.model import text_sequence
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.events import Event, SampleEvent, SplitsEvent

if TYPE_CHECKING:
    from zonkey_core.training.trainer import Trainer

SPLITS_SECONDS = 10.0
SAMPLE_SECONDS = 60.0
LINE = (
    "The town lies on the river, about twenty kilometres from the coast. "
    "It was founded in 1284, and its inhabitants are known for their unusual woodcarvings."
)


class Preview:
    """Sends `SplitsEvent`s and `SampleEvent`s; it never touches the run's own random state."""

    def __init__(self, trainer: Trainer, on_event: Callable[[Event], None]) -> None:
        self.trainer = trainer
        self.on_event = on_event
        self.split_at = self.sampled_at = -float("inf")

    def show(self, stage: Stage) -> None:
        """Show what is due."""
        now = time.monotonic()
        if now - self.split_at >= SPLITS_SECONDS:
            self.split_at = now
            self.on_event(SplitsEvent(self._splits()))
        whole = self.trainer.options.shard == "none"  # else all processes would have to take part
        if whole and stage.name in ("denoiser", "plan", "joint") and now - self.sampled_at >= SAMPLE_SECONDS:
            self.sampled_at = now
            self.on_event(SampleEvent(self._sample(stage)))

    @torch.no_grad()
    def _splits(self) -> list[str]:
        model = self.trainer.average
        line = LINE.encode()
        sequence = text_sequence(line, device=model.device)
        with autocast(self.trainer.device, self.trainer.precision):
            level = model.bottom
            segmentation = level.choose_starts(sequence, level.split(sequence).start_prob)
        starts = [*segmentation.starts[0].tolist(), len(line)]
        return [line[a:b].decode() for a, b in itertools.pairwise(starts)]

    def _sample(self, stage: Stage) -> str:
        top = len(self.trainer.model.levels) - 1 if stage.level is None else stage.level
        options = SamplingOptions(steps=8, max_bytes=160, level=top)
        with autocast(self.trainer.device, self.trainer.precision):
            sample = next(iter(generate(self.trainer.average, seeds=[self.trainer.record.steps], options=options)))
        return sample.text.decode("utf-8", errors="replace")
