"""What a training step costs, found by walking through it without computing it.

The step of a stage is taken as the trainer takes it, on sample text, with a model of the true size, but products of
matrices, convolutions and fused attention are not computed: their floating-point operations are counted by torch's own
formulas (`torch.utils.flop_counter`), forward and backward, and zeros stand for what they give. What the step keeps in
memory for its way back is counted, too. So both follow the code of the model and of its losses, whatever these become.

Cuts are not the model's, which has learned nothing, but drawn with the mean length that is configured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Muon
from torch.utils._python_dispatch import TorchDispatchMode
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
from zonkey_core.model.segment_vocabulary import StringCounter
from zonkey_core.model_building import unfilled_model
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters

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
    flops: int
    """Floating-point operations on the way there and back, which grow with the text."""
    update_flops: int
    """Those of the optimisers, whatever the text."""
    kept_bytes: int
    """Memory of what is kept for the way back, which grows with the text."""
    converted_bytes: int
    """Memory of the weights in the precision of the computation, where that is another than theirs."""
    trained: int
    """Parameters that the stage moves."""


class _Uncomputed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of products and gives zeros for them."""

    def __init__(self, model: nn.Module, kept: KeptMemory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.converted_bytes = 0
        self._kept = kept
        self._weights = {parameter.data_ptr() for parameter in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Stand in for products and for conversions of weights; all else is computed."""
        named = kwargs or {}
        packet = func._overloadpacket
        converts = func is torch.ops.aten._to_copy.default
        converted = converts and args[0].numel() > WEIGHT_NUMBERS
        if packet not in flop_registry and not converted:
            result = func(*args, **named)
            if converts:
                self._note(args[0], result)
            return result
        elsewhere = {**named, "device": "meta"} if converted else named
        unreal = func(*tree_map(_as_meta, args), **tree_map(_as_meta, elsewhere))
        made = tree_map(lambda each: _zeros_like(each) if isinstance(each, Tensor) else each, unreal)
        if converted:
            self._note(args[0], made)
        else:
            self.flops += flop_registry[packet](*args, **named, out_val=made)
        return made

    def _note(self, given: Tensor, converted: Tensor) -> None:
        """Count a conversion of a weight."""
        if given.data_ptr() in self._weights and given.dtype != converted.dtype:
            self.converted_bytes += converted.numel() * converted.element_size()
            self._kept.leave_out(converted)


def _as_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _zeros_like(unreal: Tensor) -> Tensor:
    """Zeros of the shape and layout of a tensor that is not there."""
    size = 1 + sum((count - 1) * stride for count, stride in zip(unreal.shape, unreal.stride(), strict=True))
    memory = unwritten_zeros(max(0, size) if unreal.numel() else 0, unreal.dtype)
    return memory.as_strided(unreal.shape, unreal.stride())


def unwritten_zeros(count: int, dtype: torch.dtype) -> Tensor:
    """[count] zeros that the system gives no memory until something is written to them, unlike those of torch."""
    return torch.from_numpy(np.zeros(count * dtype.itemsize, dtype=np.uint8)).view(dtype)


class StepWalker:
    """A model of a configuration that knows nothing, and rows of text for it."""

    def __init__(self, config: Config, *, rows: int, seed: int = 0, precision: torch.dtype = torch.bfloat16) -> None:
        self.config = config
        self.precision = precision
        self.seed = seed
        self.model = _empty_model(config)
        documents = open_stream(SourceSpec(sources=("sample",)), seed=seed, shuffle_documents=1000)
        batch = RowStream(documents, config.training.row_bytes, rows).next_batch()
        self.sequence = byte_sequence(torch.from_numpy(batch.bytes), torch.from_numpy(batch.document_starts))
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        with drawn_cuts(self.model, seed):
            _learn_strings(self.model.bottom, self.sequence)

    def cost(self, stage: Stage) -> StepCost:
        """Walk through a step of one stage."""
        parameters = stage_parameters(self.model, stage)
        self.model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        kept = KeptMemory(self.model, forgets=True)
        with drawn_cuts(self.model, self.seed), _Uncomputed(self.model, kept) as counter, kept.counted():
            with autocast(CPU, self.precision):
                chance = torch.Generator().manual_seed(self.seed)
                losses = stage_losses(self.model, stage, self.sequence, chance, FRACTION)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
        for parameter in parameters:
            parameter.grad = None
        return StepCost(
            bytes=self.sequence.values.numel(),
            flops=counter.flops,
            update_flops=_update_flops(self.model, stage, self.config.training),
            kept_bytes=kept.bytes,
            converted_bytes=counter.converted_bytes,
            trained=sum(each.numel() for each in parameters),
        )


def _update_flops(model: Zonkey, stage: Stage, training: TrainingConfig) -> int:
    """Products of Muon, which makes each matrix orthogonal by Newton and Schulz's iteration; AdamW has none.

    A step of it for a matrix m x n, m the smaller, is `X <- a X + (b A + c A A) X` with `A = X X^T`.
    """
    flops = 0
    for optimizer in stage_optimizers(model, stage, training):
        for group in optimizer.param_groups if isinstance(optimizer, Muon) else ():
            sizes = (sorted(parameter.shape) for parameter in group["params"])
            flops += sum(group["ns_steps"] * (4 * short**2 * long + 2 * short**3) for short, long in sizes)
    return flops


class KeptMemory:
    """Counts the memory of what a graph keeps for its way back, but for the model's own parameters and buffers.

    What `forgets` keeps of large floating-point tensors is their shapes, and zeros stand for them on the way back.
    """

    def __init__(self, model: nn.Module, *, forgets: bool = False) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._seen: dict[int, StorageWeakRef] = {}
        self._forgets = forgets
        self.bytes = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What is kept in the body counts, once for every piece of memory."""
        with torch.autograd.graph.saved_tensors_hooks(self._count, _recall):
            yield
        self._seen.clear()

    def leave_out(self, tensor: Tensor) -> None:
        """Do not count the memory of this tensor, now or later."""
        self._is_new(tensor)

    def _is_new(self, tensor: Tensor) -> bool:
        """Whether its memory was not met before; from now on it was."""
        # No other memory is known by the reference's number while it is held.
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        return self._seen.setdefault(reference.cdata, reference) is reference

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._own:
            return tensor
        if self._is_new(tensor):
            self.bytes += storage.nbytes()
        if self._forgets and tensor.is_floating_point() and tensor.numel() > FORGOTTEN_NUMBERS:
            return tensor.detach().to("meta")
        return tensor


def _recall(kept: Tensor) -> Tensor:
    """What was kept, or zeros in its place."""
    return _zeros_like(kept) if kept.is_meta else kept


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
