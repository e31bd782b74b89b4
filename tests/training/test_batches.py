"""Batches as a stage takes them up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zonkey_core.data.rows import RowBatch
from zonkey_core.training.batches import SHORTEST_ROW, row_lengths, shortened
from zonkey_core.training.curriculum import Stage


def batch_of(rows: int, row_bytes: int) -> RowBatch:
    text = np.random.default_rng(0).integers(0, 256, (rows, row_bytes), dtype=np.uint8)
    return RowBatch(text, text == 10, 3, np.arange(rows))


@pytest.mark.parametrize("name", ["denoiser", "plan"])
def test_rows_for_denoisers_are_of_all_lengths_and_hold_the_same_text(name: str) -> None:
    batch, generator = batch_of(2, 4 * SHORTEST_ROW), torch.Generator().manual_seed(0)
    drawn = [shortened(batch, Stage(name, 1, 1.0), generator) for _ in range(60)]
    assert {each.bytes.shape[1] for each in drawn} == {SHORTEST_ROW, 2 * SHORTEST_ROW, 4 * SHORTEST_ROW}
    for each in drawn:
        assert each.bytes.tobytes() == batch.bytes.tobytes()
        assert each.document_starts.tobytes() == batch.document_starts.tobytes()
        assert each.epochs == 3
        assert each.numbered_sources().tolist() == sorted(each.numbered_sources().tolist())
        assert len(each.numbered_sources()) == len(each.bytes)


def test_other_stages_and_short_or_odd_rows_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    for name, row_bytes in (("splitter", 1024), ("plan", SHORTEST_ROW), ("plan", 2 * SHORTEST_ROW + 1)):
        for _ in range(9):
            assert shortened(batch_of(1, row_bytes), Stage(name, 0, 1.0), generator).bytes.shape == (1, row_bytes)


def test_lengths_are_drawn_as_often_as_is_told() -> None:
    batch, generator, stage = batch_of(1, 4 * SHORTEST_ROW), torch.Generator().manual_seed(0), Stage("plan", 0, 1.0)
    drawn = [shortened(batch, stage, generator).bytes.shape[1] for _ in range(2000)]
    shares = row_lengths(4 * SHORTEST_ROW, stage)
    assert sum(shares.values()) == pytest.approx(1.0) and list(shares) == sorted(shares, reverse=True)
    for length, share in shares.items():
        assert drawn.count(length) / len(drawn) == pytest.approx(share, abs=0.04)
    assert row_lengths(1024, Stage("splitter", 0, 1.0)) == {1024: 1.0}
