"""Spoil files as `fuzz.py` does, but let the code that they reach guide the changes (atheris, which is libFuzzer).

    pip install atheris
    python benchmarks/guided_fuzz.py weights -max_total_time=60

The first word is the kind of input; what follows is for libFuzzer. An exception that is not ours, a message of several
lines, an input that takes 5 s and memory of more than 2 GB end the process with an error. Nothing is kept.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["zonkey_core", "zonkey_cli"]):
    from zonkey_cli.escaping import BadEscapeError, undo
    from zonkey_core.checkpoint import CONFIG, FORMAT, read_model_card
    from zonkey_core.config import load_config, load_preset
    from zonkey_core.data import SourceSpec, open_stream
    from zonkey_core.errors import ConfigError, ZonkeyError
    from zonkey_core.inference.gap_windows import find_gaps
    from zonkey_core.inference.infilling import apply_fills
    from zonkey_core.safe_files import decode_json
    from zonkey_core.weight_parts import check_index, whole_entries
    from zonkey_core.weights_file import scan_weights

HEADER = (
    b'{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},'
    b'"b":{"dtype":"U8","shape":[4],"data_offsets":[12,16]}'
)
PLACES = b'{"a":{"saved_offsets":[0,0]},"b":{"saved_offsets":[0]}}'.replace(b'"', b'\\"')
Action = Callable[[Path, bytes], object]


def file_of(header: bytes) -> bytes:
    """A safetensors file with a header and 16 bytes of tensors."""
    return len(header).to_bytes(8, "little") + header + bytes(16)


def written(action: Callable[[Path], object], name: str = "input") -> Action:
    """An action on a file of that content."""

    def act(folder: Path, content: bytes) -> None:
        (folder / name).write_bytes(content)
        action(folder / name)

    return act


def unchanged(folder: Path, content: bytes) -> None:
    """A text with gaps that are not filled."""
    find_gaps(content, None)
    assert apply_fills(content, []) == content


def index(folder: Path, content: bytes) -> None:
    """The index of a model in several files."""
    (folder / "part").write_bytes(file_of(HEADER + b"}"))
    check_index(decode_json(content), [folder / "part"])


def lines(path: Path) -> None:
    """Documents as JSON lines."""
    list(open_stream(SourceSpec(sources=(str(path),), split="all"), seed=0, shuffle_documents=9, repeat=False))


KINDS: dict[str, tuple[Action, tuple[type[Exception], ...], bytes]] = {
    "weights": (
        written(lambda path: scan_weights(path, with_checksum=True, finite=True)), (OSError, ValueError),
        file_of(HEADER + b"}"),
    ),
    "parts": (
        written(lambda path: whole_entries([path])), (OSError, ValueError),
        file_of(HEADER + b',"__metadata__":{"DCP_SHARDING_INFO":"' + PLACES + b'"}}'),
    ),
    "index": (index, (ValueError,), b'{"metadata": {"total_size": 16}, "weight_map": {"a": "part", "b": "part"}}'),
    "config": (
        written(load_config, "input.toml"), (ConfigError,),
        b'memory = "1"\n[[model.levels]]\nwidth = 64\nnoise_scale = 5.0\n[training]\nrow_bytes = 64\n',
    ),
    "override": (
        lambda _, content: load_preset("tiny", [content.decode("utf-8", "surrogateescape")]), (ConfigError,),
        b"level.0.width=64",
    ),
    "card": (
        written(lambda path: read_model_card(path.parent), CONFIG), (ZonkeyError,),
        b'{"format": %d, "parameters": 3, "config": {"model": {"levels": [{"width": 64}]}}}' % FORMAT,
    ),
    "lines": (written(lines, "input.jsonl"), (ZonkeyError,), b'{"text": "one"}\n{"text": "two", "id": 3}\n'),
    "undo": (
        lambda _, content: list(undo([content], end=b"\n")), (BadEscapeError,), b"one\\n\ntwo\\\\\n\\0three\n",
    ),
    "gap": (unchanged, (), b"A text ___ with [gaps] in _ it, and ____.\nAnother ___ line"),
}  # fmt: skip


def main() -> None:
    """Fuzz one kind of input."""
    if len(sys.argv) < 2 or sys.argv[1] not in KINDS:
        raise SystemExit(f"give one of {', '.join(KINDS)}, and what libFuzzer takes")
    action, ours, sound = KINDS[sys.argv[1]]
    with tempfile.TemporaryDirectory() as name:
        folder, seeds = Path(name) / "work", Path(name) / "seeds"
        folder.mkdir()
        seeds.mkdir()
        (seeds / "sound").write_bytes(sound)
        os.chdir(name)

        def one_input(content: bytes) -> None:
            try:
                action(folder, content)
            except ours as error:
                if not str(error) or "\n" in str(error):
                    raise AssertionError(f"not a line: {error!r}") from error

        limits = ["-timeout=5", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], *limits, *sys.argv[2:], str(seeds)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
