"""What a byte costs where documents have some length: the same text, cut into documents of 1 kB to 1 MB.

    python benchmarks/document_lengths.py --rounds 5 --data sample

A round gives every use each of the lengths in turn, in this process: `segment` at levels 0 and 1, which cuts all
documents in one stream, as it does files; `infill` with a gap in every 16 kB; the estimate of information; and joint
training steps with rows from all over the text. Printed is the median of the rounds in nanoseconds of the processor's
time a byte, and how far it is above the best of the lengths.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

import torch

from zonkey_cli.models import resolve_model
from zonkey_core.checkpoint import load_model, read_model_card
from zonkey_core.config import TrainingConfig
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.devices import autocast, choose_precision
from zonkey_core.inference.cutting_levels import cutting_levels
from zonkey_core.inference.gap_windows import Gap, GappedDocument
from zonkey_core.inference.infilling import InfillingOptions, infill_documents
from zonkey_core.inference.segmentation import segment_texts
from zonkey_core.inference.text_cost import load_text_cost
from zonkey_core.model.model import Zonkey, byte_sequence
from zonkey_core.training.curriculum import plan_stages
from zonkey_core.training.optimizers import take_step
from zonkey_core.training.stages import stage_losses, stage_optimizers, stage_parameters

LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
GAP_EVERY, GAP_AT, GAP_BYTES = 16_000, 480, 12
"""A gap lies in the middle of the first kilobyte of every so many."""
Use = Callable[[list[bytes]], None]


def read_text(data: str, size: int) -> bytes:
    """The first bytes of a source, read again where it has fewer."""
    documents = open_stream(SourceSpec(sources=(data,), split="all"), seed=0, shuffle_documents=1)
    text = bytearray()
    while len(text) < size:
        text += next(documents) + b"\n\n"
    return bytes(text[:size])


def segment(model: Zonkey, level: int, documents: list[bytes]) -> None:
    """Cut documents together."""
    for _ in segment_texts(cutting_levels(model), documents, level=level):
        pass


def infill(model: Zonkey, documents: list[bytes]) -> None:
    """Fill the gaps of documents."""
    gapped, begin = [], 0
    for document in documents:
        first = -begin % GAP_EVERY + GAP_AT
        gaps = [Gap(place, place + GAP_BYTES) for place in range(first, len(document), GAP_EVERY)]
        gapped.append(GappedDocument(document, gaps, 0))
        begin += len(document)
    for _ in infill_documents(model, gapped, options=InfillingOptions(candidates=2, steps=4)):
        pass


def estimate(bits_per_byte: Callable[[bytes], float], documents: list[bytes]) -> None:
    """Tell how much information documents have."""
    for document in documents:
        bits_per_byte(document)


class Training:
    """Joint steps of a model, with rows that lie as far apart as they can."""

    def __init__(self, model: Zonkey, config: TrainingConfig, steps: int) -> None:
        self.model, self.config, self.steps = model, config, steps
        self.stage = plan_stages(model.config, config.shares, "joint")[0]
        self.parameters = stage_parameters(model.train().requires_grad_(True), self.stage)
        self.optimizers = stage_optimizers(model, self.stage, config)
        self.bytes = steps * config.batch_rows * config.row_bytes

    def __call__(self, documents: list[bytes]) -> None:
        """Take the steps, whose rows are the same however long documents are."""
        values = torch.frombuffer(bytearray(b"".join(documents)), dtype=torch.uint8)
        starts = torch.arange(len(values)) % len(documents[0]) == 0
        begins = torch.linspace(0, len(values) - self.config.row_bytes, self.steps * self.config.batch_rows).long()
        chance = torch.Generator().manual_seed(0)
        for some in begins.view(-1, self.steps).T:
            places = some[:, None] + torch.arange(self.config.row_bytes)
            rows = byte_sequence(values[places], starts[places])
            with autocast(self.model.device, choose_precision("auto", self.model.device)):
                losses = stage_losses(self.model, self.stage, rows, chance, 0.5)
            total = torch.stack(list(losses.values())).sum()
            take_step(total, self.parameters, self.optimizers, self.config.gradient_clip)


def processor_seconds() -> float:
    """What this process has taken, and those that it began and that have ended."""
    return sum(os.times()[:4])


def measured(uses: dict[str, tuple[Use, int]], text: bytes, rounds: int) -> Iterator[tuple[str, dict[int, float]]]:
    """For every use, the median seconds a byte of each length; one round before them is not counted."""
    for name, (use, size) in uses.items():
        seconds: dict[int, list[float]] = defaultdict(list)
        for number in range(rounds + 1):
            for length in LENGTHS:
                documents = [text[begin : begin + length] for begin in range(0, len(text), length)]
                began = processor_seconds()
                use(documents)
                if number:
                    seconds[length].append(processor_seconds() - began)
        yield name, {length: statistics.median(found) / size for length, found in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-steps", type=int, default=8)
    parser.add_argument("--only", default="", help="the uses whose names begin so")
    arguments = parser.parse_args()
    text = read_text(arguments.data, max(LENGTHS))
    model = load_model(resolve_model(arguments.model))
    config = read_model_card(resolve_model(arguments.model)).config.training
    training = Training(load_model(resolve_model(arguments.model)), config, arguments.train_steps)
    uses: dict[str, tuple[Use, int]] = {
        **{f"segment --level {level}": (partial(segment, model, level), len(text)) for level in (0, 1)},
        "infill": (partial(infill, model), len(text)),
        "estimate": (partial(estimate, load_text_cost(resolve_model(arguments.model))), len(text)),
        "train": (training, training.bytes),
    }
    chosen = {name: use for name, use in uses.items() if name.startswith(arguments.only)}
    print(f"{'ns a byte':18}" + "".join(f"{length:>18,}" for length in LENGTHS))
    for name, seconds in measured(chosen, text, arguments.rounds):
        best = min(seconds.values())
        cells = (f"{1e9 * each:10.1f} {each / best - 1:+7.1%}" for each in seconds.values())
        print(f"{name:18}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
