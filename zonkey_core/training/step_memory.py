"""What tensors hold in memory from one moment of a training step to the next, in bytes.

Every tensor that an operation of torch gives is followed until its memory is given back, so that what a graph keeps,
gradients and what is made for a moment count alike. What has the shape of a parameter belongs to it: a gradient where
it is float32, or else the parameter in the precision of the computation. The rest are activations.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GRADIENT, CONVERTED, ACTIVATION = range(3)


class StepMemory(NamedTuple):
    """Bytes that a step's tensors hold, beside those that were there before it."""

    gradients: float
    converted_weights: float
    """The weights in the precision of the computation."""
    activations: float
    """All that grows with the text: what is kept for the way back, and what is used for a moment."""

    def total(self) -> float:
        """All together."""
        return self.gradients + self.converted_weights + self.activations


class MemoryCourse:
    """How the memory of a step rises and falls."""

    def __init__(self, moments: Iterable[tuple[int, ...]]) -> None:
        """`moments` are [gradients, converted weights, activations] in bytes, one after another."""
        self._moments = np.array([(0, 0, 0), *moments], dtype=np.float64)

    def peak(self, *, text: float = 1.0, divided: float = 1.0) -> StepMemory:
        """The moment at which most is held, of `text` times as much text, where `divided` of the gradients are kept."""
        scaled = self._moments * (divided, 1.0, text)
        return StepMemory(*map(float, scaled[scaled.sum(1).argmax()]))


def mean_peak(courses: Sequence[MemoryCourse], *, text: float = 1.0, divided: float = 1.0) -> StepMemory:
    """The mean over several steps of what each holds when it holds most."""
    peaks = [course.peak(text=text, divided=divided) for course in courses]
    return StepMemory(*(sum(part) / len(peaks) for part in zip(*peaks, strict=True)))


class Held:
    """Some memory, which counts for as long as this object is there."""

    def __init__(self, totals: list[int], kind: int, size: int) -> None:
        self._totals, self._kind, self._size = totals, kind, size
        totals[kind] += size

    def __del__(self) -> None:
        """Give it back."""
        self._totals[self._kind] -= self._size


class TensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of the tensors that are made while this is entered, but for those of `before` and `model`."""

    def __init__(self, model: nn.Module, before: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        sizes = {tuple(each.shape) for each in model.parameters() if each.dim() > 1}
        self._parameter_shapes = sizes | {shape[::-1] for shape in sizes}
        self._totals = [0, 0, 0]
        self._known: dict[int, tuple[Any, Held]] = {}
        self._moments: list[tuple[int, ...]] = []
        for tensor in (*model.parameters(), *model.buffers(), *before):
            self.take_for(tensor, Held(self._totals, ACTIVATION, 0))

    def course(self) -> MemoryCourse:
        """What was held so far."""
        return MemoryCourse(self._moments)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what an operation gives."""
        result = func(*args, **(kwargs or {}))
        before = sum(self._totals)
        for tensor in [result] if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self.held_by(tensor)
        if sum(self._totals) > before:
            self._moments.append(tuple(self._totals))
        return result

    def held_by(self, tensor: Tensor) -> Held:
        """The memory of a tensor, which counts from now on; whoever keeps this lets it count for longer."""
        storage = tensor.untyped_storage()
        found = self._known.get(storage._cdata)
        if found is not None:
            return found[1]
        kind = ACTIVATION
        if tuple(tensor.shape) in self._parameter_shapes and tensor.is_floating_point():
            kind = GRADIENT if tensor.dtype == torch.float32 else CONVERTED
        held = Held(self._totals, kind, storage.nbytes())
        self.take_for(tensor, held)
        return held

    def take_for(self, tensor: Tensor, held: Held) -> None:
        """Let the memory of a tensor count as `held`, instead of by its own size."""
        storage = tensor.untyped_storage()
        number, known = storage._cdata, self._known
        known[number] = weakref.ref(storage, lambda _: known.pop(number, None)), held
