"""What all tests share: the program as a process of its own, and one tiny model trained once for a session.

`ZONKEY_TEST_MODEL` may name a model folder to use instead of training one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fork_server import ForkServer
from zonkey_cli.threads import bound_libraries

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; torch reads this when it is imported
bound_libraries()

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "zonkey_cli")
QUICK_TRAINING = (
    "--preset", "tiny", "--set", "training.batch_rows=2", "--set", "training.row_bytes=512",
    "--set", "level.0.vocabulary=1024",
)
"""Options of a run that learns next to nothing in seconds."""


def clean_environment(home: Path, **variables: str) -> dict[str, str]:
    """An environment without settings of the user's or the machine's, whose directories all lie below `home`."""
    kept = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("ZONKEY_", "XDG_")) and name not in ("NO_COLOR", "TERM", "COLUMNS", "LINES")
    }
    own = {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm-256color",
    }
    return {**kept, **own, **variables}


class Zonkey:
    """Runs `zonkey` in processes whose working folder and home are a test's own."""

    def __init__(self, folder: Path, server: ForkServer) -> None:
        self.folder = folder
        self._server = server
        self._started: list[subprocess.Popen[bytes]] = []

    def run(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        environment: dict[str, str] | None = None,
        timeout: float = 120,
        **options: Any,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end; output is captured unless `options` say otherwise.

        The process is forked from one that has made the program's imports, unless it is to begin otherwise.
        """
        output = options.get("stdout")
        beginning = any(name.startswith(("PYTHON", "OMP_", "HF_")) for name in environment or {})
        if options.keys() <= {"stdout"} and not beginning:
            return self._server.run(
                [str(word) for word in arguments], stdin=stdin, stdout=getattr(output, "fileno", lambda: output)(),
                folder=self.folder, environment=self.environment(**(environment or {})), timeout=timeout,
            )
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.run(
            self.command(*arguments), input=stdin, env=self.environment(**(environment or {})), cwd=self.folder,
            timeout=timeout, check=False, **options,
        )

    def start(
        self, *arguments: str | Path, environment: dict[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start and return the running process; all three streams are pipes unless `options` say otherwise."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            self.command(*arguments), env=self.environment(**(environment or {})), cwd=self.folder,
            **{**pipes, **options},
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what was started and still runs."""
        for process in self._started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of the processes, with `variables` added."""
        return clean_environment(self.folder, **variables)

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line that runs the program with `arguments`."""
        return [*COMMAND, *map(str, arguments)]


class Feeder:
    """Writes to a process's standard input beside the test, and leaves it open until it is told to end it."""

    def __init__(self, process: subprocess.Popen[bytes], data: bytes) -> None:
        self._process = process
        self._end = threading.Event()
        self._last = b""
        self._thread = threading.Thread(target=self._feed, args=(data,), daemon=True)
        self._thread.start()

    def end(self, last: bytes = b"") -> None:
        """Let `last` follow, and close."""
        self._last = last
        self._end.set()

    def _feed(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(data)
            stdin.flush()
            self._end.wait()
            stdin.write(self._last)

    def join(self) -> None:
        """Wait until all was written, or the reader is gone."""
        self._end.set()
        self._thread.join(60)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """What the program's runs are forked from."""
    server = ForkServer(ROOT, clean_environment(tmp_path_factory.mktemp("home")))
    yield server
    server.close()


@pytest.fixture
def zonkey(tmp_path: Path, fork_server: ForkServer) -> Iterator[Zonkey]:
    """The program, to be run in an empty folder."""
    program = Zonkey(tmp_path, fork_server)
    yield program
    program.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Path:
    """The folder of a model that was trained for a few steps; it must not be changed."""
    if ready := os.environ.get("ZONKEY_TEST_MODEL"):
        return Path(ready).resolve()
    folder = tmp_path_factory.mktemp("tiny")
    done = Zonkey(folder, fork_server).run(
        "train", "--data", "sample", *QUICK_TRAINING, "--steps", "10", "--device", "cpu", "--seed", "1",
        "--out", folder / "model",
    )
    assert done.returncode == 0, done.stderr.decode()
    return folder / "model"


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function that copies the tiny model to a folder of the given name, to be spoilt."""
    import shutil

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_model, tmp_path / name))

    return copy
