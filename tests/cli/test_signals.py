"""The first signal asks, the second ends the process at once, and afterwards all is as it was."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import clean_environment
from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.signals import StopRequest
from zonkey_cli.streams import Streams

STUBBORN = """\
import time
from zonkey_cli.signals import StopRequest
from zonkey_cli.streams import Streams
with StopRequest(Streams.system()) as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""


def quiet_streams() -> Streams:
    return Streams(stdin=None, stdout=io.BytesIO(), stderr=io.StringIO())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)]
)
def test_first_signal_only_asks(number: signal.Signals, code: ExitCode) -> None:
    before = signal.getsignal(number)
    with StopRequest(quiet_streams()) as stop:
        assert (stop.requested, stop.exit_code) == (False, ExitCode.DONE)
        os.kill(os.getpid(), number)
        assert (stop.requested, stop.exit_code) == (True, code)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_second_signal_ends_at_once(number: signal.Signals, code: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], env=clean_environment(tmp_path), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == code
