"""What a training step is planned to cost (`zonkey train --plan`), beside what it costs when it is computed.

    python benchmarks/step_costs.py --preset tiny --rows 4 --steps 6
    python benchmarks/step_costs.py --preset base --rows 1 --stage joint --set training.row_bytes=1024 --same

Of every stage one step is taken, in which optimisers make their states, and those after it are looked at: operations
(`FlopCounterMode`), and what tensors hold when they hold most, those of optimisers and the weights included. The same
from outside: how much the process grew above what it held before the step, for which tensors before it are taken off.
Planned is the mean over some draws of what a step asks, found of the steps that were taken, which have weights of
chance, other text and other draws of cuts of the same mean length; with `--same` there is one step, and it has those of
the first walk. Rows are as long as configured, in stages that shorten them, too.

The last line tells what the process holds besides: libraries, their code, and what oneDNN prepares and keeps for every
shape. Memory that is freed goes back to the system at once here (`mallopt`), unlike in a run, where some stays with the
process. With `--flat`, the joint step is counted at several lengths of document instead; with `--sizes`, for models
of other widths, layers and levels, what a byte of it takes is counted and computed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from zonkey_core.config import Config, ModelConfig, load_preset
from zonkey_core.devices import autocast
from zonkey_core.model.model import byte_sequence
from zonkey_core.model.positions import PositionSequence
from zonkey_core.training.curriculum import Stage, plan_stages
from zonkey_core.training.optimizers import take_step
from zonkey_core.training.run_plan import PlanRequest
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters
from zonkey_core.training.step_cost import CPU, FRACTION, StepWalker, drawn_cuts, update_flops
from zonkey_core.training.step_memory import TensorMemory, mean_peak

OTHER_SEED = 1000
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
WIDTHS = ("width", "splitter_width", "reader_width", "denoiser_width")
DEPTHS = ("compressor_layers", "decoder_layers", "denoiser_layers")
FEW_SEGMENTS = 4.0
"""Segments of the level below in one of a level that is put on top."""
M_MMAP_THRESHOLD = -3
LEAST_MAPPED = 1 << 16


class Found(NamedTuple):
    """What a step cost."""

    flops: int
    tensors: float
    """Bytes that its tensors held at most, beside those that were there before."""
    grew: float
    """Bytes that the process held at most, beside what it held before."""
    seconds: float


def memory_held(name: str) -> float:
    """Bytes of memory that this process holds (`VmRSS`), or the most that it did since it was reset (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def settle() -> None:
    """Give memory that is not in use back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def states(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """The tensors that optimisers hold."""
    held = (value for each in optimizers for state in each.state.values() for value in state.values())
    return [value for value in held if isinstance(value, Tensor)]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Their bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def real_step(
    walker: StepWalker, stage: Stage, sequence: PositionSequence, optimizers: list[Optimizer], seed: int
) -> Found:
    """Compute a step of a stage and tell what it cost."""
    parameters = stage_parameters(walker.model, stage)
    memory = TensorMemory(walker.model, states(optimizers))
    settle()
    before = memory_held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.process_time()
    with drawn_cuts(walker.model, seed), FlopCounterMode(display=False) as counter, memory:
        with autocast(CPU, walker.precision):
            chance = torch.Generator().manual_seed(seed)
            losses = stage_losses(walker.model, stage, sequence, chance, FRACTION)
        take_step(torch.stack(list(losses.values())).sum(), parameters, optimizers, 1.0)
    seconds = time.process_time() - started
    return Found(counter.get_total_flops(), memory.course().peak().total(), memory_held("VmHWM") - before, seconds)


def real_steps(walker: StepWalker, stage: Stage, steps: int) -> tuple[list[Found], int]:
    """What steps cost after a first one, each of other text and draws, and the bytes of the optimisers' states."""
    walker.model.requires_grad_(False)
    for parameter in stage_parameters(walker.model, stage):
        parameter.requires_grad_(True)
    optimizers = stage_optimizers(walker.model, stage, walker.config.training)
    _, *found = [
        real_step(walker, stage, walker.rows(draw), optimizers, walker.seed + draw) for draw in [0, *range(steps)]
    ]
    return found, size_of(states(optimizers))


def compare(config: Config, rows: int, steps: int, only: str | None, *, same: bool) -> Iterator[str]:
    """A line for every stage."""
    draws = 1 if same else PlanRequest().draws
    planned = StepWalker(config, rows=rows, draws=draws)
    real = StepWalker(config, rows=rows, draws=steps, seed=0 if same else OTHER_SEED)
    torch.manual_seed(OTHER_SEED)
    fill_by_chance(real.model.parameters())
    weights = size_of([*real.model.parameters(), *real.model.buffers()])
    columns = "".join(f"{name:>10}{'planned':>9}{'':7}" for name in ("GFLOP", "tensors MB"))
    yield f"{'stage':16}{columns}{'process MB':>11}{'':7}{'s':>7}"
    for stage in plan_stages(config.model, config.training.shares, only):
        walks = [planned.walk(stage, planned.rows(draw), draw) for draw in range(draws)]
        flops = statistics.mean(count for count, _ in walks) + update_flops(planned.model, stage, config.training)
        memory = mean_peak([course for _, course in walks]).total()
        found, optimizer = real_steps(real, stage, steps)
        before = weights + optimizer
        cells = ""
        for measured, plan, unit in (
            (statistics.mean(each.flops for each in found), flops, 1e9),
            (before + statistics.mean(each.tensors for each in found), before + memory, 1e6),
        ):
            cells += f"{measured / unit:10.1f}{plan / unit:9.1f}{plan / measured - 1:+7.1%}"
        grew = before + statistics.mean(each.grew for each in found)
        cells += f"{grew / 1e6:11.1f}{(before + memory) / grew - 1:+7.1%}"
        name = f"{stage.name} {'' if stage.level is None else stage.level}"
        yield f"{name:16}{cells}{statistics.mean(each.seconds for each in found):7.1f}"
    settle()
    yield f"besides weights, the process holds {(memory_held('VmRSS') - weights) / 1e6:.0f} MB"


@torch.no_grad()
def fill_by_chance(parameters: Iterator[Tensor]) -> None:
    """Give parameters small numbers."""
    for parameter in parameters:
        parameter.copy_(0.05 * torch.randn(parameter.shape) + (parameter.dim() == 1))


def flatness(config: Config) -> Iterator[str]:
    """What a byte of the joint step costs where documents have some length; rows stay as they are configured."""
    walker = StepWalker(config, rows=config.training.batch_rows)
    joint = plan_stages(config.model, config.training.shares, "joint")[0]
    values = walker.rows(0).values
    for length in LENGTHS:
        starts = torch.arange(values.numel()).view_as(values) % length == 0
        flops, _ = walker.walk(joint, byte_sequence(values, starts), walker.seed)
        yield f"documents of {length:9,} bytes: {flops / values.numel() / 1e6:8.3f} MFLOP a byte"


def scaled(model: ModelConfig, fields: Iterable[str], factor: float) -> ModelConfig:
    """A model of whose levels some fields are so many times what they were."""
    return ModelConfig(
        levels=tuple(
            msgspec.structs.replace(level, **{name: int(factor * getattr(level, name)) for name in fields})
            for level in model.levels
        )
    )


def variants(model: ModelConfig) -> Iterator[tuple[str, ModelConfig]]:
    """Models of other widths, layers and levels, with their names."""
    yield "as it is", model
    for factor in (0.5, 2.0):
        yield f"{factor:g} x as wide", scaled(model, WIDTHS, factor)
    for factor in (0.5, 2.0):
        yield f"{factor:g} x as many layers", scaled(model, DEPTHS, factor)
    yield "the lowest level alone", ModelConfig(levels=model.levels[:1])
    top = msgspec.structs.replace(model.levels[-1], segment_length=FEW_SEGMENTS)
    yield "a level more", ModelConfig(levels=(*model.levels, top))


def by_size(config: Config, rows: int, steps: int) -> Iterator[str]:
    """What a byte of the joint step takes in models of several sizes: operations, and the processor's time."""
    size = rows * config.training.row_bytes
    yield f"{'':24}{'parameters':>12}{'MFLOP a byte':>14}{'us a byte':>11}"
    for name, model in variants(config.model):
        changed = msgspec.structs.replace(config, model=model)
        walker = StepWalker(changed, rows=rows, draws=steps)
        torch.manual_seed(OTHER_SEED)
        fill_by_chance(walker.model.parameters())
        joint = plan_stages(model, changed.training.shares, "joint")[0]
        found, _ = real_steps(walker, joint, steps)
        flops, seconds = (statistics.mean(getattr(each, what) for each in found) for what in ("flops", "seconds"))
        count = sum(parameter.numel() for parameter in walker.model.parameters())
        yield f"{name:24}{count:12,}{flops / size / 1e6:14.2f}{1e6 * seconds / size:11.1f}"


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--stage")
    parser.add_argument("--same", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--sizes", action="store_true")
    arguments = parser.parse_args()
    config = load_preset(arguments.preset, arguments.overrides)
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, LEAST_MAPPED)
    steps = 1 if arguments.same else arguments.steps
    lines = compare(config, arguments.rows, steps, arguments.stage, same=arguments.same)
    if arguments.flat:
        lines = flatness(config)
    elif arguments.sizes:
        lines = by_size(config, arguments.rows, steps)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
