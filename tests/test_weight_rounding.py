"""Weights in a byte each: what is rounded, how far, and that nothing else changes."""

import torch

from tests.model_helpers import normal
from zonkey_core.weight_rounding import SCALE, restore_weights, round_weights

NAME = "bottom.denoiser.blocks.0.attention_in.weight"


def test_a_matrix_comes_back_to_half_a_step_of_each_row() -> None:
    matrix = normal(9, 512, seed=1, dtype=torch.float32) * torch.logspace(-3, 1, 9).unsqueeze(1)
    stored = round_weights({NAME: matrix})
    assert stored.keys() == {NAME, NAME + SCALE}
    assert stored[NAME].dtype == torch.int8 and stored[NAME + SCALE].shape == (9,)
    found = restore_weights(stored)
    assert found.keys() == {NAME} and found[NAME].dtype == torch.float32
    step = matrix.abs().amax(1, keepdim=True) / 127
    assert ((found[NAME] - matrix).abs() <= step * 0.51 + step * 127 / 1024).all()
    assert (found[NAME] - matrix).abs().mean() < step.mean() / 3


def test_what_was_rounded_once_stays_as_it_is() -> None:
    first = restore_weights(round_weights({NAME: normal(5, 1000, seed=2, dtype=torch.float32)}))
    assert torch.equal(restore_weights(round_weights(first))[NAME], first[NAME])


def test_tables_of_several_parts_are_rounded_row_by_row() -> None:
    table = normal(2, 100, 32, seed=8, dtype=torch.float32)
    stored = round_weights({"bottom.vocabulary.table": table})
    assert stored["bottom.vocabulary.table" + SCALE].shape == (2, 100)
    found = restore_weights(stored)["bottom.vocabulary.table"]
    assert ((found - table).abs() <= table.abs().amax(-1, keepdim=True) * (0.51 / 127 + 1 / 1024)).all()


def test_rows_of_zeros_and_broken_rows_are_kept() -> None:
    matrix = normal(3, 2000, seed=3, dtype=torch.float32)
    matrix[0] = 0
    matrix[2, 1] = torch.nan
    found = restore_weights(round_weights({NAME: matrix}))[NAME]
    assert not found[0].any() and found[1].isfinite().all() and found[2].isnan().any()


def test_other_weights_are_halves_and_whole_numbers_stay() -> None:
    tensors = {
        "bottom.denoiser.blocks.0.attention_norm.weight": normal(6000, seed=4, dtype=torch.float32),
        "bottom.denoiser.kinds": normal(6, 60, seed=6, dtype=torch.float32),
        "bottom.compressor.out.weight": normal(80, 80, seed=7, dtype=torch.float32),
        "bottom.splitter.head.weight": normal(1, 6, seed=5, dtype=torch.float32),
        "bottom.vocabulary.strings": torch.arange(6, dtype=torch.uint8),
    }
    stored = round_weights(tensors)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.half() if tensor.is_floating_point() else tensor
        assert stored[name].dtype == expected.dtype and torch.equal(stored[name], expected)
    assert restore_weights(stored).keys() == stored.keys()
