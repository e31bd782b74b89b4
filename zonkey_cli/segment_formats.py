"""Segments as lines, records, running text or JSON lines.

A format is told when a file begins, takes runs of segments, and gives bytes. The plain ones handle a run as a whole,
since a long text has a segment every few bytes. This module imports numpy and is imported only by a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonkey_cli.escaping import LINE_ESCAPES, NULL_ESCAPES
from zonkey_cli.streams import harmless, json_line
from zonkey_core.inference.segments import Segment, Segments

_COLOURS = (b"\x1b[36m", b"\x1b[33m")
_RESET = b"\x1b[0m"
_FIRST_CHARACTER = re.compile(rb"[^\0-\x1f\x7f][\x80-\xbf]{0,3}")
_SHADES = (
    (0.99, b"\x1b[38;5;16;48;5;33m"),
    (0.95, b"\x1b[38;5;16;48;5;68m"),
    (0.8, b"\x1b[38;5;16;48;5;103m"),
    (0.5, b"\x1b[38;5;16;48;5;102m"),
    (0.0, b"\x1b[4m"),
)
"""How a character looks, by the probability from which on: black on a grey that turns to blue. All are of middle
lightness and so stand out from a dark and from a light screen. Below one half it is underlined."""


class Format:
    """Turns segments into bytes; this one writes nothing but what `show` gives."""

    styled = False
    """Whether the bytes hold sequences for a terminal, and no other control characters than those."""
    null = False
    """Whether NUL ends what is shown, and stands nowhere else."""

    def begin(self, name: str) -> bytes:
        """What comes before the segments of file `name`."""
        return b""

    def show(self, segments: Segments, *, first: bool) -> bytes:
        """A run of segments, the `first` of a text or a later one."""
        raise NotImplementedError

    def end(self) -> bytes:
        """What comes after all files."""
        return b""


class Records(Format):
    """A record for each segment, ended by a newline or NUL; with `prob`, after the probability of its cut and a tab."""

    def __init__(self, *, null: bool, prob: bool) -> None:
        self.null = null
        self._end = 0 if null else ord("\n")
        self._letters = _letters(NULL_ESCAPES if null else LINE_ESCAPES)
        self._prob = prob

    def show(self, segments: Segments, *, first: bool) -> bytes:
        """Records of a run."""
        shown = np.frombuffer(segments.text, dtype=np.uint8).copy()
        letters = self._letters[shown]
        special = np.flatnonzero(letters)
        shown[special] = letters[special]
        begins = segments.begins
        pieces = [(np.append(begins[1:], len(shown)), _column(self._end, len(begins)))]
        if self._prob:
            pieces.append((begins, _fields(segments.probs)))
        pieces.append((special, _column(ord("\\"), len(special))))
        return _insert(shown, pieces)


class Joined(Format):
    """Running text with a separator between the segments of a text."""

    def __init__(self, separator: bytes) -> None:
        self._separator = np.frombuffer(separator, dtype=np.uint8)

    def show(self, segments: Segments, *, first: bool) -> bytes:
        """The text of a run."""
        places = segments.begins[1:] if first else segments.begins
        return _insert(
            np.frombuffer(segments.text, dtype=np.uint8), [(places, np.tile(self._separator, (len(places), 1)))]
        )


class Coloured(Format):
    """Running text whose segments alternate in colour; with `prob`, their first characters show it."""

    styled = True

    def __init__(self, *, prob: bool) -> None:
        self._prob = prob
        self._count = 0

    def show(self, segments: Segments, *, first: bool) -> bytes:
        """The text of a run."""
        shown = []
        for text, prob in zip(segments.texts(), segments.probs.tolist(), strict=True):
            colour = _COLOURS[self._count % len(_COLOURS)]
            self._count += 1
            text = harmless(text)
            if self._prob and (character := _FIRST_CHARACTER.match(text)):
                text = text[character.end() :]
                shown += [_shade(prob), character[0], _RESET]
            if text:
                shown += [colour, text, _RESET]
        return b"".join(shown)


class JsonLines(Format):
    """One object for each segment; with `nested`, with those that it consists of."""

    def __init__(self, *, nested: bool) -> None:
        self._nested = nested
        self._name = ""

    def begin(self, name: str) -> bytes:
        """The objects name the file themselves."""
        self._name = name
        return b""

    def show(self, segments: Segments, *, first: bool) -> bytes:
        """The objects of a run."""
        found = segments.nested() if self._nested else segments.flat()
        return b"".join(json_line({"file": self._name, **_object(segment)}) for segment in found)


def _object(segment: Segment) -> dict[str, Any]:
    """A segment for JSON."""
    found: dict[str, Any] = {
        "level": segment.level,
        "start": segment.start,
        "end": segment.end,
        "prob": round(segment.prob, 6),
        "text": segment.text.decode("utf-8", "replace"),
    }
    if segment.segments:
        found["segments"] = [_object(each) for each in segment.segments]
    return found


def _shade(prob: float) -> bytes:
    """The sequence that begins a character of this probability."""
    return next(sequence for least, sequence in _SHADES if prob >= least)


def _letters(escapes: Mapping[bytes, bytes]) -> NDArray[np.uint8]:
    """[256] what stands after a backslash for each byte, and 0 where it stands for itself."""
    letters = np.zeros(256, dtype=np.uint8)
    for escaped, letter in escapes.items():
        letters[ord(escaped)] = ord(letter)
    return letters


def _column(byte: int, rows: int) -> NDArray[np.uint8]:
    return np.full((rows, 1), byte, dtype=np.uint8)


def _fields(probs: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[M, 7] probabilities with four decimals and a tab each."""
    return np.frombuffer(b"".join(b"%.4f\t" % prob for prob in probs.tolist()), dtype=np.uint8).reshape(len(probs), -1)


def _insert(text: NDArray[np.uint8], pieces: list[tuple[NDArray[np.int64], NDArray[np.uint8]]]) -> bytes:
    """`text` with pieces [M, N] put in before its bytes at places [M]; at one place, the earlier piece comes first."""
    places = np.concatenate([np.repeat(at, piece.shape[1]) for at, piece in pieces])
    values = np.concatenate([piece.ravel() for _, piece in pieces])
    return np.insert(text, places, values).tobytes()
