"""How fast the one process that reads text can feed all processes of a run.

    python benchmarks/reading.py --data FILE
    torchrun --nproc-per-node 2 benchmarks/reading.py --data FILE

Rows of the shape of `--preset` are read for `--seconds`, without a step between them, and handed to the other processes
where there are some. Told are the bytes a second, and the seconds that a batch takes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterator

from zonkey_core.config import load_preset
from zonkey_core.data import SourceSpec
from zonkey_core.data.row_mixture import open_rows
from zonkey_core.data.rows import RowSource
from zonkey_core.training.batches import shared_batches
from zonkey_core.training.processes import agree_on_most, joined_processes, process_count, process_number


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes of a launcher, if there is one."""
    with joined_processes("cpu") if "RANK" in os.environ else contextlib.nullcontext():
        yield


def main() -> None:
    """Read and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--preset", default="large")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    training = load_preset(options.preset).training
    spec = SourceSpec(sources=tuple(options.data), wiki_dir=options.data_dir)

    def source() -> RowSource:
        return open_rows(
            spec, seed=0, shuffle_documents=training.shuffle_documents, row_bytes=training.row_bytes,
            batch_rows=training.batch_rows,
        )  # fmt: skip

    with together(), shared_batches(source, training.batch_rows, training.row_bytes) as batches:
        count, size, started = 0, 0, time.monotonic()
        while agree_on_most(time.monotonic() - started)[0] < options.seconds:
            size += batches.next_batch().bytes.size
            count += 1
        seconds = time.monotonic() - started
        if process_number() == 0:
            each = 1e3 * seconds / count
            print(f"{process_count()} processes: {size / seconds / 1e6:.1f} MB/s, {each:.2f} ms a batch")


if __name__ == "__main__":
    main()
