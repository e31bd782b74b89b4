"""The options of `zonkey segment`, run in this process with streams of its own, and what they refuse."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.model_helpers import TEXT, small_model
from zonkey_cli.app import cli
from zonkey_cli.segment_page import Page
from zonkey_cli.streams import Streams
from zonkey_core.checkpoint import CONFIG, MODEL, describe, pack_tensors
from zonkey_core.committed_files import write_files
from zonkey_core.config import Config
from zonkey_core.inference.level_cutter import LevelCutter

DATA = b"The town.\r\nIt has a caf\xc3\xa9,\ta mill \\ and\n\nbytes \xff\xfe\x80 and \0.\n" + TEXT.encode() + b"\nend"


class Done(NamedTuple):
    """How a run ended."""

    code: int
    out: bytes
    errors: list[str]


class Trickle(io.BytesIO):
    """Standard input that arrives in given pieces."""

    def __init__(self, *pieces: bytes) -> None:
        super().__init__()
        self.pieces = [piece for piece in pieces if piece]

    def read(self, size: int | None = -1) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained model of two levels that cuts unevenly."""
    folder = tmp_path_factory.mktemp("segment") / "model"
    made = small_model(2, seed=0, window=12)
    for level in made.levels:
        torch.nn.init.constant_(level.splitter.head.bias, -0.7)
    config = Config(model=made.config)
    write_files(folder, {CONFIG: describe(config, 1), MODEL: pack_tensors(made.state_dict(), half=True)})
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs `zonkey segment` in an empty folder with that model."""
    for name in os.environ:
        if name.startswith(("ZONKEY_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZONKEY_MODEL", str(model))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(*arguments: str | Path, stdin: bytes | io.BytesIO = b"", **streams: Any) -> Done:
        source = io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin
        out, errors = io.BytesIO(), io.StringIO()
        own = Streams(**{"stdin": source, "stdout": out, "stderr": errors, **streams})
        with pytest.raises(SystemExit) as leaving:
            cli.main(["segment", *map(str, arguments)], obj=own)
        return Done(int(leaving.value.code or 0), out.getvalue(), errors.getvalue().splitlines())

    return run


Run = Callable[..., Done]


def objects(done: Done) -> list[dict[str, Any]]:
    assert (done.code, done.errors) == (0, [])
    return [json.loads(line) for line in done.out.splitlines()]


def undone(run: Run, records: bytes, *arguments: str) -> bytes:
    done = run("--undo", *arguments, stdin=records)
    assert (done.code, done.errors) == (0, [])
    return done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "0"], "Invalid value for '--threshold': 0.0 is not in the range 0<x<1."),
        (["--threshold", "1"], "Invalid value for '--threshold': 1.0 is not in the range 0<x<1."),
        (["--threshold", "nan"], "Invalid value for '--threshold': nan is not a finite number."),
        (["--bytes-per-segment", "1"], "Invalid value for '--bytes-per-segment': 1.0 is not in the range x>1."),
        (["--bytes-per-segment", "inf"], "Invalid value for '--bytes-per-segment': inf is not a finite number."),
        (["--bytes-per-segment", "x"], "Invalid value for '--bytes-per-segment': 'x' is not a valid float"),
        (["--threshold", "0.4", "--bytes-per-segment", "4"], "--threshold and --bytes-per-segment exclude each other."),
        (["--bits-per-segment", "0"], "Invalid value for '--bits-per-segment': 0.0 is not in the range x>0."),
        (
            ["--bits-per-segment", "9", "--bytes-per-segment", "4"],
            "--bytes-per-segment and --bits-per-segment exclude each other.",
        ),
        (["--line-buffered", "--bytes-per-segment", "4"], "--bytes-per-segment and --line-buffered exclude each"),
        (["--prob", "--join", "|"], "--join and --prob exclude each other."),
        (["--prob", "--json"], "--json and --prob exclude each other."),
        (["--prob", "--tree"], "--prob and --tree exclude each other."),
        (["--tree", "--stats"], "--tree and --stats exclude each other."),
        (["--tree", "--json", "-0"], "--json and --null exclude each other."),
        (["--stats", "-0"], "--null and --stats exclude each other."),
        (["--html", "page", "--json"], "--json and --html exclude each other."),
        (["--html", ""], "Invalid value for '--html': the name of a file needs at least one character."),
        (["--top", "3"], "--top needs --stats."),
        (["--stats", "--top", "-1"], "Invalid value for '--top': -1 is not in the range x>=0."),
        (["--undo", "--prob"], "--prob cannot be used with --undo."),
        (["--undo", "--tree"], "--tree cannot be used with --undo."),
        (["--undo", "--html", "page"], "--html cannot be used with --undo."),
        (["--undo", "--threshold", "0.2"], "--threshold cannot be used with --undo."),
        (["--undo", "--line-buffered"], "--line-buffered cannot be used with --undo."),
        (["--undo", "--level", "0"], "--level cannot be used with --undo."),
    ],
)
def test_what_makes_no_sense_is_refused(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments, stdin=b"text")
    assert (done.code, done.out) == (2, b"")
    assert done.errors[0].startswith(f"zonkey: {message}")
    assert done.errors[1:] == ["Try 'zonkey segment --help' for help."]


def test_the_command_line_outranks_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZONKEY_SEGMENT_TREE", "1")
    monkeypatch.setenv("ZONKEY_SEGMENT_BYTES_PER_SEGMENT", "4")
    assert run("--join", "", "--threshold", "0.3", "--line-buffered", stdin=DATA) == (0, DATA, [])
    tree = objects(run("--json", stdin=DATA))
    assert {each["level"] for each in tree} == {1} and all(each["segments"] for each in tree)


@pytest.mark.parametrize("level", ["0", "1"])
def test_a_threshold_moves_the_number_of_segments(run: Run, level: str) -> None:
    counts = []
    for threshold in ("1e-9", "0.5", "0.999999"):
        done = run("--level", level, "--threshold", threshold, stdin=DATA)
        assert undone(run, done.out) == DATA
        counts.append(done.out.count(b"\n"))
    assert counts[0] >= counts[1] >= counts[2] < counts[0]
    assert run("--level", level, "--threshold", "0.5", stdin=DATA) == run("--level", level, stdin=DATA)


@pytest.mark.parametrize(("level", "rate"), [("0", 2.5), ("0", 4.0), ("1", 10.0)])
def test_segments_come_at_the_rate_asked_for(run: Run, level: str, rate: float) -> None:
    done = run("--level", level, "--bytes-per-segment", rate, stdin=DATA * 3)
    assert (done.code, done.errors) == (0, [])
    assert undone(run, done.out) == DATA * 3
    tolerance = 0.15 if level == "1" else 0.05  # a short text has few segments to choose among
    assert len(DATA * 3) / done.out.count(b"\n") == pytest.approx(rate, rel=tolerance)


def test_segments_come_at_a_rate_of_information(run: Run) -> None:
    data = DATA * 3
    counts = []
    for bits in ("12", "24"):
        done = run("--bits-per-segment", bits, "-v", stdin=data)
        assert done.code == 0 and undone(run, done.out) == data
        (told,) = (line for line in done.errors if "bits are" in line)
        each = float(told.split(" bits are ")[1].split()[0])
        counts.append(done.out.count(b"\n"))
        assert len(data) / counts[-1] == pytest.approx(each, rel=0.1)
    assert counts[0] == pytest.approx(2 * counts[1], rel=0.2)


def test_a_rate_does_not_depend_on_how_the_input_arrives(run: Run) -> None:
    data = (DATA * 200)[:70_000]
    whole = run("--bytes-per-segment", "5", "-v", stdin=data)
    assert "bytes a segment" in whole.errors[1]
    for borders in ([1], [65_535], [65_536, 65_536], [65_537], [*range(0, 70_000, 4999)]):
        pieces = [data[start:end] for start, end in itertools.pairwise([0, *borders, len(data)])]
        assert run("--bytes-per-segment", "5", "-v", stdin=Trickle(*pieces)) == whole
    head = run("--bytes-per-segment", "5", stdin=data[:65_536])
    assert head.out[:60_000] == whole.out[:60_000]


def test_a_rate_out_of_reach_is_told_for_each_file(run: Run) -> None:
    Path("long").write_bytes(DATA)
    Path("short").write_bytes(b"four")
    Path("empty").touch()
    done = run("--bytes-per-segment", "50", "--join", "", "long", "short", "empty", "-", stdin=DATA)
    assert (done.code, done.out) == (0, DATA + b"four" + DATA)
    assert len(done.errors) == 2
    for name, line in zip(("long", "-"), done.errors, strict=True):
        assert line.startswith(f"{name}: 50 bytes a segment cannot be reached at level 0; the nearest is ")
    assert run("-q", "--bytes-per-segment", "50", "long").errors == []
    assert "cannot be reached at level 1" in run("--level", "1", "--bytes-per-segment", "1.01", "long").errors[0]


@pytest.mark.parametrize("level", ["0", "1"])
def test_lines_are_texts_of_their_own(run: Run, level: str) -> None:
    found = objects(run("--level", level, "--json", "--line-buffered", stdin=DATA))
    assert b"".join(DATA[each["start"] : each["end"]] for each in found) == DATA
    assert [each["start"] for each in found[1:]] == [each["end"] for each in found[:-1]]
    offset = 0
    for line in io.BytesIO(DATA):
        alone = objects(run("--level", level, "--json", stdin=line))
        here = [each for each in found if offset <= each["start"] < offset + len(line)]
        assert here == [{**each, "start": each["start"] + offset, "end": each["end"] + offset} for each in alone]
        offset += len(line)


def test_lines_do_not_depend_on_how_the_input_arrives(run: Run) -> None:
    data = DATA + b"x" * 70_000 + b"\n\n" + DATA
    whole = run("--line-buffered", stdin=data)
    assert undone(run, whole.out) == data
    for size in (1, 100, 65_536):
        pieces = [data[start : start + size] for start in range(0, len(data) if size > 1 else 300, size)]
        expected = whole if size > 1 else run("--line-buffered", stdin=data[:300])
        assert run("--line-buffered", stdin=Trickle(*pieces)) == expected


def test_separators_stand_within_lines(run: Run) -> None:
    done = run("--line-buffered", "--join", "|", "--threshold", "0.1", stdin=b"one two\n\nthree\n")
    assert done.out.replace(b"|", b"") == b"one two\n\nthree\n"
    assert not any(line.startswith(b"|") for line in done.out.splitlines())


def test_a_line_is_shown_before_the_next_is_read(run: Run) -> None:
    out = io.BytesIO()
    seen = []

    class Watched(Trickle):
        def read(self, size: int | None = -1) -> bytes:
            seen.append(out.getvalue())
            return super().read(size)

    lines = [b"first line\n", b"second", b" line\nthird\n"]
    assert run("--line-buffered", "--join", "", stdin=Watched(*lines), stdout=out).code == 0
    assert seen == [b"", b"first line\n", b"first line\n", b"".join(lines)]


def test_lines_are_for_typed_input_unless_it_is_refused(run: Run) -> None:
    Path("file").write_bytes(b"one\ntwo\n")
    typed = run("-q", "--json", stdin=b"one\ntwo\n", stdin_is_terminal=True)
    assert [each["start"] for each in objects(typed) if each["prob"] == 1] == [0, 4]
    whole = run("--json", stdin=b"one\ntwo\n")
    assert run("--no-line-buffered", "--json", stdin=b"one\ntwo\n", stdin_is_terminal=True).out == whole.out
    assert run("--json", "file", stdin_is_terminal=True).out == whole.out.replace(b'"-"', b'"file"')
    rated = run("--json", "--bytes-per-segment", "3", stdin=b"one\ntwo\n")
    assert run("--json", "--bytes-per-segment", "3", stdin=b"one\ntwo\n", stdin_is_terminal=True).out == rated.out


def many_files() -> list[str]:
    """Files of all lengths, most of them short, among which some cannot be read."""
    Path("folder").mkdir()
    names = []
    for number, size in enumerate([30, 0, 500, 1, 0, 200, 3000, 40, 90_000, 7, 12, 0]):
        names.append(f"file{number}")
        Path(names[-1]).write_bytes((DATA * (1 + size // len(DATA)))[:size])
    return [*names[:3], "none", *names[3:6], "folder", "none", *names[6:], "gone"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json"], ["--prob"], ["--join", "|"], ["--tree"], ["-0"], ["--level", "1", "--json"], ["--line-buffered"],
        ["--bytes-per-segment", "4", "-q"], ["--line-buffered", "--join", "|"],
    ],
)  # fmt: skip
def test_files_together_are_cut_as_each_alone(run: Run, arguments: list[str]) -> None:
    names = many_files()
    found = run(*arguments, *names)
    each = [run(*arguments, name) for name in names]
    assert found.out == b"".join(one.out for one in each)
    assert (found.code, found.errors) == (1, [line for one in each for line in one.errors])
    assert len(found.errors) == 4


def test_a_page_and_statistics_of_many_files(run: Run) -> None:
    names = many_files()
    page = run("--html", "-", *names).out.decode()
    assert re.findall("<h2>(.+?)</h2>", page) == [name for name in names if name.startswith("file")]
    cut = [json.loads(line) for line in run("--json", *names).out.splitlines()]
    assert json.loads(run("--stats", "--json", *names).out)["segments"] == len(cut)


def test_short_files_are_cut_together(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []
    cut = LevelCutter._cut
    monkeypatch.setattr(LevelCutter, "_cut", lambda self, count: blocks.append(count) or cut(self, count))
    for number in range(50):
        Path(f"file{number}").write_bytes(DATA[number:])
    assert run(*(f"file{number}" for number in range(50))).code == 0
    assert len(blocks) == 1


def test_nothing_is_held_back_while_input_is_awaited_or_an_error_is_shown(run: Run) -> None:
    out = io.BytesIO()
    seen: list[bytes] = []

    class Watched(Trickle):
        def read(self, size: int | None = -1) -> bytes:
            seen.append(out.getvalue())
            return super().read(size)

    class Told(io.StringIO):
        def write(self, text: str) -> int:
            seen.append(out.getvalue())
            return super().write(text)

    for name in "abc":
        Path(name).write_bytes(name.encode() * 5)
    arguments = ["--join", "", "a", "b", "-", "c", "none", "a"]
    assert run(*arguments, stdin=Watched(b"in"), stdout=out, stderr=Told()).code == 1
    assert {*seen} == {b"aaaaabbbbb", b"aaaaabbbbbinccccc"} and seen == sorted(seen)
    assert out.getvalue() == b"aaaaabbbbbincccccaaaaa"


def test_a_pipe_is_not_opened_before_what_is_known_is_shown(run: Run) -> None:
    out = io.BytesIO()
    Path("file").write_bytes(b"before")
    os.mkfifo("pipe")
    seen: list[bytes] = []

    def feed() -> None:
        while out.getvalue() != b"before":
            time.sleep(0.01)
        seen.append(out.getvalue())
        Path("pipe").write_bytes(b"after")

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    assert run("--join", "", "file", "pipe", stdout=out).code == 0
    feeder.join(60)
    assert (seen, out.getvalue()) == ([b"before"], b"beforeafter")


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_probabilities_stand_before_segments(run: Run, end: bytes) -> None:
    null = ["-0"] if end == b"\0" else []
    records = run("--prob", *null, stdin=DATA).out.split(end)
    assert records.pop() == b""
    assert end.join([record.partition(b"\t")[2] for record in records]) + end == run(*null, stdin=DATA).out
    probs = [each["prob"] for each in objects(run("--json", stdin=DATA))]
    assert [float(record.partition(b"\t")[0]) for record in records] == pytest.approx(probs, abs=6e-5)


def test_a_terminal_gets_colours_shades_and_guides(run: Run) -> None:
    text = b"The town.\nIt lies"
    shaded = run("--prob", stdin=text, stdout_is_terminal=True).out
    assert b"\x1b[38;5;16;48;5;33mT\x1b[0m" in shaded
    assert re.sub(rb"\x1b\[[\d;]*m", b"", shaded) == text
    tree = run("--tree", stdin=text, stdout_is_terminal=True).out.decode()
    assert "└── " in tree and "\x1b[" in tree
    assert "█" in run("--stats", stdin=text, stdout_is_terminal=True).out.decode()
    for option in ("--prob", "--tree", "--stats"):
        plain = run(option, stdin=text, stdout_is_terminal=True, colour=False)
        assert plain == run(option, stdin=text)
    ended = run("--prob", "-0", stdin=text, stdout_is_terminal=True).out
    assert ended == run("--prob", "-0", stdin=text).out


def test_a_tree_begins_at_the_highest_level(run: Run) -> None:
    trees = objects(run("--tree", "--json", stdin=DATA))
    assert {each["level"] for each in trees} == {1}
    assert b"".join(DATA[each["start"] : each["end"]] for tree in trees for each in tree["segments"]) == DATA
    flat = {each["start"]: each for each in objects(run("--json", stdin=DATA))}
    assert {each["start"] for tree in trees for each in tree["segments"]} == flat.keys()
    lines = run("--tree", stdin=DATA).out.splitlines()
    assert sum(not line.startswith(b"  ") for line in lines) >= len(trees)
    inner = [each for tree in trees for each in (tree, *tree["segments"])]
    assert len(lines) == len(inner)
    assert run("--tree", "--level", "0", stdin=DATA) == run(stdin=DATA)


def test_figures_are_those_of_all_files_together(run: Run) -> None:
    Path("one").write_bytes(DATA)
    Path("two").write_bytes(TEXT.encode())
    (figures,) = objects(run("--stats", "--json", "--top", "3", "one", "two"))
    texts = [DATA[each["start"] : each["end"]] for each in objects(run("--json", "one"))]
    texts += [TEXT.encode()[each["start"] : each["end"]] for each in objects(run("--json", "two"))]
    assert (figures["segments"], figures["bytes"]) == (len(texts), len(DATA) + len(TEXT.encode()))
    assert figures["distinct"] == len(set(texts))
    assert figures["segments_per_word"] == len(texts) / (len(DATA.split()) + len(TEXT.encode().split()))
    assert figures["lengths"] == {str(n): c for n, c in sorted(Counter(map(len, texts)).items())}
    assert [each["count"] for each in figures["top"]] == [count for _, count in Counter(texts).most_common(3)]
    assert run("--stats", "one").out.startswith(b"segments")


def test_no_text_gives_empty_output(run: Run) -> None:
    for arguments in ([], ["--prob"], ["--tree"], ["--json"], ["--line-buffered"], ["--bytes-per-segment", "4"]):
        assert run(*arguments) == (0, b"", [])
    assert objects(run("--stats", "--json"))[0]["segments"] == 0
    assert run("--html", "-").out.endswith(b"<h2>standard input</h2>\n<div></div>\n</body>\n</html>\n")


@pytest.mark.parametrize("option", ["--prob", "--tree", "--stats", "--line-buffered", "--bytes-per-segment=3"])
def test_missing_files_are_named_and_the_rest_goes_on(run: Run, option: str) -> None:
    Path("there").write_bytes(DATA)
    done = run(option, "none", "there", ".")
    assert (done.code, done.out) == (1, run(option, "there").out)
    assert done.errors == ["zonkey: none: No such file or directory", "zonkey: .: Is a directory"]
    nothing = run(option, "none")
    assert (nothing.code, nothing.out) == (1, b"")


@pytest.mark.parametrize("option", ["--prob", "--tree", "--stats", "--html=-", "--line-buffered"])
def test_a_closed_pipe_is_a_quiet_end(run: Run, option: str) -> None:
    class Closed(io.BytesIO):
        def write(self, data: Any) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run(option, stdin=DATA, stdout=Closed()) == (0, b"", [])


def test_a_page_is_written_whole(run: Run) -> None:
    Path("text").write_bytes(DATA)
    page = Path("page.html")
    assert run("--html", page, "text") == (0, b"", [])
    assert page.stat().st_mode & 0o777 == 0o666 & ~umask()
    content = page.read_bytes()
    assert content.startswith(b"<!DOCTYPE html>") and content.endswith(b"</html>\n")
    assert content.count(b'class="s1"') > 2 and content.count(b'class="s0"') > content.count(b'class="s1"')
    assert content == run("--html", "-", "text").out
    page.chmod(0o600)
    assert run("--html", page, "--level", "0", "text").code == 0
    assert page.stat().st_mode & 0o777 == 0o600
    assert b'class="s1"' not in page.read_bytes()
    assert sorted(os.listdir()) == ["page.html", "text"]


def test_a_page_that_fails_leaves_the_old_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **named: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    Path("page").write_bytes(b"old")
    monkeypatch.setattr(Page, "end", fail)
    assert run("--html", "page", stdin=DATA) == (1, b"", ["zonkey: page: No space left on device"])
    assert run("--html", "other", stdin=DATA) == (1, b"", ["zonkey: other: No space left on device"])
    assert os.listdir() == ["page"] and Path("page").read_bytes() == b"old"


def test_a_page_with_nothing_to_show_is_not_written(run: Run) -> None:
    Path("page").write_bytes(b"old")
    assert run("--html", "page", "none") == (1, b"", ["zonkey: none: No such file or directory"])
    assert Path("page").read_bytes() == b"old"


def test_a_page_is_never_one_of_its_inputs(run: Run) -> None:
    Path("text").write_bytes(DATA)
    Path("link").symlink_to("text")
    for page in ("text", "./text", "link"):
        done = run("--html", page, "text")
        assert (done.code, done.out) == (2, b"")
        assert done.errors[0] == f"zonkey: --html {page} is also an input; give the page a name of its own."
    with open("text", "rb") as same:
        assert run("--html", "text", stdin=same).code == 2
    assert Path("text").read_bytes() == DATA
    assert run("--html", "page", "none", "text").code == 1


def test_a_page_that_cannot_be_written_is_named(run: Run) -> None:
    for page, reason in (("none/page", "No such file or directory"), (".", "Is a directory")):
        assert run("--html", page, stdin=DATA) == (1, b"", [f"zonkey: {page}: {reason}"])


def test_a_page_can_go_into_a_pipe(run: Run) -> None:
    reader, writer = os.pipe()
    assert run("--html", f"/dev/fd/{writer}", "--level", "0", stdin=b"text") == (0, b"", [])
    os.close(writer)
    with open(reader, "rb") as page:
        assert page.read().endswith(b"</html>\n")
    assert os.listdir() == []


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("arguments", [["-0"], ["-0", "--prob"]])
def test_nul_ends_segments_on_a_terminal_as_in_a_pipe(run: Run, arguments: list[str]) -> None:
    text = TEXT.encode() + b"a\0b\\"
    shown = run(*arguments, stdin=text, stdout_is_terminal=True)
    assert shown == run(*arguments, stdin=text)
    assert shown.code == 0 and shown.out.count(b"\0") > 20 and shown.out.endswith(b"\0")
    if arguments == ["-0"]:
        assert undone(run, shown.out, "-0") == text
