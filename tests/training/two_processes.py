"""What two processes do for `test_processes`: `python -m tests.training.two_processes FOLDER`, as a launcher would.

They compute losses and gradients of a batch, each of its half, and train; what came of it goes into the folder. With
`FOLDER NAME` they only begin a run of that name, which is shared out and saved after every step, or go on with it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.model_helpers import TEXT
from tests.training_helpers import SAMPLE, small_config
from zonkey_cli.threads import leave_with_threads
from zonkey_core.committed_files import file_path
from zonkey_core.config import StageShares
from zonkey_core.data import SourceSpec
from zonkey_core.data.rows import RowSource
from zonkey_core.errors import ZonkeyError
from zonkey_core.model import positions
from zonkey_core.model.model import Zonkey, byte_sequence
from zonkey_core.model.readers import UnitKinds
from zonkey_core.model.unit_rows import UnitRows, unit_rows
from zonkey_core.training import (
    Event,
    StepEvent,
    TrainingOptions,
    joined_processes,
    objectives,
    resume,
    splitter_distillation,
    stages,
    train,
    trainer,
)
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.processes import add_up_gradients, on_first_alone, process_count, process_number

ROWS, LENGTH = 4, 96
STAGES = {
    "splitter 0": (Stage("splitter", 0, 1.0), 0.1),
    "splitter 1": (Stage("splitter", 1, 1.0), 0.9),
    "autoencoder 0": (Stage("autoencoder", 0, 1.0), 0.5),
    "autoencoder 1": (Stage("autoencoder", 1, 1.0), 0.5),
    "denoiser 0": (Stage("denoiser", 0, 1.0), 0.5),
    "denoiser 1": (Stage("denoiser", 1, 1.0), 0.5),
    "plan 0": (Stage("plan", 0, 1.0), 0.5),
    "joint": (Stage("joint", None, 1.0), 0.5),
}
CONFIG = small_config(2, batch_rows=ROWS, shares=StageShares((1,), (1,), (1,), (1,), 1))
STEPS, STOP = 16, 12
"""Two steps for each of eight stages, one of which has its second at the end; stopped amid that of plans."""


class PlacedDraws(TorchFunctionMode):
    """Draws numbers by their place in the last dimension alone, so that rows have the same ones wherever they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Stand in for what is drawn with a generator."""
        kwargs = dict(kwargs or {})
        if kwargs.pop("generator", None) is None:
            return func(*args, **kwargs)
        if func is torch.multinomial:
            return torch.zeros(args[1], dtype=torch.long)
        if func is torch.randint:
            return torch.full(args[1], 7)
        shape = args[0] if isinstance(args[0], (tuple, torch.Size)) else args
        place = torch.arange(shape[-1]) if len(shape) > 1 else torch.zeros(shape)
        drawn = ((place + 1) * 0.618034).frac().expand(shape)
        return drawn * 0.2 if len(shape) == 1 else drawn if func is torch.rand else 2 * drawn - 1


def hide_units_by_place(units: UnitRows, rate: float, generator: torch.Generator) -> tuple[Tensor, UnitRows]:
    """Hide units by their place, none that begins a document, and let the one before stand there."""
    hidden = (((units.offsets % LENGTH + 1) * 0.618034).frac() < rate) & ~units.fresh_mask
    return hidden, units._replace(keys=units.keys.roll(1).where(hidden, units.keys))


class KindsOfAll(UnitKinds):
    """The kinds of units of all rows, whichever a process has."""

    def __init__(self, keys: Tensor) -> None:
        super().__init__(unit_rows(byte_sequence(*some_rows())).keys)
        self.which = torch.searchsorted(self.keys, keys)


def some_rows() -> tuple[Tensor, Tensor]:
    """Rows of different texts, with documents that begin in some of them."""
    text = (TEXT * 20).encode()
    rows = torch.tensor([list(text[41 * row : 41 * row + LENGTH]) for row in range(ROWS)])
    rows[0, 30:] = ord("a")
    rows[3, 10:60] = rows[3, :50].clone() ^ 1
    begins = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    begins[:, 0] = torch.tensor([True, False, True, False])
    begins[1, 33] = begins[3, 70] = True
    return rows, begins


def some_model() -> Zonkey:
    """A model that cuts in various places and whose readers know kinds."""
    torch.manual_seed(3)
    model = Zonkey(CONFIG.model)
    for level in model.levels:
        torch.nn.init.normal_(level.splitter.head.weight, std=0.5)
    return model


def losses_and_gradients(name: str, part: slice) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What a stage's losses of some of the rows are, and the gradients that all processes have of them together.

    Left out is what is drawn from the rows that a process has: what stands for hidden positions, which rows are noised,
    which kinds of units one of them may be, and which other latents one is to be told from.
    """
    stage, fraction = STAGES[name]
    model = some_model()
    rows, begins = some_rows()
    with PlacedDraws(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "hide_units", hide_units_by_place)
        patch.setattr(objectives, "UnitKinds", KindsOfAll)
        patch.setattr(objectives, "rows_to_noise", lambda sequence: sequence)
        patch.setattr(splitter_distillation, "halves", lambda sequence: (sequence, sequence))
        patch.setattr(positions, "contrastive_loss", lambda estimate, target, bank: 0 * estimate.sum(-1))
        sequence = byte_sequence(rows[part], begins[part])
        losses = stages.stage_losses(model, stage, sequence, torch.Generator(), fraction)
    torch.stack(list(losses.values())).sum().backward()
    add_up_gradients(model.parameters())
    gradients = {key: each.grad for key, each in model.named_parameters() if each.grad is not None}
    return {key: float(loss.detach()) for key, loss in losses.items()}, gradients


