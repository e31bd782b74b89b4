"""How many cores a run uses, what libraries keep meanwhile, and what becomes of threads that outlast it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import Executor

from zonkey_cli.processes import is_one_of_several

MOST_THREADS = 8
"""More of them wait for the interpreter."""
_LIMITS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
"""What a numpy reads that is imported later: how many threads a single product of matrices may take."""
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""What a torch reads that is imported later: of how many shapes oneDNN, and torch above it, keep the product that they
made for it. Of the 1,024 of each that they keep by themselves, a gigabyte fills up in minutes of training, and products
are no faster (docs/experiments.md)."""
TRAINING_SHAPES, WRITING_SHAPES = 32, 24
"""With fewer, either is slower; with more, it takes more memory."""
_CORE_TYPES = {"avx512vl": "SKYLAKEX", "avx": "SANDYBRIDGE"}
"""By what a processor knows, the kernels of OpenBLAS with which a row's products do not hang on its place among others,
so that cuts do not hang on the pieces that a text comes in."""
_BY_PLACE = ("HASWELL", "ZEN")
"""Those with which they do."""


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


def bound_libraries(shapes: int = TRAINING_SHAPES) -> None:
    """Tell numpy and torch, before they are imported, what to take, of how many shapes to keep products, and what to
    multiply with.

    A product of numpy's takes one thread, as they are small. What the environment says already stands, but for kernels
    with which cuts would hang on the pieces of a text.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in _CACHES:
        os.environ.setdefault(name, str(shapes))
    known = _processor_flags()
    for flag, kernels in _CORE_TYPES.items():
        if flag in known and os.environ.get("OPENBLAS_CORETYPE", "").upper() in ("", *_BY_PLACE):
            os.environ["OPENBLAS_CORETYPE"] = kernels


def leave_with_threads(code: int) -> None:
    """Leave at once where a thread is left that nobody waits for.

    One that reads or trains may take for ever, and while an interpreter is taken down, a thread is unwound where it
    next asks for it; in the middle of C++, of torch for one, that aborts the process ("terminate called without an
    active exception"). So it may be with the threads by which torch sends tensors between processes, which let go of a
    tensor some time after it has arrived.
    """
    waited_for = not any(each.daemon and each.name.startswith("zonkey-") for each in threading.enumerate())
    if waited_for and not is_one_of_several():
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)


def _processor_flags() -> set[str]:
    """What this processor knows beyond the basics, as Linux tells it of x86; elsewhere nothing."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                return set(line.split())
    return set()


def _cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
