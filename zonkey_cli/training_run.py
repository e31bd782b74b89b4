"""A run of `zonkey train`: begun or gone on with, shown while it lasts, and told of when it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.processes import is_first
from zonkey_cli.signals import StopRequest
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.config import Config
    from zonkey_core.data import SourceSpec
    from zonkey_core.training import Event, TrainingOptions, TrainingResult


@contextlib.contextmanager
def _listening(
    streams: Streams, stop: StopRequest, out: Path, *, tensorboard: bool
) -> Iterator[Callable[[Event], None]]:
    """What is called with each event of a run: the view, and the log for TensorBoard where it is asked for."""
    from zonkey_cli.training_view import training_view

    with contextlib.ExitStack() as stack:
        on_event = stack.enter_context(training_view(streams, stop))
        if tensorboard and is_first():
            from zonkey_cli.tensorboard_log import tensorboard_log

            on_event = stack.enter_context(tensorboard_log(out / "tensorboard", on_event))
        yield on_event


def start_run(
    streams: Streams,
    config: Config,
    spec: SourceSpec,
    options: TrainingOptions,
    source: Path | None,
    *,
    tensorboard: bool,
) -> ExitCode:
    """Train a new model, from the weights of `source` if there is one."""
    from zonkey_core.training import train

    out = Path(options.out)
    with StopRequest(streams) as stop, _listening(streams, stop, out, tensorboard=tensorboard) as on_event:
        result = train(
            config, spec, options, start_from=source, on_event=on_event, should_stop=lambda: stop.requested
        )
    return _report(streams, stop, result)


def resume_run(
    streams: Streams, directory: Path, back_to: int | None, changes: dict[str, object], *, tensorboard: bool
) -> ExitCode:
    """Go on with the run that was stopped, or from its earlier checkpoint of step `back_to`."""
    from zonkey_core.checkpoint import read_model_card
    from zonkey_core.kept_checkpoints import kept_checkpoint
    from zonkey_core.training import resume

    before = read_model_card(directory if back_to is None else kept_checkpoint(directory, back_to)).training
    with StopRequest(streams) as stop, _listening(streams, stop, directory, tensorboard=tensorboard) as on_event:
        result = resume(
            directory, back_to=back_to, changes=changes, on_event=on_event, should_stop=lambda: stop.requested
        )
    if before is not None and result.steps == before.steps and not result.stopped:
        streams.note(f"{directory}: this run is complete; train further with --from {directory} and another --out")
        return ExitCode.SOFT_FAILURE
    return _report(streams, stop, result)


def _report(streams: Streams, stop: StopRequest, result: TrainingResult) -> ExitCode:
    """Say how the run ended, and write the path of the checkpoint."""
    if result.stopped:
        streams.note(f"stopped after {result.steps} steps and saved in {result.path}; --resume goes on from there")
    else:
        streams.note(f"done after {result.steps} steps; saved in {result.path}")
    streams.write(os.fsencode(result.path) + b"\n")
    return stop.exit_code if result.stopped else ExitCode.DONE
