"""Reconstruction: how many bytes survive compression into each level's latents and decoding from them alone.

A segment of level l is decoded to the latents one level down, each at its true position, those to the next, and so on
to bytes, with no step of denoising. A byte counts where it stands; one that is decoded as not existing is wrong. On
noised text the noised bytes are the ones to be rebuilt, and so on text of other domains. Figures are shares over the
whole text, and their intervals draw its passages anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.evaluation.metrics.bootstrap import bootstrap_sums
from zonkey_core.evaluation.metrics.boundaries import BINS, calibration_error_of_sums, forecast_counts
from zonkey_core.evaluation.results import LeftOut, Measure, Outcome
from zonkey_core.evaluation.tasks.noises import NOISES, add_noise
from zonkey_core.evaluation.texts import passages
from zonkey_core.model.model import Ascent, Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.training.validation import forecast_ends, rebuild_segments

PASSAGE_BYTES = 1024
BATCH_ROWS = 16
OTHERS_SHARE = 4
"""Of noised and of foreign text one passage in this many is rebuilt, since there are many such texts."""
RIGHT, BYTES, EXACT, SEGMENTS = range(4)
"""Columns of counts."""


def measure_reconstruction(context: EvaluationContext) -> Iterator[Outcome]:
    """Byte accuracy, exact segments and bytes per segment of every level, on clean, noised and foreign text."""
    clean = passages(context.texts.reference, PASSAGE_BYTES)
    yield from _figures(context, "clean", clean)
    yield from _calibrations(context, clean)
    for noise in NOISES:
        noised = [add_noise(text, noise, context.options.seed + index).text for index, text in enumerate(_part(clean))]
        yield from _figures(context, noise, noised)
    for name, text in context.domains:
        foreign = passages([text[: context.options.limit]], PASSAGE_BYTES)
        yield from _figures(context, f"domain.{name}", _part(foreign))
    if not context.domains:
        yield LeftOut(name="reconstruct.domains", reason="no text of other domains; name some files with --domains")


def reconstruction_counts(model: Zonkey, texts: Sequence[bytes]) -> Iterator[tuple[list[int], NDArray[np.float64]]]:
    """Counts of passages, a batch at a time: which ones, and [levels, passages, 4] of what came back of them.

    The four columns are the bytes that are right, all bytes, the segments that are exact, and all segments.
    """
    for batch, views in _batches(model, texts):
        counts = np.zeros((len(model.levels), len(batch), 4))
        for level in range(len(model.levels)):
            back = rebuild_segments(model.levels[: level + 1], views[: level + 1])
            columns = (back.right, back.sizes, back.exact, torch.ones_like(back.sizes))
            for column, values in enumerate(columns):
                counts[level, :, column] = np.bincount(
                    back.rows.cpu().numpy(), values.cpu().numpy(), minlength=len(batch)
                )
        yield batch, counts


def ending_counts(model: Zonkey, texts: Sequence[bytes]) -> NDArray[np.float64]:
    """[levels, passages, 3 * BINS] `forecast_counts` of where decoded segments end."""
    counts = np.zeros((len(model.levels), len(texts), 3 * BINS))
    for batch, views in _batches(model, texts):
        for number, (level, view) in enumerate(zip(model.levels, views, strict=True)):
            rows, probs, came = (part.cpu().numpy() for part in forecast_ends(level, view))
            for row, index in enumerate(batch):
                counts[number, index] = forecast_counts(probs[rows == row].astype(np.float64), came[rows == row])
    return counts


def _batches(model: Zonkey, texts: Sequence[bytes]) -> Iterator[tuple[list[int], list[Ascent]]]:
    """Passages of about equal length together: which ones, and what every level sees of them."""
    order = sorted((index for index, text in enumerate(texts) if text), key=lambda index: len(texts[index]))
    for begin in range(0, len(order), BATCH_ROWS):
        batch = order[begin : begin + BATCH_ROWS]
        yield batch, model.ascend(_rows([texts[index] for index in batch], model.device), len(model.levels) - 1)


def commonest_byte_share(texts: Sequence[bytes]) -> float:
    """The byte accuracy of always saying the commonest byte: the floor."""
    counts = np.bincount(np.frombuffer(b"".join(texts), np.uint8), minlength=1)
    return float(counts.max() / max(1, counts.sum()))


def _calibrations(context: EvaluationContext, texts: Sequence[bytes]) -> Iterator[Measure]:
    """How far the forecasts of where segments end are from how often they do."""
    begin = time.perf_counter()
    context.report("lengths of decoded segments", None)
    counts = ending_counts(context.model, texts)
    seconds = (time.perf_counter() - begin) / len(counts)
    for level, level_counts in enumerate(counts):
        found = bootstrap_sums(level_counts, calibration_error_of_sums, seed=context.options.seed)
        yield Measure(
            name=f"reconstruct.level{level}.clean.length_calibration_error",
            value=found.value,
            low=found.low,
            high=found.high,
            ceiling=0.0,
            n=len(texts),
            seconds=seconds,
            better="lower",
        )


def _part(texts: Sequence[bytes]) -> list[bytes]:
    """Every `OTHERS_SHARE`-th passage, from the first on."""
    return list(texts[::OTHERS_SHARE])


def _rows(texts: Sequence[bytes], device: torch.device) -> PositionSequence:
    """Texts as rows that each begin a document, padded to the longest."""
    longest = max(map(len, texts))
    values = np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        values[row, : len(text)] = np.frombuffer(text, np.uint8)
    lengths = torch.tensor([len(text) for text in texts], device=device).unsqueeze(1)
    places = torch.arange(longest, device=device).expand(len(texts), -1)
    return PositionSequence(torch.from_numpy(values).to(device), places < lengths, places == 0)


def _figures(context: EvaluationContext, condition: str, texts: Sequence[bytes]) -> Iterator[Measure]:
    """The figures of every level under one condition; the time that they took together is shared among them."""
    begin = time.perf_counter()
    context.report(f"rebuilding text: {condition}", 0.0)
    counts = np.zeros((len(context.model.levels), len(texts), 4))
    done, total = 0, max(1, sum(map(len, texts)))
    for batch, found in reconstruction_counts(context.model, texts):
        counts[:, batch] = found
        done += sum(len(texts[index]) for index in batch)
        context.report(f"rebuilding text: {condition}", done / total)
    figures = (
        ("byte_accuracy", RIGHT, BYTES, commonest_byte_share(texts), 1.0),
        ("exact_segments", EXACT, SEGMENTS, 0.0, 1.0),
        ("bytes_per_segment", BYTES, SEGMENTS, None, None),
    )
    seconds = (time.perf_counter() - begin) / (len(counts) * len(figures))
    for level, level_counts in enumerate(counts):
        for name, part, whole, floor, ceiling in figures:
            found_interval = bootstrap_sums(
                level_counts[:, [part, whole]], lambda sums: sums[:, 0] / sums[:, 1], seed=context.options.seed
            )
            yield Measure(
                name=f"reconstruct.level{level}.{condition}.{name}",
                value=found_interval.value,
                low=found_interval.low,
                high=found_interval.high,
                floor=floor,
                ceiling=ceiling,
                n=len(texts),
                seconds=seconds,
                better="neither" if ceiling is None else "higher",
                unit="bytes" if ceiling is None else "",
            )
