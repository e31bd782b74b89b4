"""Speeds, each beside its rivals in the same run: bytes a second, seconds to start, and memory.

A round gives every contestant one piece of work in turn, so that what slows the machine down slows all of them. A
value is the median of the rounds, `low` and `high` are the slowest and the fastest; a ratio is taken within a round,
the model's figure by the rival's. One round before the others is not counted.

- `speed.train`: text read by a step of each stage of level 0 (splitter, autoencoder, denoiser), by the time of all
  three, with the batch and the optimisers of the model's own configuration, on a copy of the model.
- `speed.segment`, `speed.segment_level1`: text cut at levels 0 and 1 as `zonkey segment` does, without its start-up.
- `speed.generate`, `speed.generate_batch`: text written from noise, one text at a time and 16 side by side.
- `speed.infill`: missing text restored by `zonkey infill`: the true length of a gap by the time to fill it, so that
  who fills in more is not the faster.
- `speed.start_up`: seconds of a `zonkey segment` of 1 kB, a process of its own; the rival only imports torch.
- `speed.peak_memory`, `speed.peak_memory_level1`: most memory that such a process holds while it cuts the reference
  text at levels 0 and 1, in MB of 10^6 bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from zonkey_core.evaluation.baselines.cutters import TokenizerCutter, TokenizerFailure, fit_tokenizer
from zonkey_core.evaluation.context import Contestant, EvaluationContext, EvaluationOptions
from zonkey_core.evaluation.results import Better, LeftOut, Measure, Outcome
from zonkey_core.evaluation.tasks.processes import run_process
from zonkey_core.evaluation.tasks.training_steps import TrainingSteps
from zonkey_core.evaluation.texts import passages
from zonkey_core.inference.cutting_levels import cutting_levels
from zonkey_core.inference.gap_windows import Gap
from zonkey_core.inference.generation import SamplingOptions, generate
from zonkey_core.inference.infilling import InfillingOptions, infill
from zonkey_core.inference.segmentation import segment_levels

SEGMENTED_BYTES = 256_000
START_UP_BYTES = 1_000
TOKENIZER_SIZES = (4_000, 1_000)
TOKENIZED_BYTES = 4_000
"""Bytes that a tokenizer is given at once, since its time grows faster than the text."""
BATCH_TEXTS = 16
"""Texts that are written side by side."""
GAP_BYTES = 16
AROUND_GAP = 256
"""Bytes of text on either side of a gap."""
MASK = b"___"
OWN = "zonkey"
IMPORT_TORCH = "import_torch"

Work = Callable[[int], int]
"""Does the work of a round, given its number, and returns of how many bytes of text that was."""


def measure_speed(context: EvaluationContext) -> Iterator[Outcome]:
    """All speeds; raises `ZonkeyError` where the program cannot be run."""
    yield from time_training(context)
    yield from time_segmenting(context)
    yield from time_generating(context)
    yield from time_infilling(context)
    yield from time_processes(context)


def rounds_of(options: EvaluationOptions) -> int:
    """How often everything is done."""
    return max(2, min(5, options.limit // 50_000))


def race(
    works: Mapping[str, Work],
    rounds: int,
    *,
    report: Callable[[float], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Bytes a second of each work in each of `rounds` rounds; `report` is told the share that is done."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for place, (name, work) in enumerate(works.items()):
            report((number * len(works) + place) / ((rounds + 1) * len(works)))
            before = clock()
            done = work(number)
            seconds = clock() - before
            if number:
                rates[name].append(done / max(seconds, 1e-9))
    return rates


def summarize(
    name: str, figures: Mapping[str, Sequence[float]], *, seconds: float, better: Better, unit: str
) -> Iterator[Measure]:
    """The measure of the first contestant's figures beside the others', and its ratios to each of them.

    A round in which a rival's figure is 0 gives no ratio.
    """
    (_, values), *others = figures.items()
    yield Measure(
        name=f"speed.{name}", value=statistics.median(values), low=min(values), high=max(values),
        rivals={rival: statistics.median(theirs) for rival, theirs in others},
        n=len(values), seconds=seconds, better=better, unit=unit,
    )
    for rival, theirs in others:
        ratios = [mine / other for mine, other in zip(values, theirs, strict=True) if other]
        if ratios:
            yield Measure(
                name=f"speed.{name}.ratio.{rival}", value=statistics.median(ratios), low=min(ratios),
                high=max(ratios), n=len(ratios), seconds=seconds, better=better,
            )


def time_training(context: EvaluationContext) -> Iterator[Outcome]:
    """`speed.train`, beside one step of each contestant's."""
    rivals = {each.name: _training_step(each) for each in context.contestants}
    yield from _time(context, "train", {OWN: TrainingSteps(context).run, **rivals})


