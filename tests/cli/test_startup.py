"""`zonkey --help` and other short answers import nothing heavy and come at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from tests.conftest import Zonkey, clean_environment
from zonkey_cli import threads
from zonkey_cli.app import VERBS, cli

HEAVY = ("torch", "datasets", "rich", "numpy", "safetensors", "huggingface_hub", "zonkey_core.model")
LIST_MODULES = """\
import sys
from zonkey_cli.app import cli
try:
    cli.main(sys.argv[1:])
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, *arguments], env=clean_environment(tmp_path), cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )
    assert done.stdout.startswith("Usage: zonkey")
    modules = set(done.stderr.split())
    assert "zonkey_cli.app" in modules
    assert not modules & set(HEAVY)


@pytest.mark.parametrize(
    "options",
    [[], ["--level", "1", "--json", "--tree"], ["--device", "cpu", "--stats"], ["--bits-per-segment", "9"]],
)
def test_text_is_cut_without_torch(tiny_model: Path, options: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, "segment", "-m", tiny_model, *options], env=clean_environment(tmp_path),
        cwd=tmp_path, input="x", capture_output=True, text=True, check=True,
    )
    assert "x" in done.stdout
    modules = set(done.stderr.split())
    assert "zonkey_core.numpy_model.level" in modules
    assert not modules & {"torch", "rich", "safetensors", "zonkey_core.model.level"}


def test_threads_are_shared_out_before_numpy_is_there(tiny_model: Path, tmp_path: Path) -> None:
    """A numpy that is there already lets each product of matrices take all cores, beside the threads on these."""
    program = """\
import sys
from zonkey_cli.app import cli
from zonkey_cli.commands import segment
shared_executor = segment.shared_executor
def noted():
    print("numpy" in sys.modules, file=sys.stderr)
    return shared_executor()
segment.shared_executor = noted
cli.main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "segment", "-m", tiny_model], env=clean_environment(tmp_path), cwd=tmp_path,
        input="x", capture_output=True, text=True, check=True,
    )
    assert done.stdout == "x\n" and done.stderr == "False\n"


@pytest.mark.parametrize(("verb", "shapes"), [("train", "32"), ("eval", "32"), ("infill", "24"), ("segment", "24")])
def test_libraries_are_told_what_to_keep_unless_the_environment_says_it(
    verb: str, shapes: str, tmp_path: Path
) -> None:
    ask = """\
import contextlib, ctypes
from zonkey_cli.app import main
with contextlib.suppress(SystemExit):
    main()
get = ctypes.CDLL(None).getenv
get.restype = ctypes.c_char_p
names = ("OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
print(*(get(name.encode()).decode() for name in names))
"""
    environment = {**clean_environment(tmp_path), "OPENBLAS_CORETYPE": "NEHALEM", "LRU_CACHE_CAPACITY": "7"}
    for name in ("OPENBLAS_NUM_THREADS", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", ask, verb, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == f"1 NEHALEM {shapes} 7"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu sse2 avx avx2", "SANDYBRIDGE"), ("fpu avx avx512f avx512vl", "SKYLAKEX"), ("fpu sse2", ""), ("", "")],
)
def test_products_of_a_row_hang_on_no_place(flags: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_processor_flags", lambda: set(flags.split()))
    for given in ("", "Haswell", "Zen"):
        monkeypatch.setenv("OPENBLAS_CORETYPE", given)
        threads.bound_libraries()
        assert os.environ["OPENBLAS_CORETYPE"] == (expected or given)


def test_group_help_imports_no_verb(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, "--help"], env=clean_environment(tmp_path), cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )
    assert "zonkey_cli.commands" not in done.stderr


def test_help_takes_little_longer_than_python_itself(zonkey: Zonkey) -> None:
    def quickest(*command: str) -> float:
        times = []
        for _ in range(5):
            before = time.perf_counter()
            subprocess.run(command, env=clean_environment(zonkey.folder), capture_output=True, check=True)
            times.append(time.perf_counter() - before)
        return min(times)

    bare = quickest(sys.executable, "-c", "pass")
    helped = quickest(sys.executable, "-m", "zonkey_cli", "--help")
    assert helped - bare < 0.3  # 0.15 s on an idle machine; torch alone would take more than a second


def test_summaries_of_the_group_are_those_of_the_verbs() -> None:
    with click.Context(cli, info_name="zonkey") as context:
        for name, summary in VERBS.items():
            command = cli.get_command(context, name)
            assert command is not None
            assert command.short_help == summary
            assert (command.help or "").startswith(summary)


def test_completion_offers_verbs_and_model_names(zonkey: Zonkey) -> None:
    model = zonkey.folder / "home" / "models" / "mine"
    model.mkdir(parents=True)
    (model / "config.json").touch()

    def complete(words: str, position: str) -> list[str]:
        environment = {
            "_ZONKEY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": position,
            "ZONKEY_HOME": str(zonkey.folder / "home"),
        }
        return zonkey.run(environment=environment).stdout.decode().split()

    assert complete("zonkey in", "1") == ["plain,infill", "plain,info"]
    assert complete("zonkey segment --model m", "3") == ["plain,mine"]
