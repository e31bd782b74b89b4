"""Tensors whose parts lie in several safetensors files, as `torch.distributed.checkpoint` writes them, safely read.

The header of each file says in its metadata where every tensor of it begins in the whole one:

    {"__metadata__": {"DCP_SHARDING_INFO": JSON}, "NAME": {"shape": [4, 3], ...}}
    JSON = {"NAME": {"saved_offsets": [4, 0]}}

A tensor is divided along its first dimension. Its parts must lie behind one another, without gaps or overlaps. A file
without that entry has its tensors whole, as those of a released model have theirs (`in_shards`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zonkey_core.committed_files import part_name
from zonkey_core.weights_file import ITEM_BYTES, LARGEST_TENSOR, TensorEntry, read_metadata, read_weights_header

if TYPE_CHECKING:
    from torch import Tensor

OFFSETS = "DCP_SHARDING_INFO"


class _Place(msgspec.Struct, frozen=True):
    """Where a part begins in its tensor, a number for each dimension."""

    saved_offsets: tuple[int, ...]


class _Part(NamedTuple):
    """A part of a tensor: rows `first` and further ones."""

    first: int
    entry: TensorEntry


def whole_entries(paths: Sequence[Path]) -> dict[str, TensorEntry]:
    """The tensors whose parts are in these files, their shapes whole; raises `OSError`, or `ValueError` for damage."""
    parts: dict[str, list[_Part]] = {}
    for path in paths:
        offsets = _offsets(path)
        for name, entry in read_weights_header(path).items():
            parts.setdefault(name, []).append(_Part(_first_row(name, entry, offsets), entry))
    return {name: _joined(name, found) for name, found in parts.items()}


def join_parts(paths: Sequence[Path], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The whole tensors whose names begin with one of `prefixes`; raises `OSError`, or `ValueError` for damage."""
    import torch
    from safetensors import SafetensorError, safe_open

    entries = whole_entries(paths)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        offsets = _offsets(path)
        try:
            with safe_open(path, framework="pt") as file:
                for name in (name for name in file.keys() if name.startswith(prefixes)):  # noqa: SIM118 - no mapping
                    part: Tensor = file.get_tensor(name)
                    whole = tensors.setdefault(name, torch.empty(entries[name].shape, dtype=part.dtype))
                    first = offsets[name][0] if part.dim() else 0
                    (whole[first : first + len(part)] if part.dim() else whole).copy_(part)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    return tensors


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """The bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def in_shards(tensors: Mapping[str, Tensor], limit: int, name: str) -> dict[str, dict[str, Tensor]]:
    """Tensors by the files to write, of at most `limit` bytes each: those of `name`'s parts, or where one will do, it.

    They stay in their order; one that is larger is alone.
    """
    shards: list[dict[str, Tensor]] = [{}]
    left = limit
    for key, tensor in tensors.items():
        size = tensor_bytes({key: tensor})
        if size > left and shards[-1]:
            shards.append({})
            left = limit
        shards[-1][key] = tensor
        left -= size
    if len(shards) == 1:
        return {name: shards[0]}
    return {part_name(name, number, len(shards)): shard for number, shard in enumerate(shards, 1)}


def shard_index(shards: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """The index of files, as other programs read it: JSON with the bytes of all tensors and the file of each."""
    places = {tensor: name for name, shard in shards.items() for tensor in shard}
    index = {"metadata": {"total_size": sum(map(tensor_bytes, shards.values()))}, "weight_map": places}
    return msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"


def check_index(content: object, paths: Sequence[Path]) -> None:
    """Raise `ValueError` unless an index says of every tensor in these files in which it is, and of no other.

    Nothing is opened because an index names it.
    """
    said = content.get("weight_map") if isinstance(content, dict) else None
    held = {name: path.name.removesuffix(".next") for path in paths for name in read_weights_header(path)}
    if said != held:
        raise ValueError("it does not say in which of the files the weights are")


def _offsets(path: Path) -> dict[str, tuple[int, ...]]:
    """Where the parts in a file begin."""
    said = read_metadata(path).get(OFFSETS)
    if said is None:
        return {name: (0,) * len(entry.shape) for name, entry in read_weights_header(path).items()}
    try:
        places = msgspec.json.decode(said, type=dict[str, _Place])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} does not say where its parts begin ({error})") from error
    return {name: place.saved_offsets for name, place in places.items()}


def _first_row(name: str, entry: TensorEntry, offsets: Mapping[str, tuple[int, ...]]) -> int:
    """The row of a tensor that a part begins with."""
    place = offsets.get(name)
    if place is None or len(place) != len(entry.shape) or any(place[1:]):
        raise ValueError(f"it is not said which rows of {name} there are")
    return place[0] if place else 0


def _joined(name: str, parts: list[_Part]) -> TensorEntry:
    """The whole of parts that lie behind one another."""
    parts = sorted((part for part in parts if part.entry.shape[:1] != (0,)), key=lambda part: part.first) or parts[:1]
    head = parts[0].entry
    rows = 0
    for first, entry in parts:
        if first != rows or entry.dtype != head.dtype or entry.shape[1:] != head.shape[1:]:
            raise ValueError(f"the parts of {name} do not make a whole")
        rows += entry.shape[0] if entry.shape else 0
    if rows > LARGEST_TENSOR or (not head.shape and len(parts) > 1):
        raise ValueError(f"the parts of {name} do not make a whole")
    shape = (rows, *head.shape[1:]) if head.shape else ()
    return TensorEntry(head.dtype, shape, (0, prod(shape) * ITEM_BYTES[head.dtype]))
