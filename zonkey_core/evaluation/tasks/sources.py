"""What an evaluation may be given beside its texts: beginnings of texts from other domains, and gold sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from zonkey_core.data.bytestreams import COMPRESSIONS
from zonkey_core.data.files import TextShard, path_shards
from zonkey_core.data.shards import ALL_SPLITS, Shard
from zonkey_core.errors import DataError
from zonkey_core.evaluation.texts import passages


class _Paragraphs(msgspec.Struct):
    """An object in a file of gold sentences; other fields are ignored."""

    sentences: list[str] | None = None
    paragraphs: list[list[str]] | None = None


_Line = list[str] | _Paragraphs


def read_domains(paths: Sequence[str], limit: int) -> list[tuple[str, bytes]]:
    """The first `limit` bytes of each file, or of each file in a folder, under the file's name without its endings.

    Files are of any format that models are trained on. Raises `DataError` where one is missing, cannot be read or has
    no text, and where two have the same name.
    """
    domains: dict[str, bytes] = {}
    for path in paths:
        for shard in path_shards(path, ALL_SPLITS):
            name = _stem(shard.name)
            if name in domains:
                raise DataError(f"{path}: a second domain is called {name!r}; rename one of the two files")
            domains[name] = _first_bytes(shard, limit)
            if not domains[name]:
                raise DataError(f"{path}: no text in {shard.name}; leave it out of --domains")
    return list(domains.items())


def _stem(name: str) -> str:
    """A file's name without the ending that tells its format and that of its compression."""
    path = Path(name)
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


def _first_bytes(shard: Shard, limit: int) -> bytes:
    """The beginning of a shard; documents that were apart in it are parted by a blank line."""
    between = b"" if isinstance(shard, TextShard) else b"\n\n"
    text = b""
    for document in shard.read():
        if document.fault is not None:
            raise document.fault
        text += (between if text else b"") + document.text
        if len(text) >= limit:
            break
    return next(iter(passages([text], limit)), b"")


def read_gold(path: Path) -> list[list[str]]:
    """Paragraphs as lists of their sentences, from a file of JSON lines.

    A line is a list of sentences, or an object with such a list in its field `sentences`, or with a list of such lists
    in its field `paragraphs`. Raises `DataError` that names the line where one is none of these.
    """
    decoder = msgspec.json.Decoder(_Line)
    paragraphs: list[list[str]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                paragraphs += _paragraphs(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: neither a JSON list of sentences nor an object with one in its field "
                    f'"sentences" or with several in "paragraphs" ({error}); correct or delete this line'
                ) from error
    if not paragraphs:
        raise DataError(f"{path}: no sentences in this file; give one list of sentences a line")
    return paragraphs


def _paragraphs(line: _Line) -> list[list[str]]:
    """The paragraphs of a line that have any sentence."""
    if isinstance(line, list):
        found = [line]
    elif line.sentences is None and line.paragraphs is None:
        raise msgspec.ValidationError("neither field is there")
    else:
        found = [line.sentences or [], *(line.paragraphs or [])]
    kept = [[sentence for sentence in paragraph if sentence.strip()] for paragraph in found]
    return [paragraph for paragraph in kept if paragraph]
