"""One of several processes that train together, as torch's launchers start them: the first alone shows and writes."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

from zonkey_cli.streams import Streams


@contextlib.contextmanager
def together(streams: Streams, device: str) -> Iterator[None]:
    """Join the other processes of a launcher, if there is one; all but the first are quiet from then on."""
    if not is_one_of_several():
        yield
        return
    from zonkey_core.training import joined_processes

    with joined_processes(device):
        if not is_first():
            streams.verbosity = -1
            streams.stdout = io.BytesIO()
        yield


def is_first() -> bool:
    """Whether this process shows and writes, as it does where it is alone."""
    return os.environ.get("RANK", "0") == "0"


def is_one_of_several() -> bool:
    """Whether a launcher started this process beside others."""
    count = os.environ.get("WORLD_SIZE", "")
    return count.isascii() and count.isdecimal() and int(count) > 1 and "RANK" in os.environ
