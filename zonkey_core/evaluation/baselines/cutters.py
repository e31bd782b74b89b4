"""Ways to cut a text into segments: the model's own, and what it is compared with.

Offsets are those of the bytes at which segments start; the first is 0. Tokenizers are sentencepiece's BPE and Unigram
with byte fallback and no normalisation, so that their pieces spell the text byte for byte.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import queue
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zonkey_core.errors import ZonkeyError
from zonkey_core.evaluation.metrics.boundaries import Offsets, code_points, join_points
from zonkey_core.evaluation.store import Store, fingerprint
from zonkey_core.evaluation.texts import passages
from zonkey_core.inference.cutting_levels import cutting_levels
from zonkey_core.inference.segmentation import position_probs
from zonkey_core.model.model import Zonkey
from zonkey_core.model.window_limit import forced_starts

TOKENIZER_KINDS = ("bpe", "unigram")
TOKENIZER_SIZES = (1000, 2000, 4000, 8000)
TOKENIZER_PASSAGE = 1000
"""Bytes of text that a tokenizer learns from at once."""
TOKENIZER_SEEDS, TOKENIZER_SHRINKING, TOKENIZER_ROUNDS = 300_000, 0.5, 1
"""Pieces that Unigram begins with, the share that it keeps each time, and rounds of estimation before that.

They take half the time of sentencepiece's own 1,000,000, 0.75 and 2, and cut as well: words of 4 MB of Simple English
Wikipedia without spaces, 8,000 pieces, F1 0.764 and 0.766.
"""
TOKENIZER_THREADS = 2
TEXTS_TOGETHER = 256
"""Texts that a model cuts in one stream."""
TOKENIZER, TOKENIZER_FILE = "tokenizer", "tokenizer.model"
SPACE_MARK, NOT_TEXT = 0x2581, 0x1A


class Cutter(Protocol):
    """Cuts texts."""

    @property
    def name(self) -> str:
        """Key in the results."""

    def cut(self, text: bytes) -> Offsets:
        """Offsets at which segments start; 0 is one, unless the text is empty."""


class StartProbs(NamedTuple):
    """What a model says of a text."""

    offsets: Offsets
    """[n] byte offset of each position of the level: every byte at level 0, segments of the level below above it."""
    probs: NDArray[np.float64]
    """[n] probability that a segment begins there; 1 at the first, and 0 where no cut is allowed."""


class ModelCutter:
    """The cuts of one level of a model, at any threshold; at one half they are those of `zonkey segment`.

    A text is read at once, so a long one is better given in passages.
    """

    def __init__(self, model: Zonkey, *, level: int = 0, threshold: float = 0.5, name: str = "zonkey") -> None:
        self.model = model
        self.levels = cutting_levels(model)
        self.level = level
        self.threshold = threshold
        self.name = name

    def cut(self, text: bytes) -> Offsets:
        """Where the probability exceeds the threshold, and where a segment would else outgrow the level's window."""
        return self.cut_all([text])[0]

    def cut_all(self, texts: Sequence[bytes]) -> list[Offsets]:
        """The same of many texts, which are read together."""
        return [self.cut_at(found, self.threshold) for found in self.start_probs(texts)]

    def start_probs(self, texts: Sequence[bytes]) -> list[StartProbs]:
        """The probabilities at every position of each text; levels below are cut as the model is used."""
        found = position_probs(self.levels, texts, level=self.level)
        return [StartProbs(each.offsets, each.probs.astype(np.float64)) for each in found]

    def cut_at(self, found: StartProbs, threshold: float) -> Offsets:
        """Cuts of a text from its probabilities."""
        above = found.probs > threshold
        above[:1] = True
        starts = np.flatnonzero(above)
        bounds = np.append(starts, len(above))
        forced = forced_starts(bounds, found.probs > 0, self.levels[self.level].window)
        cuts: Offsets = found.offsets[np.sort(np.concatenate([starts, forced]))]
        return cuts

    def with_rate(self, texts: Sequence[bytes], bytes_per_segment: float) -> ModelCutter:
        """The same with the highest threshold at which segments of these texts have at most so many bytes on average.

        Where even the lowest threshold leaves them longer, that one.
        """
        found = self.start_probs(texts)
        total = sum(map(len, texts))
        levels = np.unique(np.concatenate([np.zeros(1), *(each.probs for each in found)]))
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high + 1) // 2
            cuts = sum(len(self.cut_at(each, levels[middle])) for each in found)
            low, high = (middle, high) if total <= bytes_per_segment * cuts else (low, middle - 1)
        return ModelCutter(self.model, level=self.level, threshold=float(levels[low]), name=self.name)


