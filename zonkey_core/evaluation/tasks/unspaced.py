"""The splitter that finds words in text without spaces: level 0's own, trained anew on text from which they are gone.

It learns as `zonkey train --stage splitter` does, from the text that the rivals learn from, and a run that was stopped
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from zonkey_core.checkpoint import CONFIG, FORMAT, load_model, read_model_card
from zonkey_core.committed_files import file_path
from zonkey_core.config import Config, LevelConfig, ModelConfig
from zonkey_core.data import SourceSpec
from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.evaluation.store import fingerprint
from zonkey_core.model.model import Zonkey
from zonkey_core.training import Event, StepEvent, TrainingOptions, resume, train

READ_SHARE, MOST_READ = 180, 60_000_000
"""Bytes that are read for each that is scored, and at most."""
TEXT = "text.jsonl"
SAVE_SECONDS = 60.0


def splitter_alone(level: LevelConfig) -> ModelConfig:
    """A model of one level with this level's splitter, and all else as small as it may be."""
    smallest = msgspec.structs.replace(
        level, compressor_layers=1, decoder_layers=1, denoiser_layers=1, denoiser_width=2 * level.denoiser_heads
    )
    return ModelConfig(levels=(smallest,))


def unspaced_model(context: EvaluationContext, training_text: Sequence[bytes]) -> Zonkey:
    """A model of level 0 alone whose splitter has learned from `training_text`, the training text without whitespace.

    It learns by masked modelling, which finds the words of alphabets, where a lexicon finds phrases. Its target is as
    many segments for a text as the model's own, which are that much shorter without whitespace. A byte that is no part
    of valid UTF-8 is learned as a replacement character.
    """
    options, texts = context.options, context.texts
    training = read_model_card(context.model_path).config.training
    level = context.model.config.levels[0]
    left = sum(map(len, training_text)) / sum(map(len, texts.training))
    shorter = msgspec.structs.replace(
        level, segment_length=max(1.5, left * level.segment_length), bits_per_segment=0.0, lexicon=0
    )
    config = Config(model=splitter_alone(shorter), training=training)
    step_bytes = training.row_bytes * training.batch_rows
    steps = max(1, min(READ_SHARE * options.limit, MOST_READ) // step_bytes)
    key = fingerprint(FORMAT, config, texts.identity, steps, options.seed)
    out = context.store.work_folder("unspaced", key) / "model"

    def tell(event: Event) -> None:
        if isinstance(event, StepEvent):
            context.report("training a splitter without spaces", event.fraction)

    def never() -> bool:
        return False

    if not file_path(out, CONFIG).exists():
        text = context.store.entry("unspaced-text", texts.identity, partial(_write, training_text)) / TEXT
        train(
            config,
            SourceSpec(sources=(str(text),), split="all"),
            TrainingOptions(
                out=str(out),
                steps=steps,
                seed=options.seed,
                device=str(context.model.device),
                stage="splitter",
                save_every=SAVE_SECONDS,
            ),
            on_event=tell,
            should_stop=never,
        )
    elif not _is_finished(out):
        resume(out, on_event=tell, should_stop=never)
    return load_model(out, device=context.model.device)


def _is_finished(out: Path) -> bool:
    """Whether a run's only stage is over."""
    record = read_model_card(out).training
    return record is not None and record.stage > 0


def _write(documents: Sequence[bytes], folder: Path) -> None:
    """Write documents as JSON lines."""
    with (folder / TEXT).open("wb") as file:
        for document in documents:
            if document:
                file.write(msgspec.json.encode({"text": document.decode("utf-8", "replace")}) + b"\n")
