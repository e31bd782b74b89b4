"""The state of a run that is shared out, written aside while training goes on (`torch.distributed.checkpoint`).

Each process writes what it holds, as plain safetensors: the engine's own files have an index that is a pickle, and a
checkpoint may be read by someone who got it from a stranger. What all processes have alike is written by one of them.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from zonkey_core.committed_files import ReadyFile, part_name
from zonkey_core.errors import CheckpointError
from zonkey_core.training.processes import end_together, on_first_alone, over_all, process_count, process_number

READ_TOGETHER = 1 << 20
Files = dict[str, bytes | ReadyFile]


class StateWriter:
    """Writes files of parts into a folder that all processes see, one write at a time.

    All processes make it at once, and call `begin` and `files` at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._group = distributed.new_group(backend="gloo")  # what is said there must not mix with training's
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="zonkey-state")
        self._task: Future[tuple[ReadyFile | None, Files]] | None = None

    def begin(self, tensors: Mapping[str, Tensor], others: Callable[[], Files]) -> None:
        """Copy tensors as they are now, and begin to write them.

        `others` makes the other files of the checkpoint, in the first process alone and aside, too.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # these take seconds to import
        from torch.distributed.checkpoint.state_dict_saver import async_save

        on_first_alone(self._clear)
        storage = HuggingFaceStorageWriter(str(self._folder), save_distributed=True)
        written = async_save(dict(tensors), storage_writer=storage, process_group=self._group)
        assert isinstance(written, Future)
        self._task = self._thread.submit(self._complete, written, others)

    def done(self) -> bool:
        """Whether this process has written its part."""
        return self._task is None or self._task.done()

    def files(self, name: str) -> Files:
        """All files of the checkpoint, `name` among them in its parts, once they are written; of the first process.

        Raises `OSError` where one could not be written, and `CheckpointError`.
        """
        assert self._task is not None
        task, self._task = self._task, None
        failure: Exception | None = None
        try:
            own, others = task.result()
        except Exception as error:  # raised below, once the others know
            own, others, failure = None, {}, error
        end_together(failure)
        sums = torch.zeros(process_count(), dtype=torch.int64)
        if own is not None:
            sums[process_number()] = own.crc32 + 1
        found = [int(each) - 1 for each in over_all(sums) if each]
        paths = self._parts(1, process_count())
        if process_number():
            return {}
        if len(paths) != len(found):
            raise CheckpointError(f"{self._folder}: --shard full needs a folder for --out that all processes see")
        parts = {
            part_name(name, number, len(found)): ReadyFile(path, crc32)
            for number, (path, crc32) in enumerate(zip(paths, found, strict=True), 1)
        }
        return {**others, **parts}

    def _clear(self) -> None:
        """Make the folder anew."""
        if self._folder.is_symlink():
            self._folder.unlink()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def _complete(self, written: Future[Any], others: Callable[[], Files]) -> tuple[ReadyFile | None, Files]:
        """Wait for the part of this process, and sum it up; it has none where there is little to share."""
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            written.result()
        except CheckpointException as error:  # no `Exception`; it holds those of all processes
            raise _reason(error.failures.values()) from error
        own = [ReadyFile(path, _checksum(path)) for path in self._parts(process_number() + 1, process_number() + 1)]
        return own[0] if own else None, others() if process_number() == 0 else {}

    def _parts(self, first: int, last: int) -> list[Path]:
        """The files of some processes, which the engine counts from 1."""
        return [path for number in range(first, last + 1) for path in self._folder.glob(f"shard-{number:05d}-*")]


def _checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    crc32 = 0
    with path.open("rb") as file:
        while piece := file.read(READ_TOGETHER):
            crc32 = zlib.crc32(piece, crc32)
    return crc32


def _reason(failures: Iterable[tuple[BaseException, Any]]) -> Exception:
    """Why a write failed, out of what happened in the processes: what the system says, or else the first of it."""
    found = [error for error, _ in failures]
    for error in found:
        if isinstance(error, OSError):
            return error
    return CheckpointError(f"writing the checkpoint failed ({(str(found[0]) or repr(found[0])).splitlines()[0][:200]})")
