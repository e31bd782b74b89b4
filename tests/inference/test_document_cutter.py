"""Documents that are cut in one stream: each as if it was alone, in few blocks, and no later than it has to be."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.model_helpers import TEXT, small_model
from zonkey_core.inference import level_cutter
from zonkey_core.inference.cutting_levels import cutting_levels
from zonkey_core.inference.document_cutter import DocumentCutter
from zonkey_core.inference.level_cutter import CuttingLevel, LevelCutter
from zonkey_core.inference.segmentation import position_probs, segment_levels, segment_texts
from zonkey_core.inference.segments import Segment, Segments
from zonkey_core.inference.torch_levels import TorchLevel

WINDOW = 8
Blocks = tuple[tuple[int, int], tuple[int, int]]
BLOCKS: list[Blocks] = [((64, 128), (16, 16)), ((16, 48), (7, 7)), ((5, 5), (3, 3)), ((1024, 65536), (512, 2048))]
SCRIPTS = (
    "The town of Örebro lies in Sweden. ", "新航程。世界", "トウキョウの朝", "ความรักเป็นสิ่งที่สวยงาม", "한국어는",
    "Это было. Ελληνικά, עברית, العربية, क्षत्रिय", "👨‍👩‍👧", "👨", "\u200d👩", "🇩", "🇪🇫", "e", "\u0301", "\r", "\n", " ",
    "क", "\u094d", "\u094dष", "\u1100", "\u1161", "\u0600", "a",
)
document = st.one_of(
    st.lists(st.sampled_from(SCRIPTS), max_size=8).map(lambda parts: "".join(parts).encode()),
    st.lists(st.sampled_from(SCRIPTS), max_size=8).map(lambda parts: "".join(parts).encode()[1:-1]),
    st.binary(max_size=60),
    st.integers(0, 300).map(lambda size: (TEXT * 4).encode()[:size]),
)
documents = st.lists(document, max_size=12)
JOINING = [sign.encode() for sign in ["👨", "\u200d👩", "क", "्ष", "🇩", "🇪", "e", "́", "ᄀ", "ᅡ"]] + [b"\r", b"\n"]
"""Each pair would be one unit if it was not of two documents."""


@functools.lru_cache(maxsize=64)
def levels_with(seed: int, bias: float, torch_too: bool = False) -> list[CuttingLevel]:
    """The levels of an untrained model with an opinion about cuts."""
    model = small_model(3, seed=seed, window=WINDOW)
    for level in model.levels:
        torch.nn.init.constant_(level.splitter.head.bias, bias)
    model.eval().requires_grad_(False)
    return [TorchLevel(level) for level in model.levels] if torch_too else cutting_levels(model)


levels_drawn = st.builds(levels_with, st.integers(0, 3), st.sampled_from([-9.0, -2.0, -0.7, 1.0]))


@contextlib.contextmanager
def reading(blocks: Blocks) -> Iterator[None]:
    """With blocks of these sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level_cutter, "BYTE_BLOCK", blocks[0])
        patch.setattr(level_cutter, "COMPRESSED_BLOCK", blocks[0])
        patch.setattr(level_cutter, "LATENT_BLOCK", blocks[1])
        yield


def trees(found: Iterator[Segments], count: int) -> list[list[Segment]]:
    """The segments of each of `count` documents, nested."""
    shared: list[list[Segment]] = [[] for _ in range(count)]
    for segments in found:
        shared[segments.document] += segments.nested()
    return shared


def alone(levels: list[CuttingLevel], texts: Sequence[bytes], level: int) -> list[list[Segment]]:
    """The segments of each document, cut by itself."""
    return [tree for text in texts for tree in trees(segment_levels(levels, [text], level=level), 1)]


@settings(max_examples=80, deadline=None)
@given(levels_drawn, documents, st.integers(0, 2), st.sampled_from(BLOCKS))
@example(levels_with(0, -0.7), [b"", *JOINING, b"", b""], 1, BLOCKS[3])
@example(levels_with(1, 1.0), [*JOINING, b"\xe4", b"\xb8\xad", b"\xad", b"\xf0\x9f", b"\x91\xa8"] * 3, 0, BLOCKS[2])
@example(levels_with(0, -9.0), [b"a" * 20, "日".encode() * 40, b"b" * 3], 0, BLOCKS[1])
def test_documents_are_cut_as_if_each_was_alone(
    levels: list[CuttingLevel], texts: list[bytes], level: int, blocks: Blocks
) -> None:
    """To the bit, with the probabilities too."""
    with reading(blocks):
        assert trees(segment_texts(levels, texts, level=level), len(texts)) == alone(levels, texts, level)


