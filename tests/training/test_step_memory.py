"""Memory of tensors is counted from when they are made until nothing keeps it."""

from __future__ import annotations

import torch
from torch import nn

from zonkey_core.training.step_memory import MemoryCourse, StepMemory, TensorMemory, mean_peak


def test_what_is_made_counts_until_it_is_given_back() -> None:
    model = nn.Linear(8, 4)
    before = torch.zeros(100)
    memory = TensorMemory(model, [before])
    with memory:
        first = torch.zeros(1000)
        view = first[10:]
        del first
        second = view * 2  # the first is there still
        del view
        before.add_(1)
        model.weight.detach().mul_(2)
        third = torch.zeros(10)
        del second, third
    assert memory.course().peak() == StepMemory(0, 0, 3960 + 4000)
    with memory:
        small = torch.zeros(3)
    assert memory.course().peak(text=2.0).activations == 2 * (3960 + 4000) and len(small) == 3


def test_what_a_graph_keeps_counts_and_gradients_are_told_apart() -> None:
    model = nn.Linear(8, 4)
    memory = TensorMemory(model)
    with memory:
        hidden = torch.ones(1000, 8)
        with torch.autocast("cpu", torch.bfloat16):
            given = model(hidden)
        del hidden
        given.float().sum().backward()
        del given
    peak = memory.course().peak()
    assert peak.converted_weights == 2 * 32 and peak.activations >= 1000 * 8 * 2 + 1000 * 4 * 2
    without_text = memory.course().peak(text=0.0)
    assert without_text.gradients == 4 * 32 and without_text.activations == 0
    assert memory.course().peak(text=0.0, divided=0.5).gradients in (0, 4 * 16)


def test_peaks_are_those_of_the_text_that_is_asked_for() -> None:
    course = MemoryCourse([(0, 10, 100), (80, 0, 50), (90, 0, 0)])
    assert course.peak() == StepMemory(80, 0, 50)
    assert course.peak(text=0.5) == StepMemory(80, 0, 25)
    assert course.peak(text=0.1) == StepMemory(90, 0, 0)
    assert course.peak(text=2.0) == StepMemory(0, 10, 200)
    assert course.peak(divided=0.1) == StepMemory(0, 10, 100)
    assert mean_peak([course, MemoryCourse([(0, 0, 30)])]) == StepMemory(40, 0, 40)
    assert MemoryCourse([]).peak() == StepMemory(0, 0, 0)
