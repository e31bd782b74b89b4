"""What the tests of training share: runs of a model so small that a step takes a few hundredths of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.model_helpers import level_config
from zonkey_core.checkpoint import CHECKSUMS, CONFIG, MODEL, OPTIMIZER, TRAINING, read_tensors, with_checksums
from zonkey_core.config import Config, ModelConfig, TrainingConfig
from zonkey_core.data import SourceSpec
from zonkey_core.training import Event, StepEvent, TrainingOptions, TrainingResult, resume, train

SAMPLE = SourceSpec(sources=("sample",))


def small_config(levels: int = 2, **training: Any) -> Config:
    """A very small model on very small batches."""
    sizes = {"row_bytes": 64, "batch_rows": 2, "shuffle_documents": 20, "guide_bytes": 40_000}
    fields: dict[str, Any] = {**sizes, **training}
    return Config(
        model=ModelConfig(levels=tuple(level_config() for _ in range(levels))), training=TrainingConfig(**fields)
    )


class Run:
    """A training run, with every event of it; it can be stopped after a number of steps and taken up again."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.events: list[Event] = []
        self._taken = 0

    def train(
        self,
        config: Config,
        *,
        spec: SourceSpec = SAMPLE,
        stop_at: int | None = None,
        start_from: Path | None = None,
        **options: Any,
    ) -> TrainingResult:
        """Begin, and go on to the end or to step `stop_at`."""
        fields: dict[str, Any] = {"out": str(self.out), "device": "cpu", **options}
        return train(
            config, spec, TrainingOptions(**fields), start_from=start_from,
            on_event=self.events.append, should_stop=self._stops(stop_at),
        )

    def resume(self, *, stop_at: int | None = None, **options: Any) -> TrainingResult:
        """Go on from the checkpoint."""
        return resume(self.out, on_event=self.events.append, should_stop=self._stops(stop_at), **options)

    def _stops(self, stop_at: int | None) -> Callable[[], bool]:
        """Steps are counted from the first that this object took; after every one it is asked whether to stop."""

        def should_stop() -> bool:
            self._taken += 1
            return stop_at is not None and self._taken >= stop_at

        return should_stop

    def steps(self) -> list[StepEvent]:
        """Reports of steps; they are of every step where reports are not throttled."""
        return [event for event in self.events if isinstance(event, StepEvent)]

    def losses(self) -> list[tuple[int, str, int | None, dict[str, float], float]]:
        """All of a report that chance and arithmetic alone decide."""
        return [(each.step, each.stage, each.level, each.losses, each.learning_rate) for each in self.steps()]

    def tensors(self) -> dict[str, Tensor]:
        """Live and averaged weights and the states of the optimisers, as saved."""
        return read_tensors(self.out, OPTIMIZER)


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Equal to the last bit."""
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def seal(folder: Path) -> None:
    """Give a model folder whose files were changed the checksums of what they hold now."""
    names = (name for name in (CONFIG, MODEL, TRAINING, OPTIMIZER) if (folder / name).is_file())
    (folder / CHECKSUMS).write_bytes(with_checksums({name: (folder / name).read_bytes() for name in names})[CHECKSUMS])