def time_segmenting(context: EvaluationContext) -> Iterator[Outcome]:
    """`speed.segment`, beside a tokenizer where there is one, and `speed.segment_level1`."""
    model = context.model
    text = b"".join(context.texts.reference)[:SEGMENTED_BYTES]
    rivals: dict[str, Work] = {}
    tokenizer = _tokenizer(context)
    if isinstance(tokenizer, LeftOut):
        yield tokenizer
    else:
        pieces = passages([text], TOKENIZED_BYTES)
        rivals[tokenizer.name] = lambda number: sum(len(piece) for piece in pieces if len(tokenizer.cut(piece)))

    with ThreadPoolExecutor(torch.get_num_threads()) as executor:
        threads = executor if torch.get_num_threads() > 1 else None

        def cut(level: int) -> Work:
            def work(number: int) -> int:
                levels = cutting_levels(model, threads)  # anew, since they remember segments
                return sum(len(found.text) for found in segment_levels(levels, [text], level=level))

            return work

        yield from _time(context, "segment", {OWN: cut(0), **rivals})
        if len(model.levels) > 1:
            yield from _time(context, "segment_level1", {OWN: cut(1), **rivals})
        else:
            yield LeftOut(name="speed.segment_level1", reason="this model has level 0 alone")


def time_generating(context: EvaluationContext) -> Iterator[Outcome]:
    """`speed.generate`, one text, and `speed.generate_batch`, `BATCH_TEXTS` at once, beside the contestants'."""
    first, size = context.options.seed, context.options.sample_bytes
    options = SamplingOptions(max_bytes=size)

    def own(count: int) -> Work:
        def work(number: int) -> int:
            seeds = range(first + count * number, first + count * (number + 1))
            return sum(len(sample.text) for sample in generate(context.model, seeds=seeds, options=options))

        return work

    def rival(contestant: Contestant, count: int) -> Work:
        return lambda number: sum(map(len, contestant.generate(count, size, first + number)))

    for name, count in (("generate", 1), ("generate_batch", BATCH_TEXTS)):
        rivals = {each.name: rival(each, count) for each in context.contestants}
        yield from _time(context, name, {OWN: own(count), **rivals})


def time_infilling(context: EvaluationContext) -> Iterator[Outcome]:
    """`speed.infill`, beside the contestants'."""
    seed = context.options.seed
    gaps = [*itertools.islice(_gaps(context.texts.reference), rounds_of(context.options) + 1)]
    if not gaps:
        yield LeftOut(name="speed.infill", reason=f"no document has {2 * AROUND_GAP} bytes; give longer texts")
        return

    def fill(number: int) -> int:
        text, gap, answer = gaps[number % len(gaps)]
        infill(context.model, text, [gap], seed=seed + number, options=InfillingOptions())
        return len(answer)

    def rival(contestant: Contestant) -> Work:
        def work(number: int) -> int:
            text, gap, answer = gaps[number % len(gaps)]
            contestant.infill(text, [gap], [answer], seed + number)
            return len(answer)

        return work

    yield from _time(context, "infill", {OWN: fill, **{each.name: rival(each) for each in context.contestants}})


