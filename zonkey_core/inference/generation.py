"""Generation: text is written from noise, in streams side by side, and several texts at a time.

Level 0 fills open slots with strings of its dictionary. Where a level above it starts, those above make a draft first,
which hints under noise at what level 0 writes. Text longer than the model's rows continues from its own end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from zonkey_core.errors import ConfigError
from zonkey_core.inference.block_decoding import EMPTY
from zonkey_core.inference.block_generation import TOGETHER, OpenText, write_texts
from zonkey_core.inference.latent_sampler import SPARE_SLOTS, draft_text
from zonkey_core.inference.scoring import Question, log_likelihoods
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey, text_sequence

GROUP_BYTES = 512
"""Text that is sampled at once."""
CONTEXT_BYTES = 384
"""Text before it that is read."""
DRAFT_RATIO = 5.0
"""The same for level 0; up to 2, noise leaves no doubt of which string it is."""
OTHER_DRAWS = 1_000_003
"""What parts the seeds of the candidates for one text."""
MOST_STEPS = 128


class SamplingOptions(msgspec.Struct, frozen=True):
    """How text is sampled."""

    steps: int = 32
    """Evaluations of a level's denoiser from pure noise to none; where one is not enough to go on, two."""
    temperature: float = 1.0
    """Divides the logits of what is chosen, and scales the noise that upper levels draw anew at each step."""
    max_bytes: int = 512
    level: int = 0
    """Where sampling starts."""
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
    draws = [(seed, seed + OTHER_DRAWS * which) for seed in seeds for which in range(options.best_of)]
    waiting: list[Sample] = []
    for first in range(0, len(draws), TOGETHER):
        group = draws[first : first + TOGETHER]
        texts = _write(model, [draw for _, draw in group], options, prompt, watch)
        if options.best_of == 1:
            yield from (Sample(seed, text) for (seed, _), text in zip(group, texts, strict=True))
            continue
        waiting += _score(model, [seed for seed, _ in group], texts, len(prompt))
        while len(waiting) >= options.best_of:
            candidates, waiting = waiting[: options.best_of], waiting[options.best_of :]
            yield max(candidates, key=lambda candidate: candidate.score or -math.inf)


def _score(model: Zonkey, seeds: Sequence[int], texts: Sequence[bytes], kept: int) -> list[Sample]:
    """Texts with the log-probability per byte of what follows the prompt, given all the rest."""
    likelihoods = log_likelihoods(model, [Question(text, [(kept, len(text))]) for text in texts])
    return [
        Sample(seed, text, likelihood.total / max(1, len(text) - kept))
        for seed, text, likelihood in zip(seeds, texts, likelihoods, strict=True)
    ]


def _write(
    model: Zonkey,
    draws: Sequence[int],
    options: SamplingOptions,
    prompt: bytes,
    watch: Callable[[Forming], None] | None,
) -> list[bytes]:
    """One text for each of the numbers that seed the draws, side by side."""
    level = model.levels[0]
    dictionary = level.dictionary
    assert dictionary is not None
    generators = [torch.Generator().manual_seed(draw) for draw in draws]
    texts = [prompt for _ in draws]
    going = [index for index in range(len(draws)) if len(prompt) < options.max_bytes]
    while going:
        opened = [
            _open(model, texts[index], options, generators[index], watch if index == 0 else None) for index in going
        ]
        shown = None
        if watch is not None and going[0] == 0:

            def shown(entries: Tensor, before: bytes = texts[0].removesuffix(opened[0].prefix)) -> None:
                pieces = [None if each == EMPTY else dictionary.detokenize([each]) for each in entries.tolist()]
                watch(Forming(0, before, pieces))

        written = write_texts(
            level, opened, [generators[index] for index in going],
            steps=max(1, options.steps - 1), temperature=options.temperature, on_step=shown,
        )
        left = []
        for index, text, (entries, ended) in zip(going, opened, written, strict=True):
            texts[index] += dictionary.detokenize(entries.tolist())[len(text.prefix) :]
            if len(entries) and not ended and len(texts[index]) < options.max_bytes:
                left.append(index)
        going = left
    return [_trim(text, options.max_bytes, kept=len(prompt)) for text in texts]


def _open(
    model: Zonkey,
    text: bytes,
    options: SamplingOptions,
    generator: torch.Generator,
    watch: Callable[[Forming], None] | None,
) -> OpenText:
    """The end of a text, and how far it may go on at once; a level above 0 drafts what follows."""
    level = model.levels[0]
    assert level.dictionary is not None
    room = min(GROUP_BYTES, options.max_bytes - len(text))
    context = text[-CONTEXT_BYTES:]
    whole = len(context) == len(text)
    known, last, prefix = open_end(level, context)
    slots = math.ceil(room / level.dictionary.mean_length() * SPARE_SLOTS)
    opened = OpenText(known, slots + len(last), whole, prefix)
    if not options.level:
        return opened
    drafted = draft_text(
        model, context, room, top=options.level, starts_document=whole, steps=options.steps,
        temperature=options.temperature, generator=generator,
    )
    if drafted is None:
        return opened
    expected = read_entries(level, drafted)
    if watch is not None:
        watch(Forming(options.level, text, [level.dictionary.detokenize([each]) for each in expected.tolist()]))
    if len(expected):
        expected = torch.cat([last, expected])
    return opened._replace(expected=expected, noise_level=level.schedule.level_for_ratio(DRAFT_RATIO))


class OpenEnd(NamedTuple):
    """A text that is to go on, as entries of level 0's dictionary.

    Its last string may turn out to be the beginning of a longer one.
    """

    known: Tensor
    """[M] all but the last."""
    last: Tensor
    """[1] the last, [0] where there is no text."""
    prefix: bytes
    """What that one spells."""


def open_end(level: Level, text: bytes) -> OpenEnd:
    """A text whose last string is open."""
    assert level.dictionary is not None
    entries = read_entries(level, text)
    return OpenEnd(entries[:-1], entries[-1:], level.dictionary.detokenize(entries[-1:].tolist()))


@torch.no_grad()
def read_entries(level: Level, text: bytes) -> Tensor:
    """A text as entries [M] of level 0's dictionary."""
    if not text:
        return torch.zeros(0, dtype=torch.long)
    sequence = text_sequence(text, device=next(level.parameters()).device)
    return level.pieces(sequence, level.split(sequence).start_prob).entries[0].cpu()


def check_options(model: Zonkey, options: SamplingOptions) -> None:
    """Raise `ConfigError` for options out of range."""
    if not 0 <= options.level < len(model.levels):
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
