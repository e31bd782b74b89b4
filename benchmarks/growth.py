"""Watch a training run for growth: memory, open files, threads and files of `zonkey train`, by stage.

    python benchmarks/growth.py --minutes 65 --samples seen.jsonl -- --data sample --preset tiny
    python benchmarks/growth.py --again seen.jsonl

What follows `--` are options of `zonkey train`. Every few seconds the process is looked at; `--samples` keeps what was
seen, for `--again`. The first third of every stage is left out, as buffers fill then. Of the rest, growth of memory is
the slope of a straight line through the medians of `BLOCKS` pieces of the time, with its 95 % interval, and of handles,
threads and files the table has how many there were at first and at the end, and the most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

INTERVAL = 5.0
LEAST_SAMPLES = 36
"""Of a stage, so that two thirds of them leave two for every block."""
BLOCKS = 12
STUDENT = 2.228
"""What 97.5 % of Student's distribution with BLOCKS - 2 degrees of freedom lies below."""


class Sample(NamedTuple):
    """What the process held at a moment."""

    seconds: float
    stage: str
    megabytes: float
    handles: int
    threads: int
    temporary: int
    """Files in its folder for temporary files."""
    written: int
    """Files in its output folder."""
    steps: int


def look(process: int, temporary: Path, out: Path, seconds: float) -> Sample:
    """One sample of a process that runs."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    stage, steps = progress(out / "metrics.jsonl")
    return Sample(
        seconds, stage, int(status["VmRSS"].split()[0]) / 1024, len(os.listdir(f"/proc/{process}/fd")),
        int(status["Threads"]), files_in(temporary), files_in(out), steps,
    )  # fmt: skip


def files_in(folder: Path) -> int:
    """How many files there are in a folder and in those in it."""
    return sum(len(files) for _, _, files in os.walk(folder))


def progress(metrics: Path) -> tuple[str, int]:
    """The stage that a run is in, and the last step that it told of."""
    stage, steps = "start", 0
    for line in metrics.read_bytes().splitlines() if metrics.exists() else ():
        event = json.loads(line) if line.endswith(b"}") else {"event": "being written"}
        if event["event"] == "stage":
            stage = f"{event['stage']} {'' if event.get('level') is None else event['level']}".strip()
        steps = event.get("step", steps)
    return stage, steps


def watch(minutes: float, options: list[str], kept: Path | None) -> list[Sample]:
    """Run to the end, and return all samples."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        out, temporary = Path(folder) / "model", Path(folder) / "tmp"
        temporary.mkdir()
        program = [sys.executable, "-m", "zonkey_cli", "train", "--out", str(out), "--minutes", str(minutes), *options]
        started = time.monotonic()
        with subprocess.Popen(
            program, env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None:
                try:
                    samples.append(look(process.pid, temporary, out, time.monotonic() - started))
                except (FileNotFoundError, ProcessLookupError, KeyError):  # it ended just now
                    break
                if kept is not None:
                    with kept.open("a") as file:
                        file.write(json.dumps(samples[-1]) + "\n")
                time.sleep(INTERVAL)
        if process.returncode:
            raise SystemExit(f"the run ended in {process.returncode}")
        print(f"left in the temporary folder: {files_in(temporary)} files; in the output folder: {files_in(out)}")
    return samples


def slope(seconds: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Growth of values an hour, and half of its 95 % interval, from the medians of `BLOCKS` pieces of the time."""
    times = np.array([np.median(part) for part in np.array_split(np.array(seconds), BLOCKS)]) / 3600
    middles = np.array([np.median(part) for part in np.array_split(np.array(values), BLOCKS)])
    spread = times - times.mean()
    found = float((spread * middles).sum() / (spread**2).sum())
    left = middles - middles.mean() - found * spread
    return found, STUDENT * float(np.sqrt((left**2).sum() / (BLOCKS - 2) / (spread**2).sum()))


def told(name: str, samples: Sequence[Sample]) -> str:
    """The line of the table about a stage, of which the first third is left out."""
    seen = samples[len(samples) // 3 :]
    growth, half = slope([each.seconds for each in seen], [each.megabytes for each in seen])
    ends = seen[: len(seen) // 3], seen[-(len(seen) // 3) :]
    memory = "".join(f"{statistics.median(each.megabytes for each in part):8.0f}" for part in ends)
    line = f"{name:16}{(seen[-1].seconds - seen[0].seconds) / 60:8.1f}{seen[-1].steps - seen[0].steps:8}{memory}"
    line += f"{growth:+9.1f} ± {half:<7.1f}"
    counts: list[Callable[[Sample], int]] = [
        lambda each: each.handles, lambda each: each.threads, lambda each: each.temporary, lambda each: each.written,
    ]  # fmt: skip
    for count in counts:
        first, last = (round(statistics.median(map(count, part))) for part in ends)
        line += f"{f'{first} {last} ({max(map(count, seen))})':>13}"
    return line


def table(samples: Sequence[Sample]) -> Iterator[str]:
    """What was seen, stage by stage."""
    names = "".join(f"{name:>13}" for name in ("handles", "threads", "temporary", "files"))
    yield f"{'stage':16}{'minutes':>8}{'steps':>8}{'MB':>8}{'MB then':>8}{'MB an hour':>13}{'':6}{names}"
    for stage, group in itertools.groupby(samples, key=lambda sample: sample.stage):
        seen = list(group)
        if len(seen) >= LEAST_SAMPLES:
            yield told(stage, seen)
    yield f"{len(samples)} looks in {samples[-1].seconds / 60:.1f} minutes, {samples[-1].steps} steps"
    early = next((each for each in samples if each.seconds >= min(300.0, samples[-1].seconds / 2)), samples[-1])
    for when, sample in (("then", early), ("at the end", samples[-1])):
        yield (
            f"{when}, minute {sample.seconds / 60:.1f}, {sample.stage}: {sample.megabytes:.0f} MB, {sample.handles} "
            f"handles, {sample.threads} threads, {sample.temporary} temporary files, {sample.written} files"
        )


def main() -> None:
    """Watch and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--samples", type=Path, metavar="FILE")
    parser.add_argument("--again", type=Path, metavar="FILE", help="watch nothing; tell what was seen then")
    parser.add_argument("options", nargs="*", metavar="-- OPTION")
    arguments = parser.parse_args()
    if arguments.again is not None:
        samples = [Sample(*json.loads(line)) for line in arguments.again.read_text().splitlines()]
    else:
        samples = watch(arguments.minutes, arguments.options, arguments.samples)
    for line in table(samples):
        print(line)


if __name__ == "__main__":
    main()
