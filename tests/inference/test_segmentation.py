"""Segmenting a stream: the text comes back, and neither its pieces nor the blocks it is read in change the cuts."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.model_helpers import TEXT, few, fit_vocabulary, small_model
from zonkey_core.checkpoint import CONFIG, MODEL, describe, load_model, pack_tensors
from zonkey_core.committed_files import write_files
from zonkey_core.config import Config
from zonkey_core.errors import ConfigError
from zonkey_core.inference import level_cutter
from zonkey_core.inference.cutting_levels import cutting_levels, load_cutting_levels
from zonkey_core.inference.level_cutter import CuttingLevel, LevelCutter
from zonkey_core.inference.segmentation import (
    RateThreshold,
    segment_levels,
    segment_stream,
    take_head,
    threshold_for_rate,
)
from zonkey_core.inference.segments import Segment, Segments, Starts
from zonkey_core.model.model import Zonkey, text_sequence

WINDOW = 8
runs = settings(max_examples=30, deadline=None)
BLOCKS = [((64, 128), (16, 16)), ((16, 48), (7, 7)), ((5, 5), (3, 3)), ((8192, 65536), (2048, 2048))]
WIDE = "aé日🦓 "
texts = st.one_of(
    st.binary(max_size=500),
    st.text(st.sampled_from(WIDE), max_size=200).map(str.encode),
    st.text(max_size=150).map(str.encode),
    st.integers(0, 400).map(lambda size: (TEXT * 4).encode()[:size]),
)
biases = st.sampled_from([-9.0, -2.0, -0.7, 1.0])
"""From nearly no cut, so that the window forces them, to most positions."""


@functools.lru_cache(maxsize=64)
def model_with(seed: int, bias: float, levels: int = 2) -> Zonkey:
    """An untrained model with an opinion about cuts."""
    model = small_model(levels, seed=seed, window=WINDOW)
    for level in model.levels:
        torch.nn.init.constant_(level.splitter.head.bias, bias)
    return model.eval().requires_grad_(False)


models = st.builds(model_with, st.integers(0, 5), biases)


@contextlib.contextmanager
def reading(blocks: tuple[tuple[int, int], tuple[int, int]]) -> Iterator[None]:
    """With blocks of these sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level_cutter, "BYTE_BLOCK", blocks[0])
        patch.setattr(level_cutter, "COMPRESSED_BLOCK", blocks[0])
        patch.setattr(level_cutter, "LATENT_BLOCK", blocks[1])
        yield


@functools.lru_cache(maxsize=64)
def levels_of(model: Zonkey) -> list[CuttingLevel]:
    """What cuts with a model that stays as it is."""
    return cutting_levels(model)


def segments_of(model: Zonkey, chunks: Iterable[bytes], level: int = 0, threshold: float = 0.5) -> list[Segment]:
    found = segment_stream(levels_of(model), chunks, level=level, threshold=threshold)
    return list(itertools.chain.from_iterable(found))


def trees_of(model: Zonkey, chunks: Iterable[bytes], level: int, **options: Any) -> list[Segment]:
    found = segment_levels(levels_of(model), chunks, level=level, **options)
    return [tree for segments in found for tree in segments.nested()]


def descendants(segments: Iterable[Segment], level: int) -> list[Segment]:
    """The segments of `level` among trees, without what is nested in them."""
    found: list[Segment] = []
    for segment in segments:
        if segment.level == level:
            found.append(msgspec.structs.replace(segment, segments=()))
        else:
            found += descendants(segment.segments, level)
    return found


