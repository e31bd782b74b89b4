"""Words of any language: the cuts of text as it is against words that people marked, beside tokenizers.

A word counts where a segment, without the white space around it, is exactly that word. With cuts forced at
punctuation, which no model does and published systems often do, a cut is added on both sides of every sign that
Unicode has as punctuation or as a symbol, for all alike. The rivals learn from raw text of the same language. The
floor cuts around every unit.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.errors import DataError
from zonkey_core.evaluation.baselines.cutters import Cutter, ModelCutter, cut_texts, fit_tokenizers
from zonkey_core.evaluation.context import EvaluationContext, Language
from zonkey_core.evaluation.metrics.bootstrap import bootstrap_sums
from zonkey_core.evaluation.metrics.boundaries import (
    Offsets,
    code_points,
    each_point,
    f1_of_sums,
    precision_of_sums,
    recall_of_sums,
)
from zonkey_core.evaluation.results import LeftOut, Measure, Outcome
from zonkey_core.evaluation.store import fingerprint
from zonkey_core.model.units import read_units

TOKENIZER_SIZES = (8000, 16000)
LEARNED_BYTES = 12_000_000
"""Most text of a language that rivals learn from."""
OWN, FLOOR = "zonkey", "every unit"


def read_words(path: Path) -> list[list[str]]:
    """Lines of words, from a file of JSON lists; raises `DataError` that names the line where one is none."""
    decoder = msgspec.json.Decoder(list[str])
    lines: list[list[str]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                lines.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: no JSON list of words ({error}); correct or delete this line"
                ) from error
    if not any(word.strip() for line in lines for word in line):
        raise DataError(f"{path}: no words in this file; give one list of words a line")
    return lines


def read_language(name: str, gold: str, source: str, limit: int) -> Language:
    """A language by its name, its file of words, and a source of raw text, of which at most `limit` bytes are read."""
    lines = read_words(Path(gold))
    documents = open_stream(SourceSpec(sources=(source,)), seed=0, shuffle_documents=1, repeat=False)
    training: list[bytes] = []
    for document in documents:
        training.append(document)
        limit -= len(document)
        if limit <= 0:
            break
    return Language(name, lines, training)


def measure_languages(context: EvaluationContext) -> Iterator[Outcome]:
    """F1, precision and recall of words in each language, with the model's own cuts and with forced ones."""
    for language in context.languages:
        yield from _measure_language(context, language)


class UnitCutter:
    """Cuts before every unit."""

    name = FLOOR

    def cut(self, text: bytes) -> Offsets:
        """The cuts of a text."""
        values = np.frombuffer(text, dtype=np.uint8)
        return read_units(values, np.arange(len(values)) == 0).offsets


def _measure_language(context: EvaluationContext, language: Language) -> Iterator[Outcome]:
    began = time.perf_counter()
    cutters: list[Cutter] = [ModelCutter(context.model, name=OWN), UnitCutter()]
    try:
        rivals = fit_tokenizers(
            language.training,
            sizes=TOKENIZER_SIZES,
            store=context.store,
            identity=fingerprint(*language.training),
            report=context.report,
        )
        cutters[1:1] = rivals.fitted.values()
        for name, reason in rivals.failed.items():
            yield LeftOut(
                name=f"segment.words.{language.name}.rivals.{name}", reason=f"too little text for this many ({reason})"
            )
    except ImportError:
        reason = 'sentencepiece is missing; pip install "zonkey[eval]"'
        yield LeftOut(name=f"segment.words.{language.name}.rivals", reason=reason)
    texts = ["".join(line).encode("utf-8", "replace") for line in language.lines]
    words = [_spans(line) for line in language.lines]
    cuts: dict[str, list[Offsets]] = {}
    for cutter in cutters:
        report = partial(context.report, f"cutting {language.name}: {cutter.name}")
        cuts[cutter.name] = cut_texts(cutter, texts, report)
    for suffix, forced in (("", False), ("_forced", True)):
        borders = [_punctuation_borders(text) if forced else np.zeros(0, np.int64) for text in texts]
        counts = {
            name: np.stack([
                word_counts(np.union1d(each, more), text, gold)
                for each, more, text, gold in zip(found, borders, texts, words, strict=True)
            ])
            for name, found in cuts.items()
        }
        for figure, statistic in (("f1", f1_of_sums), ("precision", precision_of_sums), ("recall", recall_of_sums)):
            found = bootstrap_sums(counts[OWN], statistic, seed=context.options.seed)
            values = {name: float(statistic(each.sum(0, keepdims=True))[0]) for name, each in counts.items()}
            yield Measure(
                name=f"segment.words.{language.name}.{figure}{suffix}",
                value=found.value,
                low=found.low,
                high=found.high,
                floor=values[FLOOR],
                ceiling=1.0,
                rivals={name: value for name, value in values.items() if name not in (OWN, FLOOR)},
                n=len(texts),
                seconds=time.perf_counter() - began,
                better="higher",
                unit="",
            )


def _spans(line: Sequence[str]) -> NDArray[np.int64]:
    """[W, 2] where the words of a line begin and end, in bytes."""
    ends = np.cumsum([len(word.encode("utf-8", "replace")) for word in line], dtype=np.int64)
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else ends
    kept = np.array([bool(word.strip()) for word in line], dtype=np.bool_)
    return np.stack([begins, ends], 1)[kept]


def _punctuation_borders(text: bytes) -> Offsets:
    """Offsets before and after every sign of punctuation and every symbol, without the end."""
    points, bounds = code_points(text)
    signs = each_point(points, lambda sign: unicodedata.category(sign)[0] in "PS") > 0
    borders = np.union1d(bounds[:-1][signs], bounds[1:][signs])
    return borders[borders < len(text)]


def word_counts(cuts: Offsets, text: bytes, words: NDArray[np.int64]) -> NDArray[np.float64]:
    """[right words, found words, true words] of the cuts of a text with true words [W, 2]."""
    if not len(cuts):
        return np.array([0.0, 0.0, len(words)])
    points, bounds = code_points(text)
    white = each_point(points, str.isspace) > 0
    filled = np.append(bounds[:-1][~white], len(text))
    filled_ends = np.append(0, bounds[1:][~white])
    begins = filled[np.searchsorted(filled, cuts)]
    ends = filled_ends[np.searchsorted(filled_ends, np.append(cuts[1:], len(text)), side="right") - 1]
    found = {pair for pair in zip(begins.tolist(), ends.tolist(), strict=True) if pair[0] < pair[1]}
    true = set(map(tuple, words.tolist()))
    return np.array([len(found & true), len(found), len(true)], dtype=np.float64)
