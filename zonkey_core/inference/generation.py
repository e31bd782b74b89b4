"""Generation: text is formed from noise, level by level from the top down, several texts at a time.

The levels above the lowest are denoised and say what the blocks of the level below hold; the lowest level tells these
side by side; its decoder unfolds every slot into bytes, and the stitcher joins them. Text longer than the model's rows
goes on from its own end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.errors import ConfigError
from zonkey_core.inference.block_decoding import EMPTY, TOGETHER
from zonkey_core.inference.block_generation import OpenText, write_texts
from zonkey_core.inference.planning import BlockPlan, plan_texts
from zonkey_core.inference.scoring import Question, log_likelihoods
from zonkey_core.inference.shapes import STEP
from zonkey_core.inference.text_reading import TextReader
from zonkey_core.inference.windows import read_windows
from zonkey_core.inference.workers import shared_out, side_by_side
from zonkey_core.model.bytes import BYTE_VALUES
from zonkey_core.model.existence import LOG_FLOOR
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.segmentation import length_groups
from zonkey_core.model.stitcher import stitch

GROUP_BYTES = 512
"""Text that is formed at once."""
ROOM_STEP = 128
"""The bytes of a text that are still to be formed are rounded up to a multiple of so many."""
CONTEXT_BYTES = 384
"""Text before it that is read."""
SPARE_SLOTS = 1.3
"""Slots opened for each one that is expected to be needed."""
SPARE_BLOCKS = 1.5
"""The same of blocks, which vary more."""
OTHER_DRAWS = 1_000_003
"""What parts the seeds of the candidates for one text."""
MOST_STEPS = 128


class SamplingOptions(msgspec.Struct, frozen=True):
    """How text is sampled."""

    steps: int = 8
    """Evaluations of each level's denoiser, or as many as there are slots to tell where that is fewer; above the lowest
    level at most `planning.MOST_STEPS`."""
    temperature: float = 1.0
    """How far draws stray from what is likeliest: it divides the logits of what is chosen, and scales the noise that
    is drawn anew at each step."""
    max_bytes: int = 512
    level: int | None = None
    """The highest level that forms the text; the top one by default."""
    best_of: int = 1
    """Candidates for each text, of which the one that the model finds likeliest is kept."""


class Sample(msgspec.Struct, frozen=True):
    """One text."""

    seed: int
    text: bytes
    score: float | None = None
    """Log-probability per byte, in nats, where there was a choice."""


class Forming(NamedTuple):
    """A text on its way from noise."""

    level: int
    before: bytes
    """What stands already."""
    pieces: list[bytes | None]
    """What follows; None where a slot is still noise."""


def generate(
    model: Zonkey,
    *,
    seeds: Sequence[int],
    options: SamplingOptions,
    prompt: bytes = b"",
    watch: Callable[[Forming], None] | None = None,
) -> Iterator[Sample]:
    """Sample one text per seed, `TOGETHER` at a time; a prompt is kept as the beginning of every one.

    A sample depends on its own seed alone. `watch` is shown how the first text of every group forms. Raises
    `ConfigError` for options out of range.
    """
    check_options(model, options)
    reader = TextReader(model)
    draws = [(seed, seed + OTHER_DRAWS * which) for seed in seeds for which in range(options.best_of)]

    def write(group: Sequence[tuple[int, int]]) -> list[Sample]:
        texts = _write(reader, [draw for _, draw in group], options, prompt, watch)
        if options.best_of == 1:
            return [Sample(seed, text) for (seed, _), text in zip(group, texts, strict=True)]
        return _score(model, [seed for seed, _ in group], texts, len(prompt))

    groups = shared_out(draws, TOGETHER, model.device, unit=STEP)
    # Who watches sees one group after the other.
    written = side_by_side(write, groups, model.device, reader.prepare) if watch is None else map(write, groups)
    candidates = itertools.chain.from_iterable(written)
    for several in iter(lambda: list(itertools.islice(candidates, options.best_of)), []):
        yield max(several, key=lambda candidate: candidate.score or -math.inf)


def _score(model: Zonkey, seeds: Sequence[int], texts: Sequence[bytes], kept: int) -> list[Sample]:
    """Texts with the log-probability per byte of what follows the prompt, given all the rest."""
    likelihoods = log_likelihoods(model, [Question(text, [(kept, len(text))]) for text in texts])
    return [
        Sample(seed, text, likelihood.total / max(1, len(text) - kept))
        for seed, text, likelihood in zip(seeds, texts, likelihoods, strict=True)
    ]


def _write(
    reader: TextReader,
    draws: Sequence[int],
    options: SamplingOptions,
    prompt: bytes,
    watch: Callable[[Forming], None] | None,
) -> list[bytes]:
    """One text for each of the numbers that seed the draws, side by side."""
    model, level = reader.model, reader.model.bottom
    generators = [torch.Generator().manual_seed(draw) for draw in draws]
    texts = [prompt for _ in draws]
    going = [index for index in range(len(draws)) if len(prompt) < options.max_bytes]
    while going:
        opened = _open(reader, [texts[index] for index in going], options, [generators[index] for index in going])
        shown = None
        if watch is not None and going[0] == 0:
            before = texts[0].removesuffix(opened[0].prefix)
            shown = _show(level, watch, before)
            if opened[0].plan is not None:
                watch(Forming(_top(model, options), before, _drafted(level, opened[0])))
        written = write_texts(
            level, opened, [generators[index] for index in going],
            steps=options.steps, temperature=options.temperature, on_step=shown,
        )
        left = []
        unfolded = unfold_entries(level, [entries for entries, _ in written])
        for index, text, fresh, (entries, ended) in zip(going, opened, unfolded, written, strict=True):
            texts[index] += fresh[len(text.prefix) :]
            if len(entries) and not ended and len(texts[index]) < options.max_bytes:
                left.append(index)
        going = left
    return [_trim(text, options.max_bytes, kept=len(prompt)) for text in texts]


def _top(model: Zonkey, options: SamplingOptions) -> int:
    """The highest level that forms the text."""
    return len(model.levels) - 1 if options.level is None else options.level


@torch.no_grad()
def _drafted(level: Level, text: OpenText) -> list[bytes | None]:
    """What the level above drafts for the open slots of a text: the strings that its drafts are nearest to."""
    assert level.vocabulary is not None and text.plan is not None
    drafts = text.plan.plans.drafts[len(text.known) :]
    return [level.vocabulary.detokenize([each]) for each in level.nearest_entries(drafts).tolist()]


def _show(level: Level, watch: Callable[[Forming], None], before: bytes) -> Callable[[Tensor], None]:
    """What shows a text's entries as they stand."""
    vocabulary = level.vocabulary
    assert vocabulary is not None

    def show(entries: Tensor) -> None:
        pieces = [None if each == EMPTY else vocabulary.detokenize([each]) for each in entries.tolist()]
        watch(Forming(0, before, pieces))

    return show


