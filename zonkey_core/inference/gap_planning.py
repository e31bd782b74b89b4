"""Planning of gaps: the descent from the top level to the blocks of the lowest one, for text that has gaps.

What stands around the gaps is known at every level. A segment that a gap lies in is unknown; it is formed from noise,
given the known ones on both sides, and its decoder unfolds it into drafts of the slots below, once for each candidate
that is told by what was formed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.devices import choose_precision
from zonkey_core.inference.latent_sampler import Formed, OpenText, form_slots
from zonkey_core.inference.planning import MOST_STEPS, BlockPlan
from zonkey_core.inference.shapes import groups_of_one_shape, padded_count
from zonkey_core.inference.text_reading import ReadText
from zonkey_core.inference.windows import read_windows
from zonkey_core.model.existence import LOG_FLOOR
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.slot_batches import Plans, side_by_side
from zonkey_core.model.stitcher import stitch

LENGTH_STEP = 4
"""Rows of slots are padded to a multiple of so many."""
PLANNED_TOGETHER = 32
"""Texts that are planned side by side."""


class GappedBlocks(NamedTuple):
    """The blocks of a text with gaps: those that touch a gap are one with it, and unknown."""

    latents: Tensor
    """[K, C'] zeros where they are unknown."""
    known_mask: Tensor
    """[K]"""
    sizes: list[int]
    """Known slots of each."""
    gaps: list[int]
    """The block that each gap lies in."""

    def lengths(self, counts: Sequence[int]) -> list[int]:
        """Slots of each block, where the gaps have so many."""
        lengths = list(self.sizes)
        for block, count in zip(self.gaps, counts, strict=True):
            lengths[block] += count
        return lengths


class GapsToPlan(NamedTuple):
    """A text with gaps, and candidates for these that are told by one plan."""

    blocks: Sequence[GappedBlocks]
    """Of each level but the lowest, from the second on, as `gapped_blocks` gives them."""
    lengths: Sequence[Sequence[int]]
    """Slots of each gap, for each candidate."""
    begins: bool
    ends: bool


def plan_gaps(
    model: Zonkey,
    texts: Sequence[GapsToPlan],
    generators: Sequence[torch.Generator],
    *,
    steps: int,
    temperature: float,
) -> list[list[BlockPlan | None]]:
    """Plans of the blocks of each candidate of each text, each text from its own generator; None without a level above.

    They are planned `PLANNED_TOGETHER` at a time in rows whose length is their own, so none depends on the others.
    """
    if len(model.levels) == 1:
        return [[None] * len(text.lengths) for text in texts]
    shapes = [tuple(-(-len(each.sizes) // LENGTH_STEP) * LENGTH_STEP for each in one.blocks) for one in texts]
    plans: dict[int, list[BlockPlan | None]] = {}
    for shape, group in groups_of_one_shape(shapes, PLANNED_TOGETHER):
        lacking = padded_count(len(group), PLANNED_TOGETHER, model.device) - len(group)
        found = _plan_alike(
            model, [*(texts[index] for index in group), *[texts[group[0]]._replace(lengths=())] * lacking],
            [*(generators[index] for index in group), *[torch.Generator()] * lacking], shape,
            steps=steps, temperature=temperature,
        )  # fmt: skip
        for index in group:
            plans[index] = [next(found) for _ in texts[index].lengths]
    return [plans[index] for index in range(len(texts))]


def _plan_alike(
    model: Zonkey,
    texts: Sequence[GapsToPlan],
    generators: Sequence[torch.Generator],
    shape: Sequence[int],
    *,
    steps: int,
    temperature: float,
) -> Iterator[BlockPlan]:
    """Plans for all candidates of texts whose blocks fit into rows of the lengths `shape`, lowest first."""
    upper: Plans | None = None
    below: list[list[int]] = [[] for _ in texts]
    for number in range(len(shape), 0, -1):
        level, blocks = model.levels[number], [text.blocks[number - 1] for text in texts]
        opened = [
            OpenText(each.latents, each.known_mask, text.begins, text.ends, sizes)
            for text, each, sizes in zip(texts, blocks, below, strict=True)
        ]
        formed = form_slots(
            level, opened, upper, generators, steps=min(steps, MOST_STEPS), temperature=temperature,
            length=shape[number - 1],
        )  # fmt: skip
        if number > 1:
            below = [_block_sizes(text, number) for text in texts]
            planned = _as_plans(level, formed, blocks, below, [text.ends for text in texts])
            upper = side_by_side([each.plans for each in planned])
    owners = [row for row, text in enumerate(texts) for _ in text.lengths]
    sizes = [each.lengths(counts) for text, each in zip(texts, blocks, strict=True) for counts in text.lengths]
    shared = formed._replace(latents=[formed.latents[row] for row in owners])
    return iter(_as_plans(level, shared, [blocks[row] for row in owners], sizes, [texts[row].ends for row in owners]))


def _block_sizes(text: GapsToPlan, number: int) -> list[int]:
    """Slots of the level below of each block of level `number`, which stands above the lowest blocks.

    Gaps that lie in one block of the level below are one open slot.
    """
    gaps = text.blocks[number - 2].gaps
    return text.blocks[number - 1].lengths([int(block not in gaps[:which]) for which, block in enumerate(gaps)])


def _as_plans(
    level: Level, formed: Formed, blocks: Sequence[GappedBlocks], sizes: Sequence[list[int]], ends: Sequence[bool]
) -> list[BlockPlan]:
    """What was formed as plans, with drafts of the slots of unknown blocks and zeros for those of known ones."""
    unknown = [~each.known_mask for each in blocks]
    counts = [[size for size, new in zip(row, mask.tolist(), strict=True) if new]
              for row, mask in zip(sizes, unknown, strict=True)]  # fmt: skip
    opened = torch.cat([latents[mask] for latents, mask in zip(formed.latents, unknown, strict=True)])
    # Half as large where the denoiser, which reads them, is of half the precision.
    precision = choose_precision("auto", level.device)
    drafts = (each.to(precision) for each in _drafts(level, opened, counts))
    plans = []
    for latents, mask, row, end in zip(formed.latents, unknown, sizes, ends, strict=True):
        share = torch.ones(len(latents), device=level.device).where(~mask, formed.alpha)
        below = torch.repeat_interleave(mask, torch.tensor(row, device=mask.device))
        drafted = next(drafts)
        table = drafted.new_zeros(len(below), drafted.shape[1])
        table[below] = drafted
        plans.append(BlockPlan(row, Plans(latents, share, table), end))
    return plans


@torch.no_grad()
def _drafts(level: Level, latents: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """[M, C] the slots of the unknown blocks of each candidate, which have these sizes, as their windows say.

    The windows of all candidates are stitched at once; those of two candidates lie apart.
    """
    windows = read_windows(level, latents)
    longest = windows.contents.shape[1]
    flat = [size for row in sizes for size in row]
    room = max(0, max(flat, default=0) - longest)
    contents = functional.pad(windows.contents, (0, 0, 0, room))
    log_existence = functional.pad(windows.log_existence, (0, room), value=LOG_FLOOR)
    apart = [[*row[:-1], max(row[-1], longest + room)] if row else [] for row in sizes]
    places = torch.tensor([size for row in apart for size in row], device=latents.device)
    exists = torch.ones(len(flat), device=latents.device)
    joined = stitch(contents, log_existence, exists, symbols=False, sizes=places).contents
    begins = [0, *itertools.accumulate(sum(row) for row in apart)]
    return [joined[begin : begin + sum(row)] for begin, row in zip(begins, sizes, strict=False)]


def gapped_blocks(model: Zonkey, texts: Sequence[ReadText], known: Sequence[int]) -> list[GappedBlocks]:
    """The blocks of every level but the lowest, as its slots; gaps lie between texts, of which `known` slots stand."""
    read = [text.levels for text in texts]
    result = []
    counts = list(known)
    for number in range(1, len(model.levels)):
        sizes: list[int] = []
        latents: list[Tensor | None] = []
        gaps: list[int] = []
        owners: list[int] = []
        for piece, contexts in enumerate(read):
            context, left = contexts[number], counts[piece]
            for index, length in enumerate(context.starts.diff().tolist()[: len(context.latents)]):
                # Above the level of blocks, the first slot of a piece is one with the gap before it.
                length = min(length - int(number > 1 and piece > 0 and index == 0), left)
                left -= length
                if index == 0 and piece:
                    sizes[-1] += length
                elif length or (piece < len(read) - 1 and index == len(context.latents) - 1):
                    # What is open at the end of a piece may begin a block of its own, of which nothing is known yet.
                    sizes.append(length)
                    latents.append(context.latents[index])
                    owners.append(piece)
            if piece < len(read) - 1:
                if not sizes:
                    sizes.append(0)
                    latents.append(None)
                    owners.append(piece)
                latents[-1] = None
                gaps.append(len(sizes) - 1)
        unknown = torch.zeros(model.levels[number].channels, device=model.device)
        table = torch.stack([unknown if latent is None else latent for latent in latents])
        mask = torch.tensor([latent is not None for latent in latents], device=model.device)
        result.append(GappedBlocks(table, mask, sizes, gaps))
        kept = [owner for owner, latent in zip(owners, latents, strict=True) if latent is not None]
        counts = [kept.count(piece) for piece in range(len(read))]
    return result
