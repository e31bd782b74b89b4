"""Block generation: open slots of level 0 are told by the writer and filled with strings of its dictionary.

At the start every open slot is noise. The writer reads what stands already and says how long the text or the gap
becomes. With that the slots are laid out in streams, as many as the given number of evaluations makes necessary; in
each evaluation every stream is told its next slot, which the next evaluation reads. Keys and values are kept, so that
each slot is read once, whatever the number of evaluations.

A later stream opens some evaluations after the one before it, where there is time, so that it has something to follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.diffusion.decoding_order import GAP_WIDTH, Draft, Kind, in_streams, lay_out, with_gaps
from zonkey_core.inference.block_decoding import EMPTY, Board, prepare_row, read_whole
from zonkey_core.model.length_model import EDGES, draw_counts
from zonkey_core.model.level import Level

TOGETHER = 16
"""Texts that are written side by side; fewer are padded to so many."""
KNOWN_STEP = 32
"""What stands already is padded to a multiple of so many slots."""
STAGGER = 4
"""Evaluations between the openings of neighbouring streams, where there is time."""
MORE_STREAMS = 1
"""Streams that may be added to the fewest possible, for the sake of their stagger."""


class OpenText(NamedTuple):
    """A text that is to go on."""

    known: Tensor
    """[P] entries of what stands already."""
    room: int
    """Slots that it may go on for."""
    begins: bool
    """Whether a document begins with it."""
    prefix: bytes = b""
    """What the string of the next slot begins with."""
    expected: Tensor | None = None
    """[M] entries that a level above expects to follow, that with the prefix first; they say how many there are, too.

    The document ends only where there are none."""
    noise_level: float = 1.0
    """How little they are to be trusted."""


class Written(NamedTuple):
    """What a text goes on with."""

    entries: Tensor
    """[M]"""
    ended: bool
    """Whether the document ends there."""


class GappedText(NamedTuple):
    """A text with gaps."""

    known: Sequence[Tensor]
    """[P] entries of each of the pieces around the gaps, one more than there are gaps."""
    begins: bool
    ends: bool
    share: float
    """Which of the lengths that the writer thinks possible the gaps get, from the shortest at 0 to the longest at 1."""
    prefixes: Sequence[bytes]
    """What the first string of each gap begins with."""
    expected: Sequence[Tensor] | None = None
    """[M] entries that a level above expects in each gap; they say how many there are, too."""
    noise_level: float = 1.0


def write_texts(
    level: Level,
    texts: Sequence[OpenText],
    generators: Sequence[torch.Generator],
    *,
    steps: int,
    temperature: float,
    on_step: Callable[[Tensor], None] | None = None,
) -> list[Written]:
    """Go on with texts, each drawn from its own generator; what becomes of one does not depend on the others.

    For that, products have the same shapes whatever the other texts are, since other shapes round otherwise. `on_step`
    is given the first text's new entries after each evaluation, `EMPTY` where they are open.
    """
    written: dict[int, Written] = {}
    shapes = [(-(-len(text.known) // KNOWN_STEP) * KNOWN_STEP, text.room) for text in texts]
    for known, room in sorted(set(shapes)):
        alike = [index for index, shape in enumerate(shapes) if shape == (known, room)]
        for first in range(0, len(alike), TOGETHER):
            group = alike[first : first + TOGETHER]
            results = _write_alike(
                level, [texts[index] for index in group], [generators[index] for index in group], known,
                steps, temperature, on_step if group[0] == 0 else None,
            )  # fmt: skip
            written.update(zip(group, results, strict=True))
    return [written[index] for index in range(len(texts))]


def _write_alike(
    level: Level,
    texts: Sequence[OpenText],
    generators: Sequence[torch.Generator],
    known: int,
    steps: int,
    temperature: float,
    on_step: Callable[[Tensor], None] | None,
) -> list[Written]:
    """Go on with at most `TOGETHER` texts of the same room; `known` slots at most stand before it."""
    room, befores = texts[0].room, [len(text.known) for text in texts]
    streams = _fewest_streams(room, steps) + MORE_STREAMS
    limits = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    rows = [
        prepare_row(
            level,
            torch.cat([text.known, text.known.new_full((room,), EMPTY)]),
            {} if text.expected is None else {len(text.known): text.expected[:room]},
            text.noise_level,
            {len(text.known): text.prefix} if text.prefix else {},
            generator,
        )
        for text, generator in zip(texts, generators, strict=True)
    ]
    board = Board(level, rows, batch=TOGETHER, length=known + room + streams + 3, temperature=temperature)
    drafted = [0 if text.expected is None else min(len(text.expected), room) for text in texts]
    board.lay_out(
        [_streams(text, count, ended=False, steps=steps) for text, count in zip(texts, drafted, strict=True)], befores
    )
    opening = board.read(0, known + 1)
    logits = opening.told.ending_logits[range(len(texts)), befores]
    counts = draw_counts(logits, limits.to(logits.device)).tolist()
    for index, text in enumerate(texts):
        if text.expected is not None:
            counts[index] = len(text.expected)
        elif text.prefix or not befores[index]:
            counts[index] = max(counts[index], 1)
    ended = [
        count == 0 if text.expected is not None else count <= room and count < EDGES[-1]
        for text, count in zip(texts, counts, strict=True)
    ]
    counts = [min(count, room) for count in counts]
    board.lay_out(
        [_streams(text, count, ended=end, steps=steps) for text, count, end in zip(texts, counts, ended, strict=True)],
        befores,
    )
    spans = [slice(before, before + count) for before, count in zip(befores, counts, strict=True)]

    def show() -> None:
        if on_step is not None:
            on_step(board.entries[0, spans[0]].cpu().clone())

    board.tell(opening)
    show()
    board.run(streams, show)
    return [
        Written(board.entries[row, span].cpu(), end) for row, (span, end) in enumerate(zip(spans, ended, strict=True))
    ]


def fill_gaps(
    level: Level,
    texts: Sequence[GappedText],
    generators: Sequence[torch.Generator],
    *,
    steps: int,
    temperature: float,
) -> list[list[Tensor]]:
    """Fill the gaps of texts: the entries [M] of each gap of each text."""
    lengths = _gap_lengths(level, texts)
    rows, drafts, spans = [], [], []
    for text, counts, generator in zip(texts, lengths, generators, strict=True):
        gaps = _gap_bounds(text, counts)
        parts: list[tuple[int, int]] = []
        for first, last in gaps:
            number = -(-(last - first) // (steps + 1))
            parts += itertools.pairwise([first + (last - first) * part // number for part in range(number + 1)])
        pieces = [part for known, count in zip(text.known, [*counts, 0], strict=True)
                  for part in (known, known.new_full((count,), EMPTY))]  # fmt: skip
        expected = {} if text.expected is None else {
            first: guess[: last - first] for (first, last), guess in zip(gaps, text.expected, strict=True)
        }
        prefixes = {first: prefix for (first, _), prefix in zip(gaps, text.prefixes, strict=True) if prefix}
        rows.append(prepare_row(level, torch.cat(pieces), expected, text.noise_level, prefixes, generator))
        count = sum(map(len, pieces))
        drafts.append(with_gaps(count, parts, begins=text.begins, ends=text.ends, measured=True))
        spans.append(gaps)
    longest = max(len(draft.source) for draft in drafts)
    board = Board(level, rows, batch=len(rows), length=longest + 1, temperature=temperature)
    board.lay_out(drafts, [0] * len(drafts))
    board.tell(board.read(0, longest))
    board.run(max(int((draft.kinds == Kind.GAP).sum()) for draft in drafts), lambda: None)
    return [[board.entries[row, slice(*gap)].cpu() for gap in gaps] for row, gaps in enumerate(spans)]


@torch.no_grad()
def _gap_lengths(level: Level, texts: Sequence[GappedText]) -> list[list[int]]:
    """How many slots each gap of each text gets."""
    device = next(level.parameters()).device
    drafts = []
    for text in texts:
        gaps = _gap_bounds(text, [1] * (len(text.known) - 1))
        count = sum(map(len, text.known)) + len(gaps)
        drafts.append(with_gaps(count, gaps, begins=text.begins, ends=text.ends, measured=False))
    plan = lay_out(drafts, max(len(draft.source) for draft in drafts), device)
    entries = pad_sequence(
        [torch.cat([part for known in text.known for part in (known, known.new_zeros(1))]) for text in texts],
        batch_first=True,
    ).to(device)
    logits = read_whole(level, plan, entries).ending_logits
    lengths = []
    for row, text in enumerate(texts):
        if text.expected is not None:
            lengths.append([min(len(entries), GAP_WIDTH) for entries in text.expected])
            continue
        asked = logits[row, plan.layout.kinds[row] == Kind.GAP]
        counts = draw_counts(asked, asked.new_full((len(asked),), 1 - text.share))
        lengths.append(counts.clamp(1, GAP_WIDTH).tolist())
    return lengths


def _gap_bounds(text: GappedText, counts: Sequence[int]) -> list[tuple[int, int]]:
    """The first slot of each gap and the one after its last, where gaps have so many."""
    bounds, position = [], 0
    for known, count in zip(text.known, counts, strict=False):
        position += len(known)
        bounds.append((position, position + count))
        position += count
    return bounds


class Streams(NamedTuple):
    """How a stretch of open slots is divided."""

    lengths: list[int]
    stagger: int
    """Evaluations between the openings of neighbouring streams, from the second on."""


def plan_streams(count: int, steps: int) -> Streams:
    """Streams in which so many slots are told in the evaluation that reads what stands already and `steps` more.

    The first stream is told its first slot in the former; the second opens in the one after it. The stagger is the
    largest with which `MORE_STREAMS` beside the fewest suffice.
    """
    fewest = _fewest_streams(count, steps)
    if fewest == 1:
        return Streams([count], 0)
    for stagger in range(STAGGER, -1, -1):
        for number in range(fewest, fewest + MORE_STREAMS + 1):
            lengths = [steps + 1, *(steps - stagger * index for index in range(number - 1))]
            if min(lengths) > 0 and sum(lengths) >= count:
                return Streams(_shorten(lengths, sum(lengths) - count), stagger)
    raise AssertionError("without a stagger, the fewest streams have room")


def _fewest_streams(count: int, steps: int) -> int:
    """Streams without a stagger."""
    return 1 + max(0, -(-(count - steps - 1) // steps))


def _shorten(lengths: list[int], excess: int) -> list[int]:
    """Take so much away, from one after another and again, as long as each keeps a slot."""
    result = list(lengths)
    for index in itertools.cycle(range(len(result))):
        if not excess:
            break
        if result[index] > 1:
            result[index] -= 1
            excess -= 1
    return result


def _streams(text: OpenText, count: int, *, ended: bool, steps: int) -> Draft:
    """A text with `count` slots more, the first stream of which goes on with what stands already."""
    before = len(text.known)
    plan = plan_streams(count, steps)
    firsts = [0, *(before + np.cumsum(plan.lengths[:-1])).tolist()]
    openings = [0, *(before + 1 + plan.stagger * index for index in range(len(plan.lengths) - 1))]
    return in_streams(before + count, firsts, openings, begins=text.begins, end_order=before + 1 if ended else None)
