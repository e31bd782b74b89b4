"""What a training step costs, found by walking through it without computing it.

The step of a stage is taken as the trainer takes it, on sample text, with a model of the true size, but products of
matrices, convolutions and fused attention are not computed: their floating-point operations are counted by torch's own
formulas (`torch.utils.flop_counter`), forward and backward, and zeros stand for what they give. What its tensors hold
is followed, too (`step_memory`). So both follow the code of the model and of its losses, whatever these become.

Cuts are not the model's, which has learned nothing, but drawn with the mean length that is configured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Muon
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from zonkey_core.config import Config, TrainingConfig
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import RowStream
from zonkey_core.devices import autocast
from zonkey_core.errors import ConfigError
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey, byte_sequence
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_splitter import SegmentSplitter, Splits
from zonkey_core.model.string_counter import StringCounter
from zonkey_core.model_building import unfilled_model
from zonkey_core.training.batches import row_lengths
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters
from zonkey_core.training.step_memory import Held, MemoryCourse, TensorMemory

CPU = torch.device("cpu")
FRACTION = 0.9
"""How far stages are: late enough that nothing of what they minimise is left out."""
WEIGHT_NUMBERS = 1 << 20
"""Tensors of more numbers are not converted, but zeros stand for them: those are weights and their gradients."""
FORGOTTEN_NUMBERS = 1 << 16
"""Tensors of more numbers are not held between the way there and back."""


class StepCost(NamedTuple):
    """What a step of one stage costs."""

    bytes: int
    """Bytes of text in the step."""
    flops: float
    """Floating-point operations on the way there and back, which grow with the text."""
    update_flops: int
    """Those of the optimisers, whatever the text."""
    courses: tuple[MemoryCourse, ...]
    """What its tensors hold beside weights and optimisers, as drawn in different ways."""
    trained: int
    """Parameters that the stage moves."""


class _Uncomputed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of products and gives zeros for them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Stand in for products and for conversions of weights; all else is computed."""
        named = kwargs or {}
        packet = func._overloadpacket
        converted = func is torch.ops.aten._to_copy.default and args[0].numel() > WEIGHT_NUMBERS
        if packet not in flop_registry and not converted:
            return func(*args, **named)
        elsewhere = {**named, "device": "meta"} if converted else named
        unreal = func(*tree_map(_as_meta, args), **tree_map(_as_meta, elsewhere))
        made = tree_map(lambda each: _zeros_like(each) if isinstance(each, Tensor) else each, unreal)
        if not converted:
            self.flops += flop_registry[packet](*args, **named, out_val=made)
        return made


def _as_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _zeros_like(unreal: Tensor) -> Tensor:
    """Zeros of the shape and layout of a tensor that is not there."""
    size = 1 + sum((count - 1) * stride for count, stride in zip(unreal.shape, unreal.stride(), strict=True))
    memory = unwritten_zeros(max(0, size) if unreal.numel() else 0, unreal.dtype)
    return memory.as_strided(unreal.shape, unreal.stride())


def unwritten_zeros(count: int, dtype: torch.dtype) -> Tensor:
    """[count] zeros that the system gives no memory until something is written to them, unlike those of torch."""
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.from_numpy(np.zeros(count * dtype.itemsize, dtype=np.uint8)).view(dtype)


class StepWalker:
    """A model of a configuration that knows nothing, and rows of text for it."""

    def __init__(
        self, config: Config, *, rows: int, draws: int = 1, seed: int = 0, precision: torch.dtype = torch.bfloat16
    ) -> None:
        """Text of `draws` steps, each of so many rows; `seed` draws it, its cuts and what is asked of it."""
        self.config = config
        self.precision = precision
        self.seed = seed
        self.model = _empty_model(config)
        documents = open_stream(SourceSpec(sources=("sample",)), seed=seed, shuffle_documents=1000)
        stream = RowStream(documents, config.training.row_bytes, rows)
        self._batches = [stream.next_batch() for _ in range(draws)]
        with drawn_cuts(self.model, seed):
            _learn_strings(self.model.bottom, self.rows(0))

    def rows(self, draw: int, row_bytes: int | None = None) -> PositionSequence:
        """The text of a step, in rows as configured or of so many bytes, which divide those."""
        batch = self._batches[draw].in_rows_of(row_bytes or self.config.training.row_bytes)
        return byte_sequence(torch.from_numpy(batch.bytes), torch.from_numpy(batch.document_starts))

    def cost(self, stage: Stage) -> StepCost:
        """Walk through steps of one stage; their mean is what one costs.

        Where rows are shortened by chance, every other step has the shortest ones, and operations are those of the mean
        length: what a byte takes grows with the length of its row along a straight line, as attention does. Memory is
        that of the longest rows.
        """
        shares = row_lengths(self.config.training.row_bytes, stage)
        longest, shortest = max(shares), min(shares)
        found: dict[int, list[int]] = {longest: []}
        courses = []
        for draw in range(len(self._batches)):
            length = shortest if draw % 2 else longest
            flops, course = self.walk(stage, self.rows(draw, length), self.seed + draw)
            found.setdefault(length, []).append(flops)
            if length == longest:
                courses.append(course)
        means = {length: sum(some) / len(some) for length, some in found.items()}
        mean = sum(length * share for length, share in shares.items())
        slope = (means[longest] - means[min(means)]) / max(1, longest - min(means))
        return StepCost(
            bytes=self._batches[0].bytes.size,
            flops=means[longest] - slope * (longest - mean),
            update_flops=update_flops(self.model, stage, self.config.training),
            courses=tuple(courses),
            trained=sum(each.numel() for each in stage_parameters(self.model, stage)),
        )

    def walk(self, stage: Stage, sequence: PositionSequence, seed: int) -> tuple[int, MemoryCourse]:
        """The operations of a step with these rows, and what its tensors hold; cuts and losses are drawn by `seed`."""
        parameters = stage_parameters(self.model, stage)
        self.model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        memory = TensorMemory(self.model)
        with drawn_cuts(self.model, seed), _Uncomputed() as counter, memory, _forgetting(memory):
            with autocast(CPU, self.precision):
                chance = torch.Generator().manual_seed(seed)
                losses = stage_losses(self.model, stage, sequence, chance, FRACTION)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
        for parameter in parameters:
            parameter.grad = None
        return counter.flops, memory.course()


