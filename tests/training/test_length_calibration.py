"""Documents of which nothing is known are expected to be as long as those of a text."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.model_helpers import chance, small_model
from zonkey_core.diffusion.decoding_order import in_streams, lay_out
from zonkey_core.model.length_model import EDGES, log_survival, usual_logits
from zonkey_core.model.slot_batches import slot_batch
from zonkey_core.training.calibration import calibrate_endings


def test_hazards_are_the_shares_of_those_that_end_among_those_that_get_there() -> None:
    counts = torch.tensor([1] * 30 + [2] * 20 + [3] * 50)
    certain = torch.tensor([True] * 30 + [True] * 10 + [False] * 10 + [True] * 50)
    hazards = usual_logits(counts, certain, least=1).sigmoid()
    expected = [0.5 / 101, 30.5 / 101, 10.5 / 61, 50.5 / 51]
    torch.testing.assert_close(hazards[:4], torch.tensor(expected))
    assert hazards[4:].isnan().all(), "nothing gets there"
    assert usual_logits(counts, certain, least=61).isnan().tolist() == [False, False, *[True] * (len(EDGES) - 2)]


@pytest.mark.parametrize("index", [0, 1])
def test_a_denoiser_expects_documents_to_be_as_long_as_they_are(index: int) -> None:
    """Rows of 40 slots with two documents, of which the second goes on behind the row."""
    level = small_model(2).levels[index]
    firsts = torch.randint(5, 30, (400,), generator=chance(0))
    order = torch.arange(40)
    begins = (order == 0) | (order == firsts.unsqueeze(1))

    calibrate_endings(level, [(torch.ones(400, 40, dtype=torch.bool), begins)])
    plan = lay_out([in_streams(0, [0], [0], begins=True, end_order=None)], 1, torch.device("cpu"))
    said = level.denoiser(slot_batch(torch.zeros(1, 0, level.channels), plan)).ending_logits[0]
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
