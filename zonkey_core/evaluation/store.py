"""Work that an interrupted or repeated evaluation need not do again: trained judges and rivals, finished parts.

Entries are folders named by a hash of everything that they depend on, and appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from zonkey_core.errors import DataError

TEXTS = "texts.msgpack"
T = TypeVar("T")


def fingerprint(*parts: Any) -> str:
    """A hash of values that msgspec can encode, bytes, and files' contents given as paths."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        elif isinstance(part, bytes):
            content = hashlib.sha256(part).digest()
        else:
            content = hashlib.sha256(msgspec.json.encode(part, order="sorted")).digest()
        digest.update(content)
    return digest.hexdigest()[:24]


def read_values(path: Path, kind: type[T]) -> T:
    """A MessagePack file of an entry, as a value of this type; raises `DataError` for a damaged one."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); measure anew with --fresh") from error


class Store:
    """Entries below a folder, which is made when the first is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, kind: str, key: str) -> Path | None:
        """The folder of an entry, if there is one."""
        place = self.directory / f"{kind}-{key}"
        return place if place.is_dir() else None

    def entry(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of an entry; `make` fills a new one when there is none yet."""
        found = self.find(kind, key)
        if found is not None:
            return found
        place = self.directory / f"{kind}-{key}"
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=self.directory))
        try:
            make(partial)
            os.replace(partial, place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if not place.is_dir():  # another process may have been first
                raise
        return place

    def texts(self, made_of: Sequence[Any], make: Callable[[], list[bytes]]) -> list[bytes]:
        """Texts that depend on `made_of` alone, from an entry or made now; raises `DataError` for a damaged entry."""

        def write(folder: Path) -> None:
            (folder / TEXTS).write_bytes(msgspec.msgpack.encode(make()))

        return read_values(self.entry("texts", fingerprint(*made_of), write) / TEXTS, list[bytes])

    def work_folder(self, kind: str, key: str) -> Path:
        """A folder for work that saves itself and goes on where it was stopped."""
        place = self.directory / f"{kind}-{key}"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def clear(self) -> None:
        """Forget every entry."""
        shutil.rmtree(self.directory, ignore_errors=True)
