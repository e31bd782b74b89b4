"""Byte n-grams: a model that writes by them, and how far two texts' n-grams lie apart.

`ByteNgramModel` is the floor that a learned generator has to beat. Its whole state is one sorted array: every byte of
the training text, packed behind the bytes before it with the nearest of them first. The places that follow a context
are then one run of the array, and so are those that follow the context's shorter endings, so one array serves every
order and the next byte is a place of the run drawn at random. Writing has no smoothing; for a likelihood, which must
foresee everything, each order is smoothed by the next lower one (Witten and Bell 1991).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

HIGHEST_ORDER = 6
SYMBOL_BITS = 9
"""The 256 byte values, and one symbol for what stands before and behind a text."""
BORDER = 256


class _Counts(NamedTuple):
    """How often each byte followed each context of one length."""

    keys: NDArray[np.int64]
    """[K] contexts with the byte behind them, packed, in order."""
    before: NDArray[np.int64]
    """[K + 1] the times of all that stand before each key."""


class ByteNgramModel:
    """Writes each byte as it followed the `order - 1` bytes before it in training text; the end of a text counts too.

    A context that was never seen is shortened from its far end until it was.
    """

    def __init__(self, order: int) -> None:
        if not 1 <= order <= HIGHEST_ORDER:
            raise ValueError(f"order must be between 1 and {HIGHEST_ORDER}, not {order}")
        self.order = order
        self._grams: NDArray[np.int64] = np.empty(0, np.int64)

    def fit(self, texts: Sequence[bytes]) -> Self:
        """Learn from `texts`; takes 8 bytes of memory for each of theirs, and 12 more in passing."""
        if not any(texts):
            raise ValueError("an n-gram model needs some text to learn from")
        before = max(1, self.order - 1)
        border = np.full(before, BORDER, np.uint16)
        pieces = [border]
        for text in texts:
            pieces += (np.frombuffer(text, np.uint8).astype(np.uint16), border)
        symbols = np.concatenate(pieces)
        count = len(symbols) - before
        grams = np.zeros(count, np.int64)
        for back in (*range(1, self.order), 0):
            np.left_shift(grams, SYMBOL_BITS, out=grams)
            np.bitwise_or(grams, symbols[before - back : before - back + count], out=grams)
        is_border = symbols == BORDER
        self._grams = grams[~(is_border[before:] & is_border[before - 1 : -1])]
        self._grams.sort()
        return self

    def sample(self, count: int, max_bytes: int, seed: int, *, order: int | None = None) -> list[bytes]:
        """`count` texts of at most `max_bytes` bytes; text i depends on `seed + i` alone.

        A lower `order` than the model's own writes as a model of that order would.
        """
        order = self.order if order is None else order
        chances = np.stack([np.random.default_rng(seed + index).random(max_bytes) for index in range(count)])
        contexts = np.full(count, self._context(b"", order - 1))
        symbols = np.empty((count, max_bytes), np.int64)
        for place in range(max_bytes):
            symbols[:, place] = self._draw(contexts, order - 1, chances[:, place])
            contexts = _push(contexts, symbols[:, place], order - 1)
        ends = np.concatenate([symbols == BORDER, np.ones((count, 1), bool)], 1).argmax(1)
        return [bytes(row[:end].tolist()) for row, end in zip(symbols, ends, strict=True)]

    def continue_text(self, prefix: bytes, *, stop: Callable[[bytes], bool], max_bytes: int, seed: int) -> bytes:
        """What follows `prefix`: bytes until the text ends, there are `max_bytes`, or `stop` says so of them."""
        chances = np.random.default_rng(seed).random((max_bytes, 1))
        contexts = np.full(1, self._context(prefix, self.order - 1))
        written = bytearray()
        for chance in chances:
            symbol = self._draw(contexts, self.order - 1, chance)
            if symbol[0] == BORDER:
                break
            written.append(int(symbol[0]))
            if stop(bytes(written)):
                break
            contexts = _push(contexts, symbol, self.order - 1)
        return bytes(written)

    def nats(self, texts: Sequence[bytes]) -> list[NDArray[np.float64]]:
        """-log p of every byte of every text, given the bytes before it and that the text goes on.

        With N bytes of T kinds behind a context in training text, `p(b) = (N(b) + T p'(b)) / (N + T)`, where p' is of
        the context without its farthest byte, and below all contexts is 1/256.
        """
        symbols = [np.frombuffer(text, np.uint8).astype(np.int64) for text in texts]
        joined = np.concatenate([np.empty(0, np.int64), *symbols])
        probs = np.full(len(joined), 1 / 256)
        for length in range(self.order):
            counts = self._counts(length)
            contexts = np.concatenate([np.empty(0, np.int64), *(_contexts(each, length) for each in symbols)])
            low, high = (np.searchsorted(counts.keys, (contexts + side) << SYMBOL_BITS) for side in (0, 1))
            own = contexts << SYMBOL_BITS | joined
            first, last = (np.searchsorted(counts.keys, own, side=side) for side in ("left", "right"))
            seen = counts.before[last] - counts.before[first]
            kinds, total = high - low, counts.before[high] - counts.before[low]
            probs = np.where(kinds > 0, (seen + kinds * probs) / np.maximum(total + kinds, 1), probs)
        return np.split(-np.log(probs), np.cumsum([len(each) for each in symbols])[:-1]) if symbols else []

    def _counts(self, length: int) -> _Counts:
        """Of contexts of a length; ends of texts are not among what follows."""
        bytes_behind = self._grams & ((1 << SYMBOL_BITS) - 1)
        contexts = self._grams >> SYMBOL_BITS * (self.order - length)
        keys, times = np.unique((contexts << SYMBOL_BITS | bytes_behind)[bytes_behind != BORDER], return_counts=True)
        return _Counts(keys, np.concatenate([[0], np.cumsum(times)]))

    def _context(self, prefix: bytes, length: int) -> int:
        """The last `length` symbols of a text that begins with `prefix`, packed, the last one first."""
        context = 0
        for symbol in [*reversed(prefix[-length:] if length else b""), *[BORDER] * length][:length]:
            context = context << SYMBOL_BITS | symbol
        return context

    def _draw(
        self, contexts: NDArray[np.int64], length: int, chances: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """The next symbol after each packed context of `length` symbols, given a uniform random number for each."""
        low, high = self._run(contexts, length)
        while (unseen := low == high).any():
            contexts, length = contexts >> SYMBOL_BITS, length - 1
            shorter_low, shorter_high = self._run(contexts, length)
            low, high = np.where(unseen, shorter_low, low), np.where(unseen, shorter_high, high)
        return self._grams[low + (chances * (high - low)).astype(np.int64)] & ((1 << SYMBOL_BITS) - 1)

    def _run(self, contexts: NDArray[np.int64], length: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Where the places that follow each context begin and end."""
        shift = SYMBOL_BITS * (self.order - length)
        return np.searchsorted(self._grams, contexts << shift), np.searchsorted(self._grams, (contexts + 1) << shift)