@settings(max_examples=40, deadline=None)
@given(levels_drawn, documents, st.integers(0, 1), st.sampled_from(BLOCKS), st.data())
def test_neither_pieces_nor_pauses_matter(
    levels: list[CuttingLevel], texts: list[bytes], level: int, blocks: Blocks, data: st.DataObject
) -> None:
    with reading(blocks):
        cutter = DocumentCutter(levels, level=level)
        found: list[Segments] = []
        for text in texts:
            cutter.begin(start=7)
            middle = data.draw(st.integers(0, len(text)))
            for piece in (text[:middle], text[middle:]):
                cutter.take(piece)
                found += cutter.advance()
            if data.draw(st.booleans()):
                found += cutter.settle()
                assert not cutter.holds_text
        found += cutter.settle()
        expected = [
            [tree for segments in segment_levels(levels, [text], level=level, start=7) for tree in segments.nested()]
            for text in texts
        ]
    assert trees(iter(found), len(texts)) == expected
    assert [each.document for each in found] == sorted(each.document for each in found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), documents, st.integers(0, 1))
@example(0, [b"", *JOINING], 1)
def test_torch_does_not_look_across_documents_either(seed: int, texts: list[bytes], level: int) -> None:
    """In float32, where another line rounds in another way."""
    levels = levels_with(seed, -0.7, torch_too=True)
    together = position_probs(levels, texts, level=level)
    for text, found in zip(texts, together, strict=True):
        (single,) = position_probs(levels, [text], level=level)
        assert found.offsets.tolist() == single.offsets.tolist()
        np.testing.assert_allclose(found.probs, single.probs, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(levels_drawn, documents, st.integers(0, 1), st.sampled_from(BLOCKS))
def test_probabilities_of_positions_are_those_of_each_text_alone(
    levels: list[CuttingLevel], texts: list[bytes], level: int, blocks: Blocks
) -> None:
    with reading(blocks):
        together = position_probs(levels, texts, level=level)
    assert len(together) == len(texts)
    for text, found in zip(texts, together, strict=True):
        (single,) = position_probs(levels, [text], level=level)
        assert [each.tolist() for each in found] == [each.tolist() for each in single]


@pytest.fixture
def blocks_cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of level 0's blocks, as they are cut."""
    sizes: list[int] = []
    cut = LevelCutter._cut

    def watched(self: LevelCutter, count: int) -> level_cutter.Cuts:
        if self.level.reads_bytes:
            sizes.append(count)
        return cut(self, count)

    monkeypatch.setattr(LevelCutter, "_cut", watched)
    return sizes


@pytest.mark.parametrize("level", [0, 1])
def test_short_documents_share_a_block_and_what_is_at_hand_is_one(level: int, blocks_cut: list[int]) -> None:
    levels = levels_with(0, -0.7)
    text = (TEXT * 60).encode()
    texts = [text[first : first + 100] for first in range(0, 10_000, 100)]
    assert len(list(segment_texts(levels, texts, level=level))) >= 100
    assert blocks_cut == [10_000]


def test_blocks_grow_with_what_was_read_since_a_pause(blocks_cut: list[int]) -> None:
    text = (TEXT * 40).encode()
    with reading(((16, 256), (16, 16))):
        cutter = DocumentCutter(levels_with(0, -0.7))
        for _ in range(2):
            cutter.begin()
            for place in range(2500):
                cutter.take(text[place : place + 1])
                for _ in cutter.advance():
                    pass
                assert len(cutter._cutters[0].waiting) <= 2, "bytes that arrive one by one are not kept as objects"
            assert blocks_cut[:6] == [16, 32, 64, 128, 256, 256] and max(blocks_cut) == 256
            assert sum(blocks_cut) < 2500 and len([*cutter.settle()]) > 0 and sum(blocks_cut) == 2500
            blocks_cut.clear()


@pytest.mark.parametrize("level", [0, 1])
def test_memory_is_bounded_however_many_documents_there_are(level: int) -> None:
    levels = levels_with(3, -0.7)
    taken, given_back, held = 0, 0, []

    def source() -> Iterator[bytes]:
        nonlocal taken
        for text in itertools.islice(itertools.cycle([TEXT.encode()[:70], b"", b"short", TEXT.encode()]), 600):
            taken += len(text)
            yield text

    with reading(((64, 1024), (16, 64))):
        for segments in segment_texts(levels, source(), level=level):
            held.append(taken - given_back)
            given_back += len(segments.text)
    assert taken == given_back and max(held) < 8000 < taken / 4
