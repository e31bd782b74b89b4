"""`zonkey generate`: seeds, formats, limits."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Zonkey
from zonkey_core.checkpoint import load_model

QUICK = ("--steps", "2", "--max-bytes", "60")


def test_sample_i_is_that_of_seed_plus_i(zonkey: Zonkey, tiny_model: Path) -> None:
    three = zonkey.run("generate", "-m", tiny_model, *QUICK, "-n", "3", "--seed", "10", "-0")
    assert (three.returncode, three.stderr) == (0, b"")
    texts = three.stdout.split(b"\0")
    assert texts.pop() == b""
    assert len(texts) == 3
    assert len(set(texts)) > 1
    assert all(len(text) <= 60 for text in texts)
    last = zonkey.run("generate", "-m", tiny_model, *QUICK, "--seed", "12", "-0")
    assert last.stdout == texts[2] + b"\0"


def test_formats_agree(zonkey: Zonkey, tiny_model: Path) -> None:
    arguments = ("generate", "-m", tiny_model, *QUICK, "-n", "2", "--seed", "11")
    first, second = zonkey.run(*arguments, "-0").stdout.split(b"\0")[:2]
    objects = [json.loads(line) for line in zonkey.run(*arguments, "--json").stdout.splitlines()]
    assert objects == [
        {"seed": 11, "text": first.decode("utf-8", "replace")}, {"seed": 12, "text": second.decode("utf-8", "replace")},
    ]
    assert zonkey.run(*arguments).stdout == first + b"\n\n" + second + b"\n"


def test_prompt_begins_the_text(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("generate", "-m", tiny_model, *QUICK, "--seed", "1", "--prompt", "The town of é")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith("The town of é".encode())


def test_lowest_level_alone(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("generate", "-m", tiny_model, *QUICK, "--seed", "1", "--level", "0", "--temperature", "0")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_seed_by_chance_is_told(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("generate", "-m", tiny_model, *QUICK, "-v", "--json")
    (said,) = (line for line in done.stderr.decode().splitlines() if line.startswith("seed "))
    assert said == f"seed {json.loads(done.stdout)['seed']}"


def test_the_likeliest_of_several_is_kept(zonkey: Zonkey, tiny_model: Path) -> None:
    arguments = ("generate", "-m", tiny_model, *QUICK, "--seed", "3")
    single = json.loads(zonkey.run(*arguments, "--json").stdout)
    assert set(single) == {"seed", "text"}
    best = {count: json.loads(zonkey.run(*arguments, "--json", "--best-of", count).stdout) for count in ("2", "6")}
    assert all(each["seed"] == 3 for each in best.values())
    assert best["6"]["score"] >= best["2"]["score"]
    assert zonkey.run(*arguments, "--best-of", "6").stdout.decode("utf-8", "replace") == best["6"]["text"] + "\n"


def test_watching_without_a_terminal_changes_nothing(zonkey: Zonkey, tiny_model: Path) -> None:
    arguments = ("generate", "-m", tiny_model, *QUICK, "-n", "2", "--seed", "4")
    done = zonkey.run(*arguments, "--watch")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == zonkey.run(*arguments).stdout


def test_too_many_steps_are_refused_in_one_line(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("generate", "-m", tiny_model, "--steps", "129")
    assert done.returncode == 2 and done.stdout == b""
    assert b"--steps" in done.stderr and b"128" in done.stderr


def test_all_levels_form_the_text_by_default(zonkey: Zonkey, tiny_model: Path) -> None:
    arguments = ("generate", "-m", tiny_model, *QUICK, "--seed", "5", "-n", "3", "--prompt", "The town of ", "-0")
    top = len(load_model(tiny_model).levels) - 1
    default = zonkey.run(*arguments)
    assert (default.returncode, default.stderr) == (0, b"") and top > 0
    assert default.stdout == zonkey.run(*arguments, "--level", str(top)).stdout
    assert default.stdout != zonkey.run(*arguments, "--level", "0").stdout
    beyond = zonkey.run(*arguments, "--level", str(top + 1))
    assert beyond.returncode == 2 and b"level" in beyond.stderr
