"""Which strings a vocabulary holds: chosen by counting the segments of a text.

The commonest segments come first; what they leave out is spelled, as cheaply as it can be, with what there is.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from zonkey_core.model.bytes import BYTE_VALUES

ROUNDS = 3
"""Times that the strings are chosen, each time counting the pieces that the choice before leaves."""


class StringCounter:
    """Counts the segments of a text, to choose the strings of a vocabulary from them."""

    def __init__(self) -> None:
        self.counts: Counter[bytes] = Counter()

    def add(self, values: Tensor, start_mask: Tensor) -> None:
        """Take up the segments of rows of bytes [B, L]."""
        for row, mask in zip(values.to(torch.uint8).cpu().numpy(), start_mask.cpu().numpy(), strict=True):
            text = row.tobytes()
            edges = [*np.flatnonzero(mask).tolist(), len(text)]
            self.counts.update(text[start:end] for start, end in itertools.pairwise(edges))

    def shares(self, entries: int) -> dict[bytes, float]:
        """The single bytes and other strings, `entries` in all at most, with their shares of the text's pieces.

        The first choice are the commonest segments. What this leaves out is spelled with what there is, and strings
        that spell more, whole segments or neighbouring pieces, take the place of those that spell less.
        """
        single = [bytes([value]) for value in range(BYTE_VALUES)]
        usage = self.counts
        shares: dict[bytes, float] = {}
        for last in (False,) * ROUNDS + (True,):
            if not last:
                common = sorted(usage, key=lambda string: (-usage[string], string))
                longer = itertools.islice((string for string in common if len(string) > 1), entries - BYTE_VALUES)
                shares = _as_shares({string: usage[string] for string in itertools.chain(single, longer)})
            spelled, candidates = self._spell(shares)
            usage = spelled if last else Counter(candidates | spelled)
        return _as_shares({string: usage[string] for string in shares})

    def _spell(self, shares: Mapping[bytes, float]) -> tuple[Counter[bytes], Counter[bytes]]:
        """How often each of the strings is used, and how often other ones could be."""
        costs = {string: -math.log(share) for string, share in shares.items()}
        longest = max(map(len, costs))
        usage: Counter[bytes] = Counter()
        candidates: Counter[bytes] = Counter()
        for string, count in self.counts.items():
            if string in costs:
                usage[string] += count
                continue
            pieces = _cheapest(string, costs, longest)
            for piece in pieces:
                usage[piece] += count
            candidates[string] += count
            for before, after in itertools.pairwise(pieces):
                candidates[before + after] += count
        return usage, candidates


def _as_shares(usage: Mapping[bytes, int]) -> dict[bytes, float]:
    """Counts as shares, each counted once more than it occurs."""
    total = sum(usage.values()) + len(usage)
    return {string: (count + 1) / total for string, count in usage.items()}


def _cheapest(string: bytes, costs: Mapping[bytes, float], longest: int) -> list[bytes]:
    """The row of pieces with the smallest sum of costs that spells a string."""
    best = [0.0] + [math.inf] * len(string)
    begins = [0] * (len(string) + 1)
    for end in range(1, len(string) + 1):
        for begin in range(max(0, end - longest), end):
            cost = costs.get(string[begin:end])
            if cost is not None and best[begin] + cost < best[end]:
                best[end], begins[end] = best[begin] + cost, begin
    pieces = []
    end = len(string)
    while end:
        pieces.append(string[begins[end] : end])
        end = begins[end]
    return pieces[::-1]
