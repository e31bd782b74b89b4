"""What reconstruction counts, on cases worked out by hand, at its floor and at its ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation.context_helpers import small_context
from tests.model_helpers import small_model
from zonkey_core.evaluation.metrics.boundaries import calibration_error_of_sums
from zonkey_core.evaluation.results import LeftOut, Measure
from zonkey_core.evaluation.tasks import reconstruction
from zonkey_core.evaluation.tasks.noises import NOISES, add_noise
from zonkey_core.evaluation.tasks.reconstruction import (
    OTHERS_SHARE,
    PASSAGE_BYTES,
    commonest_byte_share,
    ending_counts,
    measure_reconstruction,
    reconstruction_counts,
)
from zonkey_core.evaluation.texts import EvaluationTexts, passages
from zonkey_core.model.level import Level
from zonkey_core.model.model import Ascent, text_sequence
from zonkey_core.training.validation import EndForecasts, SegmentsBack

LETTERS = b"all that flows, and all that falls: "
TEXTS = [LETTERS * 2, b"", LETTERS * 9, b"none", LETTERS]


def vowels(text: bytes) -> int:
    return sum(text.count(letter) for letter in (b"a", b"o", b"e"))


def only_vowels(levels: Sequence[Level], views: Sequence[Ascent]) -> SegmentsBack:
    """Every byte is a segment, and only the vowels come back."""
    rows, places = views[0].sequence.exists_mask.nonzero(as_tuple=True)
    right = torch.isin(views[0].sequence.values[rows, places], torch.tensor(list(b"aoe")))
    return SegmentsBack(rows, torch.ones_like(rows), right.long(), right)


def everything(levels: Sequence[Level], views: Sequence[Ascent]) -> SegmentsBack:
    """A perfect model with one segment a row."""
    sizes = views[0].sequence.exists_mask.sum(1)
    return SegmentsBack(torch.arange(len(sizes)), sizes, sizes, torch.ones_like(sizes, dtype=torch.bool))


def counts_of(texts: Sequence[bytes]) -> np.ndarray[Any, np.dtype[np.float64]]:
    model = small_model(2)
    counts = np.full((2, len(texts), 4), -1.0)
    for batch, found in reconstruction_counts(model, texts):
        counts[:, batch] = found
    return counts


def test_counts_belong_to_their_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "BATCH_ROWS", 2)
    monkeypatch.setattr(reconstruction, "rebuild_segments", only_vowels)
    counts = counts_of(TEXTS)
    assert (counts[:, 1] == -1).all(), "an empty passage is not counted"
    for index in (0, 2, 3, 4):
        right, size = vowels(TEXTS[index]), len(TEXTS[index])
        assert counts[:, index].tolist() == [[right, size, right, size]] * 2


def test_padding_changes_nothing() -> None:
    """A passage is rebuilt beside a longer one as it is alone."""
    alone, beside = counts_of([TEXTS[0]])[:, 0], counts_of(TEXTS)[:, 0]
    assert np.abs(alone - beside).max() <= 1
    assert alone[:, 1].tolist() == [len(TEXTS[0])] * 2


def test_segments_are_those_of_the_model() -> None:
    model = small_model(2)
    views = model.ascend(text_sequence(LETTERS, device=model.device), 1)
    counts = counts_of([LETTERS])[:, 0]
    assert counts[:, 3] == pytest.approx([len(view.latents) for view in views], abs=1)


@pytest.mark.parametrize(
    ("texts", "share"), [([b"aab"], 2 / 3), ([b"ab", b"b", b""], 2 / 3), ([b"\xff"], 1.0), ([b""], 0.0), ([], 0.0)]
)
def test_the_commonest_byte(texts: list[bytes], share: float) -> None:
    assert commonest_byte_share(texts) == pytest.approx(share)


def figures(context: Any) -> dict[str, Measure]:
    return {each.name: each for each in measure_reconstruction(context) if isinstance(each, Measure)}


def test_every_condition_is_measured_at_every_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "rebuild_segments", only_vowels)
    said: list[tuple[str, float | None]] = []
    german = "Über die Brücke kam niemand, und niemand sah es. ".encode() * 60
    context = small_context(tmp_path, domains=[("german", german)], report=lambda *what: said.append(what))
    found = figures(context)
    conditions = ["clean", *NOISES, "domain.german"]
    assert set(found) == {
        f"reconstruct.level{level}.{condition}.{figure}"
        for level in (0, 1)
        for condition in conditions
        for figure in ("byte_accuracy", "exact_segments", "bytes_per_segment")
    } | {f"reconstruct.level{level}.clean.length_calibration_error" for level in (0, 1)}
    assert {what for what, _ in said} == {
        "lengths of decoded segments", *(f"rebuilding text: {condition}" for condition in conditions)
    }
    clean = passages(context.texts.reference, PASSAGE_BYTES)
    upper = b"".join(
        add_noise(text, "upper_case", index).text for index, text in enumerate(clean[::OTHERS_SHARE])
    )
    foreign = b"".join(passages([german], PASSAGE_BYTES)[::OTHERS_SHARE])
    for condition, text in {"clean": b"".join(clean), "upper_case": upper, "domain.german": foreign}.items():
        accuracy = found[f"reconstruct.level1.{condition}.byte_accuracy"]
        assert accuracy.value == pytest.approx(vowels(text) / len(text)), condition
        assert accuracy.floor == pytest.approx(commonest_byte_share([text])) and accuracy.ceiling == 1
        assert found[f"reconstruct.level0.{condition}.bytes_per_segment"].value == 1
    assert vowels(upper) == 0, "what is upper case must be rebuilt as such"
    length = found["reconstruct.level0.clean.bytes_per_segment"]
    assert (length.better, length.unit, length.floor, length.ceiling) == ("neither", "bytes", None, None)
    assert found["reconstruct.level0.clean.byte_accuracy"].n == len(clean)


def test_a_perfect_model_reaches_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "rebuild_segments", everything)
    for name, figure in figures(small_context(tmp_path)).items():
        if figure.floor is not None:
            assert figure.value == figure.low == figure.high == figure.ceiling > figure.floor, name


def test_an_untrained_model_is_caught(tmp_path: Path) -> None:
    found = figures(small_context(tmp_path))
    for level in (0, 1):
        accuracy = found[f"reconstruct.level{level}.clean.byte_accuracy"]
        assert accuracy.floor is not None and 0 <= accuracy.value <= accuracy.floor
        assert found[f"reconstruct.level{level}.clean.exact_segments"].value < 0.05


def test_without_other_domains(tmp_path: Path) -> None:
    texts = EvaluationTexts(reference=[LETTERS * 20], judging=[LETTERS], training=[LETTERS])
    outcomes = list(measure_reconstruction(small_context(tmp_path, levels=1, texts=texts)))
    assert [type(outcome) for outcome in outcomes] == [Measure] * 16 + [LeftOut]
    assert isinstance(outcomes[-1], LeftOut) and "--domains" in outcomes[-1].reason


@pytest.mark.parametrize(("said", "error"), [(0.25, 0.0), (0.85, 0.6), (0.0, 0.25)])
def test_forecasts_of_ends_are_held_against_how_often_they_came(
    said: float, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place in four is an end, in every passage."""

    def forecast(_level: Level, view: Ascent) -> EndForecasts:
        rows = torch.arange(len(view.sequence.values)).repeat_interleave(4)
        return EndForecasts(rows, torch.full((len(rows),), said), torch.arange(len(rows)) % 4 == 0)

    monkeypatch.setattr(reconstruction, "forecast_ends", forecast)
    monkeypatch.setattr(reconstruction, "BATCH_ROWS", 2)
    counts = ending_counts(small_model(2), TEXTS)
    assert counts.shape[:2] == (2, len(TEXTS))
    assert not counts[:, TEXTS.index(b"")].any(), "an empty passage has no ends"
    for level in counts:
        assert calibration_error_of_sums(level.sum(0)[None]) == pytest.approx([error])
        assert calibration_error_of_sums(level[:1]) == pytest.approx([error])
