"""The kernel that computes a document's bias as it goes agrees with the bias spelled out."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from zonkey_core.model.attention import DocumentBias, attend, attend_document, prepare_bias
from zonkey_core.model.existence import LOG_FLOOR, cumulative_log_continue


def case(*, absent: bool) -> tuple[Tensor, Tensor, Tensor, DocumentBias]:
    """Queries, keys and values of two documents of 40 positions, with a few certain and many unsure starts."""
    generator = torch.Generator().manual_seed(3)
    queries, keys, values = torch.randn(3, 2, 4, 40, 16, generator=generator)
    start_prob = torch.rand(2, 40, generator=generator).square()
    start_prob[:, [0, 17]] = 1
    missing = torch.zeros(2, 40)
    missing[1, 33:] = LOG_FLOOR
    return queries, keys, values, DocumentBias(cumulative_log_continue(start_prob), missing if absent else None)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("absent", [False, True])
def test_computed_and_stored_biases_give_the_same_attention(absent: bool) -> None:
    queries, keys, values, bias = case(absent=absent)
    stored = attend(queries, keys, values, bias.dense())
    computed = attend_document(queries, keys, values, bias, flex_attention)
    torch.testing.assert_close(computed, stored, rtol=1e-5, atol=1e-5)
    apart = bias._replace(cumulative=torch.zeros_like(bias.cumulative))
    without = attend_document(queries, keys, values, apart, flex_attention)
    assert not torch.allclose(without, stored, atol=1e-2)


def test_on_a_cpu_a_bias_is_stored_once_for_all_layers() -> None:
    *_, bias = case(absent=True)
    stored = prepare_bias(bias, torch.zeros(2, 40, 8))
    assert isinstance(stored, Tensor)
    torch.testing.assert_close(stored, bias.dense())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = prepare_bias(bias, torch.zeros(2, 40, 8))
    assert isinstance(rounded, Tensor)
    assert rounded.dtype == torch.bfloat16
