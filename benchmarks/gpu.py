"""Is a GPU right, and how fast is it?

    python benchmarks/gpu.py --preset small

First everything is compared with the CPU's float32, under bfloat16 autocast and in float32 without TF32: see
`device_checks.py`. Then training steps of every stage, and generation, are timed in bytes of text per second and as a
share of the peak that a large bfloat16 product reaches in the same run. Operations are counted once, in a step of
their own, by `FlopCounterMode`; it sees no products inside compiled kernels, nor fused attention on a CPU, so a share
is a lower bound.

Without a CUDA GPU the same is done on the CPU in bfloat16. The exit code is 1 when a check fails.
"""

from __future__ import annotations

import copy
import itertools
import math
import platform
import secrets
import statistics
import time
from collections.abc import Callable, Iterator

import click
import msgspec
import torch
from device_checks import Check, Side, all_probes, run_checks, untrained_model
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zonkey_core.config import PRESETS, Config, load_preset
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import RowBatch, RowStream
from zonkey_core.errors import ZonkeyError
from zonkey_core.inference.generation import SamplingOptions, generate
from zonkey_core.model.model import Zonkey, byte_sequence
from zonkey_core.model.positions import PositionSequence
from zonkey_core.training.curriculum import Stage, plan_stages
from zonkey_core.training.optimizers import take_step
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters

CPU = torch.device("cpu")
COMPARED_ROWS = 2
BATCHES = 8
WARMUPS = 2
LEAST_RUNS = 3
PEAK_SECONDS = 0.5
FRACTION = 0.9
"""How far stages are, for the timing: late enough that nothing of what they minimise is left out."""
SAMPLING = SamplingOptions()
SURE = 20.0
"""A logit that leaves no doubt."""


class Speed(msgspec.Struct, frozen=True):
    """How fast one thing runs; it has `passed` if what it computed is finite, or text at all."""

    name: str
    bytes_per_second: float
    teraflops: float
    share_of_peak: float
    runs: int
    passed: bool


class Report(msgspec.Struct, frozen=True):
    """All that was found."""

    device: str
    torch: str
    preset: str
    overrides: list[str]
    rows: int
    row_bytes: int
    seed: int
    peak_teraflops: float | None
    checks: list[Check]
    speeds: list[Speed]

    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed for check in self.checks) and all(speed.passed for speed in self.speeds)


class TrainingStep:
    """Updates of one stage as the trainer does them, on a few batches in turn."""

    def __init__(self, model: Zonkey, config: Config, stage: Stage, batches: list[RowBatch], side: Side) -> None:
        self.model, self.config, self.stage, self.side = model, config, stage, side
        self.batches = itertools.cycle(batches)
        self.generator = torch.Generator().manual_seed(0)
        self.parameters = stage_parameters(model, stage)
        model.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizers = stage_optimizers(model, stage, config.training)
        self.total = torch.zeros(())

    def run(self) -> None:
        """One update."""
        sequence = rows_of(next(self.batches), self.side.device)
        with self.side.computing():
            losses = stage_losses(self.model, self.stage, sequence, self.generator, FRACTION)
        total = torch.stack(list(losses.values())).sum()
        take_step(total, self.parameters, self.optimizers, self.config.training.gradient_clip)
        self.total = total.detach()
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1e-3)


def rows_of(batch: RowBatch, device: torch.device) -> PositionSequence:
    """A batch on its device."""
    values = torch.from_numpy(batch.bytes).to(device, non_blocking=True)
    return byte_sequence(values, torch.from_numpy(batch.document_starts).to(device, non_blocking=True))


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(run: Callable[[], object], device: torch.device, seconds: float) -> tuple[float, int]:
    """Median duration of a warm run, the device's work included, and how many there were."""
    for _ in range(WARMUPS):
        run()
    times: list[float] = []
    while len(times) < LEAST_RUNS or sum(times) < seconds:
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(times)