@torch.no_grad()
def unfold_entries(level: Level, texts: Sequence[Tensor]) -> list[bytes]:
    """The bytes of texts of slots [M] of the lowest level: each latent is decoded, and the windows are joined.

    How long each is, the vocabulary knows.
    """
    assert level.vocabulary is not None
    distinct, which = torch.unique(torch.cat(list(texts)), return_inverse=True)
    if not len(distinct):
        return [b""] * len(texts)
    distinct = distinct.to(level.device)
    sizes = level.vocabulary.lengths[distinct].long()
    symbols, log_existence = _spelled(level, level.vocabulary.latents()[distinct], sizes)
    sizes = sizes.cpu()
    unfolded = []
    for slots in torch.split(which, [len(text) for text in texts]):
        joined = stitch(symbols[slots], log_existence[slots], torch.ones(len(slots)), symbols=True, sizes=sizes[slots])
        unfolded.append(bytes(joined.contents.argmax(-1).tolist()))
    return unfolded


def _spelled(level: Level, latents: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """One-hot bytes [n, S, 256] and log existence [n, S] of windows, short ones decoded apart from long ones."""
    groups = list(length_groups(sizes, level.config.window))
    longest = groups[-1][0]
    symbols = torch.zeros(len(latents), longest, BYTE_VALUES)
    log_existence = torch.full((len(latents), longest), LOG_FLOOR)
    for length, index in groups:
        windows = read_windows(level, latents[index], length)
        symbols[index.cpu(), :length] = functional.one_hot(windows.contents.argmax(-1), BYTE_VALUES).float().cpu()
        log_existence[index.cpu(), :length] = windows.log_existence.cpu()
    return symbols, log_existence


def _open(
    reader: TextReader, texts: Sequence[bytes], options: SamplingOptions, generators: Sequence[torch.Generator]
) -> list[OpenText]:
    """The ends of texts, how far they may go on at once, and what the levels above plan for them."""
    model, vocabulary = reader.model, reader.model.bottom.vocabulary
    assert vocabulary is not None
    contexts = [text[-CONTEXT_BYTES:] for text in texts]
    read = reader.read(contexts)
    prefixes = [vocabulary.detokenize(each.entries[-1:].tolist()) for each in read]
    begins = [len(context) == len(text) for context, text in zip(contexts, texts, strict=True)]
    top = _top(model, options)
    rooms = [_rooms(model, options.max_bytes - len(text), top) for text in texts]
    plans: list[BlockPlan | None] = [None] * len(texts)
    if top:
        opened = [each.opened()[: top + 1] for each in read]
        plans = list(
            plan_texts(model, opened, begins, generators, rooms=rooms, steps=options.steps,
                       temperature=options.temperature)
        )  # fmt: skip
    return [
        OpenText(each.entries[:-1], room[0], begin, prefix, plan, room[1] if top else 0)
        for each, begin, prefix, plan, room in zip(read, begins, prefixes, plans, rooms, strict=True)
    ]


def _rooms(model: Zonkey, left: int, top: int) -> list[int]:
    """Slots of each level up to `top` that may be opened at once, where so many bytes may follow."""
    assert model.bottom.vocabulary is not None
    size = min(GROUP_BYTES, -(-left // ROOM_STEP) * ROOM_STEP)
    rooms = [math.ceil(size / model.bottom.vocabulary.mean_length() * SPARE_SLOTS) + 1]
    for upper in model.levels[1 : top + 1]:
        rooms.append(math.ceil(rooms[-1] / upper.config.segment_length * SPARE_BLOCKS) + 1)
    return rooms


def check_options(model: Zonkey, options: SamplingOptions) -> None:
    """Raise `ConfigError` for options out of range."""
    if options.level is not None and not 0 <= options.level < len(model.levels):
        raise ConfigError(f"level must be between 0 and {len(model.levels) - 1}, not {options.level}")
    check_sampling(options.steps, options.temperature)
    if options.max_bytes < 1:
        raise ConfigError(f"max-bytes must be at least 1, not {options.max_bytes}")
    if options.best_of < 1:
        raise ConfigError(f"best-of must be at least 1, not {options.best_of}")


def check_sampling(steps: int, temperature: float) -> None:
    """Raise `ConfigError` for a number of steps or a temperature that is out of range."""
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps must be between 1 and {MOST_STEPS}, not {steps}")
    if not 0 <= temperature <= 10:
        raise ConfigError(f"temperature must lie between 0 and 10, not {temperature}")


def _trim(text: bytes, limit: int, *, kept: int) -> bytes:
    """At most `limit` bytes, not ending inside a code point; the first `kept` bytes stay in any case."""
    limit = max(limit, kept)
    if len(text) <= limit:
        return text
    end = limit
    while end > max(limit - 3, kept) and 0x80 <= text[end] < 0xC0:
        end -= 1
    return text[:end]
