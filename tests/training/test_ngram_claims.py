"""Whose the rows of the splitter's table are after a text was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model_helpers import byte_rows, level_config, small_model
from tests.training_helpers import Run, small_config
from zonkey_core.checkpoint import load_model
from zonkey_core.config import ModelConfig
from zonkey_core.model.hash_embeddings import OwnedNgramVectors, prints, table_rows
from zonkey_core.model.model import Zonkey
from zonkey_core.model.ngram_tables import NOBODY, SHARED
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.unit_rows import NO_UNIT
from zonkey_core.training import ngram_claims
from zonkey_core.training.curriculum import Stage
from zonkey_core.training.document_guide import Symbols
from zonkey_core.training.ngram_claims import LEAST_MET, claim_ngrams

SPLITTER = Stage("splitter", 0, 1.0)
TEXTS = b"the cat sat on the mat and the dog sat on the log", b"then the cat and the dog ran to the river at noon!"


def claimed(*texts: bytes, stage: Stage = SPLITTER, least: int = 10**9, lexicon: int = 512) -> tuple[Zonkey, Zonkey]:
    """A model and its average whose tables were claimed by the n-grams of texts."""
    models = small_model(2, lexicon=lexicon), small_model(2, lexicon=lexicon)
    for model in models:
        table_of(model).owners.fill_(SHARED)
    rows: Iterator[PositionSequence] = (byte_rows(text) for text in texts)
    claim_ngrams(models, stage, rows, least)
    return models


def table_of(model: Zonkey) -> OwnedNgramVectors:
    """Its n-grams."""
    assert model.bottom.splitter.ngrams is not None
    return model.bottom.splitter.ngrams


def met(vectors: OwnedNgramVectors, *texts: bytes) -> dict[int, Counter[int]]:
    """How often each print was met on each row; none crosses from text to text."""
    found: dict[int, Counter[int]] = {}
    for text in texts:
        units = torch.tensor([[-1] * 4 + list(text)])
        keys = vectors.keys(units)[0, 4:]
        rows, each = table_rows(keys, vectors.rows).flatten().tolist(), prints(keys).flatten().tolist()
        for row, print_of in zip(rows, each, strict=True):
            found.setdefault(row, Counter())[print_of] += 1
    return found


@pytest.mark.parametrize("together", [1, 60, 1 << 22])
def test_a_row_belongs_to_the_ngram_that_is_met_most_often(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_claims, "COUNTED_TOGETHER", together)
    live, average = map(table_of, claimed(*TEXTS))
    counts = met(live, *TEXTS)
    owned = 0
    for row, owner in enumerate(live.owners.tolist()):
        times = counts.get(row, Counter())
        most = max(times.values(), default=0)
        assert (owner == NOBODY) == (most < LEAST_MET)
        assert owner == NOBODY or times[owner] == most
        owned += owner != NOBODY
    assert owned > 20 and torch.equal(live.owners, average.owners)


@pytest.mark.parametrize("most", [0.0, 0.05, 1.0])
def test_another_text_takes_a_few_rows_for_what_it_says_most_often(
    most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What owns a row that the text claims more seldom keeps it, and rows of nobody are there for the taking."""
    monkeypatch.setattr(ngram_claims, "MOST_TAKEN", most)
    models = claimed(*TEXTS * 3)
    before = table_of(models[0]).owners.clone()
    other = b"zum Wald zum Wald und zum See, zum See und zum Wald, und so fort und so fort!" * 3
    claim_ngrams(models, SPLITTER, iter([byte_rows(other)]), 10**9)
    live, average = map(table_of, models)
    owned = before != NOBODY
    taken = owned & (live.owners != before)
    counts = met(live, other)
    times = {row: max(counts[row].values()) for row in owned.nonzero().flatten().tolist() if row in counts}
    wanted = {row: each for row, each in times.items() if each >= LEAST_MET and counts[row][int(before[row])] < each}
    assert len(wanted) > 10 and int(taken.sum()) == min(int(most * len(before)), len(wanted))
    if 0 < int(taken.sum()) < len(wanted):
        assert min(wanted[row] for row in taken.nonzero().flatten().tolist()) >= max(
            each for row, each in wanted.items() if not taken[row]
        )
    assert (live.owners[~owned] != NOBODY).any() and torch.equal(live.owners, average.owners)


def test_as_much_text_is_read_as_asked_for() -> None:
    first, both = (table_of(claimed(*TEXTS, least=least)[0]).owners for least in (10, 10**9))
    assert torch.equal(first, table_of(claimed(TEXTS[0])[0]).owners) and not torch.equal(first, both)


@pytest.mark.parametrize("stage", [Stage("splitter", 1, 1.0), Stage("autoencoder", 0, 1.0), Stage("joint", None, 1.0)])
def test_other_stages_claim_nothing(stage: Stage) -> None:
    assert set(table_of(claimed(*TEXTS, stage=stage)[0]).owners.tolist()) == {SHARED}


def test_what_learns_by_masked_modelling_has_rows_for_all() -> None:
    """Whatever they were before."""
    live, average = small_model(2), small_model(2)
    claim_ngrams((live, average), SPLITTER, iter([byte_rows(TEXTS[0])]), 10**9)
    for model in (live, average):
        assert set(table_of(model).owners.tolist()) == {SHARED}


def test_what_stands_in_for_what_is_learned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before rows are claimed, which belong to n-grams with the stand-ins."""
    monkeypatch.setattr(ngram_claims, "KINDS_UNITS", 100)
    asked: list[int] = []

    def learned(symbols: Symbols) -> tuple[Symbols, Symbols]:
        asked.append(int((symbols != NO_UNIT).sum()))
        return np.array([ord("T")]), np.array([ord("t")])

    monkeypatch.setattr(ngram_claims, "stand_ins", learned)
    texts = [text.replace(b" the", b" The") for text in TEXTS]
    models = claimed(*texts * 2)
    live, average = map(table_of, models)
    assert asked == [len(TEXTS[0] + TEXTS[1])]
    assert live.stand_ins[:, -1].tolist() == [ord("T"), ord("t")] and torch.equal(live.stand_ins, average.stand_ins)
    counts = met(live, *texts * 2)
    assert all(owner == NOBODY or counts[row][owner] >= LEAST_MET for row, owner in enumerate(live.owners.tolist()))
    claim_ngrams(models, SPLITTER, iter([byte_rows(TEXTS[0])]), 10**9)
    assert len(asked) == 1


def test_a_run_claims_rows_once_and_keeps_them(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    level = level_config(lexicon=512, splitter_ngrams=1024)
    config = msgspec.structs.replace(small_config(), model=ModelConfig(levels=(level, level_config())))
    run.train(config, steps=30, stop_at=2)
    assert table_of(load_model(run.out)).owners.ne(SHARED).all()
    before: Tensor = table_of(load_model(run.out)).owners
    run.resume()
    assert torch.equal(table_of(load_model(run.out)).owners, before)
    assert before.ne(NOBODY).sum() > 100
