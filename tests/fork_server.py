"""The program without the seconds that its imports take: a process that has made them forks for each run.

What a run reads and writes, its environment, folder, arguments and exit code are its own. Nothing of the program has
run in the process that forks, and no thread. Runs share what Python draws at its start, the order of hashes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from zonkey_cli.app import VERBS, cli, main

SIZE = struct.Struct("!I")
ANSWER = struct.Struct("!i")


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, or fewer where the other side is gone."""
    found = b""
    while len(found) < size and (piece := connection.recv(size - len(found))):
        found += piece
    return found


class ForkServer:
    """The side that tests use; one run at a time."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self._connection, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())], cwd=root, env=environment,
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def run(
        self, arguments: Sequence[str], *, stdin: bytes, stdout: int | None, folder: Path,
        environment: Mapping[str, str], timeout: float,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the program to its end; its standard output goes to the file `stdout`, or into what is returned."""
        given, feed = os.pipe()
        said, errors = os.pipe()
        wrote, output = (None, stdout) if stdout is not None else os.pipe()
        request = json.dumps([list(arguments), str(folder), dict(environment)]).encode()
        socket.send_fds(self._connection, [SIZE.pack(len(request))], [given, output, errors])
        self._connection.sendall(request)
        for descriptor in (given, errors, *([output] if wrote is not None else [])):
            os.close(descriptor)
        (process,) = ANSWER.unpack(_receive(self._connection, ANSWER.size))
        killer = threading.Timer(timeout, os.kill, (process, signal.SIGKILL))
        feeder = threading.Thread(target=_feed, args=(feed, stdin))
        reader = _Reader(said)
        killer.start()
        feeder.start()
        reader.start()
        found = b"" if wrote is None else _read(wrote)
        (status,) = ANSWER.unpack(_receive(self._connection, ANSWER.size))
        late = not killer.is_alive()
        killer.cancel()
        feeder.join()
        reader.join()
        command = ["zonkey", *arguments]
        if late:
            raise subprocess.TimeoutExpired(command, timeout, found, reader.found)
        output_or_none = found if wrote is not None else None
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), output_or_none, reader.found)

    def close(self) -> None:
        """End the process that forks."""
        self._connection.close()
        self._process.wait()


class _Reader(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.found = b""

    def run(self) -> None:
        self.found = _read(self._descriptor)


def _read(descriptor: int) -> bytes:
    file: IO[bytes]
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _feed(descriptor: int, data: bytes) -> None:
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        pass


def _serve(connection: socket.socket) -> None:
    """Answer requests in this process; returns in a forked one, which has become what was asked for."""
    while True:
        head, descriptors, _, _ = socket.recv_fds(connection, SIZE.size, 3)
        if not head:
            raise SystemExit
        arguments, folder, environment = json.loads(_receive(connection, *SIZE.unpack(head)))
        process = os.fork()
        if not process:
            break
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(ANSWER.pack(process))
        connection.sendall(ANSWER.pack(os.waitpid(process, 0)[1]))
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["zonkey", *arguments]


if __name__ == "__main__":
    import rich.console
    import rich.live  # noqa: F401

    import zonkey_core.inference.generation
    import zonkey_core.inference.infilling
    import zonkey_core.training  # noqa: F401

    for verb in VERBS:
        cli.get_command(None, verb)  # type: ignore[arg-type]
    _serve(socket.socket(fileno=int(sys.argv[1])))
    main()
