"""A training run's losses as TensorBoard event files; needs the extra `zonkey[log]`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zonkey_cli.exit_codes import BadValueError

if TYPE_CHECKING:
    from zonkey_core.training import Event


@contextlib.contextmanager
def tensorboard_log(directory: Path, on_event: Callable[[Event], None]) -> Iterator[Callable[[Event], None]]:
    """`on_event` that also writes losses, learning rate and speed below `directory`."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise BadValueError("--tensorboard needs the package tensorboard; pip install 'zonkey[log]'") from error
    from zonkey_core.training import StepEvent

    with SummaryWriter(directory) as writer:

        def record(event: Event) -> None:
            if isinstance(event, StepEvent):
                scalars = {f"loss/{name}": value for name, value in event.losses.items()}
                scalars |= {"learning rate": event.learning_rate, "bytes per second": event.bytes_per_second}
                for name, value in scalars.items():
                    writer.add_scalar(name, value, event.step)
            on_event(event)

        yield record
