"""Infilling: gaps of unknown length in a text, filled from both sides; every byte outside them is kept.

The same descent as for generation: every level reads what stands on both sides of the gaps, a segment that a gap lies
in is unknown and formed from noise from the top down, and the lowest level tells the open slots with the plans of their
blocks. How many there are is existence that decays from both sides: candidates get lengths from all over its
distribution. For each gap the one is kept with which the model finds the fill and the text behind it likeliest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import torch

from zonkey_core.diffusion.decoding_order import GAP_WIDTH
from zonkey_core.errors import ConfigError
from zonkey_core.inference.gap_filling import (
    FilledRow,
    GappedRow,
    GapScore,
    draw_lengths,
    fill_gaps,
    score_fills,
)
from zonkey_core.inference.gap_planning import GappedBlocks, GapsToPlan, gapped_blocks, plan_gaps
from zonkey_core.inference.gap_windows import Gap, GappedDocument, Window, windows_around
from zonkey_core.inference.generation import check_sampling, unfold_entries
from zonkey_core.inference.planning import BlockPlan
from zonkey_core.inference.shared_context import Context, Pieces, read_contexts
from zonkey_core.inference.text_reading import TextReader
from zonkey_core.inference.workers import shared_out, side_by_side
from zonkey_core.model.model import Zonkey

HIGHEST_SHARE = 0.625
"""Candidates get lengths up to the one below which the denoiser thinks so much of all possible; longer ones seldom
win, and take longest."""
SEAM_WEIGHT = 1.0
"""How much what follows a gap counts in ranking, beside what is put into it."""
SLOT_NATS = 2.75
"""What a slot of a fill is expected to cost, in nats: a fill that costs more loses by it, and one that costs less gains
nothing, since text that is too easy to foresee is as strange. Both were chosen on validation text
(docs/experiments.md)."""
TOLD_BY_ONE = 4
"""Candidates for a gap, at most, that are told by one plan."""
WINDOWS_TOGETHER = 16
"""Windows that are filled side by side."""
ATTEMPTS = 4
"""Times that candidates are drawn for a gap before it is left as it is."""


class Candidate(msgspec.Struct, frozen=True):
    """What could go into a gap."""

    text: bytes
    score: float
    """What candidates are ranked by, made of the log-probabilities of the fill and of what follows it."""
    log_prob: float
    """Exact, in nats, of its strings and of those that follow the gap (`gap_filling.score_fills`)."""


class Fill(msgspec.Struct, frozen=True):
    """What goes there."""

    start: int
    end: int
    text: bytes
    score: float
    candidates: tuple[Candidate, ...] = ()
    """All different ones that were drawn, the best first; `text` is the first of them."""


class InfillingOptions(msgspec.Struct, frozen=True):
    """How gaps are filled."""

    steps: int = 8
    temperature: float = 1.0
    candidates: int = 8
    min_bytes: int = 0
    """Bytes of a fill at least."""
    max_bytes: int | None = None
    """Bytes of a fill at most."""


def apply_fills(data: bytes, fills: Sequence[Fill]) -> bytes:
    """The text with its gaps filled; everything else is unchanged."""
    parts, position = [], 0
    for fill in sorted(fills, key=lambda each: each.start):
        parts += [data[position : fill.start], fill.text]
        position = fill.end
    return b"".join([*parts, data[position:]])


def infill(
    model: Zonkey,
    data: bytes,
    gaps: Sequence[Gap],
    *,
    seed: int,
    options: InfillingOptions,
    on_filled: Callable[[int], None] = lambda count: None,
) -> list[Fill]:
    """Fill the gaps of a text; raises `ConfigError` for options out of range.

    A gap for which no candidate has a length within `min_bytes` and `max_bytes` is left out. `on_filled` is told how
    many gaps are done so far.
    """
    document = GappedDocument(data, gaps, seed)
    fills: list[Fill] = []
    done = 0
    for _, drawn in infill_documents(model, [document], options=options):
        done += len(drawn)
        fills += [fill for fill in drawn if fill is not None]
        on_filled(done)
    return fills


def infill_documents(
    model: Zonkey, documents: Sequence[GappedDocument], *, options: InfillingOptions
) -> Iterator[tuple[int, list[Fill | None]]]:
    """Fill the gaps of many texts: the number of a text, and what goes into its next gaps; None where nothing does.

    Neighbouring gaps are filled together, and each group of neighbours is read in a window around it.
    `WINDOWS_TOGETHER` windows are filled side by side by each worker, so memory does not grow with the text; none
    depends on the others. Raises `ConfigError` for options out of range.
    """
    check_infilling(options)
    windows = [(number, window) for number, document in enumerate(documents) for window in windows_around(document)]
    if not windows:
        return
    filler = _Filler(model, options)
    groups = shared_out(windows, WINDOWS_TOGETHER, model.device)
    found = side_by_side(
        lambda group: filler.fill([window for _, window in group]), groups, model.device, filler.reader.prepare
    )
    for group, filled in zip(groups, found, strict=True):
        yield from ((number, fills) for (number, _), fills in zip(group, filled, strict=True))


def check_infilling(options: InfillingOptions) -> None:
    """Raise `ConfigError` for options out of range."""
    check_sampling(options.steps, options.temperature)
    if options.candidates < 1:
        raise ConfigError(f"candidates must be at least 1, not {options.candidates}")
    if options.min_bytes < 0:
        raise ConfigError(f"min-bytes must be at least 0, not {options.min_bytes}")
    if options.max_bytes is not None and options.max_bytes < options.min_bytes:
        raise ConfigError(f"max-bytes must be at least min-bytes, {options.min_bytes}, not {options.max_bytes}")


class _Opened(NamedTuple):
    """A window as the model reads it."""

    window: Window
    pieces: Pieces
    prefixes: list[bytes]
    """The last string before each gap, which may turn out to be the beginning of a longer one."""
    blocks: list[GappedBlocks]
    context: Context


class _Drawn(NamedTuple):
    """The candidates of a window before they are told."""

    opened: _Opened
    lengths: list[list[int]]
    """Slots of each gap, for each candidate."""
    chances: list[torch.Generator]


def _chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class _Filler:
    """Draws and ranks candidates with one model."""

    def __init__(self, model: Zonkey, options: InfillingOptions) -> None:
        self.model, self.options = model, options
        self.reader = TextReader(model)
        vocabulary = model.bottom.vocabulary
        assert vocabulary is not None
        self.vocabulary, mean = vocabulary, vocabulary.mean_length()
        self.least = min(GAP_WIDTH, max(1, round(options.min_bytes / mean)))
        self.most = GAP_WIDTH
        if options.max_bytes is not None:
            self.most = max(self.least, min(GAP_WIDTH, math.ceil(options.max_bytes / mean)))

    def fill(self, windows: Sequence[Window]) -> list[list[Fill | None]]:
        """What goes into the gaps of windows; those that get nothing of a length asked for are drawn for again."""
        found: list[list[list[Candidate]]] = [[[] for _ in window.gaps] for window in windows]
        for attempt in range(ATTEMPTS):
            lacking = [index for index, gaps in enumerate(found) if not all(gaps)]
            if not lacking:
                break
            drawn = self._draw([windows[index] for index in lacking], attempt)
            for index, gaps in zip(lacking, drawn, strict=True):
                found[index] = [kept or new for kept, new in zip(found[index], gaps, strict=True)]
        return [
            [_best(gap, candidates) for gap, candidates in zip(window.gaps, gaps, strict=True)]
            for window, gaps in zip(windows, found, strict=True)
        ]

    def _draw(self, windows: Sequence[Window], attempt: int) -> list[list[list[Candidate]]]:
        """Candidates of lengths that are allowed for each gap of each window, the best first."""
        level = self.model.bottom
        drawn = self._tell(windows, attempt)
        scores = score_fills(level, [row for row, _ in drawn])
        texts = unfold_entries(level, [fill for row, _ in drawn for fill in row.fills])
        return self._gather([prefixes for _, prefixes in drawn], iter(texts), scores)

    def _tell(self, windows: Sequence[Window], attempt: int) -> list[tuple[FilledRow, list[bytes]]]:
        """The candidates of each window, one after another, with the prefixes of its gaps.

        Contexts and plans, which are large, are not kept; the few windows that are drawn for again are read again.
        """
        options = self.options
        shares = [HIGHEST_SHARE * (number + 0.5) / options.candidates for number in range(options.candidates)]
        # What was too short is drawn longer the next time.
        least = min(self.most, self.least << attempt) if options.min_bytes else self.least
        drawn: list[_Drawn] = []
        for each in self._open(windows):
            lengths = draw_lengths(each.context, shares, least=least, most=self.most)
            seeds = torch.randint(2**31, (len(lengths),), generator=_chance(each.window.seed + attempt)).tolist()
            drawn.append(_Drawn(each, lengths, list(map(_chance, seeds))))
        chances = [chance for each in drawn for chance in each.chances]
        filled = fill_gaps(
            self.model.bottom,
            [GappedRow(each.opened.pieces, each.opened.context, lengths, each.opened.prefixes, plan)
             for each, plans in zip(drawn, self._plan(drawn), strict=True)
             for lengths, plan in zip(each.lengths, plans, strict=True)],
            chances, steps=options.steps, temperature=options.temperature,
        )  # fmt: skip
        owners = [each.opened for each in drawn for _ in each.lengths]
        return [(FilledRow(each.pieces, fills), each.prefixes) for each, fills in zip(owners, filled, strict=True)]

    def _plan(self, drawn: Sequence[_Drawn]) -> list[list[BlockPlan | None]]:
        """A plan for each candidate of each window; every so-and-so-many-th one is told by what was formed once."""
        number = -(-self.options.candidates // TOLD_BY_ONE)
        texts = [
            GapsToPlan(opened.blocks, lengths[first::number], opened.window.begins, opened.window.ends)
            for opened, lengths, _ in drawn
            for first in range(number)
        ]
        chances = [chance for each in drawn for chance in each.chances[:number]]
        found = plan_gaps(
            self.model, texts, chances, steps=self.options.steps, temperature=self.options.temperature
        )
        return [
            [found[window * number + index % number][index // number] for index in range(len(each.lengths))]
            for window, each in enumerate(drawn)
        ]

    def _open(self, windows: Sequence[Window]) -> list[_Opened]:
        """Read what stands around the gaps of windows."""
        read = iter(self.reader.read([text for window in windows for text in window.texts]))
        opened = []
        for window in windows:
            texts = [next(read) for _ in window.texts]
            known = [*(text.entries[:-1] for text in texts[:-1]), texts[-1].entries]
            prefixes = [self.vocabulary.detokenize(text.entries[-1:].tolist()) for text in texts[:-1]]
            blocks = gapped_blocks(self.model, texts, [len(entries) for entries in known])
            opened.append((window, Pieces(known, window.begins, window.ends), prefixes, blocks))
        contexts = read_contexts(self.model.bottom, [pieces for _, pieces, _, _ in opened])
        return [_Opened(*each, context) for each, context in zip(opened, contexts, strict=True)]

    def _gather(
        self, prefixes: Sequence[list[bytes]], texts: Iterator[bytes], scores: Sequence[Sequence[GapScore]]
    ) -> list[list[list[Candidate]]]:
        """The candidates of each gap out of those of each row, whose gaps have these prefixes."""
        found = []
        for first in range(0, len(scores), self.options.candidates):
            gaps: list[list[Candidate]] = [[] for _ in prefixes[first]]
            for score in scores[first : first + self.options.candidates]:
                for gap, prefix, each in zip(gaps, prefixes[first], score, strict=True):
                    log_prob = each.fill.total + each.following.total
                    candidate = Candidate(next(texts)[len(prefix) :], _rank(each), log_prob)
                    if self._allows(candidate.text):
                        gap.append(candidate)
            found.append([sorted(gap, key=lambda candidate: -candidate.score) for gap in gaps])
        return found

    def _allows(self, text: bytes) -> bool:
        most = self.options.max_bytes
        return len(text) >= self.options.min_bytes and (most is None or len(text) <= most)


def _rank(score: GapScore) -> float:
    """How good a candidate is beside others of other lengths, which are as likely as their logarithms are far apart."""
    strange = min(0.0, score.fill.total + SLOT_NATS * score.fill.pieces)
    return strange + SEAM_WEIGHT * score.following.total - math.log(max(1, score.fill.pieces))


def _best(gap: Gap, candidates: Sequence[Candidate]) -> Fill | None:
    """The best of candidates in order, with all that differ."""
    different = {candidate.text: candidate for candidate in reversed(candidates)}
    kept = tuple(sorted(different.values(), key=lambda candidate: -candidate.score))
    return Fill(gap.start, gap.end, kept[0].text, kept[0].score, kept) if kept else None