def cut_texts(cutter: Cutter, texts: Sequence[bytes], report: Callable[[float], None]) -> list[Offsets]:
    """A cutter's cuts of every text, with progress; a model reads many together."""
    found: list[Offsets] = []
    together = TEXTS_TOGETHER if isinstance(cutter, ModelCutter) else 1
    for first in range(0, len(texts), together):
        report(first / len(texts))
        some = texts[first : first + together]
        found += cutter.cut_all(some) if isinstance(cutter, ModelCutter) else map(cutter.cut, some)
    return found


class RandomCutter:
    """Cuts before any code point with the same probability; the same cuts for the same text."""

    name = "random"

    def __init__(self, rate: float, seed: int) -> None:
        self.rate = rate
        self.seed = seed

    def cut(self, text: bytes) -> Offsets:
        """The cuts of a text."""
        allowed = code_points(text).bounds[:-1]
        chance = np.random.default_rng([self.seed, zlib.crc32(text)]).random(len(allowed))
        chance[:1] = -1.0
        return allowed[chance < self.rate]


class RuleCutter:
    """Sentences by rule: a cut behind full stops, exclamation and question marks and the space after them."""

    name = "rule"

    def cut(self, text: bytes) -> Offsets:
        """The cuts of a text."""
        ends = [match.end() for match in re.finditer(rb"[.!?]+\s(?=.)", text, re.DOTALL)]
        return np.array([0, *ends] if text else [], dtype=np.int64)


