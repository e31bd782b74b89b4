"""Several processes that train one model together, on torch's own engine (`torchrun`, `accelerate launch`).

The first of them reads the text and hands every batch to all, which hold the same record and random state, and each
takes its rows of it. A mean in a loss is that of the whole batch: its sum goes over all processes in value, while its
gradient stays with the process that it came from, and these gradients, added up before each step, are those of the
whole batch. So what is trained does not depend on how many processes there are, but for what comes from a process's own
rows: what stands for hidden units, which kinds one of them may be, which rows are noised, and which other latents one
is to be told from. Without others, every function here does nothing.

The blocks of the denoisers, most of a large model, can be divided among the processes (`share_out_blocks`, FSDP2 of
torch). Compressors and decoders run as often as a text has windows of some length, which differs between processes, so
they stay whole in each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ReduceOp

from zonkey_core.devices import choose_device
from zonkey_core.errors import ZonkeyError
from zonkey_core.model.model import Zonkey

SENT_TOGETHER = 1 << 24
"""Numbers of gradients that are added up over the processes at once."""


@contextlib.contextmanager
def joined_processes(device: str) -> Iterator[None]:
    """Join the processes of one run that torch's launcher started, as its environment variables say.

    On GPUs each process takes the one of its number on its machine. `device` is what `choose_device` takes.
    """
    if choose_device(device).type == "cuda":
        torch.cuda.set_device(distributed.get_node_local_rank())
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def process_count() -> int:
    """How many processes train together; 1 without others."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_number() -> int:
    """Which of them this is, from 0, the one that writes and shows."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def over_all(values: Tensor, how: ReduceOp.RedOpType = ReduceOp.SUM) -> Tensor:
    """The sum of a tensor over all processes, or another reduction, without gradient."""
    if process_count() == 1:
        return values.detach()
    reduced = values.detach().clone()
    with _others_alive():
        distributed.all_reduce(reduced, how)
    return reduced


def global_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes in value, with the gradient of this process's own part."""
    return values if process_count() == 1 else over_all(values.float()) + (values - values.detach())


def mean_over(total: Tensor, count: Tensor | int, *, least: float = 1.0) -> Tensor:
    """A sum over what this process has, divided by how much all processes have; by `least` where that is more."""
    if not isinstance(count, Tensor):
        count = torch.tensor(float(count), device=total.device)
    return global_sum(total) / over_all(count).clamp(min=least)


def agree_on_most(*values: float) -> list[float]:
    """The largest of each value over all processes, so that all do the same at the same moment."""
    return over_all(torch.tensor(values, dtype=torch.float64), ReduceOp.MAX).tolist()


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace the contents of whole, contiguous tensors by those of the first process."""
    if process_count() == 1:
        return
    with _others_alive(), torch.no_grad():
        for tensor in tensors:
            if not is_shared_out(tensor):
                distributed.broadcast(tensor.detach().flatten().view(torch.uint8), 0)


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes; a parameter has none afterwards only where it has none anywhere.

    Those of shared-out parameters have been averaged on the way back, and are turned into sums.
    """
    if process_count() == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if is_shared_out(parameter) and parameter.grad is not None:
            parameter.grad.mul_(process_count())
    whole = [parameter for parameter in parameters if not is_shared_out(parameter)]
    present = over_all(torch.tensor([float(parameter.grad is not None) for parameter in whole]))
    asked = [parameter for parameter, found in zip(whole, present.tolist(), strict=True) if found]
    for parameter in asked:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for group in _groups(asked):
        gradients = [parameter.grad for parameter in group if parameter.grad is not None]
        added = over_all(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(added, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Hold the norm of all gradients together to at most `limit`; returns what it was."""
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [local(gradient) for gradient in gradients if is_shared_out(gradient)]
    if not parts:
        return nn.utils.clip_grad_norm_(parameters, limit)
    whole = [gradient for gradient in gradients if not is_shared_out(gradient)]
    norms = torch.stack([nn.utils.get_total_norm(whole), over_all(nn.utils.get_total_norm(parts).square()).sqrt()])
    norm = norms.square().sum().sqrt()
    torch._foreach_mul_([*parts, *whole], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def put_back_shares(model: nn.Module) -> None:
    """Let every process hold its own share again of what was gathered to compute with and not put back.

    That happens to blocks that were last run without gradients.
    """
    for module in model.modules():
        reshard = getattr(module, "reshard", None)  # of those that are divided alone
        if reshard is not None:
            reshard()


def share_out_blocks(model: Zonkey) -> None:
    """Divide the parameters of all denoisers' blocks among the processes; each gathers a block when it computes it."""
    from torch.distributed.device_mesh import init_device_mesh  # these take seconds to import
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (process_count(),))
    for level in model.levels:
        for block in level.denoiser.blocks:
            fully_shard(block, mesh=mesh)


def is_shared_out(tensor: Any) -> bool:
    """Whether each process holds a part of a tensor alone."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """The part of a tensor that this process holds: all of it, unless it is shared out."""
    with torch.no_grad():
        part: Tensor = tensor.to_local() if is_shared_out(tensor) else tensor
    return part


def gathered(tensor: Any) -> Tensor:
    """The whole of a tensor; of one that is shared out, all processes ask for it at once."""
    with _others_alive(), torch.no_grad():
        whole: Tensor = tensor.full_tensor() if is_shared_out(tensor) else tensor
    return whole


def laid_out_like(whole: Tensor, example: Any) -> Tensor:
    """A whole tensor, shared out as `example` is."""
    if not is_shared_out(example) or whole.shape != example.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    shared: Tensor = distribute_tensor(whole.to(example.device), example.device_mesh, example.placements)
    return shared


def on_first_alone(write: Callable[[], None]) -> None:
    """Let the first process do something, while the others wait; where it fails, all end."""
    failure: Exception | None = None
    if process_number() == 0:
        try:
            write()
        except Exception as error:  # raised below, once the others know
            failure = error
    end_together(failure)


def end_together(failure: Exception | None) -> None:
    """Raise what happened to this process, or where it happened to another, say so; all processes call this at once."""
    (failed,) = agree_on_most(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise _ended()


def _groups(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one kind, about `SENT_TOGETHER` numbers at a time."""
    group: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if group and (size >= SENT_TOGETHER or parameter.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.numel()
    if group:
        yield group


@contextlib.contextmanager
def _others_alive() -> Iterator[None]:
    """Turn what torch says when another process is gone into a line."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "onnection" in str(error):
            raise _ended() from error
        raise


def _ended() -> ZonkeyError:
    return ZonkeyError("another process of this run has ended, and its own message says why")
