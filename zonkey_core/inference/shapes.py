"""Rows of one shape are read together: products of other shapes may round otherwise, and no row may depend on others.

On many processors a row's products are the same bits however many rows there are. There the batches of a few rows are
small; elsewhere, and where there are more, they are padded to a fixed size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.nn import functional

WIDTHS = (24, 64, 288, 1152, 4096)
"""Widths at which products are compared."""
MANY, HEADS, WIDE = 160, 6, 96
"""Rows of which the first few are compared, heads of attention, and what products give."""
FEW = (1, 2, 3, 5, 8, 13, 16, 31, 32, 40, 100)

STEP = 8
"""More than one row, and readings of a row, are padded to a multiple of so many."""

Shape = TypeVar("Shape", bound=tuple[object, ...])


def groups_of_one_shape(shapes: Sequence[Shape], most: int | None = None) -> Iterator[tuple[Shape, list[int]]]:
    """Each shape with the numbers of the rows that have it, the smallest first; at most `most` rows together."""
    groups: dict[Shape, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    for shape, alike in sorted(groups.items()):
        for first in range(0, len(alike), most or len(alike)):
            yield shape, alike[first : first + (most or len(alike))]


def padded_count(count: int, together: int, device: torch.device) -> int:
    """Rows that a batch of `count`, and at most `together`, is padded to.

    Sizes are few, since a library keeps what it made for each.
    """
    return padded_width(count, together, device) if count > 1 else _fewest(1, together, device)


def padded_width(count: int, most: int, device: torch.device) -> int:
    """Readings that a row of `count` is padded to, where another of its shape could have `most`."""
    return _fewest(-(-count // STEP) * STEP, most, device)


def _fewest(count: int, most: int, device: torch.device) -> int:
    """So many, and at most `most`; that many where products of fewer round otherwise."""
    return count if count < most and rounds_alike(device, torch.get_num_threads()) else most


@functools.cache
def rounds_alike(device: torch.device, threads: int) -> bool:
    """Whether bfloat16 products of few rows are to the bit those of many, computed by so many threads.

    This is tried, in less than a tenth of a second, since it hangs on the processor and on the library that multiplies.
    """
    if device.type != "cpu":
        return False
    numbers = torch.randn(MANY, max(WIDTHS), generator=torch.Generator().manual_seed(threads)).bfloat16()
    for width in WIDTHS:
        rows = numbers[:, :width].contiguous()
        weights, bias = rows[-WIDE:], rows[-WIDE:, 0].contiguous()
        whole = functional.linear(rows, weights, bias)
        if not all(torch.equal(functional.linear(rows[:few], weights, bias), whole[:few]) for few in FEW):
            return False
    size = HEADS * WIDE * WIDTHS[0]
    keys = numbers.repeat(1, -(-size // max(WIDTHS)))[:, :size].reshape(MANY, HEADS, WIDE, WIDTHS[0])
    queries = keys[:, :, :3]
    logits = queries @ keys.mT
    mixed = logits.softmax(-1) @ keys
    return all(
        torch.equal(queries[:few] @ keys[:few].mT, logits[:few])
        and torch.equal(logits[:few].softmax(-1) @ keys[:few], mixed[:few])
        for few in FEW
    )
