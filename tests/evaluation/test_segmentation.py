"""The part `segment` as a whole: what it says of a perfect and of a useless splitter, what it keeps and leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.evaluation.context_helpers import small_context
from tests.model_helpers import level_config, small_model
from zonkey_core.checkpoint import CONFIG, FORMAT
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.evaluation.context import EvaluationContext, EvaluationOptions
from zonkey_core.evaluation.results import LeftOut, Measure, Outcome
from zonkey_core.evaluation.tasks import segmentation, unspaced
from zonkey_core.evaluation.tasks.noises import NOISES
from zonkey_core.evaluation.tasks.segmentation import measure_segmentation
from zonkey_core.evaluation.tasks.unspaced import TEXT, splitter_alone, unspaced_model
from zonkey_core.evaluation.texts import EvaluationTexts
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.numpy_model.level import NumpyLevel

LEARNED = 60
"""Thirty times as many bytes are learned from, which is next to nothing."""
GOLD = (("One two three.", "Four."), ("No stop here", "but one there"))
STABILITY = {f"segment.stability.{noise}" for noise in NOISES}
SCORES = {"segment.whitespace_f1", "segment.word_f1", "segment.word_precision", "segment.word_recall", *STABILITY}
SENTENCES = {"segment.sentence_f1", "segment.sentence_f1_without_punctuation"}
NEITHER = {"segment.bytes_per_segment", "segment.cuts_per_byte", "segment.stability.bytes_per_segment"}


def texts() -> EvaluationTexts:
    """Different documents of the bundled sample."""
    documents = open_stream(SourceSpec(sources=("sample",)), seed=0, shuffle_documents=1)
    taken = [text[:800] for text in itertools.islice(documents, 31)]
    return EvaluationTexts(reference=taken[:4], judging=taken[4:5], training=taken[5:])


def context_in(folder: Path, **changes: Any) -> EvaluationContext:
    fields = {"texts": texts(), "gold": GOLD, "options": EvaluationOptions(limit=LEARNED), **changes}
    return small_context(folder, **fields)


@pytest.fixture(scope="module", autouse=True)
def little_to_choose_thresholds_on() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "CHOOSING_BYTES", 4000)
        yield


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All that is said of a model with random weights, twice: the second time, from what was kept."""
    folder = tmp_path_factory.mktemp("segment")
    first = list(measure_segmentation(context_in(folder)))
    said: list[str] = []
    again = list(measure_segmentation(context_in(folder, report=lambda what, share: said.append(what))))
    assert said and not [what for what in said if "splitter" in what or "byte model" in what]
    assert [timeless(outcome) for outcome in first] == [timeless(outcome) for outcome in again]
    return {outcome.name: outcome for outcome in first}


def timeless(outcome: Outcome) -> Outcome:
    return outcome if isinstance(outcome, LeftOut) else msgspec.structs.replace(outcome, seconds=0.0)


def measures(outcomes: dict[str, Outcome]) -> dict[str, Measure]:
    return {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Measure)}


def test_every_figure_is_there_with_its_floor_ceiling_and_rivals(outcomes: dict[str, Outcome]) -> None:
    found = measures(outcomes)
    assert set(found) == SCORES | SENTENCES | NEITHER | {"segment.calibration_error"}
    for name in SCORES | SENTENCES:
        measure = found[name]
        assert measure.better == "higher" and measure.ceiling == 1
        assert measure.floor is not None and 0 <= measure.floor < 1
        assert measure.low is not None and measure.high is not None
        assert 0 <= measure.low <= measure.value <= measure.high <= 1
    for name in NEITHER:
        assert found[name].better == "neither" and found[name].value > 0
    error = found["segment.calibration_error"]
    assert error.better == "lower" and error.ceiling == 0 and 0 < error.value < 1 and (error.floor or 0) > 0
    assert all(measure.n == (2 if name in SENTENCES else 4) for name, measure in found.items())


def test_rivals_are_those_that_could_be_trained(outcomes: dict[str, Outcome]) -> None:
    found = measures(outcomes)
    tokenizers = {f"{kind}_{size}k" for kind in ("bpe", "unigram") for size in (1, 2, 4, 8)}
    for measure, place in (("segment.whitespace_f1", "segment.rivals"), ("segment.word_f1", "segment.word_f1.rivals")):
        rivals = set(found[measure].rivals)
        missing = {name.rpartition(".")[2] for name in outcomes if name.startswith(f"{place}.")}
        assert {"bpe_1k", "unigram_1k", "entropy_global", "entropy_monotone"} <= rivals
        assert missing and missing | (rivals & tokenizers) == tokenizers and not missing & rivals
    left_out = outcomes["segment.rivals.unigram_8k"]
    assert isinstance(left_out, LeftOut) and "--limit" in left_out.reason
    assert "untrained" in found["segment.whitespace_f1"].rivals
    for name in (*STABILITY, "segment.stability.bytes_per_segment"):
        assert {"entropy_global", "entropy_monotone"} < set(found[name].rivals)


def test_cuts_per_byte_is_the_inverse_of_bytes_per_segment(outcomes: dict[str, Outcome]) -> None:
    found = measures(outcomes)
    bytes_each, cuts = found["segment.bytes_per_segment"], found["segment.cuts_per_byte"]
    assert bytes_each.value * cuts.value == pytest.approx(1)
    assert {name: 1 / value for name, value in cuts.rivals.items()} == pytest.approx(bytes_each.rivals)
    assert abs(bytes_each.rivals["untrained"] / bytes_each.value - 1) < 0.1


