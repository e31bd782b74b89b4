"""Block generation: open slots of the lowest level are told by its denoiser and filled with strings of its vocabulary.

With a plan from the level above, its blocks are told side by side, each from its own start, in as many evaluations as
are given, and how long they are is known. With nothing above, the denoiser first says how long the text or the gap
becomes, and it is told in streams, as many as the number of evaluations makes necessary; a later stream opens some
evaluations after the one before it, where there is time, so that it has something to follow. Keys and values are kept,
so that each slot is read once, whatever the number of evaluations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zonkey_core.diffusion.decoding_order import Order, in_blocks, in_streams, lay_out
from zonkey_core.inference.block_decoding import EMPTY, TOGETHER, Board, Row, read_whole
from zonkey_core.inference.planning import BlockPlan
from zonkey_core.inference.shapes import groups_of_one_shape, padded_count
from zonkey_core.model.length_model import EDGES, draw_counts
from zonkey_core.model.level import Level

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
    plan: BlockPlan | None = None
    """What the level above says of it, from its first slot on."""
    most_blocks: int = 0
    """Blocks that may follow, the open one included."""


class Written(NamedTuple):
    """What a text goes on with."""

    entries: Tensor
    """[M]"""
    ended: bool
    """Whether the document ends there."""


class _Laid(NamedTuple):
    """How a text is told."""

    order: Order
    more: int
    """Slots that it goes on for."""
    ended: bool
    before: int
    """What is known by then is read in the first evaluation."""


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
    shapes = [(-(-len(text.known) // KNOWN_STEP) * KNOWN_STEP, text.room, text.plan is None) for text in texts]
    for shape, group in groups_of_one_shape(shapes, TOGETHER):
        results = _write_alike(
            level, [texts[index] for index in group], [generators[index] for index in group], shape[0],
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
    limits = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    if texts[0].plan is None:
        laid = _without_plans(level, texts, limits, known, steps)
        openings = streams = _fewest_streams(room, max(1, steps - 1)) + MORE_STREAMS
    else:
        laid = [_with_plan(text, steps) for text in texts]
        streams = room // steps + texts[0].most_blocks
        openings = known + streams
    rows = [
        Row(
            torch.cat([text.known, text.known.new_full((room,), EMPTY)]),
            torch.rand(len(text.known) + room, generator=generator),
            {len(text.known): text.prefix} if text.prefix else {},
            None if text.plan is None else text.plan.plans,
        )
        for text, generator in zip(texts, generators, strict=True)
    ]
    batch, length = _batch(level, len(rows)), known + room + openings + 2
    board = Board(level, rows, batch=batch, length=length, temperature=temperature)
    board.lay_out([each.order for each in laid], [each.before for each in laid])
    spans = [slice(before, before + each.more) for before, each in zip(befores, laid, strict=True)]

    def show() -> None:
        if on_step is not None:
            on_step(board.entries[0, spans[0]].cpu().clone())

    board.run(known + openings + 1, streams, show)
    return [
        Written(board.entries[row, span].cpu(), each.ended)
        for row, (span, each) in enumerate(zip(spans, laid, strict=True))
    ]


def _with_plan(text: OpenText, steps: int) -> _Laid:
    """A text whose blocks are known."""
    assert text.plan is not None
    order = in_blocks(text.plan.lengths, steps, known=len(text.known), begins=text.begins, ends=text.plan.ends)
    return _Laid(order, sum(text.plan.lengths) - len(text.known), text.plan.ends, 0)


@torch.no_grad()
def _without_plans(
    level: Level, texts: Sequence[OpenText], limits: Tensor, known: int, steps: int
) -> list[_Laid]:
    """Texts of which the denoiser says itself how long they become."""
    assert level.vocabulary is not None
    orders = [in_streams(len(text.known), [0], [0], begins=text.begins, end_order=None) for text in texts]
    blank = [in_streams(0, [0], [0], begins=True, end_order=None)] * (_batch(level, len(orders)) - len(orders))
    entries = torch.zeros(len(orders) + len(blank), known, dtype=torch.long)
    for row, text in zip(entries, texts, strict=False):
        row[: len(text.known)] = text.known
    table = level.vocabulary.latents()
    found = read_whole(level, lay_out([*orders, *blank], known + 1, table.device), table[entries.to(table.device)])
    last = torch.tensor([len(text.known) for text in texts], device=table.device)
    logits = found.ending_logits[torch.arange(len(texts), device=table.device), last]
    counts = draw_counts(logits, limits.to(logits.device)).tolist()
    laid = []
    for text, drawn in zip(texts, counts, strict=True):
        count = max(drawn, 1) if text.prefix or not len(text.known) else drawn
        ended = count <= text.room and count < EDGES[-1]
        count = min(count, text.room)
        laid.append(_Laid(_streams(text, count, ended=ended, steps=steps), count, ended, len(text.known)))
    return laid


def _batch(level: Level, count: int) -> int:
    """Rows that so many texts are padded to."""
    return padded_count(count, TOGETHER, level.device)


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


def _streams(text: OpenText, count: int, *, ended: bool, steps: int) -> Order:
    """A text with `count` slots more, the first stream of which goes on with what stands already."""
    before = len(text.known)
    plan = plan_streams(count, max(1, steps - 1))
    firsts = [0, *(before + np.cumsum(plan.lengths[:-1])).tolist()]
    openings = [0, *(before + 1 + plan.stagger * index for index in range(len(plan.lengths) - 1))]
    return in_streams(before + count, firsts, openings, begins=text.begins, end_order=before + 1 if ended else None)
