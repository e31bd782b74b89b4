"""Segmenting a stream: the text comes back, and neither its pieces nor the blocks it is read in change the cuts."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.model_helpers import TEXT, small_model
from zonkey_core import segmenting
from zonkey_core.errors import ConfigError
from zonkey_core.model import Zonkey, text_sequence
from zonkey_core.segmenting import LevelCutter, Segment, segment_stream

WINDOW = 8
runs = settings(max_examples=30, deadline=None)
BLOCKS = [((2, 64), (1, 16)), ((3, 16), (1, 7)), ((1, 5), (1, 3)), ((8, 8192), (1, 2048))]
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
def reading(blocks: tuple[tuple[int, int], tuple[int, int]], *, exact: bool = False) -> Iterator[None]:
    """With blocks of these sizes, and with `exact` in float32 throughout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenting, "BYTE_BLOCK", blocks[0])
        patch.setattr(segmenting, "LATENT_BLOCK", blocks[1])
        if exact:
            patch.setattr(segmenting, "autocast", lambda device, precision: contextlib.nullcontext())
        yield


def segments_of(model: Zonkey, chunks: Iterable[bytes], level: int = 0) -> list[Segment]:
    return list(itertools.chain.from_iterable(segment_stream(model, chunks, level=level)))


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
    views = model.ascend(text_sequence(data, device=model.device), 1)
    offsets = np.arange(len(data))
    for index, view in enumerate(views):
        probs = model.levels[index].split(view.sequence).start_prob[0]
        assume((probs - 0.5).abs().min() > 1e-4)
        starts = view.segmentation.starts[0].numpy()
        offsets = offsets[starts]
        with reading(blocks, exact=True):
            segments = segments_of(model, [data], index)
        assert [segment.start for segment in segments] == offsets.tolist()
        np.testing.assert_allclose([segment.prob for segment in segments], probs[starts].numpy(), atol=1e-5)


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
    model = model_with(2, -0.7, levels=3)
    data = (TEXT * 6).encode()
    with reading(BLOCKS[0]):
        starts = [{segment.start for segment in segments_of(model, [data], level)} for level in range(3)]
    assert starts[0] > starts[1] > starts[2] > {0}


@pytest.mark.parametrize("level", [0, 1])
def test_memory_is_bounded_and_segments_come_early(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(3, -0.7)
    data, piece = (TEXT * 200).encode(), 100
    blocks = (2, 64), (1, 16)
    held: dict[bool, list[int]] = {True: [], False: []}
    push = LevelCutter.push

    def watched(self: LevelCutter, *given: Any) -> Iterator[Any]:
        yield from push(self, *given)
        assert self.values is not None and len(self.values) == len(self.offsets)
        held[self.is_bytes].append(len(self.values))

    monkeypatch.setattr(LevelCutter, "push", watched)
    taken = 0

    def source() -> Iterator[bytes]:
        nonlocal taken
        for taken in range(0, len(data), piece):
            yield data[taken : taken + piece]

    lags = []
    with reading(blocks):
        for segments in segment_stream(model, source(), level=level):
            lags += [taken + piece - segments[-1].end] if segments else []
    halo = WINDOW + 4
    assert max(held[True]) <= 2 * 64 + 2 * halo + piece
    assert level == 0 or max(held[False]) <= 16 + 2 * halo + 2 * 64
    assert len(lags) > 50 and max(lags) < (600 if level == 0 else 3000)


def test_a_level_that_is_not_there_is_refused() -> None:
    for level in (-1, 2):
        with pytest.raises(ConfigError, match="level must be between 0 and 1"):
            segments_of(model_with(0, -0.7), [b"text"], level)


def test_nothing_in_gives_nothing_out() -> None:
    model = model_with(0, -0.7)
    for chunks in ([], [b""], [b"", b""]):
        assert segments_of(model, chunks, 0) == segments_of(model, chunks, 1) == []
