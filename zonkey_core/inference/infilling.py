"""Infilling: gaps of unknown length in a text, filled from both sides; every byte outside them is kept.

The text between gaps is segmented as it stands, and the writer says from both sides how many slots a gap may hold.
Where the model has an upper level, segments of it that touch a gap are unknown, and their denoised windows, less the
words that are still there, hint at what a candidate holds. Several candidates of different lengths are drawn, and the
one whose strings the model finds likeliest on average, seams included, is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from zonkey_core.diffusion.decoding_order import GAP_WIDTH
from zonkey_core.errors import ConfigError
from zonkey_core.inference.block_generation import GappedText, fill_gaps
from zonkey_core.inference.generation import DRAFT_RATIO, OpenEnd, check_sampling, open_end, read_entries
from zonkey_core.inference.latent_sampler import DenoisedSlots, Slots, denoise, read_bytes, unfold
from zonkey_core.inference.scoring import Question, log_likelihoods
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.level import Level
from zonkey_core.model.model import Ascent, Zonkey, text_sequence

CONTEXT_BYTES = 384
"""Text that is read before the first and after the last of the gaps that are filled together."""
CLUSTER_BYTES = 768
"""Text from the first to the last of them, at most, so that a long file needs no more memory than a short one."""
LOW_SHARE, HIGH_SHARE = 0.25, 0.75
"""Candidates get lengths from between these shares of all that the writer thinks possible."""
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
    """Mean log-probability of the strings of the fills and their seams, in nats."""


class InfillingOptions(msgspec.Struct, frozen=True):
    """How gaps are filled."""

    steps: int = 32
    temperature: float = 1.0
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
    opened = [open_end(model.levels[0], text) for text in texts[:-1]]
    known = [*(each.known for each in opened), read_entries(model.levels[0], texts[-1])]
    prefixes = [each.prefix for each in opened]
    numbers = torch.randint(2**31, (options.candidates,), generator=generator).tolist()
    chances = [torch.Generator().manual_seed(number) for number in numbers]
    rows = []
    for candidate, chance in enumerate(chances):
        starts = _upper_guess(model, pieces, options, chance) if candidate % DRAFTED == DRAFTED - 1 else None
        share = LOW_SHARE + (HIGH_SHARE - LOW_SHARE) * (candidate + 0.5) / options.candidates
        row = GappedText(known, begins=begin == 0, ends=end == len(data), share=share, prefixes=prefixes)
        rows.append(row if starts is None else _with_draft(model.levels[0], row, opened, starts))
    dictionary = model.levels[0].dictionary
    assert dictionary is not None
    steps = max(1, options.steps - 1)
    filled = fill_gaps(model.levels[0], rows, chances, steps=steps, temperature=options.temperature)
    drawn = [
        [dictionary.detokenize(entries.tolist())[len(prefix) :] for entries, prefix in zip(row, prefixes, strict=True)]
        for row in filled
    ]
    questions = [Question(*_join(texts, fills), begin == 0, end == len(data)) for fills in drawn]
    likelihoods = log_likelihoods(model, questions)
    scores = [likelihood.total / max(1, likelihood.pieces) for likelihood in likelihoods]
    best = max(range(len(drawn)), key=scores.__getitem__)
    return [Fill(gap.start, gap.end, text, scores[best]) for gap, text in zip(gaps, drawn[best], strict=True)]


def _with_draft(level: Level, row: GappedText, opened: Sequence[OpenEnd], starts: Sequence[Tensor]) -> GappedText:
    """A row with what an upper level expects in its gaps, behind the ends of what stands before them."""
    texts = [read_bytes(level, DenoisedSlots(latents, latents.new_ones(len(latents)))) for latents in starts]
    if not all(texts):
        return row
    noise_level = level.schedule.level_for_ratio(DRAFT_RATIO)
    expected = [
        torch.cat([end.last, read_entries(level, text)])[:GAP_WIDTH] for end, text in zip(opened, texts, strict=True)
    ]
    return row._replace(expected=expected, noise_level=noise_level)


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
