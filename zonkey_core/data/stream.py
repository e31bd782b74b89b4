"""Documents of all sources as one shuffled stream that can be stopped and resumed at any document.

An epoch visits the shards in an order drawn from (seed, epoch). Consecutive documents form blocks of at most
`shuffle_documents` documents and about `BLOCK_BYTES` bytes, each permuted by its own generator, seeded from
(seed, epoch, block). So the state of the stream is only where its block begins and how many of its documents are
taken: resuming reads that block once more. At most one block is in memory, and a small source as a whole, since
to read a file anew for every few bytes of training text would take all the time there is.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from zonkey_core.data.bytestreams import FileBytes, standard_input
from zonkey_core.data.files import JsonLinesShard, TextShard, path_shards
from zonkey_core.data.shards import ALL, ALL_SPLITS, SPLITS, START, Document, Position, Shard, split_of
from zonkey_core.data.spec import SourceSpec
from zonkey_core.errors import DataError

BLOCK_BYTES = 64 * 1024 * 1024
SMALL_BYTES = 1024 * 1024
SMALL_DOCUMENTS = 4096
"""A source with no more than this is kept in memory once it has been read."""
MOST_FAULTS = 10_000
"""Faults of the data that are remembered, so as to tell of each only once."""
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
    raises `DataError`. With `on_bad`, a document or the rest of a shard that cannot be read is left out, and that
    function is told of it once.
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
        on_bad: Callable[[str], None] | None = None,
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
        self._on_bad = on_bad
        self._faults: set[str] = set()
        self._small: list[list[Document]] | None = None  # the documents of each shard of a small source
        self._plain: tuple[_Place, dict[str, Any]] | None = None

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
        if self._plain is None or self._plain[0] is not self._place:
            self._plain = self._place, {**msgspec.to_builtins(self._place), "position": list(self._place.position)}
        return {"fingerprint": self._fingerprint, "place": self._plain[1], "taken": self._taken}

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
        if len(block) > 1:
            random.Random(f"{self._seed}/{place.epoch}/{place.block}").shuffle(block)
        block.reverse()
        return block

    def _read_epoch(self, place: _Place) -> Iterator[tuple[int, Document]]:
        """Yield the documents of the split from `place` to the end of its epoch, with their shards' indices."""
        order = list(range(len(self._shards)))
        if len(order) > 1:
            random.Random(f"{self._seed}/{place.epoch}/shards").shuffle(order)
        whole = place.shard == 0 and place.position == START
        if whole and self._small is not None:
            yield from ((index, document) for index, shard in enumerate(order) for document in self._small[shard])
            return
        small: list[list[Document]] | None = [[] for _ in order] if whole else None
        size = count = 0
        for index in range(place.shard, len(order)):
            for document in self._read_shard(order[index], place.position if index == place.shard else START):
                size, count = size + len(document.text), count + 1
                if size > SMALL_BYTES or count > SMALL_DOCUMENTS:
                    small = None
                if small is not None:
                    small[order[index]].append(document)
                yield index, document
        self._small = small

    def _read_shard(self, number: int, start: Position) -> Iterator[Document]:
        """Yield the documents of the split from `start` on, leaving out what cannot be read where that is allowed."""
        shard = self._shards[number]
        pinned = shard.pinned and start == START
        try:
            for document in shard.read(start):
                if document.fault is not None:
                    self._leave_out(document.fault)
                    continue
                if document.text and _is_kept(document, shard.kept, pinned=pinned):
                    yield document
                pinned = False
        except DataError as error:
            self._leave_out(error)

    def _leave_out(self, error: DataError) -> None:
        """Tell of data that is left out, or raise `error` where none may be."""
        if self._on_bad is None:
            raise error
        reason = str(error)
        if reason not in self._faults:
            if len(self._faults) < MOST_FAULTS:
                self._faults.add(reason)
            self._on_bad(reason)


def _is_kept(document: Document, kept: frozenset[str], *, pinned: bool) -> bool:
    """Whether a document belongs to the splits `kept`; a pinned one is for training."""
    return kept == ALL_SPLITS or ("train" if pinned else split_of(document.key)) in kept


def open_stream(
    spec: SourceSpec,
    *,
    seed: int,
    shuffle_documents: int,
    state: Mapping[str, Any] | None = None,
    repeat: bool = True,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> DocumentStream:
    """Open the documents of `spec`, from the beginning or, given a `state` of an equal stream, from there on.

    Raises `DataError` where a source is missing; what is wrong inside a file is raised when reading comes to it, or
    where `spec` says to skip it, told to `on_bad` in the thread that reads.
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
        on_bad=on_bad if spec.on_bad_data == "skip" else None,
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
