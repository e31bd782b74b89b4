"""`zonkey train --plan`: the options of a plan, and how one is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zonkey_cli.console import aligned, human_bytes, human_seconds, working
from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.options import FiniteRange, json_option
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.config import Config
    from zonkey_core.training.run_plan import RunPlan

F = TypeVar("F", bound=Callable[..., Any])
DAY = 86_400.0
PLAN_OPTIONS = ("gpus", "tokens", "teraflops", "utilisation", "as_json")
"""The options that make sense with `--plan` alone."""
_TAKEN = ("gpus", "shard", "accumulate", "checkpoint_activations", "stage", "teraflops", "utilisation")
"""Options that a plan takes as they are."""


def plan_options(function: F) -> F:
    """`--plan`, and what goes with it."""
    for option in (
        json_option("With --plan, write one object."),
        click.option(
            "--utilisation", type=FiniteRange(min=0, min_open=True, max=1), metavar="SHARE", default=0.3,
            show_default=True, help="With --plan, the share of that peak that the run will reach.",
        ),
        click.option(
            "--teraflops", type=FiniteRange(min=0, min_open=True), metavar="N", default=989.0, show_default=True,
            help="With --plan, the peak of a GPU in the number format of the run; by default an H100's in bfloat16.",
        ),
        click.option(
            "--tokens", type=FiniteRange(min=1), metavar="N",
            help="With --plan, the length of the run in bytes of text, which are the tokens here; 1e12 will do.",
        ),
        click.option(
            "--gpus", type=click.IntRange(min=1, max=1 << 20), metavar="N", default=1, show_default=True,
            help="With --plan, how many GPUs train together.",
        ),
        click.option(
            "--plan", is_flag=True,
            help="Train nothing, but tell what the run needs: parameters, memory of a GPU, operations a byte, days.",
        ),
    ):
        function = option(function)
    return function


def show_plan(streams: Streams, config: Config, options: Mapping[str, Any], limit: str | None) -> ExitCode:
    """Tell what a run with these options of `train` would need, of the length that option `limit` gives, if any.

    Standard output gets tables on a terminal, aligned text or one object elsewhere.
    """
    import msgspec
    import torch

    from zonkey_core.training.run_plan import PlanRequest, plan_run

    request = PlanRequest(
        **{name: options[name] for name in _TAKEN},
        precision=torch.float32 if options["precision"] == "fp32" else torch.bfloat16,
        text_bytes=options["tokens"] if limit == "tokens" else None,
        seconds=60 * options["minutes"] if limit == "minutes" else None,
        steps=options["steps"] if limit == "steps" else None,
    )
    with working(streams, "walking through a step of every stage"):
        plan = plan_run(config, request)
    blocks = {
        "Parameters": _parameters(plan), "Memory of a GPU": _memory(plan), "Stages": _stages(plan), "Run": _run(plan),
    }  # fmt: skip
    if options["as_json"]:
        streams.write_json({**msgspec.to_builtins(plan), "memory_bytes": plan.memory.total()})
    elif streams.colours_output:
        streams.write(_tables(blocks), styled=True)
    else:
        streams.write("\n".join(f"{title}\n{aligned(rows)}" for title, rows in blocks.items()).encode())
    return ExitCode.DONE


def _parameters(plan: RunPlan) -> list[list[str]]:
    rows = [[name, f"{count:,}"] for name, count in plan.parameters.items()]
    return [*rows, ["all", f"{sum(plan.parameters.values()):,}"]]


def _memory(plan: RunPlan) -> list[list[str]]:
    import msgspec

    parts = msgspec.structs.asdict(plan.memory)
    rows = [[name.replace("_", " "), human_bytes(size)] for name, size in parts.items()]
    return [*rows, ["all", human_bytes(plan.memory.total())]]


def _stages(plan: RunPlan) -> list[list[str]]:
    rows = [["stage", "share of steps", "trained", "MFLOP a byte", "memory of a GPU"]]
    for stage in plan.stages:
        rows.append([
            stage.name if stage.level is None else f"{stage.name} {stage.level}", f"{stage.share:.1%}",
            f"{stage.trained_parameters:,}", f"{stage.flops_per_byte / 1e6:,.1f}", human_bytes(stage.gpu_bytes),
        ])  # fmt: skip
    return rows


def _run(plan: RunPlan) -> list[list[str]]:
    hardware = f"{plan.gpus:,} of {plan.teraflops:g} TFLOP/s at {plan.utilisation:.0%}, shard {plan.shard}"
    rows = [
        ["GPUs", hardware],
        ["rows of a step", f"{plan.batch_rows:,}, {human_bytes(plan.step_bytes)} of text"],
        ["operations", f"{plan.flops_per_byte / 1e6:,.1f} MFLOP a byte, on average over the stages"],
        ["speed", f"{human_bytes(plan.bytes_per_second)} a second"],
    ]
    if plan.text_bytes is not None and plan.steps is not None and plan.days is not None:
        time = f"{plan.days:,.1f} days" if plan.days >= 1 else human_seconds(plan.days * DAY)
        rows += [
            ["tokens, which are bytes", f"{plan.text_bytes:,.0f} in {plan.steps:,.0f} steps"],
            ["all operations", f"{plan.flops_per_byte * plan.text_bytes:.3g} FLOP"],
            ["time", time],
        ]
    return rows


def _tables(blocks: dict[str, list[list[str]]]) -> bytes:
    """Tables for a terminal."""
    import io

    from rich.console import Console
    from rich.table import Table

    written = io.StringIO()
    console = Console(file=written, force_terminal=True, highlight=False)
    for title, rows in blocks.items():
        titles = rows[0] if title == "Stages" else []
        table = Table(title=title, title_justify="left", show_header=bool(titles))
        for index in range(len(rows[0])):
            table.add_column(titles[index] if titles else "", justify="left" if not index else "right")
        for row in rows[1:] if titles else rows:
            table.add_row(*row)
        console.print(table)
    return written.getvalue().encode()
