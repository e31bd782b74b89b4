"""What watches a run for growth finds it where there is some, and none where there is none."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.conftest import ROOT


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that watches, imported as the script does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("growth")


@pytest.mark.parametrize("hourly", [0.0, 60.0])
def test_a_slope_is_found_within_its_interval(growth: ModuleType, hourly: float) -> None:
    seconds = np.arange(0, 3600, 5.0)
    chance = np.random.default_rng(0)
    noise = chance.normal(0, 5, len(seconds)) + 400 * (chance.random(len(seconds)) < 0.02)  # and moments of much
    found, half = growth.slope(seconds, 1000 + hourly * seconds / 3600 + noise)
    assert 0 < half < 10 and abs(found - hourly) < half


def test_a_look_sees_what_a_process_holds(growth: ModuleType, tmp_path: Path) -> None:
    temporary, out = tmp_path / "tmp", tmp_path / "model"
    for folder in (temporary, out):
        folder.mkdir()
    before = growth.look(os.getpid(), temporary, out, 1.0)
    assert before.stage == "start" and before.steps == before.temporary == before.written == 0
    lines = '{"event": "stage", "stage": "plan", "level": 0}', '{"event": "step", "step": 7}', '{"eve'
    (out / "metrics.jsonl").write_text("\n".join(lines))
    (temporary / "left").write_bytes(b"")
    with (tmp_path / "open").open("w"):
        after = growth.look(os.getpid(), temporary, out, 2.0)
    assert (after.stage, after.steps, after.temporary, after.written) == ("plan 0", 7, 1, 1)
    assert after.handles == before.handles + 1 and after.megabytes > 10


def test_the_table_has_stages_that_were_seen_for_long(growth: ModuleType) -> None:
    samples = [
        growth.Sample(5.0 * number, "joint" if number > 9 else "plan 0", 500.0, 4, 3, 0, 6, number)
        for number in range(100)
    ]
    _, line, *rest = growth.table(samples)
    assert line.startswith("joint") and "0.0 ± 0.0" in line and "4 4 (4)" in line and "0 0 (0)" in line
    assert rest[0] == "100 looks in 8.2 minutes, 99 steps" and len(rest) == 3
