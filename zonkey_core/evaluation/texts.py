"""The texts of an evaluation: what is scored, what the judge learns from, and what rivals and floors learn from.

The three never share a document. Wikipedia and other sources with splits of their own give the test documents to be
scored and the validation documents to the judge; files of the user's are held-out text as a whole and are parted by a
hash of each document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import msgspec

from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.errors import DataError

SMALLEST_REFERENCE = 2_000
"""Bytes of text to be scored below which no figure means anything."""


class EvaluationTexts(msgspec.Struct, frozen=True, kw_only=True):
    """Documents as bytes."""

    reference: list[bytes]
    """Real held-out documents, which are scored and which samples are compared with."""
    judging: list[bytes]
    """The judge's, which no contestant has seen."""
    training: list[bytes]
    """What rivals, floors and word lists learn from."""

    @property
    def identity(self) -> str:
        """A hash of all documents."""
        digest = hashlib.sha256()
        for documents in (self.reference, self.judging, self.training):
            digest.update(len(documents).to_bytes(8, "little"))
            for document in documents:
                digest.update(hashlib.sha256(document).digest())
        return digest.hexdigest()[:24]


def load_texts(
    data: SourceSpec,
    training: SourceSpec | None,
    *,
    limit: int,
    training_bytes: int,
    seed: int,
    by_splits: bool = False,
) -> EvaluationTexts:
    """Read the texts; `training` names what rivals learn from, by default documents of `data` that are not scored.

    With `by_splits`, files too have splits of their own, those of training, for models that have learned from them. At
    most `limit` bytes are scored, and at most `training_bytes` are learned from. Raises `DataError` where a source
    cannot be read or has too little text.
    """
    if by_splits or "wiki" in data.sources:
        reference = _take(_documents(data, "test", seed), limit)
        judging = _take(_documents(data, "validation", seed), training_bytes)
        learned = _learned(training or data, seed, training_bytes, {*reference, *judging})
    else:
        documents = sorted(set(_documents(data, "all", seed)), key=_place)
        limit = min(limit, sum(map(len, documents)) // 2)
        rest = iter(documents)
        reference = _take(rest, limit)
        left = list(rest)
        if training is None:
            judging, learned = left[0::2], left[1::2]
        else:
            judging, learned = left, _learned(training, seed, training_bytes, set(documents))
    texts = EvaluationTexts(
        reference=_cut(reference, limit), judging=_cut(judging, training_bytes), training=_cut(learned, training_bytes)
    )
    scored = min(limit, sum(map(len, reference)))  # less by a few bytes where a code point was not to be cut
    if scored < SMALLEST_REFERENCE or not texts.judging or not texts.training:
        raise DataError(
            f"{', '.join(data.sources)}: too little text to measure on; give at least "
            f"{2 * SMALLEST_REFERENCE} bytes in several documents"
        )
    return texts


def passages(documents: Iterable[bytes], size: int) -> list[bytes]:
    """Pieces of at most `size` bytes, none of them cut inside a code point; the units that figures are drawn from."""
    pieces = []
    for document in documents:
        while document:
            piece = _beginning(document, size) or document[:size]
            pieces.append(piece)
            document = document[len(piece) :]
    return pieces


def _documents(spec: SourceSpec, split: str, seed: int) -> Iterator[bytes]:
    chosen = msgspec.structs.replace(spec, split=split)
    return iter(open_stream(chosen, seed=seed, shuffle_documents=10_000, repeat=False))


def _learned(spec: SourceSpec, seed: int, limit: int, held: set[bytes]) -> list[bytes]:
    """Training documents that are not among those `held` for other ends."""
    return _take((document for document in _documents(spec, "train", seed) if document not in held), limit)


def _take(documents: Iterable[bytes], limit: int) -> list[bytes]:
    """Whole documents from the front, until they hold `limit` bytes."""
    taken, left = [], limit
    for document in documents:
        taken.append(document)
        left -= len(document)
        if left <= 0:
            break
    return taken


def _cut(documents: Iterable[bytes], limit: int) -> list[bytes]:
    """Documents from the front, at most `limit` bytes of them, the last one cut to fit."""
    kept, left = [], limit
    for document in documents:
        piece = _beginning(document, left)
        if piece:
            kept.append(piece)
        left -= len(document)
        if left <= 0:
            break
    return kept


def _beginning(document: bytes, limit: int) -> bytes:
    """At most `limit` bytes of a document, not cut inside a code point."""
    if len(document) <= limit:
        return document
    while limit > 0 and document[limit] & 0xC0 == 0x80:
        limit -= 1
    return document[:limit]


def _place(document: bytes) -> bytes:
    """The order in which documents are handed out: by a hash of the text, which looks random and stays the same."""
    return hashlib.sha256(document).digest()
