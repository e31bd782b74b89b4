"""The estimator of costs in numpy against the one in torch, on texts of any kind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.model_helpers import TEXT, chance, small_model
from zonkey_core.checkpoint import load_model
from zonkey_core.errors import CheckpointError
from zonkey_core.inference import text_cost as module
from zonkey_core.inference.text_cost import load_text_cost, text_cost
from zonkey_core.model.model import Zonkey, text_sequence
from zonkey_core.model.readers import UnitKinds
from zonkey_core.model.unit_rows import UnitRows, unit_rows
from zonkey_core.numpy_model import cost_estimator

TEXTS = (
    TEXT.encode() * 5,
    b"a",
    "新航程。中国人民进入了二十一世纪。".encode(),
    "👨‍👩‍👧 e\u0301".encode(),
    b"\xff\xfe\x00\x80" * 9,
)


@pytest.fixture(scope="module")
def model() -> Zonkey:
    model = small_model(2, seed=3, bits_per_segment=9.0).eval().requires_grad_(False)
    assert model.bottom.estimator is not None
    for parameter in model.bottom.estimator.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=chance(len(parameter))) * 0.3)
    return model


def in_torch(model: Zonkey, text: bytes, together: int) -> float:
    """Bits a byte, some units at a time."""
    units, nats = unit_rows(text_sequence(text, device=model.device)), 0.0
    assert model.bottom.estimator is not None
    for first in range(0, len(units.keys), together):
        some = UnitRows(*(part[first : first + together] for part in units))
        nats += float(model.bottom.estimator(some, UnitKinds(some.keys), torch.arange(len(some.keys))).sum())
    return nats / math.log(2) / len(text)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("together", "logits"), [(8192, 1 << 17), (37, 64)])
def test_a_text_costs_what_torch_says(
    model: Zonkey, text: bytes, together: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_TOGETHER", together)
    monkeypatch.setattr(cost_estimator, "MOST_LOGITS", logits)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = text_cost(tensors, model.config.levels[0])(text)
    assert found == pytest.approx(in_torch(model, text, together), rel=1e-5, abs=1e-6)


def test_no_text_costs_nothing(tiny_model: Path) -> None:
    bits_per_byte = load_text_cost(tiny_model)
    assert bits_per_byte(b"") == 0
    text = TEXT.encode()
    assert bits_per_byte(text) == pytest.approx(in_torch(load_model(tiny_model), text, 8192), rel=1e-5)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_text_cost(tmp_path)