def run(out: Path, *, stop_at: int | None = None, resumed: bool = False, **options: Any) -> list[dict[str, float]]:
    """Begin a run, or go on with it, to its end or for so many steps; the losses of all steps.

    The last process alone asks it to stop.
    """
    events: list[Event] = []
    taken: list[int] = []

    def should_stop() -> bool:
        taken.append(1)
        return len(taken) == stop_at and process_number() == process_count() - 1

    if resumed:
        resume(out, changes=options, on_event=events.append, should_stop=should_stop)
    else:
        fields = {"out": str(out), "steps": STEPS, "precision": "fp32", "device": "cpu", **options}
        train(CONFIG, SAMPLE, TrainingOptions(**fields), on_event=events.append, should_stop=should_stop)
    return [event.losses for event in events if isinstance(event, StepEvent)]


def main(folder: Path) -> None:
    """All that is done with two processes."""
    torch.set_num_threads(1)
    trainer.REPORT_SECONDS = 0
    open_rows = trainer.open_rows
    found: dict[str, Any] = {}
    with joined_processes("cpu"):
        trainer.open_rows = open_rows if process_number() == 0 else nobody_reads
        half = slice(0, ROWS // 2) if process_number() == 0 else slice(ROWS // 2, ROWS)
        for name in STAGES:
            found[name], gradients = losses_and_gradients(name, half)
            save_file({key: each.contiguous() for key, each in gradients.items()},
                      folder / f"{name}.{process_number()}.safetensors")  # fmt: skip
        found["one to two"] = run(folder / "one to two", resumed=True)
        found["whole"] = run(folder / "whole")
        run(folder / "stopped", stop_at=STOP)
        on_first_alone(lambda: copies(folder, "stopped", "two to one", "not to sharded", "lean"))
        run(folder / "stopped", resumed=True)
        found["not to sharded"] = run(folder / "not to sharded", resumed=True, shard="full")
        found["lean"] = run(folder / "lean", resumed=True, accumulate=2, checkpoint_activations=True)
        found["sharded"] = run(folder / "sharded to not", stop_at=STOP, shard="full")
        on_first_alone(lambda: copies(folder, "sharded to not", "sharded to sharded", "sharded to one"))
        found["sharded to not"] = run(folder / "sharded to not", resumed=True, shard="none")
        found["sharded to sharded"] = run(folder / "sharded to sharded", resumed=True)
        found["sharded whole"] = run(folder / "sharded whole", shard="full", save_every=0.0, keep=3)
        found["damaged"] = said(folder / "damaged", SourceSpec(sources=(str(folder / "damaged.jsonl"),)))
        found["missing"] = said(folder / "missing", SourceSpec(sources=(str(folder / "missing.jsonl"),)))
        with pytest.MonkeyPatch.context() as patch:
            if process_number() == 1:
                patch.setattr(os, "fsync", full_disk)
            found["full disk"] = said(folder / "full disk", SAMPLE, shard="full")
        (folder / f"found.{process_number()}.json").write_bytes(msgspec.json.encode(found))


def nobody_reads(*arguments: Any, **options: Any) -> RowSource:
    """Stands for the opening of text where that is left to the first process."""
    raise AssertionError("the first process alone reads text")


def full_disk(descriptor: int) -> None:
    """Stands for flushing a file where there is no room for it."""
    raise OSError(28, "No space left on device")


def said(out: Path, spec: SourceSpec, **fields: Any) -> str:
    """The error that a run on this text ends in."""
    options = TrainingOptions(out=str(out), steps=STEPS, device="cpu", **fields)
    with pytest.raises((ZonkeyError, OSError)) as caught:
        train(CONFIG, spec, options, on_event=lambda event: None, should_stop=lambda: False)
    return str(caught.value)


def copies(folder: Path, stopped: str, *names: str) -> None:
    """A stopped run several times, to go on with it in several ways."""
    for name in names:
        shutil.copytree(folder / stopped, folder / name)


def begin_or_go_on(out: Path) -> None:
    """A run to its end, which may have been killed before."""
    torch.set_num_threads(1)
    with joined_processes("cpu"):
        run(out, resumed=file_path(out, "config.json").exists(), shard="full", save_every=0.0)


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) == 2 else begin_or_go_on(Path(*sys.argv[1:]))
    leave_with_threads(0)