def pieces(data: bytes, borders: Iterable[int]) -> list[bytes]:
    """The data cut at the given places, empty pieces included."""
    ends = [0, *sorted(min(border, len(data)) for border in borders), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


def inside_code_point(data: bytes, offset: int) -> bool:
    """Whether `offset` splits a code point of valid text."""
    return offset < len(data) and 0x80 <= data[offset] < 0xC0


@runs
@given(models, texts, st.integers(0, 1), st.sampled_from(BLOCKS))
@example(model_with(0, -0.7), b"", 1, BLOCKS[0])
def test_segments_add_up_to_the_input(
    model: Zonkey, data: bytes, level: int, blocks: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    with reading(blocks):
        segments = segments_of(model, [data], level)
    assert b"".join(segment.text for segment in segments) == data
    assert all(segment.text and segment.level == level for segment in segments)
    assert [segment.end - segment.start for segment in segments] == [len(segment.text) for segment in segments]
    borders = [0, *(segment.end for segment in segments)]
    assert [segment.start for segment in segments] == borders[:-1] and borders[-1] == len(data)
    assert all(0 <= segment.prob <= 1 for segment in segments)
    assert not segments or segments[0].prob == 1


@runs
@given(
    models, texts, st.lists(st.integers(0, 500), max_size=40), st.integers(0, 1), st.sampled_from(BLOCKS),
)
def test_how_the_input_arrives_does_not_matter(
    model: Zonkey, data: bytes, borders: list[int], level: int, blocks: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    with reading(blocks):
        assert segments_of(model, pieces(data, borders), level) == segments_of(model, [data], level)


def test_single_bytes_are_as_good_as_a_whole() -> None:
    data = (TEXT * 3).encode()
    for level in (0, 1):
        with reading(BLOCKS[1]):
            model = model_with(1, -0.7)
            assert segments_of(model, [bytes([byte]) for byte in data], level) == segments_of(model, [data], level)


@settings(max_examples=60, deadline=None)
@given(models, texts, st.sampled_from(BLOCKS))
@example(model_with(0, -9.0), "日".encode() * 40, ((1, 5), (1, 3)))
@example(model_with(0, -9.0), ("a" * 15 + "🦓" * 40).encode(), ((3, 16), (1, 7)))
@torch.no_grad()
def test_blocks_give_the_cuts_of_the_whole_text(
    model: Zonkey, data: bytes, blocks: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    """In float32, where only rounding could tell a block from the whole; a cut that hangs on it is left out."""
    assume(data)
    whole = text_sequence(data, device=model.device)
    for index, level in enumerate(model.levels):
        located = model.located_positions(whole, index)
        probs = level.split(located.sequence).start_prob
        assume((probs - 0.5).abs().min() > 1e-4)
        starts = level.choose_starts(located.sequence, probs).starts[0]
        with reading(blocks):
            segments = segments_of(model, [data], index)
        assert [segment.start for segment in segments] == located.offsets[0, starts].tolist()
        np.testing.assert_allclose([segment.prob for segment in segments], probs[0, starts].numpy(), atol=1e-5)


@few
@given(st.integers(0, 5), biases)
@torch.no_grad()
def test_blocks_that_are_denoised_are_the_segments_that_are_shown(seed: int, bias: float) -> None:
    """Where strings spell whole segments, which is the rule, both cut alike."""
    model = copy.deepcopy(model_with(seed, bias))
    fit_vocabulary(model)
    data = TEXT.encode()
    lower, upper = model.ascend(text_sequence(data, device=model.device), 1)
    assume(bool(lower.slots.first_mask.all()))
    begins = lower.slots.starts[0, upper.segmentation.starts[0]].tolist()
    with reading(BLOCKS[3]):
        assert begins == [segment.start for segment in segments_of(model, [data], 1)]


@runs
@given(models, texts, st.sampled_from(BLOCKS))
def test_no_segment_outgrows_the_window(
    model: Zonkey, data: bytes, blocks: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    with reading(blocks):
        assert all(segment.end - segment.start <= WINDOW for segment in segments_of(model, [data]))


@runs
@given(models, st.text(st.sampled_from(WIDE), max_size=200).map(str.encode), st.integers(0, 1), st.sampled_from(BLOCKS))
def test_no_code_point_is_cut(
    model: Zonkey, data: bytes, level: int, blocks: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    with reading(blocks):
        segments = segments_of(model, [data], level)
    assert not any(inside_code_point(data, segment.start) for segment in segments)
    assert "".join(segment.text.decode() for segment in segments) == data.decode()


def test_the_window_forces_cuts_that_are_allowed() -> None:
    model = model_with(0, -9.0)
    data = "🦓".encode() * 3 + b"a" * 20 + "日".encode() * 7
    with reading(BLOCKS[2]):
        texts = [segment.text for segment in segments_of(model, [data])]
    assert [len(text) for text in texts] == [8, 8, 8, 8, 6, 6, 6, 3]
    assert b"".join(texts) == data


@runs
@given(models, texts, st.sampled_from(BLOCKS))
def test_upper_borders_are_lower_borders(
    model: Zonkey, data: bytes, blocks: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    with reading(blocks):
        lower, upper = (segments_of(model, [data], level) for level in (0, 1))
    starts = [segment.start for segment in lower]
    assert {segment.start for segment in upper} <= set(starts)
    counts = np.diff([*np.searchsorted(starts, [segment.start for segment in upper]), len(starts)])
    assert not len(counts) or counts.max() <= WINDOW


def test_three_levels_are_nested() -> None:
    model = model_with(4, -1.5, levels=3)
    data = (TEXT * 6).encode()
    with reading(BLOCKS[0]):
        starts = [{segment.start for segment in segments_of(model, [data], level)} for level in range(3)]
    assert starts[0] > starts[1] > starts[2] > {0}


@pytest.mark.parametrize("level", [0, 1])
def test_memory_is_bounded_and_segments_come_early(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(3, -0.7)
    data, piece = (TEXT * 200).encode(), 100
    blocks = (64, 128), (16, 16)
    held: dict[bool, list[int]] = {True: [], False: []}
    advance = LevelCutter.advance

    def watched(self: LevelCutter) -> Iterator[Any]:
        yield from advance(self)
        held[self.level.reads_bytes].append(self.taken - self.base)

    monkeypatch.setattr(LevelCutter, "advance", watched)
    taken = 0

    def source() -> Iterator[bytes]:
        nonlocal taken
        for taken in range(0, len(data), piece):
            yield data[taken : taken + piece]

    lags = []
    with reading(blocks):
        for segments in segment_stream(levels_of(model), source(), level=level):
            lags += [taken + piece - segments[-1].end] if segments else []
    around = [WINDOW + 2 * each.reach for each in levels_of(model)]
    assert max(held[True]) <= 2 * 64 + around[0] + piece
    assert level == 0 or max(held[False]) <= 16 + around[1] + 2 * 64
    assert len(lags) > 50 and max(lags) < around[0] + (600 if level == 0 else 3000)


def test_a_level_that_is_not_there_is_refused() -> None:
    for level in (-1, 2):
        with pytest.raises(ConfigError, match="level must be between 0 and 1"):
            segments_of(model_with(0, -0.7), [b"text"], level)


def test_nothing_in_gives_nothing_out() -> None:
    model = model_with(0, -0.7)
    for chunks in ([], [b""], [b"", b""]):
        assert segments_of(model, chunks, 0) == segments_of(model, chunks, 1) == []


@runs
@given(models, texts, st.lists(st.integers(0, 500), max_size=40), st.sampled_from(BLOCKS))
def test_trees_hold_the_segments_of_every_level_however_the_input_arrives(
    model: Zonkey, data: bytes, borders: list[int], blocks: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    with reading(blocks):
        trees = trees_of(model, pieces(data, borders), 1)
        for level in (0, 1):
            assert descendants(trees, level) == segments_of(model, [data], level)
    for tree in trees:
        assert b"".join(inner.text for inner in tree.segments) == tree.text
        assert (tree.segments[0].start, tree.segments[-1].end) == (tree.start, tree.end)


def test_trees_of_three_levels_and_of_one() -> None:
    model = model_with(4, -1.5, levels=3)
    data = (TEXT * 6).encode()
    with reading(BLOCKS[0]):
        trees = trees_of(model, [data], 2)
        assert [descendants(trees, level) for level in range(3)] == [
            segments_of(model, [data], level) for level in range(3)
        ]
        assert trees_of(model, [data], 0) == segments_of(model, [data], 0)


def test_a_run_of_segments_is_shared_out_by_hand() -> None:
    def starts(*offsets: int) -> Starts:
        return Starts(np.array(offsets), np.full(len(offsets), 0.5, dtype=np.float32))

    run = Segments(100, b"abcdef", (starts(100, 101, 103, 105), starts(100, 103)))
    assert run.texts() == [b"abc", b"def"] and run.begins.tolist() == [0, 3]
    letters = [[inner.text for inner in segment.segments] for segment in run.nested()]
    assert letters == [[b"a", b"bc"], [b"de", b"f"]]
    flat = [(segment.start, segment.end, segment.segments) for segment in run.flat()]
    assert flat == [(100, 103, ()), (103, 106, ())]


def test_offsets_count_from_where_the_caller_says() -> None:
    model = model_with(1, -0.7)
    data = TEXT.encode()

    def moved(segment: Segment) -> Segment:
        inner = tuple(map(moved, segment.segments))
        return msgspec.structs.replace(segment, start=segment.start + 7, end=segment.end + 7, segments=inner)

    assert trees_of(model, [data], 1, start=7) == [moved(tree) for tree in trees_of(model, [data], 1)]


@runs
@given(models, texts, st.integers(0, 1), st.floats(0.01, 0.99), st.sampled_from(BLOCKS))
def test_a_threshold_moves_the_cuts_of_its_level_alone(
    model: Zonkey, data: bytes, level: int, threshold: float, blocks: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    with reading(blocks):
        trees = trees_of(model, [data], level, threshold=threshold)
        every = segments_of(model, [data], level, threshold=0.0)
        below = segments_of(model, [data], 0)
    sure = {segment.start for segment in every if segment.prob > np.float32(threshold)}
    assert sure <= {tree.start for tree in trees}
    if level:
        assert descendants(trees, 0) == below
        assert not trees or max(len(tree.segments) for tree in trees) <= WINDOW
    else:
        assert all(tree.end - tree.start <= WINDOW for tree in trees)


@runs
@given(models, texts, st.integers(0, 1), st.floats(1.01, 40), st.sampled_from(BLOCKS))
@example(model_with(0, -0.7), b"a", 0, 30.0, BLOCKS[0])
@example(model_with(0, -0.7), b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 1, 3.0, BLOCKS[0])
def test_no_threshold_is_nearer_to_a_rate(
    model: Zonkey, data: bytes, level: int, rate: float, blocks: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    assume(data)

    def reached(threshold: float) -> float:
        return len(data) / len(segments_of(model, [data], level, threshold))

    with reading(blocks):
        found = threshold_for_rate(levels_of(model), data, level=level, bytes_per_segment=rate)
        others = {segment.prob for segment in segments_of(model, [data], level, 0.0)} - {1.0}
        rates = [reached(0.0), *(reached(other) for other in sorted(others)[:: 1 + len(others) // 10])]
        assert found.bytes_per_segment == reached(found.threshold)
        longest = reached(max(others, default=0.0))
    assert abs(found.bytes_per_segment - rate) <= min(abs(other - rate) for other in rates) + 1e-9
    assert found.within_reach == (rates[0] <= rate and (rate <= longest or longest == len(data)))


def test_a_rate_out_of_reach_gives_the_nearest() -> None:
    model = model_with(1, -0.7)
    data = (TEXT * 2).encode()
    long = threshold_for_rate(levels_of(model), data, level=0, bytes_per_segment=100)
    assert not long.within_reach and WINDOW / 2 < long.bytes_per_segment <= WINDOW
    short = threshold_for_rate(levels_of(model), data, level=1, bytes_per_segment=1.01)
    assert not short.within_reach
    assert short.bytes_per_segment == len(data) / len(segments_of(model, [data], 0))
    assert threshold_for_rate(levels_of(model), b"", level=0, bytes_per_segment=4) == RateThreshold(0.5, 0.0, True)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=10), st.integers(1, 50))
def test_the_head_of_a_stream_is_there_again(data: bytes, borders: list[int], size: int) -> None:
    head, chunks = take_head(iter(pieces(data, borders)), size)
    assert head == data[:size]
    assert b"".join(chunks) == data


def test_no_more_than_the_head_is_awaited() -> None:
    source = iter([b"ab", b"cd", b"ef"])
    head, chunks = take_head(source, 3)
    assert (head, next(source)) == (b"abc", b"ef")
    assert [*chunks] == [b"abcd"]


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold must be"):
        segments_of(model_with(0, -0.7), [b"text"], 0, threshold)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_file_cuts_as_the_model_that_it_holds_in_threads_too(level: int, tmp_path: Path) -> None:
    model = model_with(3, -0.7, levels=3)
    files = {CONFIG: describe(Config(model=model.config), 1), MODEL: pack_tensors(model.state_dict(), half=True)}
    write_files(tmp_path, files)
    whole = cutting_levels(load_model(tmp_path))
    data = (TEXT * 60).encode()
    with ThreadPoolExecutor(3) as executor:
        for threads in (None, executor):
            part = load_cutting_levels(tmp_path, level=level, executor=threads)
            assert len(part) == level + 1
            one, other = (
                [found.nested() for found in segment_levels(levels, [data], level=level)] for levels in (part, whole)
            )
            assert one == other
