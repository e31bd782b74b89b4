"""Documents of text, JSON-lines and Parquet files, and the search for such files in folders.

Plain text becomes documents of at most `TEXT_DOCUMENT_BYTES`: a longer text is cut behind a blank line, so that a
file of any size streams, shuffles and can be held out from in part. Nothing is decoded: bytes that are not valid
UTF-8 come out as they went in.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from zonkey_core.data.bytestreams import COMPRESSIONS, ByteStream, FileBytes
from zonkey_core.data.shards import START, Document, Position, Shard
from zonkey_core.errors import DataError

TEXT_DOCUMENT_BYTES = 64 * 1024
LINE_BYTES = 64 * 1024 * 1024
PARQUET_ROWS = 256
EXTENSIONS = (".txt", ".md", ".jsonl", ".parquet")


@dataclass(frozen=True)
class TextShard:
    """Plain text."""

    name: str
    kept: frozenset[str]
    source: ByteStream
    pinned: bool = False

    def read(self, start: Position = START) -> Iterator[Document]:
        offset = start[0]
        for text in cut_text(self.source.pieces(offset)):
            offset += len(text)
            yield Document(text=text, key=text, end=(offset, 0))


def cut_text(pieces: Iterator[bytes], limit: int = TEXT_DOCUMENT_BYTES) -> Iterator[bytes]:
    """Cut a stream of bytes into documents of 1 to `limit` bytes, whose concatenation is the stream.

    The cuts depend on the bytes alone and not on how they arrive in `pieces`.
    """
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) > limit:
            cut = _cut_point(bytes(buffer[:limit]))
            yield bytes(buffer[:cut])
            del buffer[:cut]
    if buffer:
        yield bytes(buffer)


def _cut_point(head: bytes) -> int:
    """Where to cut a text that goes on behind `head`: the last blank line, else line, else whole code point."""
    for line_ends in (b"\n\n", b"\n\r\n"), (b"\n",):
        found = [head.rfind(mark) + len(mark) for mark in line_ends if mark in head]
        if found:
            return max(found)
    for cut in range(len(head) - 1, max(len(head) - 5, 0), -1):
        if head[cut] & 0xC0 != 0x80:  # not a continuation byte, so a code point may begin here
            return cut
    return len(head)


class _Line(msgspec.Struct):
    """A line of a JSON-lines file; other fields are ignored."""

    text: str


@dataclass(frozen=True)
class JsonLinesShard:
    """A JSON object per line, with the document in its field `text`."""

    name: str
    kept: frozenset[str]
    source: ByteStream
    pinned: bool = False

    def read(self, start: Position = START) -> Iterator[Document]:
        decoder = msgspec.json.Decoder(_Line)
        offset, number = start
        for line in self._lines(offset, number):
            offset, number = offset + len(line), number + 1
            if not line.strip():
                continue
            try:
                text = decoder.decode(line).text.encode()
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else error
                fault = DataError(
                    f'{self.source.label}, line {number}: not a JSON object with text in its field "text" ({reason}); '
                    "correct or delete this line"
                )
                yield Document(text=b"", key=b"", end=(offset, number), fault=fault)
                continue
            yield Document(text=text, key=text, end=(offset, number))

    def _lines(self, offset: int, number: int) -> Iterator[bytes]:
        """Yield the lines from `offset` on, with their line ends; `number` lines lie before it."""
        parts: list[bytes] = []
        size = 0
        for piece in self.source.pieces(offset):
            for part in io.BytesIO(piece):
                parts.append(part)
                size += len(part)
                if size > LINE_BYTES:
                    raise DataError(
                        f"{self.source.label}, line {number + 1}: longer than {LINE_BYTES >> 20} MiB; "
                        "write one JSON object per line"
                    )
                if part.endswith(b"\n"):
                    yield b"".join(parts)
                    parts, size, number = [], 0, number + 1
        if parts:
            yield b"".join(parts)


@dataclass(frozen=True)
class ParquetShard:
    """A Parquet file with the documents in its column `text`; a position is a row group and a row in it."""

    name: str
    kept: frozenset[str]
    path: Path
    pinned: bool = False

    def read(self, start: Position = START) -> Iterator[Document]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
                check_text_column(file.schema_arrow, self.path)
                for group in range(start[0], file.num_row_groups):
                    skipped = start[1] if group == start[0] else 0
                    for row, text in enumerate(_column(file, group)):
                        if row >= skipped and text is not None:
                            yield Document(text=text.encode(), key=text.encode(), end=(group, row + 1))
        except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: not a readable Parquet file ({first_line(error)})") from error


def _column(file: Any, group: int) -> Iterator[str | None]:
    """Yield the column `text` of one row group, a few rows in memory at a time."""
    for batch in file.iter_batches(batch_size=PARQUET_ROWS, row_groups=[group], columns=["text"]):
        yield from batch.column(0).to_pylist()


def check_text_column(schema: Any, path: Path) -> None:
    """Raise `DataError` unless an Arrow `schema` has a column `text` of strings."""
    import pyarrow

    if "text" not in schema.names:
        raise DataError(f"{path}: has no column named text, only {', '.join(schema.names)}; rename the column of text")
    kind = schema.field("text").type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise DataError(f"{path}: its column text holds {kind}, not strings")


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def path_shards(source: str, kept: frozenset[str]) -> list[Shard]:
    """The shards of a file or of every file of a known format in a folder; the first one is pinned."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(_files_below(path))
        if not found:
            raise DataError(f"{source}: no {', '.join(EXTENSIONS)} files (or those with .gz or .zst) in this folder")
        shards = [file_shard(path / name, name=name, kept=kept) for name in found]
    elif path.is_file():
        shards = [file_shard(path, name=path.name, kept=kept)]
    elif path.exists():
        raise DataError(f"{source}: neither a file nor a folder; pipe it into standard input and name it -")
    else:
        raise DataError(f"{source}: no such file or folder")
    return [replace(shards[0], pinned=True), *shards[1:]]


def file_shard(path: Path, *, name: str, kept: frozenset[str]) -> TextShard | JsonLinesShard | ParquetShard:
    """Choose the reader of a file by its extension; an unknown one is read as plain text."""
    extension, compression = _extension(path.name)
    if extension == ".parquet":
        if compression:
            raise DataError(f"{path}: a Parquet file inside {compression} cannot be streamed; decompress it first")
        return ParquetShard(name=name, kept=kept, path=path)
    reader = JsonLinesShard if extension == ".jsonl" else TextShard
    return reader(name=name, kept=kept, source=FileBytes(path))


def _extension(name: str) -> tuple[str, str]:
    """The extension of a file's name, and that of its compression or the empty string."""
    stem, last = os.path.splitext(name.lower())
    return (os.path.splitext(stem)[1], last) if last in COMPRESSIONS else (last, "")


def _files_below(folder: Path) -> Iterator[str]:
    """Names, relative to `folder`, of the files of known formats in it; hidden ones are left out."""
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and _extension(name)[0] in EXTENSIONS:
                yield (Path(directory) / name).relative_to(folder).as_posix()
