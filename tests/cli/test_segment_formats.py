"""The formats of segments, given segments: records that can be undone, running text, JSON, trees, figures, a page."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonkey_cli.escaping import undo
from zonkey_cli.segment_formats import Coloured, Format, Joined, JsonLines, Records
from zonkey_cli.segment_page import Page
from zonkey_cli.segment_stats import Stats, drawn_report, json_report, plain_report
from zonkey_cli.segment_tree import DrawnTree, IndentedTree
from zonkey_cli.streams import harmless
from zonkey_core.inference.segments import Segments, Starts

TRICKY = st.sampled_from(
    [b"\\", b"\n", b"\t", b"\r", b"\0", b"\x1b", b" ", b"\xff", b"<&>\"'", "é日".encode(), b"\xed\xa0\x80"]
)
TEXTS = st.lists(st.one_of(TRICKY, st.binary(min_size=1, max_size=4)), min_size=1, max_size=4).map(b"".join)
LISTS = st.lists(TEXTS, min_size=1, max_size=8)


def starts(texts: list[bytes], at: int, probs: list[float] | None = None) -> Starts:
    offsets = np.cumsum([at, *map(len, texts[:-1])])
    return Starts(offsets, np.array(probs or [0.75] * len(texts), dtype=np.float32))


def run_of(texts: list[bytes], probs: list[float] | None = None, at: int = 0) -> Segments:
    """Segments of one level."""
    return Segments(at, b"".join(texts), (starts(texts, at, probs),))


def nest_of(nests: list[list[bytes]], at: int = 0) -> Segments:
    """Segments of two levels."""
    inner = starts([text for texts in nests for text in texts], at)
    return Segments(at, b"".join(map(b"".join, nests)), (inner, starts([b"".join(texts) for texts in nests], at)))


def written(form: Format, *runs: Segments, name: str = "file") -> bytes:
    """What a format writes of one text."""
    shown = [form.show(segments, first=index == 0) for index, segments in enumerate(runs)]
    return form.begin(name) + b"".join(shown) + form.end()


@given(LISTS, LISTS, st.booleans(), st.booleans())
def test_records_hold_a_segment_each_and_can_be_undone(
    one: list[bytes], other: list[bytes], null: bool, prob: bool
) -> None:
    texts, end = one + other, b"\0" if null else b"\n"
    records = written(Records(null=null, prob=prob), run_of(one), run_of(other, at=7)).split(end)
    assert records.pop() == b""
    if prob:
        assert {record[:7] for record in records} == {b"0.7500\t"}
        records = [record[7:] for record in records]
    assert [b"".join(undo([record], end=end)) for record in records] == texts


def test_only_what_must_be_is_escaped() -> None:
    run = run_of([b"a\tb\n\r", b"\\ \x00\xff"])
    assert Records(null=False, prob=False).show(run, first=True) == b"a\\tb\\n\\r\n\\\\ \x00\xff\n"
    assert Records(null=True, prob=False).show(run, first=True) == b"a\tb\n\r\0\\\\ \\0\xff\0"


def test_probabilities_have_four_decimals() -> None:
    run = run_of([b"a", b"b", b"c"], [1.0, 0.99996, 1e-7])
    assert Records(null=False, prob=True).show(run, first=True) == b"1.0000\ta\n1.0000\tb\n0.0000\tc\n"


@given(LISTS, LISTS, st.binary(max_size=3))
def test_joined_text_has_the_separator_between_segments(one: list[bytes], other: list[bytes], separator: bytes) -> None:
    assert written(Joined(separator), run_of(one), run_of(other)) == separator.join(one + other)


@given(LISTS, LISTS, st.booleans())
def test_colours_take_only_control_characters_away(one: list[bytes], other: list[bytes], prob: bool) -> None:
    shown = written(Coloured(prob=prob), run_of(one), run_of(other))
    assert re.sub(rb"\x1b\[[\d;]*m", b"", shown) == b"".join(harmless(text) for text in one + other)


def test_colours_alternate_and_shades_grow_with_probability() -> None:
    run = run_of([b" one", "é".encode(), b"\n", b"two"], [0.999, 0.6, 0.9, 0.1])
    assert Coloured(prob=False).show(run, first=True) == (
        b"\x1b[36m one\x1b[0m\x1b[33m\xc3\xa9\x1b[0m\x1b[36m\n\x1b[0m\x1b[33mtwo\x1b[0m"
    )
    assert Coloured(prob=True).show(run, first=True) == (
        b"\x1b[38;5;16;48;5;33m \x1b[0m\x1b[36mone\x1b[0m\x1b[38;5;16;48;5;102m\xc3\xa9\x1b[0m"
        b"\x1b[36m\n\x1b[0m\x1b[4mt\x1b[0m\x1b[33mwo\x1b[0m"
    )


def test_json_of_one_level_and_of_all() -> None:
    nest = nest_of([[b"a", b"b\xff"], [b"c"]], at=10)
    flat = [json.loads(line) for line in written(JsonLines(nested=False), nest, name="x").splitlines()]
    assert flat[0] == {"file": "", "level": 1, "start": 10, "end": 13, "prob": 0.75, "text": "ab\ufffd"}
    form = JsonLines(nested=True)
    assert form.begin("x") == form.end() == b""
    first, second = map(json.loads, form.show(nest, first=True).splitlines())
    assert (first["file"], first["level"], second["text"]) == ("x", 1, "c")
    assert [(each["level"], each["start"], each["end"], each["text"]) for each in first["segments"]] == [
        (0, 10, 11, "a"), (0, 11, 13, "b\ufffd"),
    ]
    assert all("segments" not in each and "file" not in each for each in first["segments"])


def test_indented_tree() -> None:
    nest = nest_of([[b"a\n", b" b"], [b"\\"]])
    assert written(IndentedTree(), nest) == b"a\\n b\n  a\\n\n   b\n\\\\\n  \\\\\n"
    assert written(IndentedTree(), run_of([b"a", b"b"])) == b"a\nb\n"


def test_drawn_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = written(DrawnTree(width=40), nest_of([[b"a\n\x1b", b"[b]"], [b"c\xff"]])).decode()
    assert re.sub("\x1b\\[[\\d;]*m", "", shown).splitlines() == [
        "a\\n\ufffd[b]", "├── a\\n\ufffd", "└── [b]", "c\ufffd", "└── c\ufffd",
    ]
    assert "\x1b[36ma" in shown and "\x1b[33m[b]" in shown


def stats_of(texts: list[bytes], report: Callable[[Stats], bytes], top: int = 20) -> bytes:
    return written(Stats(level=0, top=top, report=report), *(run_of([text]) for text in texts))


def test_figures_as_json() -> None:
    form = Stats(level=3, top=2, report=json_report)
    for name, texts in (("a", [b"the", b" cat", b" the"]), ("b", [b"\n", b"the", b" cat\xff"])):
        assert form.begin(name) == form.show(run_of(texts), first=True) == b""
    assert json.loads(form.end()) == {
        "level": 3, "segments": 6, "bytes": 20, "bytes_per_segment": 20 / 6, "segments_per_word": 6 / 5,
        "distinct": 5, "distinct_share": 5 / 6, "lengths": {"1": 1, "3": 2, "4": 2, "5": 1},
        "top": [{"text": "the", "count": 2}, {"text": "\n", "count": 1}],
    }


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=4), max_size=4))
def test_words_are_counted_across_runs_and_not_across_files(files: list[list[bytes]]) -> None:
    form = Stats(level=0, top=1, report=json_report)
    for texts in files:
        form.begin("file")
        for text in texts:
            form.show(run_of([text]), first=False)
    assert form.words == sum(len(b"".join(texts).split()) for texts in files)


def test_figures_of_nothing() -> None:
    empty = json.loads(stats_of([], json_report))
    assert empty["segments"] == 0 and empty["top"] == []
    assert empty["bytes_per_segment"] is empty["segments_per_word"] is empty["distinct_share"] is None
    assert stats_of([], plain_report) == b"segments           0\nbytes              0\ndistinct segments  0\n"
    assert b"segments" in stats_of([], drawn_report)


def test_figures_as_text() -> None:
    shown = stats_of([b"the", b" cat ", b"the", b"\n\xff"], plain_report, top=2).decode("utf-8", "surrogateescape")
    facts, lengths, frequent = shown.split("\n\n")
    assert facts.splitlines()[:3] == [
        "segments                    4", "bytes                      13", "bytes per segment        3.25",
    ]
    assert lengths.splitlines()[0] == "bytes  segments  share"
    assert lengths.splitlines()[3] == "    3         2  50.0%  " + "█" * 40
    assert frequent.splitlines() == ["count  share  segment", "    2  50.0%  the", "    1  25.0%  \\n\udcff"]
    assert stats_of([b"a"], plain_report, top=0).count(b"\n\n") == 1


@pytest.mark.parametrize("longest", [1, 16, 17, 24, 1152])
def test_a_histogram_has_few_bars_and_all_segments(longest: int) -> None:
    lengths = stats_of([b"x" * longest, b"y", b"z" * (longest // 2 + 1)], plain_report).decode().split("\n\n")[1]
    rows = [line.split() for line in lengths.splitlines()[1:]]
    assert len(rows) <= 16
    assert sum(int(row[1]) for row in rows) == 3
    assert max(row[-1].count("█") for row in rows) == 40


def test_figures_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = stats_of([b" cat", b"\x1b\xff"], lambda stats: drawn_report(stats, width=70)).decode()
    assert "\x1b[4;36m cat\x1b[0m" in shown
    assert "█" in shown and "\ufffd\ufffd" in shown and "bytes per segment" in shown
    assert not re.sub("\x1b\\[[\\d;]*m", "", shown).count("\x1b")


class PageReader(HTMLParser):
    """Reads a page: the text of its files, with what could not be shown in brackets, and that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.spans: list[dict[str, str | None]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "meta":
            return
        self._open.append(tag)
        if tag == "div":
            self.texts.append("")
        elif tag == "span" and "div" in self._open:
            self.spans.append(dict(attributes))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "div" in self._open:
            self.texts[-1] += f"[{data}]" if self._open[-1] == "b" else data

    def close(self) -> None:
        super().close()
        assert not self._open


def read_page(page: bytes) -> PageReader:
    reader = PageReader()
    reader.feed(page.decode())
    reader.close()
    return reader


@given(st.lists(LISTS, min_size=1, max_size=3))
def test_a_page_holds_the_text(nests: list[list[bytes]]) -> None:
    page = read_page(written(Page(level=1), nest_of(nests)))
    (shown,) = page.texts
    expected = b"".join(itertools.chain.from_iterable(nests))
    raw = re.sub(r"\[([0-9A-F]{2})\]", lambda match: chr(0xDC00 + int(match[1], 16)), shown)
    raw = re.sub("\\[([\u2400-\u241f])\\]", lambda match: chr(ord(match[1]) - 0x2400), raw)
    raw = re.sub(r"\[U\+([0-9A-F]{4})\]", lambda match: chr(int(match[1], 16)), raw).replace("[␡]", "\x7f")
    if b"[" not in expected:
        assert raw.encode("utf-8", "surrogateescape") == expected
    assert len(page.spans) == len(nests) + sum(map(len, nests))


def test_a_page_of_several_files_tells_probabilities_and_needs_nothing_else() -> None:
    form = Page(level=1)
    parts = [form.begin("<b>.txt"), form.show(nest_of([[b"a", b"b"]], at=5), first=True), form.begin("-"), form.end()]
    page = b"".join(parts)
    assert read_page(page).texts == ["ab", ""]
    assert b"<h2>&lt;b&gt;.txt</h2>" in page and b"<h2>standard input</h2>" in page
    titles = [span["title"] for span in read_page(page).spans]
    assert titles == [
        "level 1: cut 0.7500 at byte 5, length 2",
        "level 0: cut 0.7500 at byte 5, length 1\nlevel 1: cut 0.7500 at byte 5, length 2",
        "level 0: cut 0.7500 at byte 6, length 1",
    ]
    assert {span["style"] for span in read_page(page).spans} == {"--p:0.75"}
    assert b"prefers-color-scheme: dark" in page
    assert not re.search(rb"<script|<link|<img|url\(|https?:|@import", page)


def test_a_format_has_nothing_around_its_segments_unless_it_says_so() -> None:
    assert (Format().begin("file"), Format().end()) == (b"", b"")
    with pytest.raises(NotImplementedError):
        Format().show(run_of([b"a"]), first=True)
