"""Whatever a file or a command line holds: an error of ours in one line, or none; nothing is unexpected.

The quick tests try a few dozen inputs of each kind; `pytest -m slow tests/test_fuzzing.py` tries three hundred,
`benchmarks/fuzz.py` as many as it is asked for.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import clean_environment
from zonkey_cli.app import cli
from zonkey_cli.escaping import BadEscapeError, undo
from zonkey_cli.streams import Streams
from zonkey_core.config import load_config, load_preset, override_keys
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.errors import ConfigError, ZonkeyError
from zonkey_core.inference.gap_windows import find_gaps
from zonkey_core.inference.infilling import apply_fills
from zonkey_core.weights_file import scan_weights

COUNTS = [pytest.param(40, id="few"), pytest.param(300, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
pytestmark = pytest.mark.parametrize("count", COUNTS)


def tried(count: int) -> settings:
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def harm(sound: bytes) -> st.SearchStrategy[bytes]:
    """A sound file with bytes changed, lost or added, or any bytes at all."""
    places = st.integers(0, len(sound))
    spoilt = st.builds(
        lambda place, new, lost: sound[:place] + new + sound[place + lost :], places, st.binary(max_size=12),
        st.integers(0, 30),
    )
    return spoilt | st.binary(max_size=200) | st.builds(lambda depth: b"[" * depth, st.integers(1000, 50_000))


def one_line(error: Exception) -> None:
    assert "\n" not in str(error) and str(error)


# Readers


def test_configuration_files(tmp_path: Path, count: int) -> None:
    sound = b'memory = "1"\n[[model.levels]]\nwidth = 64\nnoise_scale = 5.0\n[training]\nrow_bytes = 64\n'
    path = tmp_path / "config.toml"

    @tried(count)
    @given(harm(sound))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            load_config(path)
        except ConfigError as error:
            one_line(error)
            assert str(path) in str(error)

    check()


def test_overrides(count: int) -> None:
    values = st.text(max_size=20) | st.floats().map(str) | st.integers().map(str) | st.just("[" * 20_000)

    @tried(count)
    @given(st.sampled_from(override_keys(2)) | st.text(max_size=20), values)
    def check(key: str, value: str) -> None:
        try:
            load_preset("tiny", [f"{key}={value}"])
        except ConfigError as error:
            one_line(error)

    check()


def parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a text", "another", None, "é"]}), sink)
    return bytes(sink.getvalue())


READERS = {
    "text.txt": b"A text.\n\nAnother one.\n",
    "lines.jsonl": b'{"text": "one"}\n{"text": "two", "id": 3}\n',
    "packed.txt.gz": gzip.compress(b"A text. " * 50, mtime=0),
    "packed.txt.zst": bytes.fromhex("28b52ffd040041000041207465787420697320686572"),
    "table.parquet": parquet(),
}


@pytest.mark.parametrize("name", READERS)
def test_files_of_text(tmp_path: Path, count: int, name: str) -> None:
    path = tmp_path / name

    @tried(count)
    @given(harm(READERS[name]))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            list(open_stream(SourceSpec(sources=(str(path),), split="all"), seed=0, shuffle_documents=3, repeat=False))
        except ZonkeyError as error:
            one_line(error)
        skipped = SourceSpec(sources=(str(path),), split="all", on_bad_data="skip")
        list(open_stream(skipped, seed=0, shuffle_documents=3, repeat=False))

    check()


def test_files_of_weights(tmp_path: Path, count: int) -> None:
    header = json.dumps({
        "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "U8", "shape": [4], "data_offsets": [12, 16]},
    }).encode()
    path = tmp_path / "weights"

    @tried(count)
    @given(harm(len(header).to_bytes(8, "little") + header + bytes(16)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            scan_weights(path, with_checksum=True, finite=True)
        except (OSError, ValueError) as error:
            one_line(error)

    check()


def test_gaps(count: int) -> None:
    @tried(count)
    @given(
        st.lists(st.sampled_from([b"_", b"___", b"[", b"]", b"\n", b" ", b"\xff", b"word"]) | st.binary(max_size=4)),
        st.none() | st.binary(min_size=1, max_size=3),
    )
    def check(parts: list[bytes], mask: bytes | None) -> None:
        text = b"".join(parts)
        gaps = find_gaps(text, mask)
        assert apply_fills(text, []) == text and gaps is not None

    check()


def test_undoing(count: int) -> None:
    @tried(count)
    @given(st.lists(st.binary(max_size=6) | st.sampled_from([b"\\", b"\\n", b"\\0"])), st.sampled_from([b"\n", b"\0"]))
    def check(chunks: list[bytes], end: bytes) -> None:
        try:
            whole = b"".join(undo([b"".join(chunks)], end=end))
        except BadEscapeError as error:
            one_line(error)
            with pytest.raises(BadEscapeError):
                list(undo(chunks, end=end))
        else:
            assert b"".join(undo(chunks, end=end)) == whole

    check()


# Command lines


class Terminal(Streams):
    """Streams that keep what is said; standard input holds some text."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(b"A text with a ___ in it."), io.BytesIO(), io.StringIO())


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], tuple[int, str]]]:
    """The function that runs a command line in an empty folder; returns the exit code and what was said."""
    for name, value in clean_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def run(arguments: list[str]) -> tuple[int, str]:
        streams = Terminal()
        with pytest.raises(SystemExit) as left:
            cli.main(arguments, obj=streams)
        assert isinstance(streams.stderr, io.StringIO)
        return int(left.value.code or 0), streams.stderr.getvalue()

    yield run


