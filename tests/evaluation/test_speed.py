"""Speeds: rounds, medians and ratios worked out by hand, real work timed, and processes weighed."""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.evaluation.context_helpers import documents, small_context
from zonkey_core.errors import ZonkeyError
from zonkey_core.evaluation.context import EvaluationContext, EvaluationOptions
from zonkey_core.evaluation.results import LeftOut, Measure, Outcome
from zonkey_core.evaluation.tasks.processes import run_process
from zonkey_core.evaluation.tasks.speed import (
    BATCH_TEXTS,
    IMPORT_TORCH,
    MASK,
    measure_speed,
    race,
    rounds_of,
    summarize,
    time_generating,
    time_infilling,
    time_segmenting,
    time_training,
)
from zonkey_core.evaluation.tasks.training_steps import TrainingSteps
from zonkey_core.inference.gap_windows import Gap

PAUSE = 0.002


class SlowRival:
    """A contestant that does nothing for a while; it notes what it is asked."""

    name = "slow"
    identity = "0"

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.filled: list[tuple[bytes, Sequence[Gap], Sequence[bytes]]] = []

    def generate(self, count: int, max_bytes: int, seed: int) -> list[bytes]:
        time.sleep(PAUSE)
        self.seeds.append(seed)
        return [b"x" * max_bytes] * count

    def infill(self, text: bytes, gaps: Sequence[Gap], answers: Sequence[bytes], seed: int) -> list[bytes]:
        time.sleep(PAUSE)
        self.filled.append((text, gaps, answers))
        return [b"" for _ in gaps]

    def nats(self, texts: Sequence[bytes]) -> None:
        raise AssertionError

    def train_step(self) -> int:
        time.sleep(PAUSE)
        return 100


@pytest.fixture
def rival() -> SlowRival:
    return SlowRival()


@pytest.fixture
def context(tmp_path: Path, rival: SlowRival) -> EvaluationContext:
    return small_context(tmp_path, contestants=[rival])


def by_name(outcomes: Iterator[Outcome]) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in outcomes}


def measured(found: dict[str, Outcome], name: str) -> Measure:
    measure = found[name]
    assert isinstance(measure, Measure)
    assert measure.low is not None
    assert measure.high is not None
    assert 0 < measure.low <= measure.value <= measure.high
    assert measure.seconds > 0
    return measure


def test_a_race_by_hand() -> None:
    """Work 0 does 10, 20, 30 bytes in 1 s, work 1 always 10 in 2 s; the first round does not count."""
    now = itertools.accumulate(itertools.cycle([0, 1, 0, 2]))
    order: list[str] = []
    shares: list[float] = []

    def work(name: str, count: int) -> int:
        order.append(name)
        return count

    rates = race(
        {"a": lambda number: work("a", 10 * number), "b": lambda number: work("b", 10)}, 3,
        report=shares.append, clock=lambda: next(now),
    )
    assert rates == {"a": [10.0, 20.0, 30.0], "b": [5.0, 5.0, 5.0]}
    assert order == ["a", "b"] * 4
    assert shares == [index / 8 for index in range(8)]


def test_a_summary_by_hand() -> None:
    figures = {"zonkey": [10.0, 40.0, 30.0], "r": [5.0, 10.0, 30.0], "never": [0.0, 0.0, 0.0], "once": [0.0, 20.0, 0.0]}
    speed, *ratios = summarize("segment", figures, seconds=2.5, better="higher", unit="bytes/s")
    assert speed == Measure(
        name="speed.segment", value=30.0, low=10.0, high=40.0, rivals={"r": 10.0, "never": 0.0, "once": 0.0}, n=3,
        seconds=2.5, better="higher", unit="bytes/s",
    )
    assert [(each.name, each.value, each.low, each.high, each.n) for each in ratios] == [
        ("speed.segment.ratio.r", 2.0, 1.0, 4.0, 3),
        ("speed.segment.ratio.once", 2.0, 2.0, 2.0, 1),
    ]


@pytest.mark.parametrize(("limit", "rounds"), [(2_000, 2), (200_000, 4), (1_000_000, 5), (10**9, 5)])
def test_rounds_grow_with_the_limit(limit: int, rounds: int) -> None:
    assert rounds_of(EvaluationOptions(limit=limit)) == rounds


def test_training_is_timed_on_a_copy(context: EvaluationContext) -> None:
    before = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    found = by_name(time_training(context))
    train = measured(found, "speed.train")
    assert (train.unit, train.better, train.n, set(train.rivals)) == ("bytes/s", "higher", 2, {"slow"})
    assert train.rivals["slow"] < 100 / PAUSE
    ratio = measured(found, "speed.train.ratio.slow")
    assert train.low is not None and ratio.low is not None
    assert ratio.value == pytest.approx(train.value / train.rivals["slow"], rel=1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in context.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in context.model.parameters())


def test_a_step_trains_every_part_of_level_0_and_no_other(context: EvaluationContext) -> None:
    steps = TrainingSteps(context)
    before = {name: tensor.clone() for name, tensor in steps.model.state_dict().items()}
    assert steps.run(1) == 3 * 2 * 64
    moved = {name for name, tensor in steps.model.state_dict().items() if not torch.equal(before[name], tensor)}
    for part in ("splitter", "compressor", "denoiser", "decoder"):
        assert any(name.startswith(f"bottom.{part}.") for name in moved), part
    assert not any(name.startswith("bottom.above.") for name in moved)


