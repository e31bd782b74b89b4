"""The earlier checkpoints of a run, `checkpoints/STEP/` in its folder, each a whole model folder of its own.

The present checkpoint becomes an earlier one by hard links just before another takes its place, which costs no time
and, until then, no room. Whatever moment a crash comes at, a folder of a plain number is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from zonkey_core.checkpoint import CHECKSUMS, CONFIG, KEPT, MODEL, OPTIMIZER, TRAINING, kept_steps, with_checksums
from zonkey_core.committed_files import INDEX, ReadyFile, file_path, present_files, sync_directory, write_files
from zonkey_core.errors import CheckpointError

PARTS = ".parts"
"""The folder in a model's where files are made that a checkpoint then consists of."""


def kept_checkpoint(directory: Path, steps: int) -> Path:
    """The folder of the earlier checkpoint of step `steps`; raises `CheckpointError` where there is none."""
    found = kept_steps(directory)
    if steps not in found:
        known = ", ".join(map(str, found)) or "none"
        raise CheckpointError(f"{directory}: keeps no checkpoint of step {steps}; the steps of those it keeps: {known}")
    return directory / KEPT / str(steps)


def write_kept(
    directory: Path, files: Mapping[str, bytes | ReadyFile], *, steps: int, before: int | None, keep: int
) -> None:
    """Write a checkpoint of step `steps`, with its checksums, so that the last `keep` are there.

    before: the step of the checkpoint in `directory` that is to be kept; None where there is none or it is not to be.
    """
    if keep > 1 and before not in (None, steps):
        keep_present(directory, before)
    write_files(directory, with_checksums(files))
    shutil.rmtree(directory / PARTS, ignore_errors=True)
    drop_kept(directory, keep=keep - 1, steps=steps)


def keep_present(directory: Path, steps: int) -> None:
    """Make the present checkpoint, of step `steps`, an earlier one; it stays the present one, too."""
    _refuse_link(directory)
    kept = directory / KEPT / str(steps)
    if kept.exists():
        return
    partial = directory / KEPT / f".{steps}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = (*present_files(directory, MODEL), MODEL + INDEX, *present_files(directory, OPTIMIZER))
    for name in (CONFIG, *weights, TRAINING, CHECKSUMS):
        if (path := file_path(directory, name)).is_file():
            _link_or_copy(path, partial / name)
    os.rename(partial, kept)
    sync_directory(kept.parent)


def drop_kept(directory: Path, *, keep: int, steps: int) -> None:
    """Delete all but the last `keep` checkpoints from before step `steps`, and those of later steps."""
    _refuse_link(directory)
    before = [step for step in kept_steps(directory) if step < steps]
    wanted = set(before[-keep:] if keep else ())
    for step in kept_steps(directory):
        if step not in wanted:
            os.rename(directory / KEPT / str(step), directory / KEPT / f".{step}.dropped")
    for leftover in (directory / KEPT).glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _refuse_link(directory: Path) -> None:
    """Raise `CheckpointError` where the folder of earlier checkpoints is a link, and so perhaps another's folder."""
    if (directory / KEPT).is_symlink():
        raise CheckpointError(f"{directory / KEPT}: checkpoints are kept in a folder, and this is a link; move it away")


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, or where the file system has no such thing, a second file."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
