"""`zonkey train --tensorboard`: event files where the package is there, one line where it is not."""

import sys
from pathlib import Path

import pytest

from zonkey_cli.exit_codes import BadValueError
from zonkey_cli.tensorboard_log import tensorboard_log
from zonkey_core.training import Event, StageEvent, StepEvent


def step_event(step: int, loss: float) -> StepEvent:
    return StepEvent(
        stage="splitter", level=0, step=step, fraction=0.5, losses={"0/masked": loss}, bytes_per_second=10.0,
        bytes_seen=20, seconds=1.0, seconds_left=1.0, learning_rate=0.25,
    )  # fmt: skip


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(BadValueError, match=r"pip install 'zonkey\[log\]'"), tensorboard_log(tmp_path, lambda _: None):
        pass
    assert not list(tmp_path.iterdir())


def test_losses_are_written_and_every_event_is_passed_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: list[Event] = [StageEvent("splitter", 0), step_event(3, 2.5), step_event(4, 1.5)]
    seen: list[Event] = []
    with tensorboard_log(tmp_path, seen.append) as record:
        for event in events:
            record(event)
    assert seen == events
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    assert [(point.step, point.value) for point in log.Scalars("loss/0/masked")] == [(3, 2.5), (4, 1.5)]
    assert log.Scalars("learning rate")[0].value == 0.25
