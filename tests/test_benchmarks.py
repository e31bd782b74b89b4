"""The comparison of devices runs to its end, passes where nothing is wrong, and fails where something is."""

from __future__ import annotations

import gzip
import importlib
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import torch

from tests.conftest import ROOT, clean_environment
from zonkey_core.checkpoint import load_model
from zonkey_core.config import load_preset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SMALL = ("--preset", "tiny", "--rows", "2", "--set", "training.row_bytes=384", "--seed", "1")


@pytest.fixture
def device_checks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that compares, imported as the script does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("device_checks")


def run_gpu_benchmark(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a process that finds no GPU."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *SMALL, *arguments],
        env=clean_environment(home, CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True, timeout=280, check=False,
    )


def test_the_cpu_in_bfloat16_agrees_with_itself_and_is_timed(tmp_path: Path) -> None:
    done = run_gpu_benchmark(tmp_path, "--seconds", "0.01", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No CUDA GPU here" in done.stderr
    report = msgspec.json.decode(done.stdout)
    names = {check["name"] for check in report["checks"]}
    for part in ("splitter", "compressor", "decoder", "stitcher", "sampler, 4 steps"):
        assert {f"level 0: {part}: output", f"level 1: {part}: output"} <= names
    for part in ("level 0: tokens", "level 0: denoiser", "level 0: vocabulary", "level 0: reader", "level 1: denoiser"):
        assert f"{part}: output" in names
    for level in (0, 1):
        assert {f"level {level}: denoiser objective: losses", f"level {level}: denoiser objective: gradient"} <= names
    assert {"whole ascend: latents", "optimizer, 2 steps: Muon"} <= names
    assert {"joint objective: losses", "joint objective: gradient through all levels"} <= names
    kinds = ("output", "losses", "gradient", "gradient through all levels")
    rounded = [check for check in report["checks"] if check["name"].endswith(kinds)]
    assert sum(check["error"] > 1e-6 for check in rounded) > len(rounded) / 2  # bfloat16 was used at all
    assert [speed["name"] for speed in report["speeds"] if speed["bytes_per_second"] <= 0] == []
    assert sum(speed["name"].startswith("train") for speed in report["speeds"]) == 9
    assert all(0 < speed["share_of_peak"] < 1 for speed in report["speeds"])


def test_tables_are_printed_without_json(tmp_path: Path) -> None:
    done = run_gpu_benchmark(tmp_path, "--seconds", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tolerance" in done.stdout and "pass" in done.stdout and "bytes/s" not in done.stdout


def test_a_wrong_weight_and_a_broken_part_fail(device_checks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu = importlib.import_module("gpu")
    config = load_preset("tiny", ["training.row_bytes=384"])
    rows = gpu.rows_of(gpu.draw_batches(config, 2, 1)[0], gpu.CPU)
    model, other = (device_checks.untrained_model(config, rows, 1, frequency=2.0) for _ in range(2))
    with torch.no_grad():
        other.bottom.compressor.out.weight.mul_(-1)
        other.bottom.denoiser.ending_out.weight.mul_(-1)
        other.levels[1].denoiser.latent_out.bias.fill_(math.nan)
    del other.levels[1].decoder.widen
    sides = [device_checks.Side(each, gpu.CPU, torch.float32) for each in (model, other)]
    checks = {
        check.name: check
        for check in device_checks.run_checks(device_checks.all_probes(model, config, rows, 1), sides[0], sides[1:])
    }
    assert checks["level 0: splitter: output"].passed and checks["level 0: decoder: output"].passed
    assert not checks["level 0: compressor: output"].passed
    for wrong in ("denoiser: output", "sampler, 4 steps: output", "denoiser objective: losses"):
        assert not checks[f"level 0: {wrong}"].passed, "though what is drawn is held"
    assert not checks["level 1: denoiser: output"].passed and math.isnan(checks["level 1: denoiser: output"].error)
    assert not checks["level 1: decoder: output"].passed
    assert "AttributeError" in checks["level 1: decoder: output"].note


@pytest.mark.parametrize(
    ("output", "passes"),
    [([1.0, 2.0], True), ([1.0, 2.5], False), ([1.0, math.nan], False), ([1.0], False)],
)
def test_errors_are_relative_and_nothing_hides_a_failure(
    device_checks: ModuleType, output: list[float], passes: bool
) -> None:
    error = device_checks.relative_error([torch.tensor(output)], [torch.tensor([1.0, 2.0])])
    assert (error <= 0.1) == passes
    assert device_checks.relative_error([torch.zeros(2)], [torch.zeros(2)]) == math.inf


def test_segmenting_is_measured_beside_a_tokenizer(tmp_path: Path, tiny_model: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(gzip.decompress((ROOT / "zonkey_core" / "data" / "sample.jsonl.gz").read_bytes())[:300_000])
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "segmenting.py"), "--model", tiny_model, "--rounds", "1", text],
        env=clean_environment(tmp_path), capture_output=True, text=True, timeout=280, check=True,
    )
    first, *lines = done.stdout.splitlines()
    assert first == "0.300 MB of text, 1 rounds"
    figures = {line[:28].strip(): float(line[28:].split()[0]) for line in lines}
    speeds = {name for name in figures if name.endswith("MB/s")}
    assert speeds == {"level 0, MB/s", "level 1, MB/s", "bpe_4k, MB/s"}
    assert all(value > 0 for value in figures.values())
    assert figures["level 1, MB of memory"] < 150


def test_all_levels_are_measured_beside_the_lowest_one_however_firmly_that_is_drawn(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    hierarchy = importlib.import_module("hierarchy")
    shape = ["--data", "sample", "--limit", "4000", "--samples", "8", "--sample-bytes", "200", "--steps", "2"]
    assert hierarchy.main(["--model", str(tiny_model), *shape, "--alone-temperature", "0.4"]) == 0
    real, ours, alone, *differences = map(msgspec.json.decode, capfdbinary.readouterr().out.splitlines())
    assert [row["texts"] for row in (real, ours, alone)] == ["real", "all levels", "lowest level alone"]
    assert [row["difference"] for row in differences] == ["known_words", "judge_gap", "jsd_4", "own_gap"]
    for row in differences:
        value, low, high = row["value, low, high"]
        assert low <= value <= high
        assert value == pytest.approx(abs(ours[row["difference"]]) - abs(alone[row["difference"]]))
    model = load_model(tiny_model)
    firm, usual = (hierarchy.write(model, 2, 200, 2, 0, temperature)[0] for temperature in (0.4, 1.0))
    assert firm != usual
