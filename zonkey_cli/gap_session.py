"""Gaps filled one by one by a person at a terminal, who chooses among candidates; nothing is written until the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from zonkey_cli.console import printable

if TYPE_CHECKING:
    from zonkey_core.inference.gap_windows import Gap
    from zonkey_core.inference.infilling import Candidate

SHOWN_BYTES = 160
"""Text that is shown on either side of a gap."""
HELP = "a number takes that fill, Enter the first; n draws others, t types one, s skips, u undoes, q ends, ? helps"

Draw = Callable[[bytes, "Sequence[Gap]", int], "Sequence[Candidate]"]
"""Candidates for the first gap of a text with gaps, given how often they were drawn before."""


class NoTerminalError(Exception):
    """There is nobody to ask."""


class Terminal:
    """The terminal that the process was started from, whatever its standard streams are."""

    def __init__(self, path: str = "/dev/tty") -> None:
        """Open it; raises `NoTerminalError` where there is none."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            raise NoTerminalError(path) from error

    def say(self, text: str) -> None:
        """Write text whose lines are `printable`."""
        left = text.encode("utf-8", "replace")
        while left:
            left = left[os.write(self._descriptor, left) :]

    def ask(self, question: str) -> str | None:
        """A line without its end, and without white space around it where it is a command; None at the end of input."""
        self.say(question)
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(self._descriptor, 4096)
            if not piece:
                return None
            line += piece
        return line[:-1].decode("utf-8", "surrogateescape")

    def close(self) -> None:
        """Give it back."""
        os.close(self._descriptor)


class GapSession:
    """The gaps of one file, what was decided of each, and the questions that are left."""

    def __init__(self, terminal: Terminal, name: str, data: bytes, gaps: Sequence[Gap], draw: Draw) -> None:
        self.terminal, self.name, self.data, self.draw = terminal, name, data, draw
        self.gaps = list(gaps)
        self.decided: list[bytes | None] = []
        """What goes into the first gaps; None where one is skipped."""

    def run(self) -> list[tuple[Gap, bytes]] | None:
        """Ask until all gaps are decided and the whole is confirmed: what goes where, or None for nothing at all."""
        self.terminal.say(f"{printable(self.name)}: {len(self.gaps)} gap{'s' * (len(self.gaps) != 1)}; {HELP}\n")
        quitting = False
        while True:
            while len(self.decided) < len(self.gaps) and not quitting:
                going = self._decide()
                if going is None:
                    return None
                quitting = not going
            chosen = [(gap, text) for gap, text in zip(self.gaps, self.decided, strict=False) if text is not None]
            if not chosen and quitting:
                return None
            answer = self.terminal.ask(f"write {len(chosen)} of {len(self.gaps)}? y writes, n leaves all, u undoes: ")
            if answer is None or answer.strip() == "n":
                return None
            if answer.strip() == "y":
                return chosen
            if answer.strip() == "u" and self.decided:
                self.decided.pop()
                quitting = False

    def _decide(self) -> bool | None:
        """Decide the next gap, or undo the last decision; false to ask of no other, None where nobody answers."""
        text, gaps = self._so_far()
        draws = 0
        candidates = self.draw(text, gaps, draws)
        self._show(text, gaps[0], candidates)
        while True:
            answer = self.terminal.ask("> ")
            if answer is None:
                return None
            word = answer.strip()
            if word.isdecimal() and 1 <= int(word) <= len(candidates):
                self.decided.append(candidates[int(word) - 1].text)
                return True
            if not word and candidates:
                self.decided.append(candidates[0].text)
                return True
            if word == "n":
                draws += 1
                candidates = self.draw(text, gaps, draws)
                self._show(text, gaps[0], candidates)
            elif word == "t":
                typed = self.terminal.ask("text: ")
                if typed is None:
                    return None
                self.decided.append(typed.encode("utf-8", "surrogateescape"))
                return True
            elif word == "s":
                self.decided.append(None)
                return True
            elif word == "u" and self.decided:
                self.decided.pop()
                return True
            elif word == "q":
                return False
            else:
                self.terminal.say(HELP + "\n")

    def _so_far(self) -> tuple[bytes, list[Gap]]:
        """The text with what was decided, and the gaps that are left in it."""
        from zonkey_core.inference.gap_windows import Gap

        parts, position, grown = [], 0, 0
        for gap, text in zip(self.gaps, self.decided, strict=False):
            parts += [self.data[position : gap.start], self.data[gap.start : gap.end] if text is None else text]
            grown += 0 if text is None else len(text) - (gap.end - gap.start)
            position = gap.end
        left = self.gaps[len(self.decided) :]
        return b"".join([*parts, self.data[position:]]), [Gap(gap.start + grown, gap.end + grown) for gap in left]

    def _mask(self) -> bytes:
        """What marks the next gap."""
        gap = self.gaps[len(self.decided)]
        return self.data[gap.start : gap.end]

    def _show(self, text: bytes, gap: Gap, candidates: Sequence[Candidate]) -> None:
        """The gap with what stands around it, and what could go there."""
        before, after = _shown(text[: gap.start][-SHOWN_BYTES:]), _shown(text[gap.end :][:SHOWN_BYTES])
        place = f"{len(self.decided) + 1}/{len(self.gaps)}"
        self.terminal.say(f"\n{place}  ...{before}[{_shown(self._mask())}]{after}...\n")
        for number, candidate in enumerate(candidates, 1):
            self.terminal.say(f"{number:3}  {_shown(candidate.text)}  ({candidate.score:.1f})\n")
        if not candidates:
            self.terminal.say("no fill of the length asked for; n draws again, t types one, s skips\n")


def _shown(data: bytes) -> str:
    return printable(data.decode("utf-8", "replace"))