def test_a_splitter_with_random_weights_is_caught(outcomes: dict[str, Outcome]) -> None:
    found = measures(outcomes)
    assert found["segment.whitespace_f1"].value < found["segment.whitespace_f1"].rivals["bpe_1k"] < 1
    assert found["segment.whitespace_f1"].value < 0.5


def test_the_rule_for_sentences_by_hand(outcomes: dict[str, Outcome]) -> None:
    """One border in each of two paragraphs; the rule finds the one behind a full stop, and none without it."""
    found = measures(outcomes)
    assert found["segment.sentence_f1"].rivals == {"rule": pytest.approx(2 / 3)}
    assert found["segment.sentence_f1_without_punctuation"].rivals == {"rule": 0.0}


def words_split(
    _level: NumpyLevel,
    values: NDArray[np.uint8],
    begin: int = 0,
    end: int | None = None,
    fresh: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """A splitter that is certain of the first byte after a space or line end, and of nothing else."""
    white = (values == 32) | (values == 10)
    return np.append(False, white[:-1] & ~white[1:]).astype(np.float32)[begin:end]


def test_a_perfect_splitter_reaches_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NumpyLevel, "start_probs", words_split)
    found = measure_segmentation(context_in(tmp_path, model=small_model(window=60)))
    error = next(outcome for outcome in found if outcome.name == "segment.calibration_error")
    agreement = next(outcome for outcome in found if outcome.name == "segment.whitespace_f1")
    assert isinstance(error, Measure) and isinstance(agreement, Measure)
    assert agreement.value == agreement.ceiling == 1 and error.value == error.ceiling == 0
    assert agreement.floor is not None and agreement.floor < 0.6 and error.floor is not None and error.floor > 0.1
    assert all(value < 1 for name, value in agreement.rivals.items() if name != "untrained")


def test_what_cannot_be_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    found = {outcome.name: outcome for outcome in measure_segmentation(context_in(tmp_path, levels=1, gold=()))}
    reasons = {name: outcome.reason for name, outcome in found.items() if isinstance(outcome, LeftOut)}
    assert set(reasons) == {*SENTENCES, "segment.rivals", "segment.word_f1.rivals"}
    assert "--gold" in reasons["segment.sentence_f1"] and "zonkey[eval]" in reasons["segment.rivals"]
    assert set(found) >= SCORES
    again = measure_segmentation(context_in(tmp_path, levels=1))
    sentences = next(outcome for outcome in again if outcome.name == "segment.sentence_f1")
    assert isinstance(sentences, LeftOut) and "level 1" in sentences.reason


class Stopped(Exception):
    """Stands for Ctrl-C."""


def stop_at(limit: float) -> Callable[[str, float | None], None]:
    def report(_what: str, share: float | None) -> None:
        if share is not None and share >= limit:
            raise Stopped

    return report


def only(name: str, folder: Path) -> str:
    """The content of the one file of this name."""
    (path,) = folder.rglob(name)
    return path.read_text("utf-8")


def parameters(model: Zonkey) -> Iterator[torch.Tensor]:
    yield from model.state_dict().values()


def test_the_splitter_without_spaces_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unspaced, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr("zonkey_core.training.trainer.REPORT_SECONDS", 0.0)
    unspaced_text = ["".join(document.decode().split()).encode() for document in texts().training]
    whole = unspaced_model(context_in(tmp_path / "whole"), unspaced_text)
    with pytest.raises(Stopped):
        unspaced_model(context_in(tmp_path / "parts", report=stop_at(0.5)), unspaced_text)
    steps = only("metrics.jsonl", tmp_path / "parts").count('"event":"step"')
    resumed = unspaced_model(context_in(tmp_path / "parts"), unspaced_text)
    assert only("metrics.jsonl", tmp_path / "parts").count('"event":"step"') < steps * 2.5
    for one, other in zip(parameters(whole), parameters(resumed), strict=True):
        assert torch.equal(one, other)
    learned = [msgspec.json.decode(line)["text"] for line in only(TEXT, tmp_path / "whole").splitlines()]
    assert learned == ["".join(document.decode().split()) for document in texts().training]


def test_what_was_learned_in_another_format_is_learned_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that an earlier version has kept cannot be read, and is no reason to fail."""
    monkeypatch.setattr(unspaced, "FORMAT", 1)
    unspaced_model(context_in(tmp_path), [b"sometextwithoutspaces" * 40])
    (kept,) = tmp_path.glob(f"store/*/model/{CONFIG}")
    kept.write_bytes(kept.read_bytes().replace(f'"format": {FORMAT}'.encode(), b'"format": 1'))
    monkeypatch.undo()
    unspaced_model(context_in(tmp_path), [b"sometextwithoutspaces" * 40])
    assert len([*tmp_path.glob(f"store/*/model/{CONFIG}")]) == 2


def test_a_splitter_alone_is_the_levels_own() -> None:
    level = level_config(denoiser_layers=3, compressor_layers=2)
    alone = Zonkey(splitter_alone(level)).bottom
    torch.manual_seed(0)
    whole = Level([level], None)
    sizes = [{name: each.shape for name, each in one.splitter.state_dict().items()} for one in (alone, whole)]
    assert sizes[0] == sizes[1]
    assert sum(map(torch.numel, alone.denoiser.parameters())) < sum(map(torch.numel, whole.denoiser.parameters()))
    assert alone.config.window == level.window
