"""Several files of a folder replaced as one: a crash at any moment leaves all the old or all the new ones.

New files are first written beside the old ones as `NAME.next`; a marker file that names them then commits them, and the
renames that follow can be repeated. A reader that finds the marker takes the `.next` files.

A file may be there in parts instead, `STEM-00001-of-00002.EXT` and so on, beside them an index, `STEM.EXT.index.json`,
which is for other programs. Whole or in parts, what is new replaces all that was there of it before.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from zonkey_core.safe_files import read_bounded

MARKER_BYTES = 16 * 1024 * 1024
INDEX = ".index.json"
"""What the name of a file that is there in parts has added to it in that of their index."""
_COMMITTED = ".committed"
_NEXT = ".next"
_PART = re.compile(r"([a-z]+)-[0-9]{5}-of-[0-9]{5}(\.[a-z]+)")


class ReadyFile(NamedTuple):
    """A file that lies on the disk already, to be moved into its place, and its CRC-32."""

    path: Path
    crc32: int


def file_path(directory: Path, name: str) -> Path:
    """Where the current version of a file is."""
    pending = directory / (name + _NEXT)
    if (directory / _COMMITTED).exists() and pending.exists():
        return pending
    return directory / name


def part_name(name: str, number: int, parts: int) -> str:
    """The name of a file's part; `number` is from 1 to `parts`."""
    path = Path(name)
    return f"{path.stem}-{number:05d}-of-{parts:05d}{path.suffix}"


def present_files(directory: Path, name: str) -> list[str]:
    """The names that a file has in a folder now: its own, also where it is missing, or those of its parts in order."""
    for names in (_marked(directory), _names_in(directory)):
        found = sorted(each for each in names if _whole_name(each) == name and not each.endswith(INDEX))
        if found:
            return [name] if name in found else found
    return [name]


def complete_files(directory: Path, name: str) -> list[str]:
    """The same; raises `ValueError` where some of the parts are missing."""
    found = present_files(directory, name)
    if found != [name] and found != [part_name(name, number, len(found)) for number in range(1, len(found) + 1)]:
        raise ValueError(f"not all of its parts are there, only {', '.join(found[:4])}")
    return found


def file_paths(directory: Path, name: str) -> list[Path]:
    """Where the current version of a file is, or where its parts are; raises `ValueError` where some are missing."""
    return [file_path(directory, each) for each in complete_files(directory, name)]


def write_files(directory: Path, files: Mapping[str, bytes | ReadyFile]) -> None:
    """Replace several files of a folder as one: after a crash, a reader sees all the old or all the new ones."""
    directory.mkdir(parents=True, exist_ok=True)
    _finish_pending(directory)
    for name, content in files.items():
        if isinstance(content, ReadyFile):
            os.replace(content.path, directory / (name + _NEXT))
        else:
            _write_durably(directory / (name + _NEXT), content)
    _write_durably(directory / _COMMITTED, "\n".join(files).encode())
    _finish_pending(directory)


def sync_directory(directory: Path) -> None:
    """Make renames durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _whole_name(name: str) -> str:
    """The name of the file that a part or an index is of; of another file its own."""
    found = _PART.fullmatch(name)
    return found[1] + found[2] if found else name.removesuffix(INDEX)


def _marked(directory: Path) -> list[str]:
    """The names in the marker, if it is there."""
    if not (directory / _COMMITTED).exists():
        return []
    names = read_bounded(directory / _COMMITTED, MARKER_BYTES).decode("utf-8", "replace").split()
    return [name for name in names if os.sep not in name]


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _finish_pending(directory: Path) -> None:
    """Complete the renames of a committed write; drop the leftovers of one that was not."""
    if (directory / _COMMITTED).exists():
        names = _marked(directory)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.replace(directory / (name + _NEXT), directory / name)
        wholes = set(map(_whole_name, names))
        for name in _names_in(directory):
            if name not in names and _whole_name(name) in wholes:
                (directory / name).unlink()
        sync_directory(directory)
        (directory / _COMMITTED).unlink()
    for leftover in directory.glob(f"*{_NEXT}"):
        leftover.unlink()


def _write_durably(path: Path, content: bytes) -> None:
    """Write and flush to the disk; the marker itself is moved into place whole."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:  # a new file, whatever a link of this name leads to
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)
