"""Documents of all sources as one shuffled stream that can be stopped and resumed at any document.

An epoch visits the shards in an order drawn from (seed, epoch). Consecutive documents form blocks of at most
`shuffle_documents` documents and about `BLOCK_BYTES` bytes, each permuted by its own generator, seeded from
(seed, epoch, block). So the state of the stream is only where its block begins and how many of its documents are
taken: resuming reads that block once more. At most one block is in memory.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from zonkey_core.data.bytestreams import FileBytes, standard_input
from zonkey_core.data.files import JsonLinesShard, TextShard, path_shards
from zonkey_core.data.shards import ALL, ALL_SPLITS, SPLITS, START, Document, Position, Shard, split_of
from zonkey_core.data.spec import SourceSpec
from zonkey_core.errors import DataError

BLOCK_BYTES = 64 * 1024 * 1024
SAMPLE = Path(__file__).with_name("sample.jsonl.gz")


class _Place(msgspec.Struct, frozen=True):
    """Where a block begins: in which epoch, as its how manyth block, and behind which document."""

    epoch: int = 0
    block: int = 0
    shard: int = 0
    """Index in the epoch's order of the shards."""
    position: Position = START


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """What `DocumentStream.state` returns."""

    fingerprint: str
    """Digest of all that must be the same for the stream to go on as if it had not been stopped."""
    place: _Place
    taken: int


class DocumentStream:
    """Iterator over documents: non-empty bytes, UTF-8 where the source is.

    With `repeat` it is infinite. It ends at once where a held-out split has no documents; a train split with none
    raises `DataError`.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        label: str,
        split: str,
        seed: int,
        shuffle_documents: int,
        state: Mapping[str, Any] | None = None,
        repeat: bool = True,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if shuffle_documents < 1:
            raise ValueError(f"shuffle_documents must be at least 1, not {shuffle_documents}")
        self._shards = shards
        self._label = label
        self._split = split
        self._seed = seed
        self._shuffle_documents = shuffle_documents
        self._block_bytes = block_bytes
        self._repeat = repeat
        names = "\n".join(shard.name for shard in shards)
        identity = f"{split}\n{seed}\n{shuffle_documents}\n{block_bytes}\n{names}"
        self._fingerprint = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._place, self._taken = (_Place(), 0) if state is None else self._parse(state)
        self._block: list[bytes] | None = None  # what is left of the block at `_place`, in reverse
        self._following: _Place | None = None  # where the next block begins; None at the end of the epoch
        self._reader: Iterator[tuple[int, Document]] | None = None

    def __iter__(self) -> DocumentStream:
        return self

    def __next__(self) -> bytes:
        if self._block is None:
            block = self._load(self._place)
            if self._taken > len(block):
                raise DataError(f"{self._label}: this text is not the one that the saved position belongs to")
            self._block = block[: len(block) - self._taken]
        while not self._block:
            place = self._following or self._next_epoch()
            self._block = self._load(place)
            self._place, self._taken = place, 0
        self._taken += 1
        return self._block.pop()

    @property
    def epochs(self) -> int:
        """Complete passes over the data before the one that the last document came from."""
        return self._place.epoch

    def state(self) -> dict[str, Any]:
        """Where the stream is, in a few numbers that JSON can hold; `open_stream` goes on from it."""
        state = _State(fingerprint=self._fingerprint, place=self._place, taken=self._taken)
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(state))
        return plain

    def _parse(self, state: Mapping[str, Any]) -> tuple[_Place, int]:
        """The place and number of taken documents in `state`, if it was saved by a stream over the same data."""
        try:
            parsed = msgspec.convert(state, _State)
        except msgspec.ValidationError as error:
            raise DataError(f"{self._label}: the saved position in the data is damaged ({error})") from error
        if parsed.fingerprint != self._fingerprint:
            raise DataError(
                f"{self._label}: the saved position belongs to other files, another split, seed or shuffle_documents; "
                "resume with the same ones, or start anew from the model"
            )
        return parsed.place, parsed.taken

    def _next_epoch(self) -> _Place:
        """Where the next epoch begins, if there is to be one."""
        if self._place.block == 0 and self._taken == 0 and self._split == "train":
            raise DataError(f"{self._label}: no text to train on; name a source with more text")
        if not self._repeat or (self._place.block == 0 and self._taken == 0):
            raise StopIteration
        return _Place(epoch=self._place.epoch + 1)

    def _load(self, place: _Place) -> list[bytes]:
        """Read the block at `place`, permuted and in reverse, and note where the next one begins."""
        if self._reader is None:
            self._reader = self._read_epoch(place)
        block: list[bytes] = []
        size = 0
        following = None
        try:
            for shard, document in self._reader:
                block.append(document.text)
                size += len(document.text)
                if len(block) == self._shuffle_documents or size >= self._block_bytes:
                    following = _Place(place.epoch, place.block + 1, shard, document.end)
                    break
        except BaseException:
            self._reader = None  # it is spent; a further try must read the block anew
            raise
        if following is None:
            self._reader = None
        self._following = following
        random.Random(f"{self._seed}/{place.epoch}/{place.block}").shuffle(block)
        block.reverse()
        return block

    def _read_epoch(self, place: _Place) -> Iterator[tuple[int, Document]]:
        """Yield the documents of the split from `place` to the end of its epoch, with their shards' indices."""
        order = list(range(len(self._shards)))
        random.Random(f"{self._seed}/{place.epoch}/shards").shuffle(order)
        for index in range(place.shard, len(order)):
            shard = self._shards[order[index]]
            start = place.position if index == place.shard else START
            pinned = shard.pinned and start == START
            for document in shard.read(start):
                if document.text and _is_kept(document, shard.kept, pinned=pinned):
                    yield index, document
                pinned = False


def _is_kept(document: Document, kept: frozenset[str], *, pinned: bool) -> bool:
    """Whether a document belongs to the splits `kept`; a pinned one is for training."""
    return kept == ALL_SPLITS or ("train" if pinned else split_of(document.key)) in kept


def open_stream(
    spec: SourceSpec, *, seed: int, shuffle_documents: int, state: Mapping[str, Any] | None = None, repeat: bool = True
) -> DocumentStream:
    """Open the documents of `spec`, from the beginning or, given a `state` of an equal stream, from there on.

    Raises `DataError` where a source is missing; what is wrong inside a file is raised when reading comes to it.
    """
    if spec.split not in (*SPLITS, ALL):
        raise DataError(f"unknown split {spec.split!r}; choose one of {', '.join((*SPLITS, ALL))}")
    if not spec.sources:
        raise DataError("no data is named; use wiki, sample, or files and folders")
    if state is not None and "-" in spec.sources:
        raise DataError("standard input cannot be resumed; save the input to a file and train on that")
    shards = [shard for source in spec.sources for shard in _shards(source, spec)]
    return DocumentStream(
        shards,
        label=", ".join(spec.sources),
        split=spec.split,
        seed=seed,
        shuffle_documents=shuffle_documents,
        state=state,
        repeat=repeat,
    )


def _shards(source: str, spec: SourceSpec) -> Sequence[Shard]:
    """The shards of one source."""
    kept = ALL_SPLITS if spec.split == ALL else frozenset({spec.split})
    if source == "wiki":
        from zonkey_core.data.hub import wiki_shards  # it imports `datasets`, which takes seconds

        return wiki_shards(spec)
    if source == "sample":
        return [JsonLinesShard(name="sample", kept=kept, source=FileBytes(SAMPLE))]
    if source == "-":
        return [TextShard(name="-", kept=kept, source=standard_input(), pinned=True)]
    return path_shards(source, kept)
