"""What is saved of a run, and when: soon after its start, then at a rhythm that costs it next to nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec
from torch.optim import Optimizer

from zonkey_core.checkpoint import CONFIG, MODEL, OPTIMIZER, TRAINING, TrainingRecord, describe, pack_tensors
from zonkey_core.config import Config
from zonkey_core.model.model import Zonkey
from zonkey_core.training.optimizers import resumable_tensors

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
) -> dict[str, bytes]:
    """The files of a checkpoint: the averaged weights, and all that a run goes on from."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        MODEL: pack_tensors(average.state_dict(), half=True),
        OPTIMIZER: pack_tensors(resumable_tensors(model, average, optimizers)),
        CONFIG: describe(config, parameters),
        TRAINING: msgspec.json.format(msgspec.json.encode(record), indent=2),
    }
