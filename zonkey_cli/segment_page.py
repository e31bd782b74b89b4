"""A page that shows how text is cut at every level: one HTML file that needs nothing outside itself and no script.

Segments of level 0 are tinted; those of a level above have a line below them in the colour of the level. The tint and
the bar at a segment's start are the stronger, the more probable the cut; a tip on each segment gives the figures.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from zonkey_cli.console import printable
from zonkey_cli.segment_formats import Format
from zonkey_core.inference.segments import Segment, Segments

_COLOURS = (
    ("30 95 190", "125 175 255"),
    ("190 75 20", "255 160 110"),
    ("20 120 70", "110 210 150"),
    ("140 50 150", "225 150 235"),
)
"""Of the levels in turn, on light and on dark ground."""
_UNSHOWN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\udc80-\udcff]")
"""Control characters but tab and newline, and bytes that are not valid UTF-8."""
_CONTROL_PICTURES = 0x2400

_HEAD = """\
<!DOCTYPE html>
<html lang="und">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Segments</title>
<style>
:root {{ color-scheme: light dark; --ground: #fff; --ink: #1b1b1b; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ground: #15171b; --ink: #e8e8e8; {dark} }} }}
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; background: var(--ground); color: var(--ink); }}
h1, h2, p {{ font: 1rem/1.6 system-ui, sans-serif; }}
h1, h2 {{ font-weight: 600; margin-top: 2rem; }}
div {{ white-space: pre-wrap; overflow-wrap: anywhere; font: 1.05rem/{height} Georgia, serif; }}
span {{ border-left: 2px solid rgb(var(--c) / calc(.15 + .85 * var(--p))); }}
b {{ padding: 0 .25em; border-radius: .25em; background: #b00020; color: #fff; font: .7em ui-monospace, monospace; }}
{levels}
</style>
</head>
<body>
<h1>Segments</h1>
<p>{legend}. Tint and bar are the stronger, the more probable the cut; point at a segment for its figures. White on red
is what cannot be shown: <b>FF</b> a byte that is not valid UTF-8, <b>␍</b> a control character.</p>
"""
_LOWEST = ".s0 { --c: var(--c0); background: rgb(var(--c) / calc(.05 + .2 * var(--p))); }"
_ABOVE = ".s%d { --c: var(--c%d); border-bottom: 2px solid rgb(var(--c) / .6); padding-bottom: %.2fem; }"


class Page(Format):
    """The page of all files."""

    def __init__(self, *, level: int) -> None:
        self._level = level
        self._begun = False

    def begin(self, name: str) -> bytes:
        """The head of the page, once, and that of a file."""
        before = "</div>\n" if self._begun else self._head()
        self._begun = True
        title = "standard input" if name == "-" else printable(name)
        return _encoded(f"{before}<h2>{html.escape(title)}</h2>\n<div>")

    def show(self, segments: Segments, *, first: bool) -> bytes:
        """A run, nested."""
        return _encoded("".join(piece for segment in segments.nested() for piece in _spans(segment, "")))

    def end(self) -> bytes:
        """What is open is closed."""
        return b"</div>\n</body>\n</html>\n"

    def _head(self) -> str:
        """Everything above the first file."""
        levels = range(self._level + 1)
        light, dark = (
            " ".join(f"--c{level}: {_COLOURS[level % len(_COLOURS)][ground]};" for level in levels)
            for ground in range(2)
        )
        rules = [_LOWEST, *(_ABOVE % (level, level, 0.3 * level) for level in levels[1:])]
        legend = ", ".join(f'<span class="s{level}" style="--p:1">level {level}</span>' for level in levels)
        return _HEAD.format(
            light=light, dark=dark, levels="\n".join(rules), height=1.8 + 0.4 * self._level, legend=legend
        )


def _spans(segment: Segment, outer: str) -> Iterator[str]:
    """A segment and all in it; `outer` tells of those around it that begin where it does."""
    length = segment.end - segment.start
    tip = f"level {segment.level}: cut {segment.prob:.4f} at byte {segment.start}, length {length}{outer}"
    yield f'<span class="s{segment.level}" style="--p:{segment.prob:.2f}" title="{tip}">'
    for index, each in enumerate(segment.segments):
        yield from _spans(each, "" if index else f"&#10;{tip}")
    if not segment.segments:
        escaped = html.escape(segment.text.decode("utf-8", "surrogateescape"), quote=False)
        yield _UNSHOWN.sub(_visible, escaped)
    yield "</span>"


def _visible(match: re.Match[str]) -> str:
    """A byte in hexadecimal, and a control as its picture or its number."""
    code = ord(match[0])
    if code >= 0xDC80:
        shown = f"{code - 0xDC00:02X}"
    elif code < 0x20:
        shown = chr(_CONTROL_PICTURES + code)
    else:
        shown = "␡" if code == 0x7F else f"U+{code:04X}"
    return f"<b>{shown}</b>"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")
