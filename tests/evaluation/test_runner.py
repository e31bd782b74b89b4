"""Parts run in order, each outcome as it comes; a finished part is kept, and only for what it depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.evaluation.context_helpers import documents, small_context
from zonkey_core.errors import ConfigError, DataError
from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.evaluation.results import LeftOut, Measure, Outcome
from zonkey_core.evaluation.tasks import runner
from zonkey_core.evaluation.tasks.runner import OUTCOMES, PARTS, evaluate, identify_model
from zonkey_core.evaluation.texts import EvaluationTexts
from zonkey_core.inference.gap_windows import Gap

OUTCOMES_OF_A_PART: list[Outcome] = [
    Measure(name="p.a", value=0.5, low=0.25, high=1.0, rivals={"r": math.inf}, n=3, seconds=1.0, better="lower"),
    LeftOut(name="p.b", reason="no gold"),
    Measure(name="p.c", value=-2.0, n=1, seconds=0.5),
]


class FakePart:
    """A part that counts how often it is run, and may fail behind its first outcome."""

    def __init__(self, outcomes: Sequence[Outcome] = tuple(OUTCOMES_OF_A_PART)) -> None:
        self.outcomes = outcomes
        self.runs = 0
        self.error: BaseException | None = None

    def __call__(self, context: EvaluationContext) -> Iterator[Outcome]:
        self.runs += 1
        for outcome in self.outcomes:
            yield outcome
            if self.error:
                raise self.error


@dataclass
class Rival:
    """A contestant that is only named."""

    name: str
    identity: str

    def generate(self, count: int, max_bytes: int, seed: int) -> list[bytes]:
        raise NotImplementedError

    def infill(self, text: bytes, gaps: Sequence[Gap], answers: Sequence[bytes], seed: int) -> list[bytes]:
        raise NotImplementedError

    def nats(self, texts: Sequence[bytes]) -> None:
        raise NotImplementedError

    def train_step(self) -> int:
        raise NotImplementedError


@pytest.fixture
def context(tmp_path: Path) -> EvaluationContext:
    return small_context(tmp_path)


def test_the_parts_of_the_program() -> None:
    assert PARTS == ("reconstruct", "segment", "likelihood", "generate", "infill", "speed")


def test_parts_run_in_the_order_given_and_outcomes_come_at_once(context: EvaluationContext) -> None:
    one, two = FakePart(), FakePart(OUTCOMES_OF_A_PART[:1])
    found = evaluate(context, ["two", "one"], measures={"one": one, "two": two})
    assert (one.runs, two.runs) == (0, 0)
    assert next(found) == OUTCOMES_OF_A_PART[0]
    assert (one.runs, two.runs) == (0, 1)
    assert list(found) == OUTCOMES_OF_A_PART
    assert (one.runs, two.runs) == (1, 1)


def test_an_unknown_part_runs_nothing(context: EvaluationContext) -> None:
    part = FakePart()
    with pytest.raises(ConfigError, match="unknown part 'nope'; choose among one"):
        list(evaluate(context, ["one", "nope"], measures={"one": part}))
    assert part.runs == 0


def test_a_finished_part_is_kept(context: EvaluationContext) -> None:
    part = FakePart()
    told: list[tuple[str, float | None]] = []
    listening = replace(context, report=lambda what, share: told.append((what, share)))
    first = list(evaluate(listening, ["one"], measures={"one": part}))
    assert told == []
    assert list(evaluate(listening, ["one"], measures={"one": part})) == first == OUTCOMES_OF_A_PART
    assert part.runs == 1
    assert told == [("kept from before", 1.0)]


def test_a_part_without_outcomes_is_kept_too(context: EvaluationContext) -> None:
    part = FakePart(())
    for _ in range(2):
        assert list(evaluate(context, ["one"], measures={"one": part})) == []
    assert part.runs == 1


def test_speed_is_never_kept(context: EvaluationContext) -> None:
    part = FakePart()
    for _ in range(2):
        assert list(evaluate(context, ["speed"], measures={"speed": part})) == OUTCOMES_OF_A_PART
    assert part.runs == 2
    assert not context.store.directory.exists()


@pytest.mark.parametrize("error", [DataError("too little"), KeyboardInterrupt(), SystemExit(143)])
def test_a_part_that_does_not_end_is_not_kept(context: EvaluationContext, error: BaseException) -> None:
    done, broken = FakePart(), FakePart()
    broken.error = error
    measures = {"done": done, "broken": broken}
    found = evaluate(context, ["done", "broken"], measures=measures)
    with pytest.raises(type(error)):
        list(found)
    broken.error = None
    assert list(evaluate(context, ["done", "broken"], measures=measures)) == OUTCOMES_OF_A_PART * 2
    assert (done.runs, broken.runs) == (1, 2)


def test_a_part_that_nobody_hears_to_its_end_is_not_kept(context: EvaluationContext) -> None:
    part = FakePart()
    next(evaluate(context, ["one"], measures={"one": part}))
    list(evaluate(context, ["one"], measures={"one": part}))
    assert part.runs == 2


def other_texts(context: EvaluationContext) -> EvaluationTexts:
    return msgspec.structs.replace(context.texts, training=documents(3, "other"))


@pytest.mark.parametrize(
    "change",
    [
        lambda context: {"model_identity": "another"},
        lambda context: {"texts": other_texts(context)},
        lambda context: {"options": msgspec.structs.replace(context.options, seed=1)},
        lambda context: {"options": msgspec.structs.replace(context.options, limit=5_000)},
        lambda context: {"domains": [("german", b"eins")]},
        lambda context: {"domains": [("german", b"zwei")]},
        lambda context: {"gold": [["One.", "Two."]]},
        lambda context: {"contestants": [Rival("autoregressive", "1")]},
        lambda context: {"contestants": [Rival("autoregressive", "2")]},
        lambda context: {"contestants": [Rival("masked", "1")]},
    ],
)
def test_a_part_is_kept_for_what_it_depends_on_alone(
    context: EvaluationContext, change: Callable[[EvaluationContext], dict[str, Any]]
) -> None:
    part = FakePart()
    changed = replace(context, **change(context))
    for each in (context, changed, context, changed):
        list(evaluate(each, ["one"], measures={"one": part}))
    assert part.runs == 2


def test_parts_are_kept_apart(context: EvaluationContext) -> None:
    one, two = FakePart(), FakePart(())
    measures = {"one": one, "two": two}
    list(evaluate(context, ["one"], measures=measures))
    assert list(evaluate(context, ["two"], measures=measures)) == []


def test_what_is_kept_can_be_damaged(context: EvaluationContext) -> None:
    list(evaluate(context, ["one"], measures={"one": FakePart()}))
    (entry,) = context.store.directory.iterdir()
    (entry / OUTCOMES).write_bytes(b"\xc1")
    with pytest.raises(DataError, match=rf"{OUTCOMES}: cannot be read .* --fresh"):
        list(evaluate(context, ["one"], measures={"one": FakePart()}))


def test_a_model_is_identified_by_the_program_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = small_context(tmp_path / "model")
    program = tmp_path / "program"
    (program / "model").mkdir(parents=True)
    (program / "model" / "level.py").write_text("SHARPNESS = 24\n")
    monkeypatch.setattr(runner, "PROGRAM", program)
    before = identify_model(context.model_path)
    assert identify_model(context.model_path) == before
    (program / "model" / "level.py").write_text("SHARPNESS = 12\n")
    assert identify_model(context.model_path) != before


def test_a_model_is_identified_by_its_files(tmp_path: Path) -> None:
    context = small_context(tmp_path)
    before = identify_model(context.model_path)
    assert before == context.model_identity
    weights = context.model_path / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    changed = identify_model(context.model_path)
    weights.write_bytes(data)
    (context.model_path / "config.json").write_bytes((context.model_path / "config.json").read_bytes() + b"\n")
    assert len({before, changed, identify_model(context.model_path)}) == 3
