"""What `zonkey infill` writes: texts with their fills, in colour where wanted, candidates, diffs, JSON objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zonkey_cli.escaping import escape_line
from zonkey_cli.streams import Streams, harmless
from zonkey_cli.unified_diff import Change, unified_diff

if TYPE_CHECKING:
    from zonkey_core.inference.gap_windows import Gap
    from zonkey_core.inference.infilling import Fill

_FILLED = b"\x1b[32m"
_RESET = b"\x1b[0m"


def write_text(streams: Streams, data: bytes, fills: Sequence[Fill]) -> None:
    """The text with its gaps filled; a terminal sees the fills in green."""
    from zonkey_core.inference.infilling import apply_fills

    if not streams.colours_output:
        streams.write(apply_fills(data, fills))
        return
    position = 0
    for fill in fills:
        streams.write(harmless(data[position : fill.start]), styled=True)
        streams.write(_FILLED + harmless(fill.text) + _RESET, styled=True)
        position = fill.end
    streams.write(harmless(data[position:]), styled=True)


def write_diff(streams: Streams, name: str, data: bytes, fills: Sequence[Fill]) -> None:
    """What the fills change, as git and patch understand it."""
    streams.write(unified_diff(name, data, [Change(fill.start, fill.end, fill.text) for fill in fills]))


def write_candidates(streams: Streams, fills: Sequence[Fill]) -> None:
    """A line for each candidate of each gap: where the gap begins, the score, and the text with escapes."""
    for fill in fills:
        for candidate in fill.candidates:
            streams.write(b"%d\t%.3f\t%s\n" % (fill.start, candidate.score, escape_line(candidate.text)))


def as_object(name: str, gaps: Sequence[Gap], fills: Sequence[Fill]) -> dict[str, Any]:
    """A file for JSON; the text of a gap that stays as it is is null."""
    found = {fill.start: fill for fill in fills}
    return {"file": name, "fills": [_gap_object(gap, found.get(gap.start)) for gap in gaps]}


def _gap_object(gap: Gap, fill: Fill | None) -> dict[str, Any]:
    if fill is None:
        return {"start": gap.start, "end": gap.end, "text": None, "score": None, "candidates": []}
    return {
        "start": gap.start,
        "end": gap.end,
        "text": _text(fill.text),
        "score": round(fill.score, 6),
        "candidates": [
            {"text": _text(each.text), "score": round(each.score, 6), "log_prob": round(each.log_prob, 6)}
            for each in fill.candidates
        ],
    }


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