def peak_flops(device: torch.device) -> float:
    """Operations per second of a large bfloat16 product."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = torch.randn(2, size, size, device=device).bfloat16()
    return float(2 * size**3 / median_seconds(lambda: left @ right, device, PEAK_SECONDS)[0])


def measure(
    name: str, run: Callable[[], None], processed: Callable[[], int], device: torch.device, seconds: float, peak: float
) -> Speed:
    """Count the operations of one run, then time runs; `processed` gives the bytes of a run, 0 for a broken one."""
    with FlopCounterMode(display=False) as counter:
        run()
    median, runs = median_seconds(run, device, seconds)
    flops = counter.get_total_flops() / median
    done = processed()
    return Speed(name, done / median, flops / 1e12, flops / peak, runs, done > 0)


def training_speeds(
    side: Side, config: Config, batches: list[RowBatch], seconds: float, peak: float
) -> Iterator[Speed]:
    """Training steps of every stage."""
    size = batches[0].bytes.size
    for stage in plan_stages(config.model, config.training.shares):
        step = TrainingStep(side.model, config, stage, batches, side)
        where = "all levels" if stage.level is None else f"level {stage.level}"

        def processed(step: TrainingStep = step) -> int:
            return size if math.isfinite(float(step.total)) else 0

        yield measure(f"train {stage.name}, {where}", step.run, processed, side.device, seconds, peak)


def talkative(model: Zonkey) -> Zonkey:
    """Let an untrained model's texts and slots never end and its windows have the usual length.

    Then texts run their course. A window ends where the chance of having gone on falls to one half.
    """
    for level in model.levels:
        nn.init.constant_(level.denoiser.ending_out.bias, -SURE)
        start_prob = 1 - 0.5 ** (1 / level.config.segment_length)
        nn.init.constant_(level.decoder.starts.bias, math.log(start_prob / (1 - start_prob)))
    return model.requires_grad_(False).eval()


def generation_speeds(side: Side, seconds: float, peak: float) -> Iterator[Speed]:
    """Generation of one text after another, from every level."""
    for level in range(len(side.model.levels)):
        options = msgspec.structs.replace(SAMPLING, level=level)
        seeds = itertools.count()
        lengths: list[int] = []

        def run(options: SamplingOptions = options, seeds: Iterator[int] = seeds, lengths: list[int] = lengths) -> None:
            with side.computing():
                (sample,) = generate(side.model, seeds=[next(seeds)], options=options)
            lengths.append(len(sample.text))

        def processed(lengths: list[int] = lengths) -> int:
            return round(statistics.mean(lengths))

        yield measure(f"generate from level {level}", run, processed, side.device, seconds, peak)


def speeds_of(
    config: Config, batches: list[RowBatch], device: torch.device, seed: int, seconds: float, peak: float
) -> list[Speed]:
    """Training, then generation."""
    model = untrained_model(config, rows_of(batches[0], CPU), seed)
    talker = talkative(copy.deepcopy(model))
    trained = Side(model.to(device), device, torch.bfloat16)
    speeds = list(training_speeds(trained, config, batches, seconds, peak))
    return [*speeds, *generation_speeds(trained._replace(model=talker.to(device)), seconds, peak)]


def draw_batches(config: Config, rows: int, seed: int) -> list[RowBatch]:
    """Batches of the bundled sample."""
    documents = open_stream(SourceSpec(sources=("sample",)), seed=seed, shuffle_documents=1000)
    stream = RowStream(documents, config.training.row_bytes, rows)
    return [stream.next_batch() for _ in range(BATCHES)]


def compare(config: Config, batches: list[RowBatch], device: torch.device, seed: int) -> list[Check]:
    """All checks; on a CPU there is only bfloat16 to compare."""
    rows = PositionSequence(*(field[:COMPARED_ROWS] for field in rows_of(batches[0], CPU)))
    model = untrained_model(config, rows, seed, frequency=2.0)
    precisions = [torch.bfloat16] if device == CPU else [torch.bfloat16, torch.float32]
    sides = [Side(copy.deepcopy(model).to(device), device, precision) for precision in precisions]
    probes = all_probes(model, config, rows, seed)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return list(run_checks(probes, Side(model, CPU, torch.float32), sides))


def show(report: Report) -> None:
    """Two tables on standard output."""
    console = Console(highlight=False)
    title = f"{report.preset} on {report.device}, torch {report.torch}, seed {report.seed}"
    checks = Table("check", "precision", "error", "tolerance", "result", title=f"Against the CPU's float32: {title}")
    for check in report.checks:
        result = "pass" if check.passed else f"FAIL {check.note}".strip()
        checks.add_row(check.name, check.precision, f"{check.error:.2e}", f"{check.tolerance:.0e}", result)
    console.print(checks)
    if report.peak_teraflops is None:
        return
    rows = f"{report.rows} rows of {report.row_bytes} bytes, peak {report.peak_teraflops:.3g} TFLOP/s"
    speeds = Table("what", "bytes/s", "TFLOP/s", "share of peak", "runs", "result", title=f"Speed: {rows}")
    for speed in report.speeds:
        figures = (f"{speed.bytes_per_second:,.0f}", f"{speed.teraflops:.3g}", f"{speed.share_of_peak:.2%}")
        speeds.add_row(speed.name, *figures, str(speed.runs), "pass" if speed.passed else "FAIL")
    console.print(speeds)


@click.command()
@click.option("--preset", type=click.Choice(PRESETS), default="small", show_default=True)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change one value of the preset.")
@click.option("--rows", type=click.IntRange(min=1), help="Rows of a timed batch; the preset's by default.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=5.0, show_default=True,
    help="How long to time each stage; 0 compares only.",
)
@click.option("--seed", type=click.IntRange(min=0), help="A fresh one by default; the tables name it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def main(
    context: click.Context,
    preset: str,
    overrides: tuple[str, ...],
    rows: int | None,
    seconds: float,
    seed: int | None,
    as_json: bool,
) -> None:
    """Compare a CUDA GPU with the CPU, and time it."""
    try:
        config = load_preset(preset, overrides)
    except ZonkeyError as error:
        raise click.UsageError(str(error)) from error
    device = torch.device("cuda") if torch.cuda.is_available() else CPU
    if device == CPU:
        click.echo("No CUDA GPU here: the CPU's bfloat16 is compared with its float32 instead.", err=True)
    seed = secrets.randbelow(2**31) if seed is None else seed
    rows = rows or config.training.batch_rows
    batches = draw_batches(config, rows, seed)
    checks = compare(config, batches, device, seed)
    peak = peak_flops(device) if seconds else None
    speeds = speeds_of(config, batches, device, seed, seconds, peak) if peak else []
    report = Report(
        device=torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        torch=str(torch.__version__),
        preset=preset,
        overrides=list(overrides),
        rows=rows,
        row_bytes=config.training.row_bytes,
        seed=seed,
        peak_teraflops=None if peak is None else peak / 1e12,
        checks=checks,
        speeds=speeds,
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        show(report)
    context.exit(0 if report.passed() else 1)


if __name__ == "__main__":
    main()
