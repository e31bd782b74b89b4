"""Kill `zonkey train` (SIGKILL) at random moments, go on with it, and compare its end with that of a run never stopped.

    python benchmarks/kills.py --kills 50
    python benchmarks/kills.py --kills 50 --starting

A run of a very small model that saves after every step is trained to its end once. Then the same run is begun in a new
folder and killed at moments drawn from its start to a third of the time that the whole took; where it gets to its end
all the same, it is compared and another one is begun. In the end the last one goes on to its end, too. What is compared
are the bytes of the released weights and of all that the run would go on from. Exit status 1 says that something was
lost. The program is started by forking this process, which has loaded torch before, so that moments fall in the run.

With `--starting` it is started as a user does, and killed in its first seconds: half of the times before there is a
model, which must leave a whole one or none, and half of the times while it takes up a run, whose files must stay as
they are. The start after each kill must not complain, and the last of each half goes on to the end and is compared.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zonkey_cli.app import cli
from zonkey_cli.streams import Streams
from zonkey_core import training  # noqa: F401 - loads torch before the program is started
from zonkey_core.checkpoint import CHECKSUMS, CONFIG, MODEL, OPTIMIZER, TRAINING, load_model
from zonkey_core.committed_files import file_path

LEVEL = (
    "segment_length=3", "window=8", "width=16", "heads=2", "splitter_width=16",
    "decoder_layers=1", "denoiser_width=16", "denoiser_layers=1", "denoiser_heads=2", "splitter_ngrams=512",
    "reader_units=512", "vocabulary=300", "bits_per_segment=0",
)  # fmt: skip
SIZES = (
    *(f"level.{level}.{size}" for level in (0, 1) for size in LEVEL),
    "training.row_bytes=64", "training.batch_rows=2", "training.shuffle_documents=20",
)  # fmt: skip
STARTING = 0.2, 5.0
"""Seconds after its start in which the program imports, reads, and takes its first steps."""


def command(out: Path, steps: int, save_every: str = "0.001s") -> list[str]:
    """The command line that begins a run, or goes on with it once there is a checkpoint."""
    if file_path(out, CONFIG).exists():
        return ["train", "--out", str(out), "--resume"]
    sizes = (word for size in SIZES for word in ("--set", size))
    how = ("--data", "sample", "--device", "cpu", "--steps", str(steps), "--save-every", save_every)
    return ["train", "--out", str(out), *how, *sizes]


def start(arguments: list[str]) -> int:
    """Start the program in a process of its own; returns its number."""
    process = os.fork()
    if process:
        return process
    said = io.StringIO()
    try:
        cli.main(arguments, obj=Streams(None, io.BytesIO(), said))
    except SystemExit as leaving:
        if leaving.code:
            os.write(2, said.getvalue().encode())
        os._exit(int(leaving.code or 0))
    os._exit(1)


def ends(out: Path, steps: int, seconds: float | None) -> bool:
    """Start the program and kill it after so many seconds; whether it got to the end of the run before that."""
    process = start(command(out, steps))
    if seconds is not None:
        deadline = time.monotonic() + seconds
        while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() >= deadline:
                os.kill(process, signal.SIGKILL)
                break
            time.sleep(0.001)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit(f"the program ended in {os.WEXITSTATUS(status)}")
    return True


def killed(arguments: list[str], seconds: float) -> bool:
    """Start the program as a process of its own, and kill it after so many seconds; whether it still ran by then."""
    with subprocess.Popen(
        [sys.executable, "-m", "zonkey_cli", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
        if process.returncode:
            raise SystemExit(f"the program ended in {process.returncode}: {said.decode()}")
        return False


def checkpoint(out: Path) -> dict[str, bytes]:
    """The files of a checkpoint, as they would be read."""
    return {name: file_path(out, name).read_bytes() for name in (CONFIG, TRAINING, MODEL, OPTIMIZER, CHECKSUMS)}


def compare(out: Path, whole: dict[str, bytes], kills: int) -> None:
    """Leave where a run ended in other bytes than that which was never stopped."""
    different = [name for name, content in whole.items() if (out / name).read_bytes() != content]
    if different:
        raise SystemExit(f"after {kills} kills, other bytes in {', '.join(different)}")


def kill_first_starts(out: Path, steps: int, kills: int, chance: random.Random, whole: dict[str, bytes]) -> int:
    """Kill the program before there is a model, or just after; returns how many kills left one, whole."""
    count = saved = 0
    while count < kills:
        count += killed(command(out, steps), chance.uniform(*STARTING))
        if file_path(out, CONFIG).exists():
            load_model(out)
            saved += 1
            ends(out, steps, None)
            compare(out, whole, count)
            shutil.rmtree(out)
    ends(out, steps, None)
    compare(out, whole, count)
    return saved


def kill_resumed_starts(out: Path, steps: int, kills: int, chance: random.Random, whole: dict[str, bytes]) -> None:
    """Kill the program while it takes up a run that has been saved once, and is not saved again before its end."""
    count = 0
    while count < kills:
        if not out.exists():
            process = start(command(out, steps, "1h"))
            while not file_path(out, CONFIG).exists():
                time.sleep(0.001)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            before = checkpoint(out)
        if killed(command(out, steps), chance.uniform(*STARTING)):
            count += 1
            if checkpoint(out) != before:
                raise SystemExit(f"kill {count} of a run that was taken up changed what had been saved")
        else:
            compare(out, whole, count)
            shutil.rmtree(out)
    ends(out, steps, None)
    compare(out, whole, count)


def kill_runs(out: Path, steps: int, kills: int, chance: random.Random, whole: dict[str, bytes], longest: float) -> int:
    """Kill runs at any moment until there were so many kills; returns how many runs came to their end."""
    count = runs = saved = 0
    while True:
        if not ends(out, steps, chance.uniform(0, longest) if count < kills else None):
            count += 1
            saved += file_path(out, CONFIG).exists()
            print(f"{count} kills, {saved} of them left a checkpoint; {runs} runs at their end", flush=True)
            continue
        compare(out, whole, count)
        runs += 1
        if count == kills:
            return runs
        shutil.rmtree(out)


def main() -> None:
    """Kill, compare and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--starting", action="store_true", help="kill the program in its first seconds")
    arguments = parser.parse_args()
    kills, steps, chance = arguments.kills, arguments.steps, random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        straight, out = Path(folder) / "straight", Path(folder) / "killed"
        begun = time.monotonic()
        ends(straight, steps, None)
        longest = (time.monotonic() - begun) / 3
        whole = {name: (straight / name).read_bytes() for name in (MODEL, OPTIMIZER)}
        if arguments.starting:
            first, resumed = kills - kills // 2, kills // 2
            saved = kill_first_starts(out, steps, first, chance, whole)
            print(f"{first} kills of first starts, {saved} of which left a model; all to the same end", flush=True)
            kill_resumed_starts(Path(folder) / "resumed", steps, resumed, chance, whole)
            print(f"{resumed} kills while a run was taken up, which changed none of its files; to the same end")
            return
        runs = kill_runs(out, steps, kills, chance, whole, longest)
    print(f"{kills} kills, {runs} runs to their end, each with the bytes of the run that was never stopped")


if __name__ == "__main__":
    main()
