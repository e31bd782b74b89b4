"""Infilling: gaps of unknown length in a text, filled from both sides; every byte outside them is kept.

The same descent as for generation: every level reads what stands on both sides of the gaps, a segment that a gap lies
in is unknown and formed from noise from the top down, and the lowest level tells the open slots with the plans of their
blocks. How many there are is existence that decays from both sides. Several candidates of different lengths are drawn,
and the one whose strings the model finds likeliest on average, seams included, is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec
import torch

from zonkey_core.errors import ConfigError
from zonkey_core.inference.block_generation import GappedText, fill_gaps, gap_lengths
from zonkey_core.inference.generation import check_sampling, open_end, read_entries, unfold_entries
from zonkey_core.inference.planning import plan_gaps
from zonkey_core.inference.scoring import Question, log_likelihoods
from zonkey_core.model.model import Zonkey

CONTEXT_BYTES = 384
"""Text that is read before the first and after the last of the gaps that are filled together."""
CLUSTER_BYTES = 768
"""Text from the first to the last of them, at most, so that a long file needs no more memory than a short one."""
LOW_SHARE, HIGH_SHARE = 0.25, 0.75
"""Candidates get lengths from between these shares of all that the denoiser thinks possible."""


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

    steps: int = 8
    temperature: float = 1.0
    candidates: int = 8


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
    model: Zonkey,
    data: bytes,
    gaps: Sequence[Gap],
    *,
    seed: int,
    options: InfillingOptions,
    on_filled: Callable[[int], None] = lambda count: None,
) -> list[Fill]:
    """Fill the gaps of a text, neighbouring ones together; raises `ConfigError` for options out of range.

    Each group of neighbours is read in a window around it, so memory does not grow with the text. `on_filled` is told
    how many gaps are filled so far.
    """
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
        on_filled(len(fills))
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
    level = model.bottom
    opened = [open_end(level, text) for text in texts[:-1]]
    known = [*(each.known for each in opened), read_entries(level, texts[-1])]
    prefixes = [each.prefix for each in opened]
    begins, ends = begin == 0, end == len(data)
    numbers = torch.randint(2**31, (options.candidates,), generator=generator).tolist()
    chances = [torch.Generator().manual_seed(number) for number in numbers]
    shares = [LOW_SHARE + (HIGH_SHARE - LOW_SHARE) * (candidate + 0.5) / options.candidates
              for candidate in range(options.candidates)]  # fmt: skip
    lengths = gap_lengths(level, known, shares, begins=begins, ends=ends)
    plans = plan_gaps(
        model, texts, [len(entries) for entries in known], lengths, chances, begins=begins, ends=ends,
        steps=options.steps, temperature=options.temperature,
    )  # fmt: skip
    rows = [
        GappedText(known, begins, ends, counts, prefixes, plan) for counts, plan in zip(lengths, plans, strict=True)
    ]
    filled = fill_gaps(level, rows, chances, steps=options.steps, temperature=options.temperature)
    drawn = [
        [fill[len(prefix) :] for fill, prefix in zip(unfold_entries(level, row), prefixes, strict=True)]
        for row in filled
    ]
    questions = [Question(*_join(texts, fills), begins, ends) for fills in drawn]
    likelihoods = log_likelihoods(model, questions)
    scores = [likelihood.total / max(1, likelihood.pieces) for likelihood in likelihoods]
    best = max(range(len(drawn)), key=scores.__getitem__)
    return [Fill(gap.start, gap.end, text, scores[best]) for gap, text in zip(gaps, drawn[best], strict=True)]


def _join(texts: Sequence[bytes], fills: Sequence[bytes]) -> tuple[bytes, list[tuple[int, int]]]:
    """Context and fills as one text, with the spans of the fills."""
    joined, spans = bytearray(texts[0]), []
    for fill, text in zip(fills, texts[1:], strict=True):
        spans.append((len(joined), len(joined) + len(fill)))
        joined += fill + text
    return bytes(joined), spans
