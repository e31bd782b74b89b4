"""Rows of several sources side by side: their shares, and going on where they were left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zonkey_core.data import SourceSpec
from zonkey_core.data.row_mixture import RowMixture, open_rows
from zonkey_core.data.rows import RowBatch, RowSource
from zonkey_core.errors import ConfigError, DataError


def sources(folder: Path, count: int) -> tuple[str, ...]:
    """Files of one letter each, the first of 40 bytes, each further one ten times as long."""
    for index in range(count):
        (folder / f"{index}.txt").write_text(chr(ord("a") + index) * (40 * 10**index), encoding="ascii")
    return tuple(str(folder / f"{index}.txt") for index in range(count))


def opened(spec: SourceSpec, state: dict[str, object] | None = None, batch_rows: int = 4) -> RowSource:
    return open_rows(spec, seed=3, shuffle_documents=10, row_bytes=8, batch_rows=batch_rows, state=state)


def letters(batch: RowBatch) -> list[str]:
    """What each row consists of."""
    return ["".join(sorted(set(row.tobytes().decode()))) for row in batch.bytes]


def test_each_source_has_its_share_whatever_its_size(tmp_path: Path) -> None:
    rows = opened(SourceSpec(sources=sources(tmp_path, 3), weights=(1.0, 2.0, 5.0)), batch_rows=8)
    for _ in range(5):
        found = letters(rows.next_batch())
        assert [found.count(letter) for letter in "abc"] == [1, 2, 5]


def test_epochs_are_those_of_the_source_that_was_read_least(tmp_path: Path) -> None:
    rows = opened(SourceSpec(sources=sources(tmp_path, 2), weights=(1.0, 1.0)), batch_rows=2)
    epochs = [rows.next_batch().epochs for _ in range(60)]
    assert epochs[49] == 0, "the small source was read ten times by then, the large one once"
    assert epochs[-1] == 1


@settings(max_examples=20, deadline=None)
@given(weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=3), before=st.integers(0, 5))
def test_a_mixture_goes_on_where_it_was_left(
    tmp_path_factory: pytest.TempPathFactory, weights: list[float], before: int
) -> None:
    spec = SourceSpec(sources=sources(tmp_path_factory.mktemp("text"), len(weights)), weights=tuple(weights))
    rows = opened(spec)
    for _ in range(before):
        rows.next_batch()
    again = opened(spec, json.loads(json.dumps(rows.state())))
    for _ in range(4):
        left, right = rows.next_batch(), again.next_batch()
        assert left.bytes.tolist() == right.bytes.tolist()
        assert left.sources is not None and right.sources is not None
        assert left.sources.tolist() == ["abc".index(letter) for letter in letters(left)] == right.sources.tolist()
        assert left.document_starts.tolist() == right.document_starts.tolist()


def test_without_weights_the_rows_are_those_of_one_stream(tmp_path: Path) -> None:
    rows = opened(SourceSpec(sources=sources(tmp_path, 2)))
    found = [letter for _ in range(13) for letter in letters(rows.next_batch())]
    assert found.count("a") < found.count("b") / 5


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_every_source_needs_a_weight(tmp_path: Path, weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=f"2 sources have {len(weights)} weights"):
        opened(SourceSpec(sources=sources(tmp_path, 2), weights=weights))
    with pytest.raises(ValueError, match="do not go with"):
        RowMixture([], [], 4)


def test_a_position_in_other_sources_is_refused(tmp_path: Path) -> None:
    names = sources(tmp_path, 2)
    state = opened(SourceSpec(sources=names, weights=(1.0, 1.0))).state()
    with pytest.raises(DataError, match="is of other sources"):
        opened(SourceSpec(sources=names[:1], weights=(1.0,)), state)
    with pytest.raises(DataError, match="damaged"):
        opened(SourceSpec(sources=names, weights=(1.0, 1.0)), {"sources": 3})


def test_only_a_weighed_source_can_keep_its_cuts(tmp_path: Path) -> None:
    names = sources(tmp_path, 2)
    with pytest.raises(ConfigError, match="give every source a weight where cuts are to be kept"):
        opened(SourceSpec(sources=names, kept_cuts=names[:1]))
    with pytest.raises(ConfigError, match=r"other\.txt: its cuts are to be kept, and it is no source"):
        opened(SourceSpec(sources=names, weights=(1.0, 1.0), kept_cuts=(names[0], "other.txt")))
    with pytest.raises(ConfigError, match="2 sources have 1 weights"):
        opened(SourceSpec(sources=names, weights=(1.0,), kept_cuts=names[:1]))