def time_processes(context: EvaluationContext) -> Iterator[Outcome]:
    """`speed.start_up` and `speed.peak_memory`, beside a process that only imports torch."""
    text = b"".join(context.texts.reference)
    program = ("-m", "zonkey_cli", "segment", "-m", str(context.model_path.resolve()))
    own = (*program, "--device", str(context.model.device))
    torch_alone = ("-c", "import torch")
    rounds = rounds_of(context.options)
    seconds: dict[str, list[float]] = {OWN: [], IMPORT_TORCH: []}
    memory: dict[str, list[float]] = {OWN: [], IMPORT_TORCH: []}
    before = time.perf_counter()
    for number in range(rounds):
        context.report("timing start-up", number / rounds)
        seconds[OWN].append(run_process(own, text[:START_UP_BYTES]).seconds)
        other = run_process(torch_alone, b"")
        seconds[IMPORT_TORCH].append(other.seconds)
        memory[IMPORT_TORCH].append(other.megabytes)
    between = time.perf_counter()
    yield from summarize("start_up", seconds, seconds=between - before, better="lower", unit="s")
    for level, name in enumerate(("speed.peak_memory", "speed.peak_memory_level1")[: len(context.model.levels)]):
        context.report("weighing memory", None)
        cost = run_process((*own, "--level", str(level)), text)
        yield Measure(
            name=name, value=cost.megabytes, rivals={IMPORT_TORCH: statistics.median(memory[IMPORT_TORCH])},
            n=1, seconds=time.perf_counter() - between, better="lower", unit="MB",
        )


def _tokenizer(context: EvaluationContext) -> TokenizerCutter | LeftOut:
    """The largest tokenizer of two sizes that can be trained."""
    def report(what: str) -> None:
        context.report(what, None)

    texts = context.texts
    try:
        for size in TOKENIZER_SIZES:
            with contextlib.suppress(TokenizerFailure):
                return fit_tokenizer(
                    "bpe", size, texts.training, store=context.store, identity=texts.identity, report=report
                )
    except ImportError:
        return LeftOut(name="speed.segment.rivals", reason='sentencepiece is missing; pip install "zonkey[eval]"')
    return LeftOut(name="speed.segment.rivals", reason="too little text to train a tokenizer on; raise --limit")


def _training_step(contestant: Contestant) -> Work:
    return lambda number: contestant.train_step()


def _gaps(documents: Sequence[bytes]) -> Iterator[tuple[bytes, Gap, bytes]]:
    """Texts with a gap in the middle, the gap and what is missing there, from the beginnings of documents."""
    for document in documents:
        if len(document) >= 2 * AROUND_GAP:
            before, answer, after = _parted(document)
            yield before + MASK + after, Gap(len(before), len(before) + len(MASK)), answer


def _parted(document: bytes) -> tuple[bytes, bytes, bytes]:
    """The beginning of a document in three, the middle one short, none of them cut inside a code point."""
    beginning = document[: 3 * AROUND_GAP]
    ends = (AROUND_GAP, AROUND_GAP + GAP_BYTES, 2 * AROUND_GAP)
    start, end, last = (len(passages([beginning], size)[0]) for size in ends)
    return beginning[:start], beginning[start:end], beginning[end:last]


def _time(context: EvaluationContext, name: str, works: Mapping[str, Work]) -> Iterator[Measure]:
    """Race the works and sum it up in bytes a second."""
    device = context.model.device

    def settled(work: Work) -> Work:
        def run(number: int) -> int:
            done = work(number)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return done

        return run

    before = time.perf_counter()
    rates = race(
        {rival: settled(work) for rival, work in works.items()},
        rounds_of(context.options),
        report=lambda share: context.report(f"timing {name.replace('_', ' ')}", share),
    )
    seconds = time.perf_counter() - before
    yield from summarize(name, rates, seconds=seconds, better="higher", unit="bytes/s")