def _contexts(symbols: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """[n] the `length` symbols before each of a text's [n], packed, the last one first; before it are borders."""
    padded = np.concatenate([np.full(length, BORDER), symbols])
    contexts = np.zeros(len(symbols), np.int64)
    for back in range(1, length + 1):
        contexts = contexts << SYMBOL_BITS | padded[length - back : length - back + len(symbols)]
    return contexts


def byte_ngrams(text: bytes, n: int) -> NDArray[np.int64]:
    """Every run of `n` bytes of a text, n at most 7, each packed into a number: [max(0, len(text) - n + 1)]."""
    values = np.frombuffer(text, np.uint8).astype(np.int64)
    count = max(0, len(values) - n + 1)
    grams = np.zeros(count, np.int64)
    for offset in range(n):
        grams = grams << 8 | values[offset : offset + count]
    return grams


def jensen_shannon(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Jensen-Shannon divergence in bits, 0 to 1, of two distributions given as counts [K] of the same K things.

    `H((p + q) / 2) - (H(p) + H(q)) / 2` with entropies to base 2. Nothing at all is 1 away from everything.
    """
    if not first.sum() or not second.sum():
        return 1.0
    p, q = first / first.sum(), second / second.sum()
    divergence = float(_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)
    return min(1.0, max(0.0, divergence))  # what rounding puts outside


def _entropy(probs: NDArray[np.float64]) -> float:
    kept = probs[probs > 0]
    return -float((kept * np.log2(kept)).sum())


def _push(contexts: NDArray[np.int64], symbols: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Packed contexts of `length` symbols, each with one more symbol, without its farthest."""
    return contexts >> SYMBOL_BITS | symbols << SYMBOL_BITS * (length - 1) if length else contexts
