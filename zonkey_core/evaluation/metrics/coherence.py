"""Whether texts hang together: what a text's second half owes to its own first half.

A judge is asked how surprising the second half of each text is after its own first half, and after the first half of
another text. The gain, in nats a byte, is about 0 for sentences in any order and what real text has for text that goes
on about its subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

SHORTEST = 128
"""Bytes of a text below which it is not asked."""

Conditional = Callable[[Sequence[bytes], Sequence[bytes]], NDArray[np.float64]]
"""Nats a byte [n] of texts that go on where others stopped."""


def coherence_gains(texts: Sequence[bytes], conditional: Conditional) -> NDArray[np.float64]:
    """[n] gain of each text that is long enough; other texts' first halves are the next one's."""
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts if len(text) >= SHORTEST]
    if len(halves) < 2:
        return np.zeros(0)
    firsts, seconds = [first for first, _ in halves], [second for _, second in halves]
    gains: NDArray[np.float64] = conditional([*firsts[1:], firsts[0]], seconds) - conditional(firsts, seconds)
    return gains
