"""What a unit of a text costs by a compressor, which sets how often a lexicon cuts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.model_helpers import small_model
from zonkey_core.data import SourceSpec
from zonkey_core.errors import DataError
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.fitting import fit_information

SPLITTER = Stage("splitter", 0, 1.0)
SIGNS = 64
BITS = 6.0
"""Of a sign that is drawn from so many."""
MOST = 1.4
"""Times as much, that a compressor takes for signs of three bytes."""


def written(path: Path, signs: int, length: int = 30_000) -> str:
    """A file of signs of three bytes each, drawn by chance from so many kinds."""
    drawn = random.Random(signs).choices([chr(0x4E00 + 7 * each) for each in range(signs)], k=length)
    path.write_text("".join(drawn), encoding="utf-8")
    return str(path)


def information(spec: SourceSpec, stage: Stage = SPLITTER, lexicon: int = 64) -> list[float]:
    """Bits of a unit of each source that a model with a lexicon notes before a stage."""
    model = small_model(2, lexicon=lexicon)
    assert model.bottom.lexicon is not None
    model.bottom.lexicon.expect_sources(max(1, len(spec.weights)))
    fit_information(model, stage, spec)
    return model.bottom.lexicon.information.tolist()


def test_signs_drawn_evenly_cost_the_logarithm_of_their_number(tmp_path: Path) -> None:
    (many,) = information(SourceSpec(sources=(written(tmp_path / "many", SIGNS),), split="all"))
    (few,) = information(SourceSpec(sources=(written(tmp_path / "few", 4),), split="all"))
    assert BITS < many < MOST * BITS
    assert 2 < few < MOST * 2


def test_weighed_sources_are_measured_one_by_one(tmp_path: Path) -> None:
    sources = written(tmp_path / "many", SIGNS), written(tmp_path / "few", 4, length=3_000)
    alone = [information(SourceSpec(sources=(source,), split="all"))[0] for source in sources]
    assert information(SourceSpec(sources=sources, weights=(3.0, 1.0), split="all")) == alone
    (together,) = information(SourceSpec(sources=sources, split="all"))
    assert alone[1] < together < alone[0]


def test_text_whose_cuts_are_kept_is_not_measured(tmp_path: Path) -> None:
    many, few = written(tmp_path / "many", SIGNS, length=3_000), written(tmp_path / "few", 4)
    alone = information(SourceSpec(sources=(many,), split="all"))
    beside = SourceSpec(sources=(many, few), weights=(1.0, 1.0), kept_cuts=(few,), split="all")
    assert information(beside) == [*alone, 0]


def test_what_is_read_but_once_and_other_stages_measure_nothing(tmp_path: Path) -> None:
    text = SourceSpec(sources=(written(tmp_path / "many", SIGNS),), split="all")
    assert information(SourceSpec(sources=("-",))) == [0]
    assert information(text, Stage("splitter", 1, 1.0)) == [0]
    assert information(text, Stage("denoiser", 0, 1.0)) == [0]
    with pytest.raises(DataError, match=r"none\.txt"):
        information(SourceSpec(sources=(str(tmp_path / "none.txt"),)))
