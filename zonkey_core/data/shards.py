"""What every source of text is made of: shards, which are read in order from any position.

A shard is a file, or standard input. Reading it yields each document with the position just behind it, so that a
stream which is resumed at that position goes on with the next document. The two numbers of a position mean what the
shard likes: a byte and a line, or a row group and a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from zonkey_core.errors import DataError

SPLITS = ("train", "validation", "test")
ALL = "all"
"""Instead of a split: every document."""
ALL_SPLITS = frozenset(SPLITS)

Position = tuple[int, int]
START: Position = (0, 0)


class Document(NamedTuple):
    """A document as it was read."""

    text: bytes
    key: bytes
    """What its split is drawn from: an identifier that lasts, or else the text itself."""
    end: Position
    """Where the next document of the shard begins."""
    fault: DataError | None = None
    """What is wrong with it; it has no text then, and what comes after it can be read nevertheless."""


class Shard(Protocol):
    """A part of a source that is read on its own."""

    @property
    def name(self) -> str:
        """Name that stays the same when the data is moved as a whole."""

    @property
    def kept(self) -> frozenset[str]:
        """The splits whose documents are wanted from this shard."""

    @property
    def pinned(self) -> bool:
        """Whether the first document is training text whatever its hash, so that one document can be trained on."""

    def read(self, start: Position = START) -> Iterator[Document]:
        """Yield the documents from `start` on; raise `DataError` where they cannot be read."""


def split_of(key: bytes) -> str:
    """Draw the split of a document from the md5 of its key: 1 % validation, 1 % test, the rest train."""
    bucket = int(hashlib.md5(key, usedforsecurity=False).hexdigest(), 16) % 100
    return {0: "validation", 1: "test"}.get(bucket, "train")
