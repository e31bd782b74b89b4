"""How many cores a run uses, where numpy computes, and what becomes of threads that outlast it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import Executor

MOST_THREADS = 8
"""More of them wait for the interpreter."""
_LIMITS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
"""What a numpy reads that is imported later: how many threads a single product of matrices may take."""


def shared_executor() -> Executor | None:
    """Threads that read pieces of text side by side, one for each core; None where there is one core.

    `OMP_NUM_THREADS` sets their number. Each product of matrices is then left to one thread, as they are small; so this
    comes before numpy is imported.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(wanted) if wanted.isascii() and wanted.isdecimal() else _cores(), MOST_THREADS)
    for name in _LIMITS:
        os.environ[name] = "1"
    if threads < 2:
        return None
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads)


def leave_with_threads(code: int) -> None:
    """Leave at once where a thread is left that nobody waits for, since what it reads or trains may take for ever.

    While an interpreter is taken down, such a thread is unwound where it next asks for it; in the middle of C++, of
    torch for one, that aborts the process ("terminate called without an active exception").
    """
    if any(thread.daemon and thread.name.startswith("zonkey-") for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(code)


def _cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
