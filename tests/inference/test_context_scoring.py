"""Passages with text before them: the chain rule holds, readings see what they are to see, and no more."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from tests.model_helpers import TEXT, chance, fit_vocabulary, small_model
from zonkey_core.inference import context_scoring
from zonkey_core.inference.context_scoring import Passage, Reading, closed_bytes, passage_likelihoods
from zonkey_core.inference.scoring import Question, log_likelihoods, tokenize
from zonkey_core.inference.text_reading import TextReader
from zonkey_core.inference.windows import ReadWindows
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey

DATA = (TEXT * 2).encode()
PASSAGE = Passage(DATA[:200], DATA[200:320])


@functools.lru_cache(maxsize=1)
def judge() -> Zonkey:
    """An untrained model of strong opinions, to which plans say much."""
    model = small_model(2, seed=5)
    nn.init.normal_(fit_vocabulary(model).table, generator=chance(0))
    nn.init.normal_(model.bottom.denoiser.latent_out.weight, generator=chance(1))
    nn.init.normal_(model.bottom.denoiser.left, generator=chance(2))
    return model.eval().requires_grad_(False)


def score(passage: Passage, reading: Reading) -> float:
    (found,) = passage_likelihoods(judge(), [passage], reading)
    assert found.pieces == len(tokenize(judge().bottom, passage.text).starts[0])
    return found.total


def test_nothing_is_the_passage_alone() -> None:
    question = Question(PASSAGE.text, [(0, len(PASSAGE.text))], begins=False)
    (alone,) = log_likelihoods(judge(), [question])
    assert score(PASSAGE, Reading.NOTHING) == pytest.approx(alone.total, rel=1e-5)
    assert score(PASSAGE._replace(before=b"something else"), Reading.NOTHING) == score(PASSAGE, Reading.NOTHING)


def test_slots_are_the_rest_of_the_whole_by_the_chain_rule() -> None:
    (row,) = context_scoring._rows(judge(), [PASSAGE], Reading.SLOTS)
    everything = row._replace(asked_mask=torch.ones_like(row.asked_mask))
    before = row._replace(asked_mask=~row.asked_mask)
    both, first = context_scoring.row_likelihoods(judge().bottom, [everything, before])
    assert score(PASSAGE, Reading.SLOTS) == pytest.approx(both.total - first.total, rel=1e-4)


@pytest.mark.parametrize("reading", [Reading.LATENTS, Reading.SLOTS, Reading.BOTH])
def test_what_stands_before_counts(reading: Reading) -> None:
    assert abs(score(PASSAGE, reading) - score(PASSAGE, Reading.NOTHING)) > 1e-3
    other = Passage(PASSAGE.before[::-1], PASSAGE.text)
    assert abs(score(other, reading) - score(PASSAGE, reading)) > 1e-3


def test_latents_are_plans_beside_slots_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {reading: score(PASSAGE, reading) for reading in Reading}
    sound = context_scoring._plans

    def silenced(*given: object) -> object:
        plans = sound(*given)  # type: ignore[arg-type]
        return plans._replace(latents=torch.zeros_like(plans.latents))

    monkeypatch.setattr(context_scoring, "_plans", silenced)
    assert score(PASSAGE, Reading.BOTH) != pytest.approx(plain[Reading.BOTH], abs=1e-3)
    for reading in (Reading.NOTHING, Reading.LATENTS, Reading.SLOTS):
        assert score(PASSAGE, reading) == plain[reading]


def test_what_latents_unfold_to_is_read_as_slots_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a decoder that makes no mistakes, latents say all that slots do."""
    plain = score(PASSAGE, Reading.LATENTS)
    slots = score(PASSAGE, Reading.SLOTS)
    assert plain != pytest.approx(slots, abs=1e-3)
    (context,) = TextReader(judge()).read([PASSAGE.before])
    monkeypatch.setattr(context_scoring, "_unfolded", lambda level, latents: context.entries)
    assert score(PASSAGE, Reading.LATENTS) == slots


