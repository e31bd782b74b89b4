"""What a process of this Python costs: the time from its start to its end, and the most memory that it held.

Between this process and the one measured stands a small one, because a system counts what a process held when it
was forked as the child's own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from zonkey_core.errors import ZonkeyError

_WATCH = """\
import resource, subprocess, sys, time
before = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(time.perf_counter() - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""The process that stands between."""


class ProcessCost(NamedTuple):
    """What a process took from its start to its end."""

    seconds: float
    megabytes: float
    """The most that it held in memory."""


def run_process(arguments: Sequence[str], given: bytes) -> ProcessCost:
    """Run this Python with `arguments` and the bytes `given` on standard input; raises `ZonkeyError` if it fails."""
    command = [sys.executable, "-c", _WATCH, sys.executable, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise ZonkeyError(f"{' '.join(arguments[:3])}: cannot be timed, it ended in {done.returncode} ({said[-1]})")
    seconds, kilobytes = map(float, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    return ProcessCost(seconds, kilobytes * unit / 1e6)
