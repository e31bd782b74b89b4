"""Groups of rows that hang on nothing of each other are computed side by side, by one core of a CPU each.

Products here are small: two threads that share one do half as much again in the time. Two threads that have one each
wait for the interpreter and for memory, and take 1.4 times the processor's time of two processes
(docs/experiments.md). So where a process can be forked, workers are processes, which have the model's weights in
common; elsewhere they are threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, NamedTuple, TypeVar

import torch

from zonkey_core.errors import WorkerError

MOST_WORKERS = 8
"""More of them need more memory than they are worth, and as threads wait for the interpreter."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
"""What stops a run."""

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
    function: Callable[[Group], Result],
    groups: Sequence[Group],
    device: torch.device,
    prepare: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """What a function makes of each group, in their order, as soon as it is there.

    `prepare` makes what all workers need, so that they have it in common; it is called where there are several. No more
    groups are begun than workers wait for, so that memory does not grow with their number. Where there are more than
    workers, what is free is given back between them; a short run would only have to ask for it again. Results of
    processes are pickled, and so are their faults, which are raised here; raises `WorkerError` where a process is ended
    from without.
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
    # What a worker sets for itself is also what threads that begin later get.
    try:
        torch.set_num_threads(1)
        prepare()
        yield from (_by_processes if can_fork() else _by_threads)(compute, groups, workers)
    finally:
        torch.set_num_threads(threads)


def can_fork() -> bool:
    """Whether workers may be processes: where forking is safe beside the system's libraries, in a process that may have
    others of its own."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


class _Worker(NamedTuple):
    process: ForkProcess
    connection: Connection[Any, Any]


def _by_processes(compute: Callable[[Group], Result], groups: Sequence[Group], workers: int) -> Iterator[Result]:
    """Processes that are forked from this one, so that groups need not be sent to them; where the system allows fewer,
    there are fewer."""
    team: list[_Worker] = []
    done: dict[int, Result] = {}
    begun = given = 0
    try:
        with _signals_wait(), contextlib.suppress(OSError):
            while len(team) < workers:
                team.append(_fork(compute, groups, team))
        if not team:
            yield from map(compute, groups)
            return
        idle = list(team)
        while given < len(groups):
            while idle and begun < len(groups) and begun <= given + workers:
                _hand(idle.pop(), begun)
                begun += 1
            if given in done:
                yield done.pop(given)
                given += 1
                continue
            ready = wait([worker.connection for worker in team if worker not in idle])
            for worker in [each for each in team if each.connection in ready]:
                number, succeeded, result = _receive(worker)
                if not succeeded:
                    raise result
                done[number] = result
                idle.append(worker)
    finally:
        for process, connection in team:
            process.kill()
            process.join()
            connection.close()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals wait until the processes that are forked meanwhile know what to do with them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork(compute: Callable[[Group], Result], groups: Sequence[Group], team: Sequence[_Worker]) -> _Worker:
    """One worker more; raises `OSError` where the system allows none."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    elsewhere = [ours, *(worker.connection for worker in team)]
    process = context.Process(target=_serve, args=(compute, groups, theirs, elsewhere), daemon=True)
    try:
        process.start()
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return _Worker(process, ours)


def _hand(worker: _Worker, number: int) -> None:
    """Tell a worker which group is its next."""
    try:
        worker.connection.send(number)
    except OSError:
        raise _ended(worker) from None


def _receive(worker: _Worker) -> tuple[int, bool, Any]:
    """The number of a group, whether something was made of it, and that or the fault."""
    try:
        answer: tuple[int, bool, Any] = worker.connection.recv()
    except (EOFError, OSError):
        raise _ended(worker) from None
    return answer


def _ended(worker: _Worker) -> WorkerError:
    """What is told of a worker that is not there any more."""
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"with exit code {code}"
    return WorkerError(f"a worker process ended early ({how}); give it more memory, or one core: OMP_NUM_THREADS=1")


def _serve(
    compute: Callable[[Group], Result],
    groups: Sequence[Group],
    connection: Connection[Any, Any],
    elsewhere: Sequence[Connection[Any, Any]],
) -> None:
    """Compute the groups whose numbers come, until nobody is there any more to send them.

    Ends at once, so that nothing that was forked with it, like the buffers of streams, is written or closed twice.
    """
    # Who stops this run tells the process that began it, and that ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    # What another worker holds open would outlive the process that sends.
    for each in elsewhere:
        each.close()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            number = connection.recv()
            result: Any = None
            succeeded = True
            try:
                result = compute(groups[number])
            except Exception as fault:  # whatever it is, it is for who asked
                succeeded, result = False, _as_sent(fault)
            connection.send((number, succeeded, result))
    os._exit(0)


def _as_sent(fault: Exception) -> Exception:
    """A fault, or where it cannot be pickled, one that says the same."""
    try:
        pickle.loads(pickle.dumps(fault))
    except Exception:  # pickling calls what the fault's class likes
        return RuntimeError(f"{type(fault).__name__}: {fault}")
    return fault


def _by_threads(compute: Callable[[Group], Result], groups: Sequence[Group], workers: int) -> Iterator[Result]:
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
