"""`zonkey train`: its output, its log, what it refuses, and how it stops."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.conftest import QUICK_TRAINING, Zonkey
from zonkey_cli import options
from zonkey_cli.commands import generate, infill, train
from zonkey_cli.options import DEVICES

SHORT = ("--data", "sample", "--device", "cpu", *QUICK_TRAINING)
CHECKPOINT = {"config.json", "model.safetensors", "optimizer.safetensors", "training.json"}


def test_only_the_path_goes_to_standard_output(zonkey: Zonkey) -> None:
    done = zonkey.run("train", *SHORT, "--steps", "7", "--out", "model")
    assert (done.returncode, done.stdout) == (0, b"model\n")
    assert b"stage: level 0 splitter" in done.stderr
    assert b"\x1b" not in done.stderr
    assert {path.name for path in (zonkey.folder / "model").iterdir()} >= CHECKPOINT
    again = zonkey.run("train", "--resume", "--out", "model")
    assert (again.returncode, again.stdout) == (1, b"")
    assert again.stderr.decode().splitlines()[-1] == (
        "model: this run is complete; train further with --from model and another --out"
    )


def test_a_model_is_not_overwritten(zonkey: Zonkey, model_copy: Callable[[str], Path]) -> None:
    weights = model_copy("zonkey-model") / "model.safetensors"
    before = weights.stat()
    done = zonkey.run("train", *SHORT, "--steps", "2")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().splitlines() == [
        "zonkey: zonkey-model: holds a model already; add --resume to go on with it, or choose another --out"
    ]
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "zonkey-model: holds no model to resume"),
        (["--data", "sample", "--config", "none.toml"], "none.toml: cannot read"),
        (["--set", "level.1.haeds=8"], "unknown key 'level.1.haeds'; the nearest is 'level.1.heads'"),
        (["--from", "nope"], "unknown model 'nope'"),
        (["--data", "sample", "--device", "abacus"], "unknown device 'abacus'"),
        (["--out", "file"], "file: not a folder"),
        (["--data", "a", "--data", "b", "--weight", "2"], "2 sources have 1 weights; give each of them one"),
        (["--stage", "joint", "--level", "0"], "the joint stage trains all levels; leave out the level"),
        (["--stage", "splitter", "--level", "7"], "level 7 is not one of this model's, 0 to 1"),
    ],
)
def test_wrong_use_is_one_line(zonkey: Zonkey, arguments: list[str], message: str) -> None:
    (zonkey.folder / "file").touch()
    done = zonkey.run("train", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"zonkey: {message}")
    assert [path.name for path in zonkey.folder.iterdir()] == ["file"]


def test_sources_have_weights_and_the_splitter_alone_is_that_of_level_0(zonkey: Zonkey) -> None:
    for name in ("a", "b"):
        (zonkey.folder / f"{name}.txt").write_text(f"{name} word of text. " * 400, encoding="ascii")
    done = zonkey.run(
        "train", "--device", "cpu", *QUICK_TRAINING, "--data", "a.txt", "--weight", "1", "--data", "b.txt", "--weight",
        "3", "--stage", "splitter", "--steps", "4", "--out", "model",
    )
    assert (done.returncode, done.stdout) == (0, b"model\n")
    stages = [line for line in done.stderr.decode().splitlines() if line.startswith("stage: ")]
    assert stages == ["stage: level 0 splitter"]
    record = json.loads((zonkey.folder / "model" / "training.json").read_bytes())
    assert record["data"]["weights"] == [1.0, 3.0]
    given = record["data_state"]["given"]
    assert given[1] / sum(given) == pytest.approx(0.75, abs=0.05)


TWO = ("--data", "a.txt", "--data", "b.txt", "--weight", "1", "--weight", "2")
ALL_KEPT = (*TWO, "--keep-cuts", "a.txt", "--keep-cuts", "b.txt")
ONE_KEPT = ("--data", "a.txt", "--weight", "1", "--keep-cuts", "a.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TWO, "--keep-cuts", "c.txt"), "--keep-cuts c.txt: not a --data of this run; give it as one, too"),
        ((*ALL_KEPT, "--stage", "splitter"), "--keep-cuts: nothing is left to learn from"),
        ((*ONE_KEPT, "--stage", "splitter"), "--keep-cuts: nothing is left to learn from"),
        ((*TWO[:4], "--keep-cuts", "a.txt"), "--keep-cuts needs --weight."),
        ((*ONE_KEPT, "--stage", "plan"), "--keep-cuts cannot be used with --stage plan, which moves no cuts."),
    ],
)
def test_cuts_are_kept_of_some_of_the_weighed_sources(
    zonkey: Zonkey, tiny_model: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = zonkey.run("train", "--from", tiny_model, "--stage", "splitter", *arguments, "--steps", "2")
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr.decode()
    assert not any(zonkey.folder.iterdir())


def test_cuts_are_kept_of_a_model_to_start_from(zonkey: Zonkey) -> None:
    done = zonkey.run("train", *TWO, "--keep-cuts", "a.txt", "--steps", "2")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--keep-cuts needs --from." in done.stderr
    done = zonkey.run("train", "--resume", "--keep-cuts", "a.txt")
    assert done.returncode == 2 and b"--keep-cuts cannot be used with --resume" in done.stderr


def test_a_run_keeps_cuts_and_its_record_says_of_what(zonkey: Zonkey, tiny_model: Path) -> None:
    for name in ("a", "b"):
        (zonkey.folder / f"{name}.txt").write_text(f"{name} word of text. " * 400, encoding="ascii")
    run = ("train", "--device", "cpu", "--from", tiny_model, *TWO, "--keep-cuts", "b.txt", "--stage", "splitter")
    done = zonkey.run(*run, "--accumulate", "2", "--steps", "2", "--out", "model")
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert "--keep-cuts of some of the text is for one process" in line and "--accumulate" in line
    done = zonkey.run(*run, "--steps", "2", "--out", "model")
    assert (done.returncode, done.stdout) == (0, b"model\n"), done.stderr
    record = json.loads((zonkey.folder / "model" / "training.json").read_bytes())
    assert record["data"]["kept_cuts"] == ["b.txt"]
    lines = map(json.loads, (zonkey.folder / "model" / "metrics.jsonl").read_text().splitlines())
    assert any("0/kept" in line.get("losses", {}) for line in lines)


def test_missing_data_is_one_line(zonkey: Zonkey) -> None:
    done = zonkey.run("train", "--data", "none.txt", "--steps", "2", "-q")
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert "none.txt" in line


def test_data_from_a_pipe(zonkey: Zonkey) -> None:
    text = b"\n\n".join(b"The town of number %d lies by the river and has a mill." % index for index in range(2000))
    done = zonkey.run("train", "--data", "-", "--device", "cpu", *QUICK_TRAINING, "--steps", "5", "-q", stdin=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"zonkey-model\n", b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_where(zonkey: Zonkey, number: signal.Signals, code: int) -> None:
    process = zonkey.start("train", *SHORT, "--minutes", "5", "--out", "model")
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"stage: ")
    process.send_signal(number)
    out, errors = process.communicate(timeout=100)
    assert (process.returncode, out) == (code, b"model\n")
    assert b"saved in model; --resume goes on from there" in errors.splitlines()[-1]
    assert b"Traceback" not in errors
    assert {path.name for path in (zonkey.folder / "model").iterdir()} >= CHECKPOINT
    used = zonkey.run("segment", "-m", "model", "--join", "", stdin=b"It can be used.")
    assert (used.returncode, used.stdout) == (0, b"It can be used.")


@pytest.mark.slow
def test_a_stopped_run_is_resumed_to_its_end(zonkey: Zonkey) -> None:
    process = zonkey.start("train", *SHORT, "--steps", "30", "--out", "model")
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"stage: ")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode == 130
    done = zonkey.run("train", "--resume", "--out", "model")
    assert (done.returncode, done.stdout) == (0, b"model\n")
    assert re.fullmatch(r"done after \d+ steps; saved in model", done.stderr.decode().splitlines()[-1])


@pytest.mark.slow
def test_training_from_another_model(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run(
        "train", "--data", "sample", "--device", "cpu", "--from", tiny_model, "--stage", "splitter", "--steps", "3",
        "--out", "child", "-q",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"child\n", b"")
    assert f"started from  {tiny_model.name}".encode() in zonkey.run("info", "child").stdout


def test_defaults_are_those_of_the_core() -> None:
    from zonkey_core.config import PRESETS
    from zonkey_core.data import SourceSpec
    from zonkey_core.inference.generation import SamplingOptions
    from zonkey_core.inference.infilling import InfillingOptions

    def default(command: object, name: str) -> object:
        return next(parameter.default for parameter in command.params if parameter.name == name)  # type: ignore[attr-defined]

    assert train.PRESETS == PRESETS
    assert SourceSpec(sources=()).wiki_config == options.WIKI_CONFIG
    sampling, filling = SamplingOptions(), InfillingOptions()
    for name in ("steps", "temperature", "max_bytes", "level"):
        shown = default(generate.command, name)
        assert getattr(sampling, name) == (shown if isinstance(shown, (int, float)) else None)
    for name in ("steps", "temperature", "candidates"):
        assert getattr(filling, name) == default(infill.command, name)


def test_names_are_those_of_the_core() -> None:
    from zonkey_core import devices
    from zonkey_core.training import curriculum

    assert devices.DEVICES == DEVICES
    assert devices.PRECISIONS == train.PRECISIONS
    assert curriculum.STAGES == train.STAGES


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("2m", 120), ("1.5h", 5400), ("7", 7), ("0.5 s", 0.5)]
)
def test_times(text: str, seconds: float) -> None:
    assert options.Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "1d", "s", "1e3", "9999999h", "inf", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no time above 0"):
        options.Duration().convert(text, None, None)


def test_going_back_to_an_earlier_checkpoint(zonkey: Zonkey) -> None:
    done = zonkey.run("train", *SHORT, "--back-to", "3")
    assert done.returncode == 2 and b"--back-to needs --resume" in done.stderr
    done = zonkey.run("train", *SHORT, "--steps", "4", "--stage", "splitter", "--save-every", "0.001s", "--keep", "3")
    assert done.returncode == 0, done.stderr
    weights = zonkey.folder / "zonkey-model/optimizer.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    done = zonkey.run("train", "--resume")
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 1 and "optimizer.safetensors" in line
    command = line.partition("'zonkey ")[2].partition("'")[0].split()
    assert command[-2:] == ["--back-to", "3"]
    done = zonkey.run(*command, "--save-every", "1h")
    assert (done.returncode, done.stdout) == (0, b"zonkey-model\n"), done.stderr


def test_bad_data_is_left_out_when_told_so(zonkey: Zonkey) -> None:
    lines = [b'{"text": "The town of number %d lies by the river."}' % index for index in range(300)]
    (zonkey.folder / "data.jsonl").write_bytes(b"\n".join([*lines, b"\x1b[2J no JSON", *lines]))
    sizes = ("--steps", "40", "--stage", "splitter")
    short = ("train", "--data", "data.jsonl", "--device", "cpu", *QUICK_TRAINING, *sizes)
    done = zonkey.run(*short)
    assert done.returncode == 1 and b"data.jsonl, line 301" in done.stderr
    done = zonkey.run(*short, "--out", "other", "--on-bad-data", "skip")
    assert (done.returncode, done.stdout) == (0, b"other\n")
    assert b"left out: data.jsonl, line 301" in done.stderr and b"places of the data left out in all: 1" in done.stderr


def test_a_plan_trains_nothing(zonkey: Zonkey) -> None:
    sizes = ("--set", "training.row_bytes=128", "--set", "training.batch_rows=1")
    done = zonkey.run("train", "--plan", "--gpus", "2", "--tokens", "1e9", "--json", *sizes)
    assert done.returncode == 0 and not done.stderr and not (zonkey.folder / "zonkey-model").exists()
    plan = json.loads(done.stdout)
    assert plan["text_bytes"] == 1e9 and plan["days"] > 0 and plan["batch_rows"] == 2
    assert plan["memory_bytes"] == sum(plan["memory"].values())
    shown = zonkey.run("train", "--plan", "--minutes", "3", "--stage", "splitter", *sizes).stdout.decode()
    assert all(title in shown for title in ("Parameters\n", "Memory of a GPU\n", "Stages\n", "Run\n"))
    assert "tokens, which are bytes" in shown and "\x1b" not in shown


def test_options_of_a_plan_need_one(zonkey: Zonkey) -> None:
    done = zonkey.run("train", "--gpus", "2", "--data", "sample")
    assert done.returncode == 2 and b"--gpus needs --plan" in done.stderr
    done = zonkey.run("train", "--plan", "--tokens", "1e9", "--steps", "5")
    assert done.returncode == 2 and b"exclude each other" in done.stderr
