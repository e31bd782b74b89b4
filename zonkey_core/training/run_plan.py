"""What a training run will need, before it is begun: memory of a GPU by part, operations, and time.

Parameters are counted and steps walked through (`zonkey_core.training.step_cost`). Tokens are bytes here. Memory is
that of tensors at the moment of a step at which they hold most. Not counted are what libraries hold for themselves,
what Muon needs for a moment, and the time that processes wait for each other: that is in the utilisation, which is a
guess until it has been measured on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import torch
from torch import nn
from torch.optim import Muon

from zonkey_core.config import Config
from zonkey_core.errors import ConfigError
from zonkey_core.model.transformer import forget_activations
from zonkey_core.training.curriculum import plan_stages
from zonkey_core.training.stages import stage_optimizers
from zonkey_core.training.step_cost import StepCost, StepWalker
from zonkey_core.training.step_memory import mean_peak

FLOAT_BYTES = 4
WALKED_BYTES = 4096
"""Bytes of text of the steps that are walked through, at most, where a row is no longer; what they cost is scaled."""


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is to be planned for."""

    gpus: int = 1
    shard: str = "none"
    accumulate: int = 1
    checkpoint_activations: bool = False
    precision: torch.dtype = torch.bfloat16
    text_bytes: float | None = None
    """Bytes of text to learn from, over all stages; or else `seconds`, or `steps`; without any, no time is planned."""
    seconds: float | None = None
    steps: int | None = None
    stage: str | None = None
    teraflops: float = 989.0
    """Peak of a GPU in the precision of the run."""
    utilisation: float = 0.3
    """Share of that peak that the run will reach."""
    draws: int = 4
    """Steps of a stage to walk through, as what they ask of a text is drawn by chance; 2 where its rows are long."""


class StagePlan(msgspec.Struct, frozen=True):
    """One stage of the curriculum."""

    name: str
    level: int | None
    share: float
    """Of the steps of the run."""
    trained_parameters: int
    flops_per_byte: float
    """With those of the optimisers, which every GPU has for itself."""
    gpu_bytes: float
    """Memory of a GPU in this stage."""


