"""`zonkey eval`: what goes to which stream, what is kept, and every mistake in one line."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_terminal import on_terminal
from tests.conftest import Zonkey
from zonkey_cli.commands.eval import DEFAULT_LIMIT, ByteCount, store_directory
from zonkey_core.evaluation.context import EvaluationOptions
from zonkey_core.evaluation.tasks.runner import PARTS

QUICK = ("reconstruct", "--limit", "2kB", "--device", "cpu")


@pytest.fixture
def evaluate(zonkey: Zonkey, tiny_model: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """A function that runs the verb for the tiny model."""

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return zonkey.run("eval", "-m", tiny_model, *arguments, **options)

    return run


def stored(home: Path) -> list[str]:
    return sorted(path.name for path in (home / ".cache/zonkey/eval").iterdir())


def test_json_is_one_object_and_a_second_run_gives_the_same(
    evaluate: Callable[..., subprocess.CompletedProcess[bytes]], zonkey: Zonkey
) -> None:
    done = evaluate(*QUICK, "--json")
    assert done.returncode == 0, done.stderr.decode()
    (line,) = done.stdout.decode().splitlines()
    figures = json.loads(line)
    assert set(figures["reconstruct.level0.clean.byte_accuracy"]) >= {
        "value", "low", "high", "floor", "ceiling", "rivals", "n", "seconds",
    }
    assert list(figures["left_out"]) == ["reconstruct.domains"]
    errors = done.stderr.decode().splitlines()
    assert errors[0] == "reconstruct (1 of 1)"
    assert errors[-1].startswith("left out: reconstruct.domains: ")
    (entry,) = stored(zonkey.folder)
    assert entry.startswith("part-reconstruct-")
    assert evaluate(*QUICK, "--json", "-q").stdout == done.stdout  # the very same seconds, so it was kept
    anew = json.loads(evaluate(*QUICK, "--json", "--fresh").stdout)
    assert anew != figures
    assert {name: figure.get("value") for name, figure in anew.items()} == {
        name: figure.get("value") for name, figure in figures.items()
    }
    assert stored(zonkey.folder) == [entry]


def test_a_table_and_progress_on_a_terminal(zonkey: Zonkey, tiny_model: Path) -> None:
    arguments = ("eval", "-m", tiny_model, *QUICK)
    seen = on_terminal(zonkey, "stderr", *arguments)
    assert b"reconstruct (1 of 1)" in seen
    assert b"level0.clean" not in seen
    drawn = on_terminal(zonkey, "stdout", *arguments)
    assert b"\x1b[" in drawn
    assert b"level0.clean.byte_accuracy" in drawn


def test_domains_and_gold_are_read_and_the_table_is_plain_text(
    evaluate: Callable[..., subprocess.CompletedProcess[bytes]], zonkey: Zonkey
) -> None:
    (zonkey.folder / "poems").mkdir()
    (zonkey.folder / "poems" / "sea.txt").write_bytes(b"The sea, the sea, the open sea. " * 40)
    (zonkey.folder / "gold.jsonl").write_text('["One sentence.", "Another."]\n')
    done = evaluate(*QUICK, "--domains", "poems", "--gold", "gold.jsonl")
    assert (done.returncode, done.stderr) == (0, b"reconstruct (1 of 1)\n")
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "reconstruct"
    assert lines[1].split() == ["metric", "value", "low\N{EN DASH}high", "floor", "ceiling"]
    assert any(line.startswith("level0.domain.sea.byte_accuracy ") for line in lines)
    assert b"\x1b" not in done.stdout


def test_work_is_kept_below_zonkey_home_or_in_the_cache_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ZONKEY_HOME", raising=False)
    assert store_directory() == tmp_path / "cache/zonkey/eval"
    monkeypatch.setenv("ZONKEY_HOME", str(tmp_path / "home"))
    assert store_directory() == tmp_path / "home/cache/eval"


def test_a_run_that_is_stopped_says_that_it_can_go_on(zonkey: Zonkey, tiny_model: Path) -> None:
    process = zonkey.start("eval", "-m", tiny_model, "reconstruct", "--limit", "100kB", "--json")
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.close()
    assert process.stderr.readline() == b"reconstruct (1 of 1)\n"
    process.send_signal(signal.SIGINT)
    said, written = process.stderr.read().decode().splitlines(), process.stdout.read()
    assert (process.wait(60), written) == (130, b"")
    assert said[-1] == "stopped in reconstruct; finished parts are kept, and the same command goes on from there"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segmnt"], "there is no part 'segmnt'; the nearest is 'segment'"),
        (["reconstruct", "al"], "the nearest is 'all'"),
        (["--limit", "12x"], "'12x' is not a number of bytes, as 500000, 200kB or 1MB."),
        (["--limit", "-5"], "'-5' is not a number of bytes"),
        (["--limit", 400 * "9"], "9' is not a number of bytes"),
        (["--limit", "1.9 kB"], "'1.9 kB' is too little to measure on; give at least 2000."),
        (["--seed", "x"], "'x' is not a valid integer"),
    ],
)
def test_usage_errors(zonkey: Zonkey, arguments: list[str], message: str) -> None:
    done = zonkey.run("eval", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    first, second = done.stderr.decode().splitlines()
    assert message in first
    assert second == "Try 'zonkey eval --help' for help."


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-m", "nope"], 2, "unknown model 'nope'"),
        (["--data", "nope.txt"], 1, "nope.txt: no such file or folder"),
        (["--train-data", "nope.txt"], 1, "nope.txt: no such file or folder"),
        (["--domains", "nope.txt"], 1, "nope.txt: no such file or folder"),
        (["--gold", "nope.jsonl"], 1, "nope.jsonl: No such file or directory"),
        (["--gold", "bad.jsonl"], 1, "bad.jsonl, line 2: neither a JSON list of sentences"),
        (["--language", "zh", "nope.jsonl", "short.txt"], 1, "nope.jsonl: No such file or directory"),
        (["--language", "zh", "bad.jsonl", "short.txt"], 1, "bad.jsonl, line 2: no JSON list of words"),
        (["--data", "short.txt"], 1, "short.txt: too little text to measure on"),
    ],
)
def test_what_cannot_be_used_is_one_line(zonkey: Zonkey, arguments: list[str], code: int, message: str) -> None:
    (zonkey.folder / "bad.jsonl").write_text('["Fine."]\n{"text": "no list"}\n')
    (zonkey.folder / "short.txt").write_text("Too short.\n")
    done = zonkey.run("eval", *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"zonkey: {message}")


def test_a_damaged_model_is_one_line(zonkey: Zonkey, model_copy: Callable[[str], Path]) -> None:
    model = model_copy("damaged")
    (model / "model.safetensors").write_bytes(b"")
    done = zonkey.run("eval", *QUICK, "-m", model)
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"zonkey: {model}")


def test_parts_are_completed(zonkey: Zonkey) -> None:
    done = zonkey.run(
        environment={"_ZONKEY_COMPLETE": "bash_complete", "COMP_WORDS": "zonkey eval re", "COMP_CWORD": "2"}
    )
    assert done.stdout.decode().split() == ["plain,reconstruct"]


def test_the_default_limit_is_that_of_the_core() -> None:
    assert ByteCount().convert(DEFAULT_LIMIT, None, None) == EvaluationOptions().limit


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_all_is_every_part(evaluate: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = evaluate("all", "--limit", "4kB", "--json", timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    names = [name for name in json.loads(done.stdout) if name != "left_out"]
    assert list(dict.fromkeys(name.split(".")[0] for name in names)) == list(PARTS)
