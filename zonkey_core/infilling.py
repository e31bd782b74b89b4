"""Infilling: gaps of unknown length in a text, filled from both sides; every byte outside them is kept.

The text between gaps is segmented and compressed as it stands, and latent slots are opened in each gap. Where the
model has an upper level, segments of it that touch a gap are unknown, and their denoised windows, less the words
that are still there, say how many slots a gap needs and where they start. Slots that turn out not to exist close
the gap. Several candidates are drawn and the one that the model finds likeliest, seams included, is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from zonkey_core.drafting import DenoisedSlots, Slots, denoise, read_bytes, unfold
from zonkey_core.errors import ConfigError
from zonkey_core.filling import EMPTY, OpenRow, fill_rows
from zonkey_core.latents import to_sphere
from zonkey_core.model import Ascent, Zonkey, text_sequence
from zonkey_core.sampling import DRAFT_RATIO, check_sampling, read_entries
from zonkey_core.scoring import Question, log_likelihoods

CONTEXT_BYTES = 384
"""Text that is read before the first and after the last of the gaps that are filled together."""
CLUSTER_BYTES = 768
"""Text from the first to the last of them, at most, so that a long file needs no more memory than a short one."""
OPENED = (2, 4, 3, 6, 8, 5, 1, 12)
"""Slots opened in a gap by one candidate after another; fewer may turn out to exist."""
DRAFTED = 4
"""One candidate in so many starts from what the level above expects."""


class Gap(msgspec.Struct, frozen=True):
    """Where text is missing: byte offsets of the mask in the input."""

    start: int
    end: int


class Fill(msgspec.Struct, frozen=True):
    """What goes there."""

    start: int
    end: int
    text: bytes
    score: float
    """Log-probability of the fill and its seams, in nats."""


class InfillingOptions(msgspec.Struct, frozen=True):
    """How gaps are filled."""

    steps: int = 16
    temperature: float = 0.85
    candidates: int = 8


class _Piece(NamedTuple):
    """Text between two gaps, seen by every level."""

    text: bytes
    views: list[Ascent]

    def latents(self, level: int) -> Tensor:
        return self.views[level].latents.float()


def find_gaps(data: bytes, mask: bytes | None = None) -> list[Gap]:
    """Runs of three or more underscores, or every occurrence of `mask`; raises `ConfigError` for an empty one."""
    if mask == b"":
        raise ConfigError("the mask must not be empty")
    pattern = rb"_{3,}" if mask is None else re.escape(mask)
    return [Gap(*match.span()) for match in re.finditer(pattern, data)]


def apply_fills(data: bytes, fills: Sequence[Fill]) -> bytes:
    """The text with its gaps filled; everything else is unchanged."""
    parts, position = [], 0
    for fill in sorted(fills, key=lambda each: each.start):
        parts += [data[position : fill.start], fill.text]
        position = fill.end
    return b"".join([*parts, data[position:]])


def infill(
    model: Zonkey, data: bytes, gaps: Sequence[Gap], *, seed: int, options: InfillingOptions
) -> list[Fill]:
    """Fill the gaps of a text, neighbouring ones together; raises `ConfigError` for options out of range."""
    check_sampling(options.steps, options.temperature)
    if options.candidates < 1:
        raise ConfigError(f"candidates must be at least 1, not {options.candidates}")
    fills: list[Fill] = []
    clusters = _clusters(gaps)
    ends = [0, *(cluster[-1].end for cluster in clusters)]
    starts = [*(cluster[0].start for cluster in clusters), len(data)]
    for number, cluster in enumerate(clusters):
        generator = torch.Generator().manual_seed(seed + 7919 * number)
        fills += _fill_cluster(model, data, (ends[number], starts[number + 1]), cluster, options, generator)
    return fills


def _clusters(gaps: Sequence[Gap]) -> list[list[Gap]]:
    """Gaps that are in each other's context belong together, over at most `CLUSTER_BYTES`."""
    clusters: list[list[Gap]] = []
    for gap in sorted(gaps, key=lambda each: each.start):
        near = clusters and gap.start - clusters[-1][-1].end < CONTEXT_BYTES
        if near and gap.end - clusters[-1][0].start <= CLUSTER_BYTES:
            clusters[-1].append(gap)
        else:
            clusters.append([gap])
    return clusters


