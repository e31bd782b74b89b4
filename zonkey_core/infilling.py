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

from zonkey_core.errors import ConfigError
from zonkey_core.latents import to_sphere
from zonkey_core.model import Ascent, Zonkey, text_sequence
from zonkey_core.sampling import REFINING_RATIO, DenoisedSlots, Slots, check_sampling, denoise, read_bytes, unfold
from zonkey_core.scoring import pseudo_log_likelihood

CONTEXT_BYTES = 384
"""Text that is read before the first and after the last of the gaps that are filled together."""
CLUSTER_BYTES = 768
"""Text from the first to the last of them, at most, so that a long file needs no more memory than a short one."""
OPENED = (2, 3, 1, 4, 5, 2, 3, 6)
"""Slots opened in a gap by one candidate after another."""


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
    best: tuple[bool, float, list[bytes]] | None = None
    for candidate in range(options.candidates):
        starts = _upper_guess(model, pieces, options, generator) if candidate % 2 else None
        drawn = _draw(model, pieces, starts, OPENED[candidate % len(OPENED)], borders[0] == 0, options, generator)
        joined, spans = _join(texts, drawn)
        found = (all(drawn), pseudo_log_likelihood(model, joined, spans) if joined else -float("inf"), drawn)
        if best is None or found[:2] > best[:2]:
            best = found
    assert best is not None
    return [Fill(gap.start, gap.end, text, best[1]) for gap, text in zip(gaps, best[2], strict=True)]


def _read_piece(model: Zonkey, text: bytes) -> _Piece:
    """Segment and compress one piece of context; empty pieces have no views."""
    if not text:
        return _Piece(text, [])
    return _Piece(text, model.ascend(text_sequence(text, device=model.device), len(model.levels) - 1))


def _draw(
    model: Zonkey,
    pieces: Sequence[_Piece],
    starts: Sequence[Tensor] | None,
    opened: int,
    whole: bool,
    options: InfillingOptions,
    generator: torch.Generator,
) -> list[bytes]:
    """One candidate: a text for each gap, from the upper level's start where there is one, else from noise."""
    level = model.levels[0]
    blank = torch.zeros(opened, level.channels, device=model.device)
    middles = list(starts) if starts is not None else [blank] * (len(pieces) - 1)
    slots, known = _interleave(pieces, middles, 0, level.channels, model.device)
    noise = 1.0 if starts is None else level.schedule.level_for_ratio(REFINING_RATIO)
    result = denoise(
        level,
        Slots(slots, known, whole, noise),
        steps=options.steps,
        temperature=options.temperature,
        generator=generator,
    )
    texts, position = [], 0
    for piece, middle in zip(pieces, middles, strict=False):
        position += len(piece.latents(0)) if piece.views else 0
        inside = slice(position, position + len(middle))
        texts.append(read_bytes(level, DenoisedSlots(result.latents[inside], result.existence[inside])))
        position += len(middle)
    return texts


def _interleave(
    pieces: Sequence[_Piece], middles: Sequence[Tensor], level: int, channels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Known latents of the pieces with the middles between them: [M, C] and the mask [M] of what is known."""
    parts: list[Tensor] = []
    masks: list[Tensor] = []
    for index, piece in enumerate(pieces):
        inner = piece.latents(level) if piece.views else torch.zeros(0, channels, device=device)
        parts.append(inner)
        masks.append(torch.ones(len(inner), dtype=torch.bool, device=device))
        if index < len(middles):
            parts.append(middles[index])
            masks.append(torch.zeros(len(middles[index]), dtype=torch.bool, device=device))
    return torch.cat(parts), torch.cat(masks)


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
