"""Planning: the descent from the top level to the lowest one's blocks, for texts that go on.

Every level reads what is known of a text. From the top down, the open segments of a level are formed from noise; its
decoder unfolds them, the stitcher joins the windows, and existence says how many slots of the level below each holds.
What a level emits goes down as latents: plans of blocks, and drafts of their slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.inference.latent_sampler import KNOWN_STEP, Formed, OpenText, ending_logits, form_slots
from zonkey_core.inference.shapes import groups_of_one_shape
from zonkey_core.inference.windows import read_windows
from zonkey_core.model.length_model import EDGES, draw_counts
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.slot_batches import Plans, side_by_side
from zonkey_core.model.stitcher import start_scores, stitch

MOST_STEPS = 4
"""The most evaluations in which the slots of a level of plans are formed; more of them told stranger things, no better
ones (docs/experiments.md)."""


class LevelContext(NamedTuple):
    """What one level knows of a text so far."""

    latents: Tensor
    """[M, C] of its closed slots; the last slot of a text may go on, so it is open and left out."""
    starts: Tensor
    """[M + 1] the slot of the level below that each begins at, and where the open one does; for the lowest level,
    bytes."""


class BlockPlan(NamedTuple):
    """The blocks of a text and what the level above says of them."""

    lengths: list[int]
    """Slots of each block, known ones included."""
    plans: Plans
    """Of this text alone, without the first dimension."""
    ends: bool
    """Whether the document ends with them."""


def plan_texts(
    model: Zonkey,
    contexts: Sequence[Sequence[LevelContext]],
    begins: Sequence[bool],
    generators: Sequence[torch.Generator],
    *,
    rooms: Sequence[Sequence[int]],
    steps: int,
    temperature: float,
) -> list[BlockPlan]:
    """Plans of the lowest level's blocks for texts that go on; `rooms` are the slots of each level that may follow.

    `contexts` are those of the levels that form the texts, lowest first. Texts of which about as much is known, and
    that have the same room, are planned side by side, in rows of one length, so that what becomes of one does not
    depend on the others.
    """
    shapes = [
        (tuple(_padded(len(each.latents)) for each in context), tuple(room))
        for context, room in zip(contexts, rooms, strict=True)
    ]
    plans: dict[int, BlockPlan] = {}
    for shape, alike in groups_of_one_shape(shapes):
        found = _plan_alike(
            model, [contexts[index] for index in alike], [begins[index] for index in alike],
            [generators[index] for index in alike], *shape, steps, temperature,
        )  # fmt: skip
        plans.update(zip(alike, found, strict=True))
    return [plans[index] for index in range(len(contexts))]


def _plan_alike(
    model: Zonkey,
    contexts: Sequence[Sequence[LevelContext]],
    begins: Sequence[bool],
    generators: Sequence[torch.Generator],
    shape: Sequence[int],
    rooms: Sequence[int],
    steps: int,
    temperature: float,
) -> list[BlockPlan]:
    """Plans for texts of which each level knows at most as many slots as `shape` says."""
    levels = model.levels
    top = len(shape) - 1
    known = [len(context[top].latents) for context in contexts]
    chances = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    logits = ending_logits(levels[top], [context[top].latents for context in contexts], begins)
    counts = draw_counts(logits, chances.to(logits.device)).clamp(min=1).tolist()
    ends = [count <= rooms[top] and count < EDGES[-1] for count in counts]
    totals = [before + min(count, rooms[top]) for before, count in zip(known, counts, strict=True)]
    upper: Plans | None = None
    found: list[BlockPlan] = []
    for number in range(top, 0, -1):
        level = levels[number]
        texts = [
            _opened(context[number].latents, total, begin, end, found[row].lengths if found else ())
            for row, (context, total, begin, end) in enumerate(zip(contexts, totals, begins, ends, strict=True))
        ]
        formed = form_slots(
            level, texts, upper, generators, steps=min(steps, MOST_STEPS), temperature=temperature,
            length=shape[number] + rooms[number],
        )  # fmt: skip
        unfolded = unfold_blocks(
            level, formed, [(context[number], context[number - 1]) for context in contexts], generators,
            room=rooms[number - 1],
        )  # fmt: skip
        found = [each._replace(ends=end and each.ends) for each, end in zip(unfolded, ends, strict=True)]
        totals, ends = [sum(each.lengths) for each in found], [each.ends for each in found]
        upper = side_by_side([each.plans for each in found])
    return found


def _padded(count: int) -> int:
    return -(-count // KNOWN_STEP) * KNOWN_STEP


def _opened(known: Tensor, total: int, begins: bool, ends: bool, blocks: Sequence[int]) -> OpenText:
    """A text of so many slots, the first of which are known, in blocks of the level above."""
    latents = functional.pad(known, (0, 0, 0, total - len(known)))
    mask = torch.arange(total, device=known.device) < len(known)
    return OpenText(latents, mask, begins, ends, blocks)


@torch.no_grad()
def unfold_blocks(
    level: Level,
    formed: Formed,
    contexts: Sequence[tuple[LevelContext, LevelContext]],
    generators: Sequence[torch.Generator],
    *,
    room: int,
) -> list[BlockPlan]:
    """Blocks of texts, the first of them known, as plans of at most `room` slots more of the level below.

    `contexts` are those of this level and of the one below. Known blocks have the slots that they have; the first open
    one has at least those that are known of it.
    """
    opened = [latents[len(context.latents) :] for latents, (context, _) in zip(formed.latents, contexts, strict=True)]
    contents, every_existence = read_windows(level, torch.cat(opened))
    existence = functional.pad(every_existence.exp(), (0, 1))
    alone = (existence[:, :-1] - existence[:, 1:]).clamp(min=1e-30).log()
    together = start_scores(contents, every_existence, symbols=False)
    counts = [len(latents) for latents in opened]
    parts = zip(*(torch.split(each, counts) for each in (contents, every_existence, alone)), strict=True)
    plans, first = [], 0
    for latents, (context, below), generator, (content, log_existence, last) in zip(
        formed.latents, contexts, generators, parts, strict=True
    ):
        at_end = functional.pad(last[-1:], (1, 0), value=-torch.inf)
        scores = torch.cat([together[first : first + len(content) - 1], at_end])
        first += len(content)
        lengths = context.starts.diff().tolist()[: len(context.latents)]
        sizes = _draw_sizes(scores, max(0, len(below.latents) - sum(lengths)), generator)
        drafts = stitch(
            content, log_existence, torch.ones(len(sizes), device=content.device), symbols=False,
            sizes=torch.tensor(sizes, device=content.device),
        ).contents  # fmt: skip
        known = torch.zeros(sum(lengths), content.shape[-1], device=content.device)
        most = len(below.latents) + room
        plans.append(_bounded(latents, formed.alpha, lengths, sizes, torch.cat([known, drafts]), most))
    return plans


def _bounded(
    latents: Tensor, alpha: float, known: Sequence[int], sizes: Sequence[int], drafts: Tensor, most: int
) -> BlockPlan:
    """The plan of a text whose `known` blocks and open ones have so many slots, cut off after `most` of them."""
    lengths = [*known, *sizes]
    kept: list[int] = []
    for length in lengths:
        kept.append(min(length, most - sum(kept)))
    kept = [length for length in kept if length > 0]
    share = torch.full((len(kept),), alpha, device=latents.device)
    share[: len(known)] = 1.0
    return BlockPlan(kept, Plans(latents[: len(kept)], share, drafts[: sum(kept)]), sum(lengths) <= most)


def _draw_sizes(scores: Tensor, least: int, generator: torch.Generator) -> list[int]:
    """How long each window is, from log-probabilities [M, S + 1] of where the next one starts, up to a constant.

    The first is longer than `least` positions, where its window has room for that.
    """
    scores = scores.clone()
    scores[0, 1 : min(least + 1, scores.shape[1] - 1)] = -torch.inf
    upto = scores.softmax(-1).cumsum(-1)
    chance = torch.rand(len(scores), 1, generator=generator).to(upto.device) * upto[:, -1:]
    return (upto < chance.clamp(min=1e-9)).sum(1).clamp(1, scores.shape[1] - 1).tolist()
