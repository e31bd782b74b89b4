"""Several processes train what one trains: losses, gradients, stopping and resuming, shared out or not."""

from __future__ import annotations

import itertools
import os
import random
import shutil
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

from tests.training.two_processes import CONFIG as MODEL_CONFIG
from tests.training.two_processes import ROWS, STAGES, STEPS, STOP, losses_and_gradients, run
from tests.training_helpers import assert_same_tensors
from zonkey_core.checkpoint import (
    CHECKSUMS,
    CONFIG,
    KEPT,
    MODEL,
    OPTIMIZER,
    TRAINING,
    kept_steps,
    load_model,
    read_model_card,
    read_tensors,
)
from zonkey_core.errors import CheckpointError, ConfigError
from zonkey_core.kept_checkpoints import PARTS
from zonkey_core.training import trainer
from zonkey_core.training.batches import BatchPieces

pytestmark = pytest.mark.slow
"""Two more processes import torch, and train a very small model for fifty steps."""


KILLS = 4
PART_NAMES = ("optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made, and a run that one began and they ended."""
    folder = tmp_path_factory.mktemp("processes")
    run(folder / "one to two", stop_at=STOP)
    (folder / "damaged.jsonl").write_bytes(b"no JSON\n")
    both = start_two(folder)
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    return folder


def start_two(*arguments: Path | str) -> list[subprocess.Popen[str]]:
    """Two processes of `two_processes`."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.two_processes", *map(str, arguments)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip


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
        bytes_seen = STEPS * ROWS * MODEL_CONFIG.training.row_bytes
        assert (card.training.steps, card.training.bytes_seen) == (STEPS, bytes_seen)
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
    assert (folder / name / OPTIMIZER).exists() == (name == "sharded to not")
    kept = {key: tensor.shape for key, tensor in read_tensors(folder / "whole", MODEL).items()}
    assert {key: tensor.shape for key, tensor in read_tensors(folder / name, MODEL).items()} == kept


def test_a_run_that_is_shared_out_goes_on_from_the_parts_of_its_processes_to_the_same_bits(folder: Path) -> None:
    whole, resumed = folder / "sharded whole", folder / "sharded to sharded"
    assert_same_tensors(read_tensors(whole, OPTIMIZER), read_tensors(resumed, OPTIMIZER))
    assert (whole / MODEL).read_bytes() == (resumed / MODEL).read_bytes()
    assert {path.name for path in resumed.iterdir()} - {KEPT} == {
        CONFIG, MODEL, TRAINING, CHECKSUMS, *PART_NAMES, "metrics.jsonl"
    }  # fmt: skip
    sums = msgspec.json.decode((resumed / CHECKSUMS).read_bytes())["crc32"]
    assert sums.keys() == {CONFIG, MODEL, TRAINING, *PART_NAMES}
    sizes = [(resumed / name).stat().st_size for name in PART_NAMES]
    assert max(sizes) < 0.6 * sum(sizes), "each wrote its share"


def test_one_process_goes_on_with_a_run_that_was_shared_out(folder: Path) -> None:
    run(folder / "sharded to one", resumed=True, shard="none")
    alone, both = (read_tensors(folder / name, OPTIMIZER) for name in ("sharded to one", "sharded to not"))
    assert {key: each.shape for key, each in alone.items()} == {key: each.shape for key, each in both.items()}
    assert not any((folder / "sharded to one" / name).exists() for name in PART_NAMES)


@pytest.mark.parametrize(("name", "aside"), [("whole", False), ("sharded whole", True)])
def test_training_goes_on_while_parts_are_written(folder: Path, name: str, aside: bool) -> None:
    """A checkpoint is told of when it is in its place; of parts that is after a further step at the least."""
    lines = [msgspec.json.decode(line) for line in (folder / name / "metrics.jsonl").read_bytes().splitlines()]
    told = [line for line in lines if line["event"] in ("step", "checkpoint")]
    late = [
        line["step"] < before["step"]
        for before, line in itertools.pairwise(told) if line["event"] == "checkpoint" and before["event"] == "step"
    ]  # fmt: skip
    assert late and any(late) == aside


def test_checkpoints_that_were_written_aside_are_kept_whole(folder: Path) -> None:
    whole = folder / "sharded whole"
    assert len(kept_steps(whole)) == 2
    for step in kept_steps(whole):
        place = whole / KEPT / str(step)
        card = read_model_card(place)
        assert card.training is not None and card.training.steps == step
        assert read_tensors(place, OPTIMIZER).keys() and load_model(place) is not None
        assert set(PART_NAMES) < {path.name for path in place.iterdir()}


def test_a_part_that_cannot_be_written_ends_all_and_leaves_no_half_of_a_checkpoint(folder: Path) -> None:
    for rank in (0, 1):
        assert found(folder, rank)["full disk"] == "[Errno 28] No space left on device"
    assert {path.name for path in (folder / "full disk").iterdir()} <= {PARTS, "metrics.jsonl"}


@pytest.mark.parametrize("name", PART_NAMES)
def test_damage_of_a_part_is_noticed(folder: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(folder / "sharded whole", tmp_path / "model"))
    content = bytearray((copy / name).read_bytes())
    content[-3] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read \(damaged.*--back-to"):
        run(copy, resumed=True, shard="none")
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match="not all of its parts are there"):
        run(copy, resumed=True, shard="none")


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
        workers = workers_of(launcher)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGTERM)
        launcher.wait(120)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    said = (tmp_path / "log").read_text()
    assert said.count("stopped after") == 1
    record = read_model_card(out).training
    assert record is not None and record.steps >= 1 and f"stopped after {record.steps} steps" in said


@pytest.mark.timeout(600)
def test_a_run_that_is_shared_out_survives_being_killed(folder: Path, tmp_path: Path) -> None:
    """Saved after every step and killed at random moments, it goes on, to the end of a run that was never stopped."""
    chance = random.Random(7)
    out = tmp_path / "killed"
    killed = 0
    for _ in range(KILLS):
        both = start_two(tmp_path, out.name)
        saved = saves_told(out)
        while saves_told(out) == saved and all(process.poll() is None for process in both):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        for process in both:
            process.kill()
        codes = {process.communicate() and process.returncode for process in both}
        assert codes <= {-signal.SIGKILL, 0}, "killed, or a quick machine had come to the end"
        killed += codes != {0}
    assert killed > 1
    both = start_two(tmp_path, out.name)
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    straight = folder / "sharded whole"
    assert_same_tensors(read_tensors(straight, OPTIMIZER), read_tensors(out, OPTIMIZER))
    assert (straight / MODEL).read_bytes() == (out / MODEL).read_bytes()
    assert not (out / PARTS).exists()


def saves_told(out: Path) -> int:
    """How often a run has told of a checkpoint."""
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b'"checkpoint"') if metrics.exists() else 0


def workers_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a launcher started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(each) for each in children if b"zonkey_cli" in Path(f"/proc/{each}/cmdline").read_bytes()]