class TokenizerCutter:
    """The pieces of a sentencepiece tokenizer."""

    def __init__(self, name: str, content: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.name = name
        self._processor = SentencePieceProcessor(model_proto=content)
        self._sizes = np.array(
            [
                1 if self._processor.is_byte(index)
                else len(self._processor.id_to_piece(index).replace(chr(SPACE_MARK), " ").encode())
                for index in range(len(self._processor))
            ],
            dtype=np.int64,
        )

    def cut(self, text: bytes) -> Offsets:
        """Where pieces start."""
        ends = np.cumsum(self._sizes[self._processor.encode(_plain(text))])
        assert not text or ends[-1] == len(text)
        return np.concatenate([[0], ends[:-1]]).astype(np.int64) if text else ends


class TokenizerFailure(ZonkeyError):
    """A tokenizer cannot be trained on a text, as where that is too short for so many pieces."""


class Tokenizers(NamedTuple):
    """Tokenizers by name, as `bpe_4k`."""

    fitted: dict[str, TokenizerCutter]
    failed: dict[str, str]
    """Why sentencepiece could not train one."""


def fit_tokenizer(
    kind: str, size: int, texts: Sequence[bytes], *, store: Store, identity: str, report: Callable[[str], None]
) -> TokenizerCutter:
    """One tokenizer, as `fit_tokenizers` makes it; raises `TokenizerFailure` where it cannot be trained."""
    found = fit_tokenizers(
        texts, kinds=[kind], sizes=[size], store=store, identity=identity, report=lambda what, _share: report(what)
    )
    for reason in found.failed.values():
        raise TokenizerFailure(f"sentencepiece cannot learn {size} pieces from this text ({reason})")
    return next(iter(found.fitted.values()))


def fit_tokenizers(
    texts: Sequence[bytes],
    *,
    kinds: Sequence[str] = TOKENIZER_KINDS,
    sizes: Sequence[int] = TOKENIZER_SIZES,
    store: Store,
    identity: str,
    report: Callable[[str, float | None], None],
) -> Tokenizers:
    """BPE and Unigram tokenizers of several sizes, kept in the store; `identity` stands for the texts.

    Raises `ImportError` without sentencepiece.
    """
    importlib.import_module("sentencepiece")  # before any work is done
    wanted = {f"{kind}_{size // 1000}k": (kind, size) for kind in kinds for size in sizes}
    keys = {
        name: fingerprint(*what, identity, TOKENIZER_PASSAGE, TOKENIZER_SEEDS, TOKENIZER_SHRINKING, TOKENIZER_ROUNDS)
        for name, what in wanted.items()
    }
    missing = {name: what for name, what in wanted.items() if store.find(TOKENIZER, keys[name]) is None}
    failed: dict[str, str] = {}
    for name, trained in _train_side_by_side(missing, texts, lambda share: report("training tokenizers", share)):
        if isinstance(trained, str):
            failed[name] = trained
        else:
            store.entry(TOKENIZER, keys[name], partial(_write_tokenizer, trained))
    places = {name: store.find(TOKENIZER, key) for name, key in keys.items()}
    fitted = {
        name: TokenizerCutter(name, (place / TOKENIZER_FILE).read_bytes())
        for name, place in places.items() if place is not None
    }
    return Tokenizers(fitted, {name: failed[name] for name in wanted if name in failed})


def _write_tokenizer(content: bytes, folder: Path) -> None:
    (folder / TOKENIZER_FILE).write_bytes(content)


def _train_side_by_side(
    wanted: Mapping[str, tuple[str, int]], texts: Sequence[bytes], report: Callable[[float | None], None]
) -> Iterator[tuple[str, bytes | str]]:
    """Names of tokenizers with their files, or why there is none, as they are done; `report` is called meanwhile.

    They are trained in threads that nobody waits for when the program is stopped.
    """
    pieces = [_plain(piece) for piece in passages(texts, TOKENIZER_PASSAGE)] if wanted else []
    todo = iter(sorted(wanted.items(), reverse=True))  # Unigram, which takes longest, first
    taking = threading.Lock()
    done: queue.SimpleQueue[tuple[str, bytes | str | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            with taking:
                name, what = next(todo, ("", ("", 0)))
            if not name:
                return
            try:
                done.put((name, _train(*what, pieces)))
            except BaseException as error:  # raised to whoever waits for it
                done.put((name, error))

    for _ in range(TOKENIZER_THREADS):
        threading.Thread(target=work, name="zonkey-tokenizer", daemon=True).start()
    for count in range(len(wanted)):
        result: bytes | str | BaseException | None = None
        while result is None:
            report(count / len(wanted))
            with contextlib.suppress(queue.Empty):
                name, result = done.get(timeout=1.0)
        if isinstance(result, BaseException):
            raise result
        yield name, result


def _train(kind: str, size: int, pieces: Sequence[str]) -> bytes | str:
    """The file of a new tokenizer, or why sentencepiece cannot make it."""
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(pieces),
            model_writer=written,
            model_type=kind,
            vocab_size=size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            max_sentence_length=4 * TOKENIZER_PASSAGE,
            seed_sentencepiece_size=TOKENIZER_SEEDS,
            shrinking_factor=TOKENIZER_SHRINKING,
            num_sub_iterations=TOKENIZER_ROUNDS,
            num_threads=1,
            minloglevel=3,
        )
    except RuntimeError as error:
        return " ".join(str(error).split())
    return written.getvalue()


def _plain(text: bytes) -> str:
    """A text for sentencepiece, of as many bytes: what is not UTF-8 and its own sign for a space are replaced."""
    points = code_points(text).points.copy()
    points[(points >= 0xDC80) & (points < 0xDD00)] = NOT_TEXT
    points[points == SPACE_MARK] = 0xFFFD
    return join_points(points).decode()