class MemoryPlan(msgspec.Struct, frozen=True):
    """Bytes of a GPU's memory in the stage that needs most, at the moment at which it does."""

    weights: float
    averaged_weights: float
    gradients: float
    """Those that are there at that moment, while activations of the way there are kept."""
    optimizer_state: float
    converted_weights: float
    """The weights in the precision of the computation."""
    activations: float

    def total(self) -> float:
        """All together."""
        return float(sum(msgspec.structs.astuple(self)))


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What `plan_run` found."""

    parameters: dict[str, int]
    """By part, as `level 0: denoiser`."""
    stages: list[StagePlan]
    memory: MemoryPlan
    gpus: int
    shard: str
    batch_rows: int
    """Rows of a step in all; more than configured where GPUs could not share these evenly."""
    step_bytes: int
    flops_per_byte: float
    """Mean over the stages, by their shares."""
    bytes_per_second: float
    teraflops: float
    utilisation: float
    text_bytes: float | None
    steps: float | None
    days: float | None


def plan_run(config: Config, request: PlanRequest) -> RunPlan:
    """Plan a run of a configuration; raises `ConfigError` where it has no stage of the name that is asked for."""
    pieces = request.gpus * request.accumulate
    batch_rows = -(-config.training.batch_rows // pieces) * pieces
    rows = batch_rows // pieces
    row_bytes = config.training.row_bytes
    walked_rows = min(rows, max(1, WALKED_BYTES // row_bytes))
    draws = request.draws if walked_rows * row_bytes <= WALKED_BYTES else 2
    walker = StepWalker(config, rows=walked_rows, draws=draws, precision=request.precision)
    if request.checkpoint_activations:
        forget_activations(walker.model)
    whole = _kept_by_each(walker, request)
    stages, memories = [], []
    for stage in plan_stages(config.model, config.training.shares, request.stage):
        cost = walker.cost(stage)
        states = _optimizer_bytes(stage_optimizers(walker.model, stage, config.training), whole)
        memories.append(_memory(cost, whole, states, rows * row_bytes, goes_on=request.accumulate > 1))
        flops = cost.flops / cost.bytes + request.gpus * cost.update_flops / (batch_rows * row_bytes)
        stages.append(
            StagePlan(stage.name, stage.level, stage.share, cost.trained, flops, memories[-1].total())
        )
    mean = sum(stage.share * stage.flops_per_byte for stage in stages)
    speed = request.gpus * request.teraflops * 1e12 * request.utilisation / mean
    step_bytes = batch_rows * row_bytes
    text = _text_bytes(request, speed, step_bytes)
    if text is not None and not math.isfinite(text):
        raise ConfigError("the run would never end; plan a shorter one")
    return RunPlan(
        parameters=_parameters_by_part(walker),
        stages=stages,
        memory=max(memories, key=MemoryPlan.total),
        gpus=request.gpus,
        shard=request.shard,
        batch_rows=batch_rows,
        step_bytes=step_bytes,
        flops_per_byte=mean,
        bytes_per_second=speed,
        teraflops=request.teraflops,
        utilisation=request.utilisation,
        text_bytes=text,
        steps=None if text is None else text / step_bytes,
        days=None if text is None else text / speed / 86400,
    )


def _text_bytes(request: PlanRequest, speed: float, step_bytes: int) -> float | None:
    """The bytes of text that are asked for, in whichever way."""
    if request.text_bytes is not None:
        return request.text_bytes
    if request.seconds is not None:
        return request.seconds * speed
    return None if request.steps is None else float(request.steps * step_bytes)


def _kept_by_each(walker: StepWalker, request: PlanRequest) -> dict[nn.Parameter, float]:
    """The share of every parameter that one GPU keeps: the blocks of denoisers are divided where that is asked for."""
    divided = {
        parameter for level in walker.model.levels for parameter in level.denoiser.blocks.parameters()
        if request.shard == "full"
    }
    return {each: 1 / request.gpus if each in divided else 1.0 for each in walker.model.parameters()}


def _optimizer_bytes(optimizers: Iterable[torch.optim.Optimizer], shares: dict[nn.Parameter, float]) -> float:
    """Muon holds one number for each of a parameter, AdamW two."""
    return math.fsum(
        FLOAT_BYTES * (1 if isinstance(optimizer, Muon) else 2) * parameter.numel() * shares[parameter]
        for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
    )


def _memory(
    cost: StepCost, shares: dict[nn.Parameter, float], states: float, piece_bytes: int, *, goes_on: bool
) -> MemoryPlan:
    """The memory of a GPU in one stage, in which each takes pieces of so many bytes of text at a time.

    Where a step `goes_on` with further pieces, the gradients of those before are there all the time.
    """
    weights = FLOAT_BYTES * sum(parameter.numel() * share for parameter, share in shares.items())
    trained = sum(parameter.numel() * share for parameter, share in shares.items() if parameter.requires_grad)
    text = piece_bytes / cost.bytes
    peak = mean_peak(cost.courses, text=text, divided=0.0 if goes_on else trained / cost.trained)
    return MemoryPlan(
        weights=weights,
        averaged_weights=weights,
        gradients=FLOAT_BYTES * trained if goes_on else peak.gradients,
        optimizer_state=states,
        converted_weights=peak.converted_weights,
        activations=peak.activations,
    )


def _parameters_by_part(walker: StepWalker) -> dict[str, int]:
    """Numbers of parameters by level and part."""
    counts: dict[str, int] = {}
    for index, level in enumerate(walker.model.levels):
        parts = {
            "splitter, readers": level.splitter_parameters(),
            "compressor, decoder": level.autoencoder_parameters(),
            "vocabulary": () if level.vocabulary is None else level.vocabulary.parameters(),
            "denoiser": level.denoiser.parameters(),
        }
        for name, parameters in parts.items():
            if count := sum(parameter.numel() for parameter in parameters):
                counts[f"level {index}: {name}"] = count
    return counts
