"""Does the hierarchy earn its keep? Text of all levels beside text of the lowest level alone, in one run.

    python benchmarks/hierarchy.py --model DIR --data wiki --data-config 20180101.simple --data-dir DIR --steps 4,8,32

For each number of evaluations both write the same number of texts. Differences are all levels less the lowest alone,
with 95 % intervals from random halves of the texts; real held-out text is the ceiling. `own_gap` is the judge's gap
with the model itself for a judge, its lowest level from left to right: it has read more than the judge, and sees how
words stand together. Both are drawn with the default settings, which make text of all levels easier to foresee for a
judge; `--alone-temperature`, below 1, draws the lowest level as firmly. Rows are JSON lines on standard output.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from zonkey_core.checkpoint import load_model
from zonkey_core.data import SourceSpec
from zonkey_core.evaluation.baselines.judge import get_judge
from zonkey_core.evaluation.context import EvaluationContext, EvaluationOptions
from zonkey_core.evaluation.metrics.text_metrics import (
    HALVES,
    METRICS,
    Figure,
    Remembered,
    TrainingWords,
    Yardstick,
)
from zonkey_core.evaluation.store import Store
from zonkey_core.evaluation.tasks.generation import real_texts
from zonkey_core.evaluation.tasks.runner import identify_model
from zonkey_core.evaluation.texts import load_texts
from zonkey_core.inference.generation import SamplingOptions, generate
from zonkey_core.inference.scoring import Question, log_likelihoods
from zonkey_core.model.model import Zonkey

OWN = "own_gap"
FIGURES = {"known_words": "known_words", "judge_gap": "judge_gap", "jsd_4": "jsd_4", OWN: "judge_gap"}
"""Figures, and the rules that they go by."""
FIRST_SEED = 1000


class Measures(NamedTuple):
    """What texts are measured by."""

    yardstick: Yardstick
    own: Yardstick
    """The same with the model as the judge."""

    def figure(self, name: str, texts: Sequence[bytes]) -> Figure:
        """A figure of some of the texts."""
        return METRICS[FIGURES[name]].figure(texts, self.own if name == OWN else self.yardstick)


def own_rate(model: Zonkey, texts: Sequence[bytes]) -> NDArray[np.float64]:
    """Nats a byte [n] of texts."""
    likelihoods = log_likelihoods(model, [Question(text, [(0, len(text))]) for text in texts])
    return np.array([-found.total / max(1, len(text)) for found, text in zip(likelihoods, texts, strict=True)])


def write(
    model: Zonkey, count: int, size: int, steps: int, level: int | None, temperature: float
) -> tuple[list[bytes], float]:
    """Texts, and the seconds that they took."""
    began = time.perf_counter()
    options = SamplingOptions(steps=steps, temperature=temperature, max_bytes=size, level=level)
    texts = [sample.text for sample in generate(model, seeds=range(FIRST_SEED, FIRST_SEED + count), options=options)]
    return texts, time.perf_counter() - began


def figures(texts: Sequence[bytes], measures: Measures) -> dict[str, float]:
    """Each figure of a set of texts; gaps with their signs."""
    return {name: measures.figure(name, texts)(np.arange(len(texts))) for name in FIGURES}


def difference(
    ours: Sequence[bytes], alone: Sequence[bytes], measures: Measures, name: str
) -> tuple[float, float, float]:
    """A figure of one set less that of the other, gaps without their sign, with its 95 % interval."""
    rule = METRICS[FIGURES[name]]
    pair = [measures.figure(name, texts) for texts in (ours, alone)]

    def value(chosen: tuple[np.ndarray, np.ndarray]) -> float:
        found = [figure(which) for figure, which in zip(pair, chosen, strict=True)]
        return float(abs(found[0]) - abs(found[1]) if rule.is_gap else found[0] - found[1])

    chance = np.random.default_rng(0)
    everything = np.arange(len(ours)), np.arange(len(alone))
    halves = [
        value((np.sort(chance.permutation(len(ours))[: len(ours) // 2]),
               np.sort(chance.permutation(len(alone))[: len(alone) // 2])))
        for _ in range(HALVES)
    ]  # fmt: skip
    centred = value(everything) + np.array(halves) - np.mean(halves)
    low, high = np.quantile(centred, [0.025, 0.975])
    return value(everything), float(low), float(high)


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", default="wiki")
    parser.add_argument("--data-config", default="20180101.simple")
    parser.add_argument("--data-dir")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--sample-bytes", type=int, default=512)
    parser.add_argument("--limit", type=int, default=1_000_000)
    parser.add_argument("--steps", default="4,8,32")
    parser.add_argument("--alone-temperature", type=float, default=1.0, metavar="T",
                        help="temperature of the lowest level alone [%(default)g]")
    arguments = parser.parse_args(given)
    spec = SourceSpec(sources=(arguments.data,), wiki_config=arguments.data_config, wiki_dir=arguments.data_dir)
    options = EvaluationOptions(limit=arguments.limit, sample_bytes=arguments.sample_bytes)
    texts = load_texts(spec, None, limit=options.limit, training_bytes=options.training_bytes, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        context = EvaluationContext(
            model=load_model(arguments.model), model_path=arguments.model,
            model_identity=identify_model(arguments.model), texts=texts, options=options, store=Store(Path(folder)),
            report=lambda what, share: None,
        )  # fmt: skip
        judge = get_judge(context)
        reference, other = real_texts(texts.reference, arguments.samples, arguments.sample_bytes)
        yardstick = Yardstick(
            reference=reference, training=TrainingWords(texts.training), judge=Remembered(judge.nats_per_byte)
        )
        own = replace(yardstick, judge=Remembered(partial(own_rate, context.model)))
        measures = Measures(yardstick, own)

        def report(row: dict[str, object]) -> None:
            sys.stdout.buffer.write(msgspec.json.encode(row) + b"\n")
            sys.stdout.flush()

        report({"texts": "real", **figures(other, measures)})
        for steps in map(int, arguments.steps.split(",")):
            both = []
            for name, level, temperature in (
                ("all levels", None, 1.0), ("lowest level alone", 0, arguments.alone_temperature)
            ):  # fmt: skip
                written, seconds = write(
                    context.model, arguments.samples, arguments.sample_bytes, steps, level, temperature
                )
                both.append(written)
                report({"texts": name, "steps": steps, "seconds": seconds, **figures(written, measures)})
            for name in FIGURES:
                found = difference(both[0], both[1], measures, name)
                report({"difference": name, "steps": steps, "value, low, high": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
