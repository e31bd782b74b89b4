"""Kill `zonkey train` (SIGKILL) at random moments, go on with it, and compare its end with that of a run never stopped.

    python benchmarks/kills.py --kills 50

A run of a very small model that saves after every step is trained to its end once. Then the same run is begun in a new
folder and killed at moments drawn from its start to a third of the time that the whole took; where it gets to its end
all the same, it is compared and another one is begun. In the end the last one goes on to its end, too. What is compared
are the bytes of the released weights and of all that the run would go on from. Exit status 1 says that something was
lost. The program is started by forking this process, which has loaded torch before, so that moments fall in the run.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from zonkey_cli.app import cli
from zonkey_cli.streams import Streams
from zonkey_core import training  # noqa: F401 - loads torch before the program is started
from zonkey_core.checkpoint import CONFIG, MODEL, OPTIMIZER
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


def command(out: Path, steps: int) -> list[str]:
    """The command line that begins a run, or goes on with it once there is a checkpoint."""
    if file_path(out, CONFIG).exists():
        return ["train", "--out", str(out), "--resume"]
    sizes = (word for size in SIZES for word in ("--set", size))
    how = ("--data", "sample", "--device", "cpu", "--steps", str(steps), "--save-every", "0.001s")
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


def main() -> None:
    """Kill, compare and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    kills = runs = saved = 0
    with tempfile.TemporaryDirectory() as folder:
        straight, out = Path(folder) / "straight", Path(folder) / "killed"
        begun = time.monotonic()
        ends(straight, arguments.steps, None)
        longest = (time.monotonic() - begun) / 3
        whole = {name: (straight / name).read_bytes() for name in (MODEL, OPTIMIZER)}
        while True:
            if not ends(out, arguments.steps, chance.uniform(0, longest) if kills < arguments.kills else None):
                kills += 1
                saved += file_path(out, CONFIG).exists()
                print(f"{kills} kills, {saved} of them left a checkpoint; {runs} runs at their end", flush=True)
                continue
            different = [name for name, content in whole.items() if (out / name).read_bytes() != content]
            if different:
                raise SystemExit(f"after {kills} kills, other bytes in {', '.join(different)}")
            runs += 1
            if kills == arguments.kills:
                break
            shutil.rmtree(out)
    print(f"{kills} kills, {runs} runs to their end, each with the bytes of the run that was never stopped")


if __name__ == "__main__":
    main()