def update_flops(model: Zonkey, stage: Stage, training: TrainingConfig) -> int:
    """Products of Muon, which makes each matrix orthogonal by Newton and Schulz's iteration; AdamW has none.

    A step of it for a matrix m x n, m the smaller, is `X <- a X + (b A + c A A) X` with `A = X X^T`.
    """
    flops = 0
    for optimizer in stage_optimizers(model, stage, training):
        for group in optimizer.param_groups if isinstance(optimizer, Muon) else ():
            sizes = (sorted(parameter.shape) for parameter in group["params"])
            flops += sum(group["ns_steps"] * (4 * short**2 * long + 2 * short**3) for short, long in sizes)
    return flops


class _Forgotten(NamedTuple):
    """In place of a tensor that is kept for the way back: its shape, and its memory, which counts on."""

    shape: Tensor
    held: Held


@contextmanager
def _forgetting(memory: TensorMemory) -> Iterator[None]:
    """In the body, of large floating-point tensors only the shapes are kept for the way back, where zeros replace them.

    They count as if they were there.
    """

    def keep(tensor: Tensor) -> Tensor | _Forgotten:
        if not tensor.is_floating_point() or tensor.numel() <= FORGOTTEN_NUMBERS:
            return tensor
        with _disable_current_modes():
            return _Forgotten(tensor.detach().to("meta"), memory.held_by(tensor))

    def recall(kept: Tensor | _Forgotten) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with _disable_current_modes():
            zeros = _zeros_like(kept.shape)
        memory.take_for(zeros, kept.held)
        return zeros

    with torch.autograd.graph.saved_tensors_hooks(keep, recall):
        yield


@contextmanager
def drawn_cuts(model: Zonkey, seed: int) -> Iterator[None]:
    """Let all splitters cut as often as configured, but at places drawn by chance."""
    handles = [
        level.splitter.register_forward_hook(_cutting(level.config.segment_length, seed)) for level in model.levels
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cutting(mean: float, seed: int) -> Callable[[SegmentSplitter, Any, Splits], Splits]:
    """A hook that replaces the starts of a splitter by ones with `1 + Poisson(mean - 1)` positions between them."""

    def cut(splitter: SegmentSplitter, given: tuple[PositionSequence], splits: Splits) -> Splits:
        rows, length = splits.start_prob.shape
        chance = np.random.default_rng(seed)
        begins = torch.zeros(rows, length)
        for row in range(rows):
            places = np.cumsum(1 + chance.poisson(mean - 1, length))
            begins[row, places[places < length]] = 1.0
        open_mask = (splits.start_prob > 0) & (splits.start_prob < 1)
        return splits._replace(start_prob=torch.where(open_mask, begins + 0 * splits.start_prob, splits.start_prob))

    return cut


def _empty_model(config: Config) -> Zonkey:
    """A model all of whose numbers are zeros, which take no memory until something is written to them."""
    model = unfilled_model(config, 1 << 62)
    if model is None:
        raise ConfigError("a model of this configuration is too large to be counted")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = unwritten_zeros(tensor.numel(), tensor.dtype).view(tensor.shape)
    return model


def _learn_strings(level: Level, sequence: PositionSequence) -> None:
    """Give the vocabulary the strings of a text."""
    assert level.vocabulary is not None
    counter = StringCounter()
    starts = level.choose_starts(sequence, level.split(sequence).start_prob).start_prob > 0.5
    counter.add(sequence.values, starts)
    shares = counter.shares(len(level.vocabulary.lengths))
    level.vocabulary.fill(shares, torch.zeros(len(shares), level.channels))
    # The strings are sorted now, which no later step does.
    level.vocabulary.tokenize(sequence.values, starts, sequence.document_mask, sequence.exists_mask)
