"""What a safetensors file says of itself, checked before a byte of it is trusted or a model is built for it.

The file is an 8-byte little-endian length, a JSON header of that length, and the tensors one behind the other:

    {"NAME": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}

The tensors must cover the rest of the file without gaps or overlaps, each with the bytes that its shape takes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from zonkey_core.safe_files import open_regular

HEADER_BYTES = 16 * 1024 * 1024
LARGEST_TENSOR = 1 << 40
"""Elements; more than any machine holds, and few enough that products of them are exact."""
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}
"""The types of numbers that weights may have, and their sizes."""
_EXPONENTS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000), "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80),
}
"""The bits of a number that are all set in infinities and in what is no number."""
_STORED = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "BOOL": "?",
}
_READ_TOGETHER = 1 << 18
"""Bytes looked at at once; they stay in the cache."""


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]
    """Where its bytes begin and end, behind the header."""

    @property
    def floats(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype in _EXPONENTS


class _Metadata(msgspec.Struct, frozen=True):
    """The part of a header that describes no tensor."""

    content: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def float32_bytes(entries: Mapping[str, TensorEntry]) -> int:
    """Memory that tensors take once their floating-point numbers are float32."""
    return sum(prod(entry.shape) * (4 if entry.floats else ITEM_BYTES[entry.dtype]) for entry in entries.values())


def read_weights_header(path: Path) -> dict[str, TensorEntry]:
    """The checked header of a safetensors file; raises `OSError`, or `ValueError` where it is damaged."""
    raw, size = _header(path)
    entries = _parse_header(raw)
    _check_layout(entries, size)
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors; raises `OSError`, or `ValueError` for damage."""
    try:
        return msgspec.json.decode(_header(path)[0], type=_Metadata).content
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its header is damaged: {error}") from error


def _header(path: Path) -> tuple[bytes, int]:
    """The header of a safetensors file, and how many bytes come behind it."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("it ends within its header")
        if length > HEADER_BYTES:
            raise ValueError(f"its header of {length:,} bytes is longer than {HEADER_BYTES:,}")
        return file.read(length), size - 8 - length


def scan_weights(path: Path, *, with_checksum: bool, finite: bool) -> int | None:
    """Read a safetensors file once: its header, with `finite` whether its numbers are numbers, and its CRC-32.

    It is read in pieces, since what is mapped counts as memory that is held. Raises `OSError`, or `ValueError` where
    the file is damaged.
    """
    entries = read_weights_header(path)
    with open_regular(path) as file:
        head = file.read(_data_start(file))
        crc32 = zlib.crc32(head) if with_checksum else 0
        for name, entry in entries.items():
            for piece in _pieces(file, entry):
                if with_checksum:
                    crc32 = zlib.crc32(piece, crc32)
                if finite and entry.floats and not _all_finite(piece, entry):
                    raise ValueError(f"{name} holds infinities or what is no number")
    return crc32 if with_checksum else None


def read_arrays(path: Path, prefixes: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file whose names begin with one of `prefixes`; bfloat16 becomes float32.

    Raises `OSError`, or `ValueError` where the file is damaged.
    """
    entries = read_weights_header(path)
    arrays: dict[str, NDArray[Any]] = {}
    with open_regular(path) as file:
        start = _data_start(file)
        for name, entry in entries.items():
            if not name.startswith(prefixes):
                continue
            file.seek(start + entry.data_offsets[0])
            array = np.fromfile(file, _STORED[entry.dtype], count=prod(entry.shape)).reshape(entry.shape)
            wide = entry.dtype == "BF16"
            arrays[name] = (array.astype(np.uint32) << 16).view(np.float32) if wide else array
    return arrays


def _data_start(file: BinaryIO) -> int:
    """Where the tensors of a file begin whose header was checked; it is left at its beginning."""
    length = int.from_bytes(file.read(8), "little")
    file.seek(0)
    return 8 + length


def _pieces(file: BinaryIO, entry: TensorEntry) -> Iterator[bytes]:
    """The bytes of the tensor that comes next in a file; none holds a part of a number."""
    left = entry.data_offsets[1] - entry.data_offsets[0]
    while left:
        piece = file.read(min(left, _READ_TOGETHER))
        if not piece:
            raise ValueError("it ends within its tensors")
        yield piece
        left -= len(piece)


def _parse_header(raw: bytes) -> dict[str, TensorEntry]:
    """The entries of a header, in the order of their bytes."""
    try:
        tree = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        found = {
            name: msgspec.json.decode(value, type=TensorEntry)
            for name, value in tree.items() if name != "__metadata__"
        }
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its header is damaged: {error}") from error
    return dict(sorted(found.items(), key=lambda item: item[1].data_offsets))


def _check_layout(entries: dict[str, TensorEntry], size: int) -> None:
    """Raise `ValueError` unless the tensors take the bytes of their shapes, side by side, from 0 to `size`."""
    for name, entry in entries.items():
        if entry.dtype not in ITEM_BYTES:
            raise ValueError(f"{name} is of the unknown type {entry.dtype[:20]!r}")
        if len(entry.shape) > 8 or any(not 0 <= length <= LARGEST_TENSOR for length in entry.shape):
            raise ValueError(f"{name} has an impossible shape")
        begin, end = entry.data_offsets
        if end - begin != prod(entry.shape) * ITEM_BYTES[entry.dtype]:
            raise ValueError(f"{name} has {end - begin:,} bytes, which do not fit its shape {list(entry.shape)}")
    edges = [(0, 0), *(entry.data_offsets for entry in entries.values()), (size, size)]
    if any(before[1] != after[0] for before, after in pairwise(edges)):
        raise ValueError("its tensors overlap, leave gaps or go beyond its end")


def _all_finite(piece: bytes, entry: TensorEntry) -> bool:
    """Whether a piece of a tensor of floating-point numbers holds numbers alone."""
    kind, exponent = _EXPONENTS[entry.dtype]
    mask = kind(exponent)
    return not ((np.frombuffer(piece, kind) & mask) == mask).any()
