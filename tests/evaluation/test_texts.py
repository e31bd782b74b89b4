"""The texts of an evaluation share no document, keep to their limits, and are never cut inside a code point."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_helpers import write_wiki
from zonkey_core.data import SourceSpec
from zonkey_core.errors import DataError
from zonkey_core.evaluation.texts import SMALLEST_REFERENCE, EvaluationTexts, load_texts, passages

law = settings(max_examples=25, deadline=None)
letters = st.text("aé日𝄞 \n", min_size=1, max_size=60)


def write_lines(path: Path, documents: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), "utf-8")
    return str(path)


def load(*sources: str, limit: int = 10_000, learned: int = 10_000, **options: object) -> EvaluationTexts:
    training = options.pop("training", None)
    return load_texts(
        SourceSpec(sources=sources), SourceSpec(sources=(str(training),)) if training else None, limit=limit,
        training_bytes=learned, seed=0, **options,  # type: ignore[arg-type]
    )


def parts(texts: EvaluationTexts) -> Iterator[tuple[list[bytes], str]]:
    yield texts.reference, "reference"
    yield texts.judging, "judging"
    yield texts.training, "training"


def many(count: int, size: int = 400) -> list[str]:
    return [f"{index}: " + "日本 é x. " * (size // 14) for index in range(count)]


@law
@given(
    bodies=st.lists(letters, min_size=30, max_size=60), limit=st.integers(SMALLEST_REFERENCE, 12_000),
    learned=st.integers(10, 8_000), own=st.booleans(),
)
def test_laws(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[str], limit: int, learned: int, own: bool
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    documents = [f"{index:03} " + (body * 300)[:300] for index, body in enumerate(bodies)]
    source = write_lines(folder / "data.jsonl", documents)
    training = write_lines(folder / "train.jsonl", [*documents[:20], *many(20)]) if own else None
    texts = load(source, limit=limit, learned=learned, training=training)
    whole = [document.encode() for document in [*documents, *many(20)]]
    seen: dict[bytes, str] = {}
    for found, name in parts(texts):
        for document in found:
            document.decode()  # not cut inside a code point
            assert document
            originals = [each for each in whole if each.startswith(document)]
            assert originals
            if len(originals) == 1:  # else it was cut to a few bytes
                assert seen.setdefault(originals[0], name) == name
    assert SMALLEST_REFERENCE - 3 <= sum(map(len, texts.reference)) <= limit
    assert sum(map(len, texts.judging)) <= learned
    assert sum(map(len, texts.training)) <= learned
    assert sum(map(len, texts.reference)) <= sum(len(document.encode()) for document in documents) / 2


def test_limits_are_used_up(tmp_path: Path) -> None:
    texts = load(write_lines(tmp_path / "data.jsonl", many(100)), limit=9_000, learned=4_000)
    for (found, _), limit in zip(parts(texts), (9_000, 4_000, 4_000), strict=True):
        assert limit - 3 <= sum(map(len, found)) <= limit


def test_training_text_that_is_also_measured_on_is_not_learned_from(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "data.jsonl", many(40))
    with pytest.raises(DataError, match="too little text"):
        load(source, training=source)
    fresh = write_lines(tmp_path / "more.jsonl", [*many(40), *(f"new {text}" for text in many(40))])
    assert all(document.startswith(b"new") for document in load(source, training=fresh).training)


def test_the_same_texts_every_time_and_another_identity_for_others(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "data.jsonl", many(50))
    texts = load(source)
    assert load(source) == texts
    assert load(source).identity == texts.identity
    assert load(source, limit=5_000).identity != texts.identity
    moved = EvaluationTexts(
        reference=texts.reference[1:], judging=[texts.reference[0], *texts.judging], training=texts.training
    )
    assert moved.identity != texts.identity


@pytest.mark.parametrize("documents", [[], ["short"], many(1, 8_000), many(3, 300)])
def test_too_little_text_is_said(tmp_path: Path, documents: list[str]) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl: too little text to measure on; give at least 4000 bytes"):
        load(write_lines(tmp_path / "data.jsonl", documents))


def test_wikipedia_has_splits_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    for split, ids in (("train", range(100)), ("validation", range(100, 200)), ("test", range(200, 400))):
        write_wiki(folder, ids, split=split)
    spec = SourceSpec(sources=("wiki",), wiki_config="dump", wiki_dir=str(tmp_path))
    texts = load_texts(spec, None, limit=2_500, training_bytes=1_500, seed=3)
    for (found, _), numbers in zip(parts(texts), (range(200, 400), range(100, 200), range(100)), strict=True):
        assert {int(document.split()[1]) for document in found[:-1]} <= set(numbers)
        assert len(found) > 10


def test_the_sample_has_enough_of_each() -> None:
    texts = load("sample", limit=200_000, learned=200_000)
    assert sum(map(len, texts.reference)) > 100_000
    assert [sum(map(len, found)) > 50_000 for found, _ in parts(texts)] == [True, True, True]


@law
@given(st.lists(letters, max_size=5), st.integers(4, 40))
def test_passages_add_up_to_the_documents(bodies: list[str], size: int) -> None:
    pieces = passages([body.encode() for body in bodies], size)
    assert b"".join(pieces) == "".join(bodies).encode()
    for piece in pieces:
        assert 1 <= len(piece) <= size
        piece.decode()
    assert all(len(passages([body.encode()], 10_000)) == 1 for body in bodies)


def test_passages_of_bytes_that_are_no_text() -> None:
    assert passages([b"\x80" * 10], 4) == [b"\x80" * 4, b"\x80" * 4, b"\x80" * 2]
