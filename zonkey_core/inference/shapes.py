"""Rows of one shape are read together: products of other shapes round otherwise, and none may depend on the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

Shape = TypeVar("Shape", bound=tuple[object, ...])


def groups_of_one_shape(shapes: Sequence[Shape], most: int | None = None) -> Iterator[tuple[Shape, list[int]]]:
    """Each shape with the numbers of the rows that have it, the smallest first; at most `most` rows together."""
    groups: dict[Shape, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    for shape, alike in sorted(groups.items()):
        for first in range(0, len(alike), most or len(alike)):
            yield shape, alike[first : first + (most or len(alike))]
