"""Watch a training run for growth: memory, open files, threads and temporary files of `zonkey train`, by stage.

    python benchmarks/growth.py --minutes 30 -- --data sample --preset tiny

What follows `--` are options of `zonkey train`. Every few seconds the process is looked at. Of every stage that was
seen for a minute, the table has the median memory of its second third and of its last one (the first is left out, as
buffers fill then) and the growth between them, an hour.
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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

INTERVAL = 5.0
LEAST_SECONDS = 60.0


class Sample(NamedTuple):
    """What the process held at a moment."""

    seconds: float
    stage: str
    megabytes: float
    handles: int
    threads: int
    temporary: int


def look(process: int, temporary: Path, stage: str, seconds: float) -> Sample:
    """One sample of a process that runs."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return Sample(
        seconds, stage, int(status["VmRSS"].split()[0]) / 1024, len(os.listdir(f"/proc/{process}/fd")),
        int(status["Threads"]), sum(len(files) for _, _, files in os.walk(temporary)),
    )


def stages(metrics: Path) -> Iterator[str]:
    """The stages that a run has begun so far."""
    for line in metrics.read_bytes().splitlines() if metrics.exists() else ():
        event = json.loads(line)
        if event["event"] == "stage":
            yield f"{event['stage']} {'' if event.get('level') is None else event['level']}".strip()


def watch(minutes: float, options: list[str]) -> list[Sample]:
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
                *_, stage = "start", *stages(out / "metrics.jsonl")
                seconds = time.monotonic() - started
                try:
                    samples.append(look(process.pid, temporary, stage, seconds))
                except (FileNotFoundError, ProcessLookupError, KeyError):  # it ended just now
                    break
                time.sleep(INTERVAL)
        if process.returncode:
            raise SystemExit(f"the run ended in {process.returncode}")
    return samples


def main() -> None:
    """Watch and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("options", nargs="*", metavar="-- OPTION")
    arguments = parser.parse_args()
    samples = watch(arguments.minutes, arguments.options)
    print(f"{'stage':16}{'minutes':>8}{'MB':>8}{'MB then':>9}{'MB/hour':>9}{'handles':>9}{'threads':>9}{'files':>7}")
    for stage, group in itertools.groupby(samples, key=lambda sample: sample.stage):
        seen = list(group)
        lasted = seen[-1].seconds - seen[0].seconds
        if lasted < LEAST_SECONDS:
            continue
        middle, last = seen[len(seen) // 3 : 2 * len(seen) // 3], seen[2 * len(seen) // 3 :]
        before, after = (statistics.median(sample.megabytes for sample in part) for part in (middle, last))
        print(
            f"{stage:16}{lasted / 60:8.1f}{before:8.0f}{after:9.0f}{(after - before) / (lasted / 3) * 3600:9.1f}"
            f"{max(sample.handles for sample in last):9}{max(sample.threads for sample in last):9}"
            f"{max(sample.temporary for sample in last):7}"
        )


if __name__ == "__main__":
    main()
