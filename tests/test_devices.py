"""Where to compute and how precisely."""

from __future__ import annotations

import pytest
import torch

from zonkey_core.devices import PRECISIONS, autocast, choose_device, choose_precision, in_precision
from zonkey_core.errors import DeviceError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine with the accelerators of the parameter."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in request.param)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in request.param)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [((), "cpu"), (("cuda",), "cuda"), (("mps",), "mps"), (("cuda", "mps"), "cuda")],
    indirect=["machine"],
)
@pytest.mark.usefixtures("machine")
def test_the_best_device_is_chosen(expected: str) -> None:
    assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(expected) == torch.device(expected)


@pytest.mark.parametrize("machine", [("cuda",)], indirect=True)
@pytest.mark.usefixtures("machine")
def test_one_of_several_devices_may_be_named() -> None:
    assert choose_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("machine", [()], indirect=True)
@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "not available"),
        ("cuda:0", "not available"),
        ("mps", "not available"),
        ("gpu", "unknown device"),
        ("", "unknown device"),
        ("CPU", "unknown device"),
        ("cpu:one", "unknown device"),
        ("cpu:-1", "unknown device"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        choose_device(name)
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", torch.bfloat16),
        ("auto", "cuda", torch.bfloat16),
        ("auto", "mps", torch.float32),
        ("bf16", "mps", torch.bfloat16),
        ("bf16", "cpu", torch.bfloat16),
        ("fp32", "cuda", torch.float32),
        ("fp32", "cpu", torch.float32),
    ],
)
def test_precision_suits_the_device(name: str, device: str, expected: torch.dtype) -> None:
    assert choose_precision(name, torch.device(device)) == expected


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"unknown precision 'fp16'.*bf16"):
        choose_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize("name", PRECISIONS)
def test_products_have_the_precision_asked_for(name: str) -> None:
    device = torch.device("cpu")
    precision = choose_precision(name, device)
    with autocast(device, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == precision
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_module_in_another_precision_follows_its_weights_and_leaves_them() -> None:
    module = torch.nn.Linear(3, 2)
    inputs = torch.ones(1, 3, dtype=torch.bfloat16)
    rounded = in_precision(module, torch.bfloat16)
    assert in_precision(module, torch.bfloat16) is rounded
    assert in_precision(module, torch.float32) is module
    before = rounded(inputs)
    assert before.dtype == torch.bfloat16
    assert module.weight.dtype == torch.float32
    with torch.no_grad():
        module.weight += 1
    assert torch.equal(in_precision(module, torch.bfloat16)(inputs), module.to(torch.bfloat16)(inputs))
    assert not torch.equal(module(inputs), before)
