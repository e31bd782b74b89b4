"""Documents of which nothing is known are expected to be as long as those of a text."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.model_helpers import chance, small_model
from zonkey_core.diffusion.decoding_order import in_streams, lay_out
from zonkey_core.model.length_model import EDGES, log_survival, usual_logits
from zonkey_core.model.level import Level
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_vocabulary import SegmentTokens
from zonkey_core.model.writer import OrderedSlots
from zonkey_core.training.calibration import calibrate_endings


def test_hazards_are_the_shares_of_those_that_end_among_those_that_get_there() -> None:
    counts = torch.tensor([1] * 30 + [2] * 20 + [3] * 50)
    certain = torch.tensor([True] * 30 + [True] * 10 + [False] * 10 + [True] * 50)
    hazards = usual_logits(counts, certain, least=1).sigmoid()
    expected = [0.5 / 101, 30.5 / 101, 10.5 / 61, 50.5 / 51]
    torch.testing.assert_close(hazards[:4], torch.tensor(expected))
    assert hazards[4:].isnan().all(), "nothing gets there"
    assert usual_logits(counts, certain, least=61).isnan().tolist() == [False, False, *[True] * (len(EDGES) - 2)]


def test_a_writer_expects_documents_to_be_as_long_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 40 slots with two documents, of which the second goes on behind the row."""
    level = small_model(1).levels[0]
    firsts = torch.randint(5, 30, (400,), generator=chance(0))
    order = torch.arange(40)
    begins = (order == 0) | (order == firsts.unsqueeze(1))

    def pieces(_level: Level, _sequence: PositionSequence, _prob: torch.Tensor) -> SegmentTokens:
        blank = torch.zeros(400, 40, dtype=torch.long)
        return SegmentTokens(blank, blank, torch.ones(400, 40, dtype=torch.bool), begins)

    monkeypatch.setattr(Level, "pieces", pieces)
    some = torch.zeros(1, 4, dtype=torch.long)
    calibrate_endings(level, [PositionSequence(some, some == 0, order[None, :4] == 0)])
    assert level.writer is not None
    plan = lay_out([in_streams(0, [0], [0], begins=True, end_order=None)], 1, torch.device("cpu"))
    blank = torch.zeros(1, 1, level.channels)
    said = level.writer(OrderedSlots(plan.layout, blank, blank, torch.ones(1, 1))).ending_logits[0]
    survival = log_survival(said).exp()[0]
    for edge, share in zip(EDGES, survival.tolist(), strict=True):
        if 5 <= edge <= 24:
            # Kaplan and Meier's estimate by hand: the second documents are seen for 40 - first slots, and do not end.
            assert share == pytest.approx(_kaplan_meier(firsts.tolist(), edge), abs=0.02), edge



def _kaplan_meier(firsts: list[int], edge: int) -> float:
    seen = [(first, True) for first in firsts] + [(40 - first, False) for first in firsts]
    share = 1.0
    bounds = [0, *EDGES]
    for low, high in itertools.pairwise(bounds):
        if high > edge:
            break
        ended = sum(low <= count < high and certain for count, certain in seen)
        reached = ended + sum(count >= high for count, _ in seen)
        share *= 1 - ended / reached if reached else 1
    return share
