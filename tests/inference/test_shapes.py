"""Shapes: rows in groups of one shape, padded only where that is needed for the same bits."""

from __future__ import annotations

import pytest
import torch

from tests.model_helpers import fit_vocabulary, small_model
from zonkey_core.inference import shapes
from zonkey_core.inference.gap_windows import Gap
from zonkey_core.inference.generation import SamplingOptions, generate
from zonkey_core.inference.infilling import InfillingOptions, infill
from zonkey_core.inference.shapes import groups_of_one_shape, padded_count, padded_width

CPU = torch.device("cpu")


def test_rows_are_grouped_by_their_shapes() -> None:
    assert list(groups_of_one_shape([(2,), (1,), (2,), (2,)], 2)) == [((1,), [1]), ((2,), [0, 2]), ((2,), [3])]
    assert list(groups_of_one_shape([(2,), (1,), (2,)])) == [((1,), [1]), ((2,), [0, 2])]


@pytest.mark.parametrize(("alike", "expected"), [(True, [1, 1, 8, 16, 20, 20]), (False, [20] * 6)])
def test_batches_are_padded_where_other_shapes_round_otherwise(
    alike: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "rounds_alike", lambda device, threads: alike)
    assert [padded_count(count, 20, CPU) for count in (0, 1, 5, 12, 19, 40)] == expected
    assert padded_width(1, 20, CPU) == (8 if alike else 20)


def test_what_is_tried_is_what_products_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = torch.nn.functional.linear

    def other_bits(rows: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return sound(rows, *rest) * (1.01 if len(rows) == 3 else 1)

    monkeypatch.setattr(shapes.functional, "linear", other_bits)
    assert not shapes.rounds_alike.__wrapped__(CPU, 1)
    assert not shapes.rounds_alike(torch.device("meta"), 1)


def test_padding_changes_nothing_that_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    if not shapes.rounds_alike(CPU, torch.get_num_threads()):
        pytest.skip("products of other shapes round otherwise here")
    model = small_model().eval().requires_grad_(False)
    fit_vocabulary(model)
    found = []
    for alike in (True, False):
        monkeypatch.setattr(shapes, "rounds_alike", lambda device, threads, alike=alike: alike)
        texts = [each.text for each in generate(model, seeds=range(3), options=SamplingOptions(steps=4, max_bytes=90))]
        data = b"What is it that ___ and so on, and then ___."
        gaps = [Gap(16, 19), Gap(40, 43)]
        found.append((texts, infill(model, data, gaps, seed=1, options=InfillingOptions(candidates=3))))
    assert found[0] == found[1]
