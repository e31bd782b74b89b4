"""What a stage must know of its text before it begins: what it costs, and strings to choose from."""

from __future__ import annotations

import lzma
from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.devices import autocast
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_splitter import frozen_copy
from zonkey_core.model.string_counter import StringCounter
from zonkey_core.model.units import read_units
from zonkey_core.training.curriculum import Stage

COMPRESSED_BYTES = 2_000_000
"""Text of a source by which a compressor measures its information, at most."""
COMPRESSED_TOGETHER = 500
"""Documents among which that text is shuffled."""
BYTES_PER_STRING = 600
"""Text that is read for each string of a vocabulary."""


def expect_sources(model: Zonkey, spec: SourceSpec) -> None:
    """Tell a model of how many sources its text will be; where the cuts of some are to stay, its splitter of bytes is
    kept as it is now."""
    if model.bottom.lexicon is not None:
        model.bottom.lexicon.expect_sources(max(1, len(spec.weights)))
    if spec.kept_cuts:
        model.bottom.former = frozen_copy(model.bottom.splitter)


def fit_information(model: Zonkey, stage: Stage, spec: SourceSpec) -> None:
    """Measure what a unit of each source costs, where a lexicon is to cut it at a rate of information.

    A compressor says it, of some text of the source, or of all sources together where they have no weights. Those whose
    cuts are kept are left out, and standard input, which can be read but once. Raises `DataError` as reading does.
    """
    lexicon = model.bottom.lexicon
    if stage.name != "splitter" or stage.level != 0 or lexicon is None:
        return
    groups = [(source,) for source in spec.sources] if spec.weights else [spec.sources]
    for number, sources in enumerate(groups):
        if "-" in sources or set(sources) <= set(spec.kept_cuts):
            continue
        text = _some_text(msgspec.structs.replace(spec, sources=sources, weights=(), kept_cuts=()))
        bits = 8 * len(lzma.compress(text.tobytes(), preset=9 | lzma.PRESET_EXTREME))
        lexicon.information[number] = bits / max(1, len(read_units(text, np.arange(len(text)) == 0).offsets))


def _some_text(spec: SourceSpec) -> NDArray[np.uint8]:
    """The first `COMPRESSED_BYTES` of a text, shuffled by documents, if there are so many."""
    documents: list[bytes] = []
    count = 0
    for document in open_stream(spec, seed=0, shuffle_documents=COMPRESSED_TOGETHER, repeat=False):
        documents.append(document)
        count += len(document)
        if count >= COMPRESSED_BYTES:
            break
    return np.frombuffer(b"".join(documents)[:COMPRESSED_BYTES], np.uint8)


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
