"""`zonkey info`, and what every verb says of a damaged or newer model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Zonkey

WITHOUT_TORCH = """\
import sys
sys.modules["torch"] = None
from zonkey_cli.app import main
main()
"""


def test_plain_text_lines_up(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("info", tiny_model)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    facts, levels, *_ = text.split("\n\n")
    named = dict(line.split(maxsplit=1) for line in facts.splitlines())
    assert named["model"] == str(tiny_model)
    assert int(named["parameters"].replace(",", "")) > 1000
    assert len({len(line) - len(line.split("  ", 1)[1].lstrip()) for line in facts.splitlines()}) == 1
    assert [line.split()[0] for line in levels.splitlines()] == ["level", "0", "1"]


def test_json_has_everything(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("info", "--json", environment={"ZONKEY_MODEL": str(tiny_model)})
    assert (done.returncode, done.stderr) == (0, b"")
    told = json.loads(done.stdout)
    assert told["path"] == str(tiny_model)
    assert told["parameters"] > 1000
    assert len(told["config"]["model"]["levels"]) == 2
    assert "figures" in told["training"]
    assert "random_state" not in told["training"]


def test_weights_are_not_read(zonkey: Zonkey, tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "info", tiny_model], env=zonkey.environment(), cwd=zonkey.folder,
        capture_output=True, check=False, timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"parameters" in done.stdout


@pytest.mark.parametrize("spoil", ["empty", "half", "noise"])
def test_damaged_weights_are_one_line(zonkey: Zonkey, model_copy: Callable[[str], Path], spoil: str) -> None:
    model = model_copy("damaged")
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes({"empty": b"", "half": data[: len(data) // 2], "noise": os.urandom(1000)}[spoil])
    done = zonkey.run("segment", "-m", model, stdin=b"Some text.\n")
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"zonkey: {model}")


@pytest.mark.parametrize("name", ["config.json", "training.json"])
def test_a_damaged_description_is_one_line(zonkey: Zonkey, model_copy: Callable[[str], Path], name: str) -> None:
    model = model_copy("damaged")
    (model / name).write_text("{", "utf-8")
    for arguments in (("info", model), ("segment", "-m", model)):
        done = zonkey.run(*arguments, stdin=b"Some text.\n")
        assert (done.returncode, done.stdout) == (1, b"")
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(f"zonkey: {model}")


def test_a_newer_format_is_one_line(zonkey: Zonkey, model_copy: Callable[[str], Path]) -> None:
    model = model_copy("newer")
    for path in (model / "config.json", model / "training.json"):
        tree = json.loads(path.read_bytes())
        if "format" in tree:
            path.write_text(json.dumps({**tree, "format": tree["format"] + 1000}), "utf-8")
    for arguments in (("info", model), ("segment", "-m", model), ("generate", "-m", model)):
        done = zonkey.run(*arguments, stdin=b"Some text.\n")
        assert (done.returncode, done.stdout) == (1, b"")
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(f"zonkey: {model}")
        assert "newer" in line