def test_segmenting_is_timed_at_both_levels(context: EvaluationContext) -> None:
    found = by_name(time_segmenting(context))
    assert measured(found, "speed.segment").unit == "bytes/s"
    assert measured(found, "speed.segment_level1").rivals == {}
    reason = found["speed.segment.rivals"]  # so little text gives no vocabulary
    assert isinstance(reason, LeftOut)
    assert "too little text" in reason.reason


def test_a_tokenizer_is_timed_where_there_is_text_for_one(context: EvaluationContext) -> None:
    words = ["".join(letters) for letters in itertools.product("abcdefghij", repeat=3)]
    texts = replace(context, contestants=()).texts
    learned = [" ".join(words[index::7] * 4).encode() for index in range(7)]
    rich = type(texts)(reference=texts.reference, judging=texts.judging, training=learned)
    found = by_name(time_segmenting(replace(context, texts=rich)))
    assert set(measured(found, "speed.segment").rivals) == {"bpe_1k"}
    assert measured(found, "speed.segment.ratio.bpe_1k").unit == ""


def test_a_model_of_one_level_has_no_speed_at_level_1(tmp_path: Path) -> None:
    found = by_name(time_segmenting(small_context(tmp_path, levels=1)))
    assert found["speed.segment_level1"] == LeftOut(
        name="speed.segment_level1", reason="this model has level 0 alone"
    )


def test_generating_is_timed_text_by_text_and_side_by_side(context: EvaluationContext, rival: SlowRival) -> None:
    options = EvaluationOptions(limit=4_000, sample_bytes=32, seed=5)
    model = copy.deepcopy(context.model)
    torch.nn.init.constant_(model.bottom.denoiser.ending_out.bias, -30.0)
    found = by_name(time_generating(replace(context, options=options, model=model)))
    alone, together = measured(found, "speed.generate"), measured(found, "speed.generate_batch")
    assert alone.rivals["slow"] < 32 / PAUSE
    assert together.rivals["slow"] < BATCH_TEXTS * 32 / PAUSE
    assert together.value > alone.value
    assert rival.seeds == [5, 6, 7] * 2


def test_infilling_is_timed_by_what_is_missing(context: EvaluationContext, rival: SlowRival) -> None:
    found = by_name(time_infilling(context))
    assert measured(found, "speed.infill").rivals["slow"] < 16 / PAUSE
    assert len(rival.filled) == 3
    for text, (gap,), (answer,) in rival.filled:
        assert text[gap.start : gap.end] == MASK
        assert 13 <= len(answer) <= 16
        whole = text[: gap.start] + answer + text[gap.end :]
        whole.decode()
        assert 509 <= len(whole) <= 512
        assert any(document.startswith(whole) for document in context.texts.reference)


def test_short_documents_have_no_gap_to_fill(context: EvaluationContext) -> None:
    texts = type(context.texts)(
        reference=[b"short"] * 9, judging=context.texts.judging, training=documents(2, "learned")
    )
    (left_out,) = time_infilling(replace(context, texts=texts))
    assert isinstance(left_out, LeftOut)


def test_a_process_is_timed_and_weighed_without_this_one() -> None:
    ballast = bytearray(os.urandom(1000)) * 300_000  # this process now holds 300 MB
    nap = run_process(["-c", "import sys, time; assert sys.stdin.read() == 'in'; time.sleep(0.2)"], b"in")
    heavy = run_process(["-c", "x = b'y' * 100_000_000"], b"")
    assert len(ballast) > 0
    assert 0.2 < nap.seconds < 20
    assert 3 < nap.megabytes < 80
    assert nap.megabytes + 90 < heavy.megabytes < nap.megabytes + 150


def test_a_process_that_fails_is_told_of_in_one_line() -> None:
    with pytest.raises(ZonkeyError, match=r"cannot be timed, it ended in 3 \(told\)") as caught:
        run_process(["-c", "import sys; print('told', file=sys.stderr); sys.exit(3)"], b"")
    assert "\n" not in str(caught.value)


@pytest.mark.long
def test_everything_is_timed(context: EvaluationContext) -> None:
    reported: list[float | None] = []
    found = by_name(measure_speed(replace(context, report=lambda what, share: reported.append(share))))
    memories = ("peak_memory", "peak_memory_level1")
    for name in ("train", "segment", "segment_level1", "generate", "infill", "start_up", *memories):
        assert isinstance(found[f"speed.{name}"], Measure), name
    start_up = measured(found, "speed.start_up")
    assert (start_up.better, start_up.unit, list(start_up.rivals)) == ("lower", "s", [IMPORT_TORCH])
    memory = found["speed.peak_memory"]
    assert isinstance(memory, Measure)
    assert 10 < memory.value < memory.rivals[IMPORT_TORCH]  # torch is not imported
    assert all(share is None or 0 <= share <= 1 for share in reported)
