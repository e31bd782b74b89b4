"""Control characters of files, names and models reach no terminal, and closed standard input is told of."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Zonkey
from tests.training_helpers import seal
from zonkey_cli.commands import info
from zonkey_cli.streams import Streams, json_line
from zonkey_core.checkpoint import TRAINING, read_model_card

EVIL = "\x1b[2J\x1b]0;pwned\x07 \x9b31m \x7f\b\r"


class Captured(Streams):
    """Streams whose output is kept."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__(
            None, io.BytesIO(), io.StringIO(), stdout_is_terminal=terminal, stderr_is_terminal=terminal
        )

    @property
    def output(self) -> bytes:
        assert isinstance(self.stdout, io.BytesIO)
        return self.stdout.getvalue()

    @property
    def messages(self) -> str:
        assert isinstance(self.stderr, io.StringIO)
        return self.stderr.getvalue()


def controls(text: str) -> set[str]:
    """The control characters in a text, but for tab and newline."""
    return {each for each in text if (ord(each) < 32 and each not in "\t\n") or 127 <= ord(each) < 160}


def test_the_example_is_evil() -> None:
    assert len(controls(EVIL)) == 6


def test_messages_have_none() -> None:
    streams = Captured(terminal=False)
    streams.error(EVIL)
    streams.note(f"a\tb\n{EVIL}")
    assert not controls(streams.messages) and "a\tb\n" in streams.messages


@pytest.mark.parametrize("terminal", [True, False])
def test_data_has_none_on_a_terminal_and_is_exact_elsewhere(terminal: bool) -> None:
    streams = Captured(terminal=terminal)
    streams.write(EVIL.encode() + b"\xff\n")
    if terminal:
        assert not controls(streams.output.decode("utf-8", "replace"))
    else:
        assert streams.output == EVIL.encode() + b"\xff\n"


def test_nul_parts_records_on_a_terminal_too() -> None:
    streams = Captured(terminal=True)
    streams.write(b"a\0b\x07\0", null=True)
    assert streams.output == "a\0b\N{REPLACEMENT CHARACTER}\0".encode()
    streams = Captured(terminal=True)
    streams.write(b"a\0b")
    assert b"\0" not in streams.output


def test_json_has_none_anywhere() -> None:
    line = json_line({"text": EVIL})
    assert not controls(line.decode()) and json.loads(line) == {"text": EVIL}


def test_a_segmented_text_on_a_terminal(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from zonkey_cli.app import cli

    path = tmp_path / "evil.txt"
    path.write_bytes(b"The town \x1b]0;pwned\x07 lies \xc2\x9b31m on\r the \x08 river.\n")
    for options in ([], ["--prob"], ["--join", "|"], ["--tree"], ["--stats"], ["--json"], ["-0"]):
        streams = Captured(terminal=True)
        streams.verbosity = -1
        with pytest.raises(SystemExit) as left:
            cli.main(["segment", "-m", str(tiny_model), *options, str(path)], obj=streams)
        assert not left.value.code
        shown = streams.output.decode("utf-8", "replace")
        assert shown and "\x07" not in shown and "\x9b" not in shown
        assert controls(shown) <= ({"\0"} if options == ["-0"] else {"\x1b"}), options
        assert "\x1b]" not in shown


def test_what_a_model_says_of_itself(model_copy: Callable[[str], Path]) -> None:
    folder = model_copy("evil")
    record = json.loads((folder / TRAINING).read_bytes())
    record |= {"parent": EVIL, "torch_version": EVIL, "figures": {EVIL: 1.0}}
    record["data"]["sources"] = [EVIL, "wiki"]
    record["data"]["wiki_config"] = EVIL
    record["options"]["device"] = EVIL
    (folder / TRAINING).write_text(json.dumps(record))
    seal(folder)
    card = read_model_card(folder)
    assert not controls(info._plain_text(EVIL, folder, card).decode())
    assert "[2J" not in info._rich_text(EVIL, folder, card).decode().replace("\ufffd[2J", "")
    for data in ({}, {"sources": 3}, {"sources": [3]}, {"sources": ["wiki"]}):
        card.training.data = data  # type: ignore[union-attr]
        assert info._plain_text("name", folder, card)


def test_names_of_files(zonkey: Zonkey, tiny_model: Path) -> None:
    done = zonkey.run("segment", "-m", tiny_model, f"no\x1b[2Jfile{EVIL}")
    assert done.returncode == 1 and not controls(done.stderr.decode())


@pytest.mark.parametrize(
    "arguments", [["segment"], ["segment", "--undo"], ["segment", "--stats"], ["infill"], ["infill", "--json"],
                  ["train", "--data", "-"]],
    ids=" ".join,
)
def test_closed_standard_input_is_told_of(zonkey: Zonkey, tiny_model: Path, arguments: list[str]) -> None:
    verb, *options = arguments
    model = [] if verb == "train" else ["-m", str(tiny_model)]
    command = zonkey.command(verb, *model, *options)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], env=zonkey.environment(), cwd=zonkey.folder,
        capture_output=True, timeout=60, check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert "standard input" in line and "closed" in line


def test_one_flipped_bit_is_one_line_of_every_verb(zonkey: Zonkey, model_copy: Callable[[str], Path]) -> None:
    folder = model_copy("flipped")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    (zonkey.folder / "text").write_text("The ___ town.")
    lines = set()
    for arguments in (["info", folder], ["generate", "-m", folder], ["segment", "-m", folder, "text"],
                      ["infill", "-m", folder, "text"], ["eval", "-m", folder, "speed"],
                      ["train", "--from", folder, "--data", "sample", "--steps", "1"]):
        done = zonkey.run(*arguments)
        assert (done.returncode, done.stdout) == (1, b""), arguments
        (line,) = done.stderr.decode().splitlines()
        assert "model.safetensors" in line and "checksum" in line
        lines.add(line)
    assert len(lines) == 1
