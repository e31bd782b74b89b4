"""Files that a stranger may have written: regular ones alone, of bounded size, and JSON of bounded depth.

A pipe without a writer would hang whoever opens it and a device never ends, so neither is opened. What cannot be
read raises `OSError`, what is no JSON `ValueError`, each with words for a message; the caller knows the file's role.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import msgspec


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, to read; raises `OSError` at once for a pipe, device, socket or folder."""
    _require_regular(os.stat(path), path)  # before opening, which can move a device
    return open(_open_regular(path, os.O_RDONLY), "rb")


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file to append to it, and no link, which could lead to another file of the user's."""
    return open(_open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW), "ab")


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
    return content


def decode_json(content: bytes) -> Any:
    """The value of a JSON document; raises `ValueError`, also where brackets are nested too deeply."""
    try:
        return msgspec.json.decode(content)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error


def _open_regular(path: Path, flags: int) -> int:
    """A descriptor of a regular file."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _require_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
