"""What a stage must know of its text before it begins: kinds of latents to tell apart, strings to choose from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from zonkey_core.devices import autocast
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.readers import SegmentReader
from zonkey_core.model.segment_vocabulary import StringCounter
from zonkey_core.training.curriculum import Stage

CODEBOOK_BATCHES = 48
BYTES_PER_STRING = 600
"""Text that is read for each string of a vocabulary."""


def fit_codebooks(
    models: tuple[Zonkey, Zonkey],
    stage: Stage,
    sequences: Iterator[PositionSequence],
    precision: torch.dtype,
    generator: torch.Generator,
) -> None:
    """Sort the latents that a stage's readers tell into kinds; a joint stage goes on with old ones.

    models: the live one, which is asked, and the averaged one, which is told.
    """
    for index, (live, average) in enumerate(zip(*(model.levels for model in models), strict=True)):
        if not isinstance(live.reader, SegmentReader) or not isinstance(average.reader, SegmentReader):
            continue
        unfitted = not live.reader.codebook.centres.any()
        if (stage.name == "splitter" and stage.level == index) or (stage.level is None and unfitted):
            live.reader.codebook.fit(_some_latents(models[0], index, sequences, precision), generator)
            average.reader.codebook.load_state_dict(live.reader.codebook.state_dict())


def fit_vocabularies(
    models: tuple[Zonkey, Zonkey], stage: Stage, sequences: Iterator[PositionSequence], precision: torch.dtype
) -> None:
    """Collect the strings that a denoiser is to choose from, once in a model's life; `models` as above."""
    if stage.name not in ("denoiser", "plan", "joint"):
        return
    for index, (live, average) in enumerate(zip(*(model.levels for model in models), strict=True)):
        if live.vocabulary is None or live.vocabulary.fitted or stage.level not in (None, index):
            continue
        live.collect(_count_segments(live, BYTES_PER_STRING * len(live.vocabulary.lengths), sequences, precision))
        assert average.vocabulary is not None
        average.vocabulary.load_state_dict(live.vocabulary.state_dict())


def anchor_vocabularies(model: Zonkey, precision: torch.dtype) -> None:
    """Note what all compressors make of their vocabularies, before they learn."""
    with autocast(model.device, precision):
        for level in model.levels:
            level.anchor_vocabulary()


def follow_compressors(model: Zonkey, precision: torch.dtype, *, told: Zonkey | None = None) -> None:
    """Let all vocabularies follow what compressors have learned since; another model may be told."""
    with autocast(model.device, precision):
        for level in model.levels:
            level.follow_compressor()
    for level, follower in zip(model.levels, [] if told is None else told.levels, strict=False):
        if level.vocabulary is not None and follower.vocabulary is not None:
            follower.vocabulary.load_state_dict(level.vocabulary.state_dict())


@torch.no_grad()
def _some_latents(
    model: Zonkey, index: int, sequences: Iterator[PositionSequence], precision: torch.dtype
) -> Tensor:
    """Latents [M, C] that level `index` reads of the next batches."""
    latents = []
    for rows in itertools.islice(sequences, CODEBOOK_BATCHES):
        with autocast(rows.values.device, precision):
            sequence = model.located_positions(rows, index).sequence
        latents.append(sequence.values[sequence.exists_mask])
    return torch.cat(latents)


@torch.no_grad()
def _count_segments(
    level: Level, least: int, sequences: Iterator[PositionSequence], precision: torch.dtype
) -> StringCounter:
    """The segments of at least so many bytes, if there are."""
    counter = StringCounter()
    for rows in sequences:
        with autocast(rows.values.device, precision):
            segmentation = level.choose_starts(rows, level.split(rows).start_prob)
        counter.add(rows.values, segmentation.start_prob > 0.5)
        least -= rows.values.numel()
        if least <= 0:
            break
    return counter
