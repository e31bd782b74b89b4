"""What `zonkey segment` costs as a process of its own, beside sentencepiece's BPE with 4,000 pieces, in one run.

    python benchmarks/segmenting.py --model DIR --rounds 5 TEXT

A round gives each its work in turn: one byte, for the time to start; TEXT at levels 0 and 1, for the speed without
that time and for the most memory held; and TEXT to sentencepiece in this process, trained on TEXT before, for a speed.
The median of the rounds is printed, with the slowest and the fastest. `OMP_NUM_THREADS` bounds the threads.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from zonkey_cli.models import highest_level, resolve_model
from zonkey_core.evaluation.baselines.cutters import TokenizerCutter, fit_tokenizer
from zonkey_core.evaluation.store import Store
from zonkey_core.evaluation.tasks.processes import run_process
from zonkey_core.evaluation.texts import passages

PIECES = 4_000
TRAINED_ON = 4_000_000
"""Bytes that the tokenizer learns from at most."""
GIVEN_TOGETHER = 4_000
"""Bytes that the tokenizer is given at once, since its time grows faster than the text."""


def measure(model: Path, text: bytes, tokenizer: TokenizerCutter, rounds: int) -> dict[str, list[float]]:
    """Every figure of every round, but for one before them that is not counted."""
    program = ("-m", "zonkey_cli", "segment", "--device", "cpu", "-m", str(model.resolve()))
    parts = passages([text], GIVEN_TOGETHER)
    figures: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        found = {"start, s": run_process(program, b"x").seconds}
        for level in range(min(2, highest_level(str(model)) + 1)):
            cost = run_process((*program, "--level", str(level)), text)
            found[f"level {level}, MB/s"] = len(text) / (cost.seconds - found["start, s"]) / 1e6
            found[f"level {level}, MB of memory"] = cost.megabytes
        before = time.perf_counter()
        for part in parts:
            tokenizer.cut(part)
        found[f"{tokenizer.name}, MB/s"] = len(text) / (time.perf_counter() - before) / 1e6
        for name, value in found.items() if number else ():
            figures[name].append(value)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    text = arguments.text.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = fit_tokenizer(
            "bpe", PIECES, passages([text[:TRAINED_ON]], GIVEN_TOGETHER), store=Store(Path(folder)),
            identity="segmenting", report=lambda what: None,
        )
        figures = measure(resolve_model(arguments.model), text, tokenizer, arguments.rounds)
    print(f"{len(text) / 1e6:.3f} MB of text, {arguments.rounds} rounds")
    for name, values in figures.items():
        print(f"{name:28} {statistics.median(values):8.3f}  ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
