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

LEFT = """\
import threading, time, torch
from zonkey_cli.app import main

def work():
    values = torch.randn(300, 300, requires_grad=True)
    while True:
        (values @ values).sum().backward()

threading.Thread(target=work, name="zonkey-left", daemon=True).start()
time.sleep(0.3)
main()
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


def test_a_thread_that_is_left_does_not_abort_the_process(tmp_path: Path) -> None:
    """Python unwinds such a thread in the middle of torch, which ends in SIGABRT."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT, "--version"], env=clean_environment(tmp_path), capture_output=True, text=True,
        timeout=60, check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("zonkey ")
