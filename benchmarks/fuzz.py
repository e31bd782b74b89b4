"""Spoil files and command lines by the thousand, and see that each ends in a line of ours, soon and in little memory.

    python benchmarks/fuzz.py --inputs 100000 --seed 0

An input is a sound one with bytes changed, lost, doubled or put in, or a command line of words that fit badly. Nine in
ten go to the readers (configurations, overrides, settings, text, JSON lines, gzip, zstd, Parquet, weights, model
folders, gaps, `--undo`), the others through the program to the verbs, those of `--work` to verbs that get to work with
a sound model. Counted as a failure: an exception that is not ours, a message with "unexpected" or of several lines, and
more than `--seconds` of the processor, or twenty times as much of the clock. At the end the most memory is told that
the process held. Exit status 1 says that something failed; each failure is printed with its number.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import pyarrow
import pyarrow.parquet

from zonkey_cli.app import cli
from zonkey_cli.escaping import BadEscapeError, undo
from zonkey_cli.streams import Streams
from zonkey_core.checkpoint import CHECKSUMS, CONFIG, MODEL, load_model, read_model_card
from zonkey_core.config import ConfigError, load_config, load_preset, override_keys
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.errors import ZonkeyError
from zonkey_core.inference.gap_windows import find_gaps
from zonkey_core.inference.infilling import apply_fills
from zonkey_core.weights_file import scan_weights

PRETRAINED = Path(__file__).resolve().parent.parent / "zonkey_core" / "pretrained"
HOSTILE = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b"\x1b[2J", b"[" * 3000, b"{" * 3000, b'"', b"\\", b"-1",
    b"1e999", b"NaN", b"9" * 400, b"null", b"true", b"../../etc/passwd", b"___", b"\xef\xbb\xbf", b"\xff" * 8,
    b"\0" * 64,
)  # fmt: skip
WORDS = (
    "0", "1", "2", "-1", "1e400", "nan", "9" * 400, "text", "no such file", "-", "", "\x1b[2J", "cpu", "cuda:9", "mps",
    "30s", "1h", "level.0.width=1e9", "a=" + "[" * 9999, ".", "/dev/null", "bundled", "0.5", "wiki",
    "sample",
)  # fmt: skip
VERBS = ("info", "segment", "generate", "infill", "train", "eval")
WORK = (
    ("segment",), ("segment", "--json"), ("segment", "--level", "1"), ("segment", "--prob"), ("segment", "--stats"),
    ("segment", "--tree"), ("segment", "-0"), ("segment", "--join", "|"), ("segment", "--undo"), ("info",),
    ("segment", "--threshold", "0.1"), ("segment", "--bytes-per-segment", "3"),
)  # fmt: skip
TEXT = "The heron stood ___ in the shallows. \u00dcber die Br\u00fccke kam ___ niemand; \u65e5\u672c\u8a9e.\n\n"
SLOW_WORK = (("infill", "--candidates", "1"), ("generate", "--max-bytes", "20", "--steps", "4"))


class Hang(BaseException):
    """An input took too long."""


def spoilt(sound: bytes, chance: random.Random) -> bytes:
    """A sound input, changed in a few places."""
    content = bytearray(sound)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        place, other = (chance.randint(0, len(content)) for _ in range(2))
        match chance.randrange(6):
            case 0:
                content[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del content[min(place, other) : min(place, other) + chance.choice((1, 4, abs(place - other)))]
            case 2:
                content[place:place] = chance.choice(HOSTILE)
            case 3:
                content[place:place] = content[other : other + chance.randint(1, 64)]
            case 4:
                content[place:place] = chance.randbytes(chance.randint(1, 12))
            case 5 if content:
                content[place % len(content)] ^= 1 << chance.randrange(8)
    return bytes(content)


def one_line(error: Exception) -> None:
    """Check the message of one of our errors."""
    if not str(error) or "\n" in str(error):
        raise AssertionError(f"not a line: {error!r}")


Try = Callable[[random.Random], None]


class Readers:
    """One method a kind of input, which reads a spoilt one and lets out whatever is not ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        table = pyarrow.table({"text": ["a text", "another", None, "\u00e9"] * 20})
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink)
        header = json.dumps({
            "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
            "b": {"dtype": "U8", "shape": [4], "data_offsets": [12, 16]},
        }).encode()  # fmt: skip
        self.weights = len(header).to_bytes(8, "little") + header + bytes(16)
        self.texts = {
            "text.txt": b"A text.\n\nAnother one.\n" * 8,
            "lines.jsonl": b'{"text": "one"}\n{"text": "two", "id": 3}\n' * 8,
            "packed.txt.gz": gzip.compress(b"A text. " * 50, mtime=0),
            "packed.txt.zst": bytes.fromhex("28b52ffd040041000041207465787420697320686572"),
            "table.parquet": bytes(sink.getvalue()),
        }
        self.model = folder / "model"
        shutil.copytree(PRETRAINED, self.model, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
        names = sorted(name for name in os.listdir(self.model) if name != MODEL)
        self.sound = {name: (self.model / name).read_bytes() for name in names}

    def kinds(self) -> dict[str, Try]:
        """All kinds, by name."""
        files = {name: lambda chance, name=name: self.text(name, chance) for name in self.texts}
        own = (self.config, self.override, self.weight, self.card, self.gap, self.undo, self.settings)
        return {**files, **{each.__name__: each for each in own}}

    def text(self, name: str, chance: random.Random) -> None:
        """A file of text, read to its end with and without leave to skip."""
        path = self.folder / name
        path.write_bytes(spoilt(self.texts[name], chance))
        try:
            list(open_stream(SourceSpec(sources=(str(path),), split="all"), seed=0, shuffle_documents=9, repeat=False))
        except ZonkeyError as error:
            one_line(error)
        skipping = SourceSpec(sources=(str(path),), split="all", on_bad_data="skip")
        list(open_stream(skipping, seed=0, shuffle_documents=9, repeat=False))

    def config(self, chance: random.Random) -> None:
        """A configuration file."""
        path = self.folder / "config.toml"
        sound = b'memory = "1"\n[[model.levels]]\nwidth = 64\nnoise_scale = 5.0\n[training]\nrow_bytes = 64\n'
        path.write_bytes(spoilt(sound, chance))
        try:
            load_config(path)
        except ConfigError as error:
            one_line(error)

    def override(self, chance: random.Random) -> None:
        """A value of `--set`."""
        sound = f"{chance.choice(override_keys(2))}={chance.choice((*WORDS, '0.5', '[1, 2]', '8'))}"
        given = sound if chance.random() < 0.5 else spoilt(sound.encode(), chance).decode("utf-8", "surrogateescape")
        try:
            load_preset("tiny", [given])
        except ConfigError as error:
            one_line(error)

    def weight(self, chance: random.Random) -> None:
        """A file of weights."""
        path = self.folder / "weights"
        path.write_bytes(spoilt(self.weights, chance))
        try:
            scan_weights(path, with_checksum=True, finite=True)
        except (OSError, ValueError) as error:
            one_line(error)

    def card(self, chance: random.Random) -> None:
        """A model folder with one spoilt file, half of them without checksums, which would catch nearly all."""
        name = chance.choice(sorted(self.sound))
        (self.model / name).write_bytes(spoilt(self.sound[name], chance))
        if chance.random() < 0.5:
            (self.model / CHECKSUMS).unlink(missing_ok=True)
        try:
            read_model_card(self.model)
            if name == CONFIG and chance.random() < 0.05:
                load_model(self.model)
        except ZonkeyError as error:
            one_line(error)
        for each, content in self.sound.items():
            (self.model / each).write_bytes(content)

    def gap(self, chance: random.Random) -> None:
        """A text with gaps."""
        text = spoilt(b"A text ___ with [gaps] in _ it, and ____.\nAnother ___ line", chance)
        find_gaps(text, chance.choice((None, b"_", b"[gaps]", b"\xff")))
        if apply_fills(text, []) != text:
            raise AssertionError("text without fills is another")

    def undo(self, chance: random.Random) -> None:
        """Segments to be joined again."""
        try:
            list(undo([spoilt(b"one\\n\ntwo\\\\\n\\0three\n", chance)], end=chance.choice((b"\n", b"\0"))))
        except BadEscapeError as error:
            one_line(error)

    def settings(self, chance: random.Random) -> None:
        """A settings file, read by the program."""
        sound = b'model = "nowhere"\nseed = 3\n[generate]\ntemperature = 0.8\nmax-bytes = 30\n[segment]\nlevel = 1\n'
        Path("zonkey.toml").write_bytes(spoilt(sound, chance))
        try:
            program(["generate", "-m", "nowhere"], b"")
        finally:
            Path("zonkey.toml").unlink()


def program(arguments: list[str], given: bytes) -> None:
    """Run a command line in this process, and check how it ends."""
    streams = Streams(io.BytesIO(given), io.BytesIO(), io.StringIO())
    try:
        cli.main(arguments, obj=streams)
    except SystemExit as leaving:
        code = leaving.code or 0
    assert isinstance(streams.stderr, io.StringIO)
    said = streams.stderr.getvalue()
    if code not in (0, 1, 2) or "zonkey: unexpected" in said or "Traceback" in said:
        raise AssertionError(f"{arguments} ended in {code}: {said}")
    if code and "zonkey: " not in said and "no gap found" not in said and not {"-q", "--quiet"} & set(arguments):
        raise AssertionError(f"{arguments} ended in {code} and said {said!r}")


def command_line(chance: random.Random) -> None:
    """A verb with words that fit badly, and a model that is not there."""
    verb = chance.choice(VERBS)
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    known = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
    known.remove("--debug")  # it asks for a traceback
    words = [chance.choice(known if chance.random() < 0.6 else WORDS) for _ in range(chance.randint(0, 6))]
    model = {"info": ["nowhere"], "train": ["--from", "nowhere"]}.get(verb, ["-m", "nowhere"])
    program([verb, *words, *model], b"A text with a ___ in it.")


def work(chance: random.Random, kinds: tuple[tuple[str, ...], ...] = WORK) -> None:
    """A verb with the bundled model and a spoilt text, or bytes of chance."""
    given = spoilt(TEXT.encode(), chance) if chance.random() < 0.7 else chance.randbytes(chance.randint(0, 400))
    program(list(chance.choice(kinds)), given)


def slow_work(chance: random.Random) -> None:
    """The same with verbs that write."""
    work(chance, SLOW_WORK)


def shares(folder: Path, inputs: int, worked: int) -> dict[str, tuple[Try, int]]:
    """Every kind of input, and how many of it there are."""
    readers = Readers(folder).kinds()
    rest = inputs - worked - worked // 20
    lines = rest // 10
    counts = {name: (each, (rest - lines) // len(readers)) for name, each in readers.items()}
    counts["command lines"] = command_line, rest - sum(count for _, count in counts.values())
    return {**counts, "at work": (work, worked), "writing": (slow_work, worked // 20)}


def attempt(act: Try, name: str, seed: int, number: int, seconds: float) -> str | None:
    """Try one input; what went wrong, if anything."""
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 20 * seconds)
    try:
        act(random.Random(f"{seed}/{name}/{number}"))
    except Hang:
        return f"took more than {seconds:g} s"
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    passed = time.process_time() - started
    return f"took {passed:.1f} s" if passed > seconds else None


def main() -> None:
    """Try all, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--work", type=int, default=2_000, help="how many of them get to work with a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()

    def hang(number: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    signal.signal(signal.SIGPROF, hang)
    failures: Counter[str] = Counter()
    tried = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(HOME=name, HF_HUB_OFFLINE="1")
        (folder / "empty").mkdir()
        os.chdir(folder / "empty")
        for kind, (act, count) in shares(folder, arguments.inputs, arguments.work).items():
            for number in range(count):
                wrong = attempt(act, kind, arguments.seed, number, arguments.seconds)
                tried += 1
                if wrong is not None:
                    failures[kind] += 1
                    print(f"{kind}, number {number}, seed {arguments.seed}: {wrong}", flush=True)
            print(f"{kind}: {count:,} tried, {failures[kind]} failed", flush=True)
        os.chdir("/")
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    print(f"{tried:,} inputs, {sum(failures.values())} failed; at most {held:.0f} MB of memory")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