def expected(code: int, said: str, *, quiet: bool = False) -> None:
    assert code in (0, 1, 2)
    assert "zonkey: unexpected" not in said and "Traceback" not in said, said
    # A text without gaps ends in 1, and nothing is said of it where that was asked for.
    assert code == 0 or "zonkey: " in said or said.startswith("no gap found") or (quiet and code == 1 and not said)


OPTIONS = [
    "--level", "--threshold", "--bytes-per-segment", "--join", "--prob", "--tree", "--stats", "--top", "--json", "-0",
    "--undo", "-n", "--count", "--max-bytes", "--best-of", "--seed", "--steps", "--temperature", "--mask", "-i",
    "--candidates", "--data", "--data-dir", "--out", "--minutes", "--resume", "--back-to", "--save-every", "--keep",
    "--on-bad-data", "--from", "--preset", "--config", "--set", "--stage", "--device", "--precision", "-q", "-v",
]
VALUES = st.sampled_from([
    "0", "1", "-1", "1e400", "nan", "9" * 400, "text", "no such file", "-", "", "\x1b[2J", "cpu", "skip", "30s", "1h",
    "level.0.width=1e9", "level.0.width=" + "9" * 400, "a=" + "[" * 9999, ".", "/dev/null", "bundled",
]) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@pytest.mark.parametrize("verb", ["info", "segment", "generate", "infill", "train", "eval"])
def test_command_lines(surroundings: Callable[[list[str]], tuple[int, str]], count: int, verb: str) -> None:
    """With a model that is not there, so that none gets to work."""
    words = st.sampled_from(OPTIONS) | VALUES

    @tried(count)
    @given(st.lists(words, max_size=6))
    def check(arguments: list[str]) -> None:
        model = ["nowhere"] if verb == "info" else ["--from", "nowhere"] if verb == "train" else ["-m", "nowhere"]
        expected(*surroundings([verb, *arguments, *model]), quiet="-q" in arguments)

    check()


def test_settings_files(
    surroundings: Callable[[list[str]], tuple[int, str]], tmp_path: Path, count: int
) -> None:
    sound = b'model = "nowhere"\nseed = 3\n[generate]\ntemperature = 0.8\nmax-bytes = 30\n[segment]\nlevel = 1\n'

    @tried(count)
    @given(harm(sound))
    def check(content: bytes) -> None:
        (tmp_path / "zonkey.toml").write_bytes(content)
        code, said = surroundings(["generate", "-m", "nowhere"])
        assert code == 2 and len(said.splitlines()) <= 2
        expected(code, said)

    check()
