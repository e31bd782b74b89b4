"""Several processes train what one trains: losses, gradients, stopping and resuming, shared out or not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from tests.training.two_processes import CONFIG, ROWS, STAGES, STEPS, STOP, losses_and_gradients, run
from tests.training_helpers import assert_same_tensors
from zonkey_core.checkpoint import MODEL, OPTIMIZER, read_model_card, read_tensors
from zonkey_core.errors import ConfigError
from zonkey_core.training import trainer
from zonkey_core.training.batches import BatchPieces

pytestmark = pytest.mark.slow
"""Two more processes import torch, and train a very small model for fifty steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made, and a run that one began and they ended."""
    folder = tmp_path_factory.mktemp("processes")
    run(folder / "one to two", stop_at=STOP)
    (folder / "damaged.jsonl").write_bytes(b"no JSON\n")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.two_processes", str(folder)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    return folder


def found(folder: Path, rank: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = msgspec.json.decode((folder / f"found.{rank}.json").read_bytes())
    return content


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", STAGES)
def test_two_halves_of_a_batch_have_the_losses_and_gradients_of_the_whole(folder: Path, name: str) -> None:
    losses, gradients = losses_and_gradients(name, slice(ROWS))
    for rank in (0, 1):
        assert found(folder, rank)[name] == pytest.approx(losses, rel=1e-4, abs=1e-5)
        halves = load_file(folder / f"{name}.{rank}.safetensors")
        assert halves.keys() == gradients.keys()
        for key, gradient in gradients.items():
            scale = float(gradient.abs().max())
            assert float((halves[key] - gradient).abs().max()) <= 2e-3 * scale + 1e-6, key


def test_the_halves_are_different_enough_to_tell(folder: Path) -> None:
    first = losses_and_gradients("splitter 0", slice(ROWS // 2))[0]
    second = losses_and_gradients("splitter 0", slice(ROWS // 2, ROWS))[0]
    assert first["0/rate"] != pytest.approx(second["0/rate"], rel=0.01)


def test_a_run_of_two_goes_on_exactly_where_one_of_them_was_stopped(folder: Path) -> None:
    assert_same_tensors(read_tensors(folder / "whole", OPTIMIZER), read_tensors(folder / "stopped", OPTIMIZER))
    assert_same_tensors(read_tensors(folder / "whole", MODEL), read_tensors(folder / "stopped", MODEL))


def test_text_that_cannot_be_read_ends_all_processes_and_the_one_that_reads_says_why(folder: Path) -> None:
    """That it alone reads is seen to in `two_processes`, where the other one could not."""
    assert "damaged.jsonl, line 1" in found(folder)["damaged"]
    assert "missing.jsonl: no such file" in found(folder)["missing"]
    for name in ("damaged", "missing"):
        assert found(folder, 1)[name] == "another process of this run has ended, and its own message says why"


def test_one_process_alone_writes_and_tells(folder: Path) -> None:
    assert found(folder, 1)["whole"] == []
    assert len(found(folder)["whole"]) == STEPS
    steps = [line for line in (folder / "whole" / "metrics.jsonl").read_bytes().splitlines() if b'"step"' in line]
    assert len([line for line in steps if b'"losses"' in line]) == STEPS


def test_two_go_on_with_the_run_of_one_and_one_with_that_of_two(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "REPORT_SECONDS", 0)
    assert len(run(folder / "two to one", resumed=True)) == STEPS - STOP
    assert len(found(folder)["one to two"]) == STEPS - STOP
    cards = [read_model_card(folder / name) for name in ("whole", "one to two", "two to one")]
    for card in cards:
        assert card.training is not None
        assert (card.training.steps, card.training.bytes_seen) == (STEPS, STEPS * ROWS * CONFIG.training.row_bytes)
        assert cards[0].training is not None
        assert card.training.data_state == cards[0].training.data_state, "the same text, however many read it"


@pytest.mark.parametrize("name", ["sharded", "sharded to not", "not to sharded"])
def test_a_run_that_is_shared_out_learns_what_one_learns_that_is_not(folder: Path, name: str) -> None:
    whole, shared = found(folder)["whole"], found(folder)[name]
    if name == "sharded":
        whole, name = whole[:STOP], "sharded to not"
    for expected, losses in zip(whole[-len(shared) :], shared, strict=True):
        assert losses == pytest.approx(expected, rel=0.03, abs=0.02)
    assert read_tensors(folder / name, OPTIMIZER).keys() == read_tensors(folder / "whole", OPTIMIZER).keys()
    kept = {key: tensor.shape for key, tensor in read_tensors(folder / "whole", MODEL).items()}
    assert {key: tensor.shape for key, tensor in read_tensors(folder / name, MODEL).items()} == kept


def test_a_step_may_be_taken_in_pieces_that_keep_little(folder: Path) -> None:
    whole, lean = found(folder)["whole"], found(folder)["lean"]
    assert len(lean) == STEPS - STOP
    for expected, losses in zip(whole[STOP:], lean, strict=True):
        assert losses.keys() == expected.keys()
        steady = "1/spread" if "1/spread" in expected else "0/choice"  # the stage of plans has the latter alone
        assert losses[steady] == pytest.approx(expected[steady], rel=0.5)


def test_rows_that_cannot_be_shared_evenly_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_rows is 6, .*--set training\.batch_rows=8"):
        BatchPieces(6, 4, torch.device("cpu"))


@pytest.mark.timeout(600)
def test_two_learn_from_standard_input_and_a_signal_to_one_of_them_saves_and_ends_all(tmp_path: Path) -> None:
    out = tmp_path / "model"
    command = [
        "torchrun", "--standalone", "--nproc-per-node", "2", "-m", "zonkey_cli", "train", "--data", "-",
        "--device", "cpu", "--preset", "tiny", "--set", "training.batch_rows=2", "--set", "training.row_bytes=128",
        "--steps", "100000", "--out", str(out),
    ]  # fmt: skip
    command[0] = str(Path(sys.executable).parent / command[0])
    (tmp_path / "text").write_text("Some text of which both learn. " * 100)
    with (
        (tmp_path / "log").open("wb") as log,
        (tmp_path / "text").open("rb") as text,
        subprocess.Popen(command, stdin=text, stdout=log, stderr=log) as launcher,
    ):
        deadline = time.monotonic() + 300
        while not (out / "training.json").exists():
            assert time.monotonic() < deadline and launcher.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        workers = [int(each) for each in children if b"zonkey_cli" in Path(f"/proc/{each}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGTERM)
        launcher.wait(120)
    said = (tmp_path / "log").read_text()
    assert said.count("stopped after") == 1
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    record = read_model_card(out).training
    assert record is not None and record.steps >= 1 and f"stopped after {record.steps} steps" in said
