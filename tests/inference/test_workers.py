"""Workers: groups are computed side by side, in their order, and what is made hangs neither on their number nor on who
computes what."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model_helpers import fit_vocabulary, small_model
from zonkey_core.errors import WorkerError
from zonkey_core.inference import workers
from zonkey_core.inference.gap_windows import Gap, GappedDocument
from zonkey_core.inference.generation import SamplingOptions, generate
from zonkey_core.inference.infilling import InfillingOptions, infill_documents
from zonkey_core.inference.workers import MOST_WORKERS, shared_out, side_by_side, workers_for

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["processes", "threads"])
def either(request: pytest.FixtureRequest, two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of workers, where there are both."""
    if request.param == "threads":
        monkeypatch.setattr(workers, "can_fork", lambda: False)
    elif not workers.can_fork():
        pytest.skip("no process is forked here")


@pytest.fixture
def processes(two_threads: None) -> None:
    if not workers.can_fork():
        pytest.skip("no process is forked here")


def wait_for(path: Path) -> None:
    for _ in range(400):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def test_results_come_in_order_and_threads_are_left_as_they_were(either: None, tmp_path: Path) -> None:
    later = tmp_path / "later"

    def double(number: int) -> tuple[int, int]:
        if number == 0:
            wait_for(later)  # the second group is computed beside the first
        later.touch()
        return 2 * number, torch.get_num_threads()

    assert list(side_by_side(double, range(7), CPU)) == [(2 * number, 1) for number in range(7)]
    assert torch.get_num_threads() == 2


def test_no_more_is_begun_than_workers_wait_for(either: None, tmp_path: Path) -> None:
    results = side_by_side(lambda number: (tmp_path / str(number)).touch() or number, range(20), CPU)
    assert next(results) == 0
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) <= 4
    results.close()
    assert torch.get_num_threads() == 2


def test_a_fault_reaches_who_asked(either: None) -> None:
    def fail(number: int) -> int:
        return 1 // (number - 3)

    with pytest.raises(ZeroDivisionError):
        list(side_by_side(fail, range(9), CPU))
    assert torch.get_num_threads() == 2


def test_what_all_need_is_made_once_and_where_there_are_several(either: None) -> None:
    made: list[int] = []
    seen = list(side_by_side(lambda _: list(made), range(4), CPU, lambda: made.append(torch.get_num_threads())))
    assert seen == [[1]] * 4
    assert list(side_by_side(lambda _: len(made), range(1), CPU, made.clear)) == [1]


def test_workers_are_processes_that_end_with_the_run(processes: None) -> None:
    results = side_by_side(lambda _: os.getpid(), range(9), CPU)
    first = next(results)
    assert first != os.getpid() and Path(f"/proc/{first}").exists()
    results.close()
    assert not multiprocessing.active_children() and not Path(f"/proc/{first}").exists()


def test_a_fault_that_cannot_be_sent_is_told(processes: None) -> None:
    class OwnError(Exception):
        """Of no module, so that it cannot be pickled."""

    def fail(number: int) -> None:
        raise OwnError(f"group {number}")

    with pytest.raises(RuntimeError, match=r"OwnError: group [01]"):
        list(side_by_side(fail, range(3), CPU))


def test_a_worker_that_is_killed_ends_the_run_in_a_line(processes: None) -> None:
    def die(number: int) -> int:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(WorkerError, match=r"^a worker process ended early \(killed by signal 9\); .*THREADS=1$"):
        list(side_by_side(die, range(5), CPU))
    assert not multiprocessing.active_children()


def test_an_idle_worker_that_is_killed_is_told_too(processes: None) -> None:
    results = side_by_side(lambda number: time.sleep(0.5 * (number == 0)) or os.getpid(), range(4), CPU)
    next(results)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    with pytest.raises(WorkerError, match="killed by signal 9"):
        list(results)


