"""Gaps of a text, and windows around neighbouring ones: what is read when they are filled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from zonkey_core.errors import ConfigError

CONTEXT_BYTES = 224
"""Text that is read before the first and after the last of the gaps that are filled together."""
CLUSTER_BYTES = 768
"""Text from the first to the last of them, at most, so that a long file needs no more memory than a short one."""
NEXT_SEED = 7919
"""What parts the seeds of the windows of a text."""


class Gap(msgspec.Struct, frozen=True):
    """Where text is missing: byte offsets of the mask in the input."""

    start: int
    end: int


class GappedDocument(NamedTuple):
    """A text, where its gaps are, and the seed of the draws."""

    data: bytes
    gaps: Sequence[Gap]
    seed: int


def find_gaps(data: bytes, mask: bytes | re.Pattern[bytes] | None = None) -> list[Gap]:
    """Runs of three or more underscores, or every occurrence of `mask`, or all that a pattern matches but the empty.

    Raises `ConfigError` for an empty mask.
    """
    if mask == b"":
        raise ConfigError("the mask must not be empty")
    pattern = re.escape(mask) if isinstance(mask, bytes) else mask or rb"_{3,}"
    return [Gap(*match.span()) for match in re.finditer(pattern, data) if match.end() > match.start()]


class Window(NamedTuple):
    """Gaps that are filled together, and the text around them."""

    gaps: Sequence[Gap]
    texts: Sequence[bytes]
    """One more than there are gaps."""
    begins: bool
    ends: bool
    seed: int


def windows_around(document: GappedDocument) -> Iterator[Window]:
    """The gaps of a text in groups of neighbours; no window reaches into the gaps of another."""
    data = document.data
    clusters = _clusters(document.gaps)
    ends = [0, *(cluster[-1].end for cluster in clusters)]
    starts = [*(cluster[0].start for cluster in clusters[1:]), len(data)]
    for number, (gaps, lowest, highest) in enumerate(zip(clusters, ends, starts, strict=False)):
        begin, end = max(lowest, gaps[0].start - CONTEXT_BYTES), min(highest, gaps[-1].end + CONTEXT_BYTES)
        borders = [begin, *(border for gap in gaps for border in (gap.start, gap.end)), end]
        texts = [data[begin:end] for begin, end in zip(borders[::2], borders[1::2], strict=True)]
        yield Window(gaps, texts, begin == 0, end == len(data), document.seed + NEXT_SEED * number)


def _clusters(gaps: Sequence[Gap]) -> list[list[Gap]]:
    """Gaps that are in each other's context belong together, over at most `CLUSTER_BYTES`."""
    clusters: list[list[Gap]] = []
    for gap in sorted(gaps, key=lambda each: each.start):
        near = clusters and gap.start - clusters[-1][-1].end < CONTEXT_BYTES
        if near and gap.end - clusters[-1][0].start <= CLUSTER_BYTES:
            clusters[-1].append(gap)
        else:
            clusters.append([gap])
    return clusters
