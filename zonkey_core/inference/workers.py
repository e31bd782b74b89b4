"""Groups of rows that hang on nothing of each other are computed side by side, by one thread of a CPU each.

Products here are small: two threads that share one do half as much again in the time, two that have one each twice as
much.
"""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MOST_WORKERS = 8
"""More of them wait for the interpreter."""

Group = TypeVar("Group")
Result = TypeVar("Result")


def workers_for(device: torch.device) -> int:
    """How many groups are computed at once: as many as torch may use threads on a CPU, else one."""
    return min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1


def shared_out(rows: Sequence[Group], most: int, device: torch.device, unit: int = 1) -> list[Sequence[Group]]:
    """Rows in groups of at most `most`, so many that no worker waits for the others in the end.

    Groups are multiples of `unit` as far as `most` allows; the last may be smaller.
    """
    workers = workers_for(device)
    rounds = max(1, -(-len(rows) // (most * workers)))
    together = min(most, -(-len(rows) // (rounds * workers * unit)) * unit)
    return [rows[first : first + together] for first in range(0, len(rows), together or 1)]


def give_back_memory() -> None:
    """Let the C library return to the system what is free, where it can: each of its arenas, one for a thread, keeps
    what it once had (glibc's `malloc_trim`)."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
    return found


def side_by_side(
    function: Callable[[Group], Result], groups: Sequence[Group], device: torch.device
) -> Iterator[Result]:
    """What a function makes of each group, in their order, as soon as it is there.

    No more groups are begun than workers wait for, so that memory does not grow with their number. Where there are more
    than workers, what is free is given back between them; a short run would only have to ask for it again.
    """
    workers = min(workers_for(device), len(groups))
    goes_on = len(groups) > workers

    def compute(group: Group) -> Result:
        result = function(group)
        if goes_on:
            give_back_memory()
        return result

    if goes_on:
        give_back_memory()
    if workers < 2:
        yield from map(compute, groups)
        return
    threads = torch.get_num_threads()
    begun: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        try:
            for group in groups:
                begun.append(executor.submit(compute, group))
                if len(begun) > workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for each in begun:
                each.cancel()
            # What a worker set for itself is also what threads that begin later get.
            torch.set_num_threads(threads)