@pytest.mark.parametrize("allowed", [0, 1])
def test_fewer_processes_than_wanted_will_do(processes: None, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, asked = workers._fork, itertools.count()

    def limited(*arguments: Any) -> Any:
        if next(asked) == allowed:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork(*arguments)

    monkeypatch.setattr(workers, "_fork", limited)
    found = set(side_by_side(lambda _: os.getpid(), range(5), CPU))
    assert len(found) == 1 and (os.getpid() in found) == (allowed == 0)


def test_signals_go_to_who_began_the_run(processes: None) -> None:
    program = """
import os, signal, sys, time, torch
from zonkey_core.inference.workers import side_by_side
torch.set_num_threads(2)
def work(number):
    if number == 0:
        os.killpg(0, signal.SIGINT)
    time.sleep(0.2)
    return number
try:
    for number in side_by_side(work, range(100), torch.device("cpu")):
        pass
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, start_new_session=True
    )
    assert (done.stdout, done.stderr) == ("stopped\n", "")


def test_workers_do_not_outlive_a_run_that_is_killed(processes: None, tmp_path: Path) -> None:
    program = f"""
import os, sys, time
from pathlib import Path
import torch
from zonkey_core.inference.workers import side_by_side
torch.set_num_threads(2)
def work(number):
    Path({str(tmp_path)!r}, str(os.getpid())).touch()
    time.sleep(0.2)
for _ in side_by_side(work, range(1000), torch.device("cpu")):
    pass
"""
    with subprocess.Popen([sys.executable, "-c", program]) as run:
        for _ in range(400):
            if len(list(tmp_path.iterdir())) == 2:
                break
            time.sleep(0.05)
        run.kill()
    pids = [path.name for path in tmp_path.iterdir()]
    assert len(pids) == 2
    for _ in range(100):
        if not any(Path("/proc", pid).exists() for pid in pids):
            return
        time.sleep(0.05)
    raise AssertionError("a worker is left")


def test_what_waits_to_be_written_is_written_once(processes: None) -> None:
    program = """
import sys, torch
from zonkey_core.inference.workers import side_by_side
torch.set_num_threads(2)
file = open(1, "w", closefd=False)
file.write("once ")
print("printed ", end="")
print(sum(side_by_side(len, ["a", "bc", "d"], torch.device("cpu"))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["4", "once", "printed"]
    assert not done.stderr


def test_one_thread_or_another_device_computes_one_group_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert workers_for(CPU) == MOST_WORKERS
    assert workers_for(torch.device("cuda")) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    here = os.getpid(), threading.get_ident()
    assert set(side_by_side(lambda _: (os.getpid(), threading.get_ident()), range(3), CPU)) == {here}


@pytest.mark.parametrize(
    ("count", "unit", "sizes"),
    [(0, 1, []), (1, 1, [1]), (3, 1, [2, 1]), (40, 1, [10, 10, 10, 10]), (33, 1, [9, 9, 9, 6]), (5, 8, [5]),
     (16, 8, [8, 8]), (20, 8, [16, 4]), (64, 8, [16, 16, 16, 16])],
)  # fmt: skip
def test_rows_are_shared_out_evenly(count: int, unit: int, sizes: list[int], two_threads: None) -> None:
    groups = shared_out(list(range(count)), 16, CPU, unit)
    assert [len(group) for group in groups] == sizes
    assert [row for group in groups for row in group] == list(range(count))


@pytest.mark.parametrize("fork", [True, False])
def test_texts_and_fills_are_the_same_with_one_worker_and_with_two(
    fork: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "can_fork", lambda: fork and sys.platform == "linux")
    model = small_model().eval().requires_grad_(False)
    fit_vocabulary(model)
    documents = [
        GappedDocument(b"What is it that ___ and so on, and number %d" % number, [Gap(16, 19)], number)
        for number in range(5)
    ]
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        options = SamplingOptions(steps=4, max_bytes=60)
        texts = [each.text for each in generate(model, seeds=range(11), options=options)]
        several = SamplingOptions(steps=4, max_bytes=60, best_of=3)
        best = [each.score for each in generate(model, seeds=range(5), options=several)]
        fills = list(infill_documents(model, documents, options=InfillingOptions(candidates=3)))
        found.append((texts, best, fills))
    torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.skipif(workers._trim() is None, reason="the C library keeps what is free, or another system")
def test_what_is_free_goes_back_to_the_system() -> None:
    pieces = [torch.zeros(25_000) for _ in range(1_000)]  # each below what the C library asks the system for by itself
    last = torch.zeros(25_000)
    del pieces
    before = resident_bytes()
    workers.give_back_memory()
    assert resident_bytes() < before - 50_000_000 and not last.any()


def test_without_a_library_that_gives_back_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_trim", lambda: None)
    workers.give_back_memory()
    assert list(side_by_side(len, ["ab", "c"], CPU)) == [2, 1]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
