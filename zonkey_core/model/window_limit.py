"""The cuts that a level's window forces. Only numpy is used, so that text can be cut where torch is not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def forced_starts(bounds: NDArray[np.int64], allowed_mask: NDArray[np.bool_], window: int) -> NDArray[np.int64]:
    """The starts to add so that no segment between consecutive `bounds` is longer than `window`, in order.

    bounds: the starts and, last, the end; the first may lie before position 0, where a segment is still open. Each
    added start is the last one that `allowed_mask` [L] permits within the window, or the window's end where it
    permits none.
    """
    long = np.flatnonzero(np.diff(bounds) > window)
    if not len(long):
        return np.zeros(0, dtype=np.int64)
    latest = np.maximum.accumulate(np.where(allowed_mask, np.arange(len(allowed_mask)), -1))
    added: list[int] = []
    for index in long.tolist():
        position, stop = int(bounds[index]), int(bounds[index + 1])
        while stop - position > window:
            last = int(latest[position + window]) if position + window >= 0 else -1
            position = last if last > position and last >= 0 else position + window
            added.append(position)
    return np.asarray(added, dtype=np.int64)