def _fill_cluster(
    model: Zonkey,
    data: bytes,
    bounds: tuple[int, int],
    gaps: Sequence[Gap],
    options: InfillingOptions,
    generator: torch.Generator,
) -> list[Fill]:
    """Draw candidates for gaps that are filled together, from text within `bounds`, and keep the likeliest."""
    begin, end = max(bounds[0], gaps[0].start - CONTEXT_BYTES), min(bounds[1], gaps[-1].end + CONTEXT_BYTES)
    borders = [begin, *(border for gap in gaps for border in (gap.start, gap.end)), end]
    texts = [data[begin:end] for begin, end in zip(borders[::2], borders[1::2], strict=True)]
    pieces = [_read_piece(model, text) for text in texts]
    known = [read_entries(model.levels[0], text) for text in texts]
    numbers = torch.randint(2**31, (options.candidates,), generator=generator).tolist()
    chances = [torch.Generator().manual_seed(number) for number in numbers]
    rows = []
    for candidate, chance in enumerate(chances):
        starts = _upper_guess(model, pieces, options, chance) if candidate % DRAFTED == DRAFTED - 1 else None
        rows.append(_open_row(model, known, starts, OPENED[candidate % len(OPENED)], borders[0] == 0))
    filled = fill_rows(model.levels[0], rows, chances, steps=options.steps, temperature=options.temperature)
    drawn = [_read_fills(model, row, entries, len(gaps)) for row, entries in zip(rows, filled, strict=True)]
    joined = [_join(texts, fills) for fills in drawn]
    scores = log_likelihoods(model, [Question(*each) for each in joined])
    best = max(range(len(drawn)), key=lambda index: (all(drawn[index]), scores[index]))
    return [Fill(gap.start, gap.end, text, scores[best]) for gap, text in zip(gaps, drawn[best], strict=True)]


def _open_row(
    model: Zonkey, known: Sequence[Tensor], starts: Sequence[Tensor] | None, opened: int, whole: bool
) -> OpenRow:
    """The context's entries with slots between them: open ones, or what an upper level expects there."""
    level = model.levels[0]
    parts: list[Tensor] = []
    gaps: list[Tensor] = []
    for index, entries in enumerate(known):
        parts.append(entries)
        gaps.append(torch.zeros_like(entries))
        if index < len(known) - 1:
            middle = torch.zeros(opened, dtype=torch.long)
            if starts is not None:
                expected = DenoisedSlots(starts[index], starts[index].new_ones(len(starts[index])))
                middle = read_entries(level, read_bytes(level, expected))
            parts.append(middle)
            gaps.append(torch.full_like(middle, index + 1))
    noise = 1.0 if starts is None else level.schedule.level_for_ratio(DRAFT_RATIO)
    return OpenRow(torch.cat(parts), torch.cat(gaps), whole, noise)


def _read_fills(model: Zonkey, row: OpenRow, entries: Tensor, gaps: int) -> list[bytes]:
    """The text of each gap of a filled row."""
    dictionary = model.levels[0].dictionary
    assert dictionary is not None
    return [
        dictionary.spell(entries[(row.gaps == gap) & (entries != EMPTY)].tolist()) for gap in range(1, gaps + 1)
    ]


def _read_piece(model: Zonkey, text: bytes) -> _Piece:
    """Segment and compress one piece of context; empty pieces have no views."""
    if not text:
        return _Piece(text, [])
    return _Piece(text, model.ascend(text_sequence(text, device=model.device), len(model.levels) - 1))


def _upper_guess(
    model: Zonkey, pieces: Sequence[_Piece], options: InfillingOptions, generator: torch.Generator
) -> list[Tensor] | None:
    """Level 0 latents that level 1 expects in each gap; None without a level 1 or where it leaves a gap no room.

    Level 1 sees one unknown segment in place of each gap and the two segments that touch it. Of the window that
    this decodes to, the positions still present on either side are taken off.
    """
    if len(model.levels) < 2:
        return None
    level = model.levels[1]
    trimmed, before, after = [], [], []
    for index, piece in enumerate(pieces):
        lengths = _segment_lengths(piece)
        first, last = index > 0, index < len(pieces) - 1
        before.append(lengths[-1] if lengths and last else 0)
        after.append(lengths[0] if lengths and first else 0)
        latents = piece.latents(1) if piece.views else torch.zeros(0, level.channels, device=model.device)
        trimmed.append(latents[int(first) : len(latents) - int(last)])
    unknown = torch.zeros(1, level.channels, device=model.device)
    parts = [part for latents in trimmed for part in (latents, unknown)][:-1]
    known = torch.cat([torch.full((len(part),), part is not unknown, device=model.device) for part in parts])
    result = denoise(
        level,
        Slots(torch.cat(parts), known, False, 1.0),
        steps=options.steps,
        temperature=options.temperature,
        generator=generator,
    )
    guesses = []
    for gap, slot in enumerate((~known).nonzero().flatten().tolist()):
        one = DenoisedSlots(result.latents[slot : slot + 1], torch.ones(1, device=model.device))
        window = unfold(level, one).contents
        inside = window[before[gap] : max(0, len(window) - after[gap + 1])]
        if not len(inside):
            return None
        guesses.append(to_sphere(inside))
    return guesses


def _segment_lengths(piece: _Piece) -> list[int]:
    """Level 0 segments in each of a piece's level 1 segments."""
    if not piece.views:
        return []
    starts = piece.views[1].segmentation.starts[0].tolist()
    ends = [*starts[1:], len(piece.views[0].latents)]
    return [end - start for start, end in zip(starts, ends, strict=True)]


def _join(texts: Sequence[bytes], fills: Sequence[bytes]) -> tuple[bytes, list[tuple[int, int]]]:
    """Context and fills as one text, with the spans of the fills."""
    joined, spans = bytearray(texts[0]), []
    for fill, text in zip(fills, texts[1:], strict=True):
        spans.append((len(joined), len(joined) + len(fill)))
        joined += fill + text
    return bytes(joined), spans
