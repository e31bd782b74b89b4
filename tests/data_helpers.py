"""What the tests of data share: small sources, and the reading of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.errors import DataError

SPLITS = ("train", "validation", "test")


def read(*sources: str | Path, seed: int = 0, shuffle: int = 10, **options: Any) -> list[bytes]:
    """The documents of one pass."""
    spec = SourceSpec(sources=tuple(map(str, sources)), **options)
    return list(open_stream(spec, seed=seed, shuffle_documents=shuffle, repeat=False))


def error(*sources: str | Path, **options: Any) -> str:
    """The message of the `DataError` that reading ends in."""
    with pytest.raises(DataError) as caught:
        read(*sources, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_wiki(folder: Path, ids: Iterable[int], files: int = 1, split: str = "train", group: int = 7) -> None:
    """Write small Parquet files in the layout of `wikimedia/wikipedia`, with several row groups each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": str(i), "url": f"u{i}", "title": f"t{i}", "text": f"Article {i}\n\né ß"} for i in ids]
    for index in range(files):
        table = pyarrow.Table.from_pylist(rows[index::files])
        name = f"{split}-{index:05d}-of-{files:05d}.parquet"
        pyarrow.parquet.write_table(table, folder / name, row_group_size=group)


def article_number(text: bytes) -> int:
    return int(text.split()[1])


def compressed(data: bytes, codec: str) -> bytes:
    """`data` in the framing of a `.gz` or `.zst` file."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return bytes(sink.getvalue())
