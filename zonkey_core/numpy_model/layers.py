"""The layers that the networks here are made of. Rows are positions; a row's result hangs on no other row's place.

BLAS multiplies a row in the same way beside any number of others, but for products of few rows or few columns; so both
are avoided, and a text is cut in the same places in whatever pieces it is read. OpenBLAS's kernels for Haswell and Zen
do not, so `zonkey` asks for others of its (`zonkey_cli.threads`).
"""

from __future__ import annotations

import numpy as np

from zonkey_core.numpy_model.weights import Floats, Weights

SMALL_PRODUCT = 1_000_000
"""Multiply-adds up to which OpenBLAS has kernels of their own for some processors."""
INNER_BLOCK, COLUMN_BLOCK = 320, 32
"""Those add up in another order where rows are longer than a block of the others, or columns are no multiple of one."""
NORM_EPSILON = 1e-5
LEAST_NORM = 1e-6


def half_silu(halves: Floats, out: Floats | None = None) -> Floats:
    """`silu(2 h)` of halves `h`, which is `h + h tanh h`: cheaper than an exponential and a division."""
    gate = np.tanh(halves, out=out)
    gate += 1
    gate *= halves
    return gate


def standardize(states: Floats) -> Floats:
    """Each row of [n, D] with mean 0 and variance 1, as in a layer norm without weights."""
    width = states.shape[1]
    centred: Floats = states - (np.einsum("nd->n", states) / width)[:, None]
    variance = np.einsum("nd,nd->n", centred, centred) / width
    centred /= np.sqrt(variance + NORM_EPSILON)[:, None]
    return centred


def to_sphere(latents: Floats) -> Floats:
    """Scale [n, C] to the radius sqrt(C)."""
    norm = np.sqrt(np.einsum("nc,nc->n", latents, latents))
    scaled: Floats = latents * (latents.shape[1] ** 0.5 / np.maximum(norm, LEAST_NORM))[:, None]
    return scaled


class NormedLogit:
    """One number for each row: what a layer norm without bias gives, weighed and summed, plus a constant.

    With the weights freed of their mean, the row's own mean falls out of the sum, and only its variance is needed.
    """

    def __init__(self, norm: Floats, head: Floats, bias: np.float32) -> None:
        weight = norm * head
        self.weight = weight - weight.mean()
        self.bias = bias

    def __call__(self, states: Floats) -> Floats:
        """[n, D] to [n]."""
        width = states.shape[1]
        mean = np.einsum("nd->n", states) / width
        variance = np.einsum("nd,nd->n", states, states) / width - mean * mean
        logits: Floats = np.einsum("nd,d->n", states, self.weight) / np.sqrt(variance.clip(0) + NORM_EPSILON)
        return logits + self.bias


def least_rows(weight: Floats) -> int:
    """The fewest rows that are multiplied by a weight [inner, outer] as any number of them are."""
    inner, outer = weight.shape
    alike = inner <= INNER_BLOCK and outer % COLUMN_BLOCK == 0
    return 2 if alike else SMALL_PRODUCT // weight.size + 1


class Linear:
    """`x W + b` of rows."""

    def __init__(self, weights: Weights, inner: int, outer: int, *, bias: bool = True, scale: float = 1.0) -> None:
        self.weight = np.ascontiguousarray(weights.take("weight", outer, inner).T) * np.float32(scale)
        self.bias = weights.take("bias", outer) * np.float32(scale) if bias else None
        self.least = least_rows(self.weight)

    def __call__(self, rows: Floats, out: Floats | None = None) -> Floats:
        """[n, inner] to [n, outer]."""
        if out is None:
            out = np.empty((len(rows), self.weight.shape[1]), dtype=np.float32)
        lacking = self.least - len(rows)
        if lacking > 0:
            out[:] = (np.pad(rows, ((0, lacking), (0, 0))) @ self.weight)[: len(rows)]
        else:
            np.matmul(rows, self.weight, out=out)
        if self.bias is not None:
            out += self.bias
        return out

    def after(self, norm: Floats) -> Linear:
        """The same of rows that were not yet multiplied by the weights [inner] of a layer norm."""
        self.weight *= norm[:, None]
        return self


def room(count: int, width: int, kernel: int, least: int) -> tuple[Floats, Floats]:
    """What a convolution reads, `count` positions with zeros around, and the part [count, width] that these are.

    It has room for `least` rows of windows.
    """
    padded = np.empty((max(least, -(-count // kernel)) * kernel + kernel - 1, width), dtype=np.float32)
    padded[: kernel // 2] = 0
    padded[kernel // 2 + count :] = 0
    return padded, padded[kernel // 2 : kernel // 2 + count]


class Convolution:
    """A convolution along positions that are all there are: zeros stand around them. `scale` multiplies its output."""

    def __init__(self, weights: Weights, inner: int, outer: int, kernel: int, *, scale: float = 1.0) -> None:
        taps = weights.take("weight", outer, inner, kernel)
        self.kernel = kernel
        self.weight = np.ascontiguousarray(taps.transpose(2, 1, 0)).reshape(kernel * inner, outer) * np.float32(scale)
        self.bias = np.tile(weights.take("bias", outer) * np.float32(scale), kernel)
        """Once for each of `kernel` positions, which are added to together."""

    @property
    def least(self) -> int:
        """The fewest rows of windows that it is to be given."""
        return least_rows(self.weight)

    def project(self, weight: Floats) -> None:
        """Take rows [n, narrow] from now on, which a weight [inner, narrow] made wider before: once, and not of all."""
        inner, narrow = weight.shape
        taps = self.weight.reshape(self.kernel, inner, -1)
        self.weight = np.ascontiguousarray(weight.T @ taps).reshape(self.kernel * narrow, -1)

    def __call__(self, padded: Floats) -> Floats:
        """[n, outer] of positions in their `room`, and of some behind them.

        Every `kernel`-th window of positions, from any one on, lies in memory as a row of a matrix, so nothing has to
        be copied for the products.
        """
        kernel = self.kernel
        rows = len(padded) // kernel
        out = np.empty((rows, kernel, self.weight.shape[1]), dtype=np.float32)
        for shift in range(kernel):
            windows = padded[shift : shift + rows * kernel].reshape(rows, -1)
            np.matmul(windows, self.weight, out=out[:, shift])
        joined = out.reshape(rows, -1)
        joined += self.bias
        return out.reshape(rows * kernel, -1)
