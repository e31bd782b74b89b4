"""What a training step is planned to cost (`zonkey train --plan`), beside what it costs when it is computed.

    python benchmarks/step_costs.py --preset tiny --rows 4
    python benchmarks/step_costs.py --preset base --rows 1 --stage joint

Planned and counted: operations (`FlopCounterMode` around a real step), what the graph keeps, and the most memory that
the process held beyond what it held before, with gradients and optimisers, against their planned sum. The real step has
other text and other cuts, of the same mean length, and weights of chance. With `--flat`, the joint step is counted and
timed at several lengths of row and of document instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zonkey_core.config import Config, load_preset
from zonkey_core.devices import autocast
from zonkey_core.model.model import Zonkey, byte_sequence
from zonkey_core.model.positions import PositionSequence
from zonkey_core.training.curriculum import Stage, plan_stages
from zonkey_core.training.optimizers import take_step
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters
from zonkey_core.training.step_cost import CPU, FRACTION, KeptMemory, StepWalker, drawn_cuts

OTHER_SEED = 1
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)


def memory_held(name: str) -> float:
    """Bytes of memory that this process holds (`VmRSS`), or the most that it did since it was reset (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def real_step(model: Zonkey, config: Config, stage: Stage, sequence: PositionSequence) -> dict[str, float]:
    """Compute a step of a stage and tell what it cost."""
    parameters = stage_parameters(model, stage)
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizers = stage_optimizers(model, stage, config.training)
    kept = KeptMemory(model)
    before = memory_held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.process_time()
    with drawn_cuts(model, OTHER_SEED), FlopCounterMode(display=False) as counter, kept.counted():
        with autocast(CPU, torch.bfloat16):
            losses = stage_losses(model, stage, sequence, torch.Generator().manual_seed(OTHER_SEED), FRACTION)
        take_step(torch.stack(list(losses.values())).sum(), parameters, optimizers, 1.0)
    return {
        "flops": counter.get_total_flops(), "kept": kept.bytes, "held": memory_held("VmHWM") - before,
        "seconds": time.process_time() - started,
    }  # fmt: skip


def optimizer_bytes(model: Zonkey, config: Config, stage: Stage) -> int:
    """What the optimisers of a stage hold: two numbers a parameter, or one where they are Muon's."""
    return sum(
        (4 if isinstance(optimizer, torch.optim.Muon) else 8) * parameter.numel()
        for optimizer in stage_optimizers(model, stage, config.training)
        for group in optimizer.param_groups for parameter in group["params"]
    )


def compare(config: Config, rows: int, only: str | None) -> Iterator[str]:
    """A line for every stage."""
    planned = StepWalker(config, rows=rows)
    real = StepWalker(config, rows=rows, seed=OTHER_SEED)
    torch.manual_seed(OTHER_SEED)
    fill_by_chance(real.model.parameters())
    columns = "".join(f"{name:>10}{'planned':>9}{'':7}" for name in ("GFLOP", "kept MB", "held MB"))
    yield f"{'stage':16}{columns}{'s':>7}"
    for stage in plan_stages(config.model, config.training.shares, only):
        cost = planned.cost(stage)
        found = real_step(real.model, config, stage, real.sequence)
        kept = cost.kept_bytes + cost.converted_bytes
        held = kept + 4 * cost.trained + optimizer_bytes(real.model, config, stage)
        cells = ""
        for measured, plan, unit in (
            (found["flops"], cost.flops + cost.update_flops, 1e9), (found["kept"], kept, 1e6),
            (found["held"], held, 1e6),
        ):
            cells += f"{measured / unit:10.1f}{plan / unit:9.1f}{plan / measured - 1:+7.1%}"
        name = f"{stage.name} {'' if stage.level is None else stage.level}"
        yield f"{name:16}{cells}{found['seconds']:7.1f}"


@torch.no_grad()
def fill_by_chance(parameters: Iterator[Tensor]) -> None:
    """Give parameters small numbers."""
    for parameter in parameters:
        parameter.copy_(0.05 * torch.randn(parameter.shape) + (parameter.dim() == 1))


def flatness(config: Config) -> Iterator[str]:
    """What a byte of the joint step costs where documents have some length; rows stay as they are configured."""
    walker = StepWalker(config, rows=config.training.batch_rows)
    joint = plan_stages(config.model, config.training.shares, "joint")[0]
    values = walker.sequence.values
    for length in LENGTHS:
        starts = torch.arange(values.numel()).view_as(values) % length == 0
        walker.sequence = byte_sequence(values, starts)
        cost = walker.cost(joint)
        yield f"documents of {length:9,} bytes: {cost.flops / cost.bytes / 1e6:8.3f} MFLOP a byte"


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--stage")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--flat", action="store_true")
    arguments = parser.parse_args()
    config = load_preset(arguments.preset, arguments.overrides)
    for line in flatness(config) if arguments.flat else compare(config, arguments.rows, arguments.stage):
        print(line, flush=True)


if __name__ == "__main__":
    main()
