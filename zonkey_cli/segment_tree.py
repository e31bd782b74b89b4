"""Segments of every level, nested: drawn with guides on a terminal, indented anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from zonkey_cli.console import printable
from zonkey_cli.escaping import escape_line
from zonkey_cli.segment_formats import Format
from zonkey_core.inference.segments import Segment, Segments

if TYPE_CHECKING:
    from rich.tree import Tree

_STYLES = ("cyan", "yellow")
_INDENT = b"  "


class IndentedTree(Format):
    """A line for each segment, above those that it consists of, which are indented further."""

    def show(self, segments: Segments, *, first: bool) -> bytes:
        """The lines of a run."""
        return b"".join(line for segment in segments.nested() for line in _lines(segment, b""))


class DrawnTree(Format):
    """The same with the guides and colours of Rich; the segments of level 0 alternate in colour."""

    styled = True

    def __init__(self, *, width: int | None = None) -> None:
        from rich.console import Console

        self._console = Console(force_terminal=True, highlight=False, width=width)
        self._count = 0

    def show(self, segments: Segments, *, first: bool) -> bytes:
        """The drawing of a run."""
        with self._console.capture() as capture:
            for segment in segments.nested():
                self._console.print(self._grown(segment, None))
        return capture.get().encode()

    def _grown(self, segment: Segment, parent: Tree | None) -> Tree:
        """`segment` and all in it, as a branch of `parent` or a tree of its own."""
        from rich.text import Text
        from rich.tree import Tree

        label = Text(_label(segment.text), style="bold" if segment.segments else self._next_style())
        tree = Tree(label, guide_style="dim") if parent is None else parent.add(label)
        for each in segment.segments:
            self._grown(each, tree)
        return tree

    def _next_style(self) -> str:
        self._count += 1
        return _STYLES[(self._count - 1) % len(_STYLES)]


def _lines(segment: Segment, indent: bytes) -> Iterator[bytes]:
    """The lines of a segment and of all in it."""
    yield indent + escape_line(segment.text) + b"\n"
    for each in segment.segments:
        yield from _lines(each, indent + _INDENT)


def _label(text: bytes) -> str:
    """A segment as a terminal may show it."""
    return printable(escape_line(text).decode("utf-8", "replace"))