def test_of_the_text_before_the_latents_of_blocks_alone_are_read_in_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    before, text = TextReader(judge()).read([PASSAGE.before, PASSAGE.text])
    slots, blocks = before.levels
    other = before._replace(
        entries=before.entries.flip(0), levels=[slots._replace(latents=slots.latents.flip(0)), blocks]
    )
    row, same = (context_scoring._lay_out(judge(), each, text, True, Reading.LATENTS) for each in (before, other))
    assert torch.equal(row.entries, same.entries) and row.plans is same.plans is None
    plain, unfolded = score(PASSAGE, Reading.LATENTS), context_scoring._unfolded
    monkeypatch.setattr(
        context_scoring, "_unfolded", lambda level, latents: unfolded(level, torch.zeros_like(latents))
    )
    assert score(PASSAGE, Reading.LATENTS) != pytest.approx(plain, abs=1e-3)


def test_blocks_unfold_each_by_itself_in_their_order() -> None:
    level, latents = judge().bottom, TextReader(judge()).read([PASSAGE.before])[0].levels[1].latents
    assert level.above is not None and len(latents) > 2
    alone = [context_scoring._unfolded(level, latent.unsqueeze(0)) for latent in latents]
    assert all(1 <= len(entries) <= level.above.config.window for entries in alone)
    assert torch.equal(context_scoring._unfolded(level, latents), torch.cat(alone))


def test_windows_unfold_to_the_strings_nearest_to_what_likely_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = judge().bottom.vocabulary
    assert vocabulary is not None
    contents = vocabulary.latents()[torch.tensor([[3, 5, 7], [2, 2, 9]])]
    existence = torch.tensor([[1.0, 0.6, 0.4], [1.0, 0.2, 0.1]])

    def read(level: Level, latents: Tensor) -> ReadWindows:
        assert level is judge().bottom.above
        return ReadWindows(contents * 0.9, existence.log())

    monkeypatch.setattr(context_scoring, "read_windows", read)
    assert context_scoring._unfolded(judge().bottom, torch.zeros(2, 4)).tolist() == [3, 5, 2]


@pytest.mark.parametrize("reading", list(Reading))
def test_nothing_of_the_passage_is_given_away(reading: Reading) -> None:
    """What foretells its first pieces does not depend on what comes after them."""
    (row,) = context_scoring._rows(judge(), [PASSAGE], reading)
    first = row.asked_mask.cumsum(0) <= 5
    row = row._replace(asked_mask=row.asked_mask & first)
    changed = row._replace(entries=torch.where(first, row.entries, row.entries.flip(0)))
    assert not torch.equal(row.entries, changed.entries)
    found, other = context_scoring.row_likelihoods(judge().bottom, [row, changed])
    assert found.pieces == 5
    assert found.total == pytest.approx(other.total, rel=1e-5)
    asking = row.order.told >= int(row.asked_mask.nonzero()[0])
    assert (row.order.blocks[asking] == -1).all() and (row.order.left[asking] == 0).all()


def test_texts_are_scored_as_each_alone() -> None:
    passages = [PASSAGE, Passage(DATA[:90], DATA[90:130]), Passage(DATA[50:190], DATA[190:200], begins=False)]
    for reading in Reading:
        found = [each.total for each in passage_likelihoods(judge(), passages, reading)]
        assert found == pytest.approx([score(each, reading) for each in passages], rel=1e-4, abs=1e-4)


def test_closed_blocks_end_where_the_open_one_begins() -> None:
    count = closed_bytes(judge(), DATA)
    assert 0 < count < len(DATA)
    starts = tokenize(judge().bottom, DATA).starts[0].tolist()
    blocks = TextReader(judge()).read([DATA])[0].levels[1].starts.tolist()
    assert starts[blocks[-2]] == count
    assert closed_bytes(judge(), DATA[:1]) == 0
