"""Measurements on cases that were worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model_helpers import TEXT, byte_rows, small_model
from zonkey_core.data import SourceSpec
from zonkey_core.model.decoder import DecodedWindows
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.model import Ascent
from zonkey_core.model.positions import Choices, PositionSequence
from zonkey_core.model.segmentation import Segmentation, Slots
from zonkey_core.training.validation import (
    Scores,
    forecast_ends,
    held_out_rows,
    quick_figures,
    rebuild_segments,
    whitespace_scores,
)

SAMPLE = SourceSpec(sources=("sample",))


def scores(text: bytes, *starts: int) -> Scores:
    """Precision, recall and F1 of cuts at the given places; the row begins with one at 0."""
    places = torch.tensor([[0, *starts]])
    return whitespace_scores(byte_rows(text).values, places, torch.ones_like(places, dtype=torch.bool))


@pytest.mark.parametrize(
    ("text", "starts", "expected"),
    [
        (b"one two three", (4, 8), (1, 1)),
        (b"one two three", (3, 7), (1, 1)),  # the space belongs to the next word
        (b"one two three", (3, 4, 7, 8), (1, 1)),  # both of one word's cuts count once
        (b"one two three", (4,), (1, 0.5)),
        (b"one two three", (4, 8, 10, 11), (0.5, 1)),
        (b"one two three", (5, 9), (0, 0)),
        (b"one two three", (), (0, 0)),
        (b"one \n\t two", (3,), (1, 1)),  # a cut before a run of whitespace counts where it ends
        (b"one \n\t two", (5,), (1, 1)),
        (b"one two  ", (3, 7), (1, 1)),  # whitespace at the end leads to no word
        (b" one two", (1, 5), (1, 1)),
        (b"oneword", (3,), (0, 0)),
        (b"na\xc3\xafve \xe6\x97\xa5", (7,), (1, 1)),
    ],
)
def test_cuts_against_whitespace(text: bytes, starts: tuple[int, ...], expected: tuple[float, float]) -> None:
    precision, recall, f1 = scores(text, *starts)
    assert (precision, recall) == pytest.approx(expected)
    total = precision + recall
    assert f1 == pytest.approx(2 * precision * recall / total if total else 0)


def test_padding_is_no_cut_and_rows_add_up() -> None:
    values = byte_rows(b"one two three", b"a bb cc dd ee").values
    starts = torch.tensor([[0, 4, 8], [0, 3, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = whitespace_scores(values, starts, mask)
    assert (found.precision, found.recall) == pytest.approx((2 / 3, 2 / 6))


class Unfolding:
    """A level whose segment number n, written as its latent, decodes to the positions given for it.

    `soft` [K, V] is what each of these is read out as.
    """

    def __init__(self, decoded: list[list[int]], soft: Tensor) -> None:
        self.decoded, self.soft = decoded, soft

    def decode(self, latents: Tensor) -> DecodedWindows:
        chosen = [self.decoded[number] for number in latents[:, 0].long().tolist()]
        states = torch.zeros(len(chosen), 4, 1)
        log_existence = torch.full((len(chosen), 4), -50.0)
        for row, values in enumerate(chosen):
            states[row, : len(values), 0] = torch.tensor(values, dtype=torch.float32)
            log_existence[row, : len(values)] = 0
        return DecodedWindows(states, torch.zeros_like(log_existence), log_existence)

    def settle(self, latents: Tensor) -> Tensor:
        return latents.round()

    def readout(self, states: Tensor) -> Tensor:
        return self.soft[states[..., 0].long()]


def view(sequence: PositionSequence, *rows: list[int]) -> Ascent:
    """A level with segments that begin at the given positions of each row, and their numbers as latents."""
    longest = max(map(len, rows))
    starts = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[place < len(row) for place in range(longest)] for row in rows])
    segmentation = Segmentation(starts, mask, torch.zeros_like(mask), torch.zeros(sequence.exists_mask.shape))
    numbers = torch.arange(int(mask.sum()), dtype=torch.float32).unsqueeze(1)
    table = torch.zeros(*mask.shape, 1).masked_scatter(mask.unsqueeze(-1), numbers)
    order = torch.arange(longest).expand_as(mask)
    slots = Slots(table, None, mask, mask & False, starts, order, mask)
    return Ascent(sequence, segmentation, segmentation.start_prob, numbers, slots)


WORDS = [b"ab", b"cde", b"f", b"gh", b"ij"]
"""Two rows: `ab|cde || f|gh` and `ij`, with `||` between segments of level 1."""
NUMBERS = torch.arange(len(WORDS), dtype=torch.float32).unsqueeze(1)


@pytest.mark.parametrize(
    ("upper", "lower", "right", "exact"),
    [
        ({}, {}, [5, 3, 2], [True, True, True]),
        ({}, {1: b"cxe"}, [4, 3, 2], [False, True, True]),
        ({}, {1: b"cd"}, [4, 3, 2], [False, True, True]),
        ({}, {3: b"ghx"}, [5, 3, 2], [True, False, True]),
        ({1: [2]}, {}, [5, 1, 2], [True, False, True]),  # a child is missing, with its bytes
        ({1: [2, 3, 0]}, {}, [5, 3, 2], [True, False, True]),  # one too many
        ({0: [1, 0]}, {}, [0, 3, 2], [False, True, True]),  # the places count
        ({2: []}, {}, [5, 3, 0], [True, True, False]),
    ],
)
def test_segments_are_decoded_through_every_level(
    upper: dict[int, list[int]], lower: dict[int, bytes], right: list[int], exact: list[bool]
) -> None:
    rows = byte_rows(b"abcdefgh", b"ij______")
    exists = rows.exists_mask.clone()
    exists[1, 2:] = False
    below = view(rows._replace(exists_mask=exists), [0, 2, 5, 6], [0])
    children = PositionSequence(torch.zeros(2, 4, 1), below.segmentation.slot_mask, torch.zeros(2, 4).bool())
    above = view(children, [0, 2], [0])
    levels: Any = [
        Unfolding([list(lower.get(number, word)) for number, word in enumerate(WORDS)], torch.eye(256)),
        Unfolding([upper.get(number, whole) for number, whole in enumerate([[0, 1], [2, 3], [4]])], NUMBERS),
    ]
    found = rebuild_segments(levels, [below, above])
    assert found.rows.tolist() == [0, 0, 1]
    assert found.sizes.tolist() == [5, 3, 2]
    assert found.right.tolist() == right
    assert found.exact.tolist() == exact


def test_a_string_is_right_where_no_other_is_nearer() -> None:
    """However close another comes, or however far it is itself; of latents without strings, the cosine decides."""
    table = to_sphere(torch.tensor([[1.0, 0.3], [1.0, 0.1], [-1.0, 0.0], [9.0, 9.0]]))
    entries = torch.tensor([[0, 1, 2, 2], [2, 0, 3, 3]])
    exists = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    sequence = PositionSequence(table[entries] * exists.unsqueeze(-1), exists, exists & False)
    above = view(sequence, [0, 3], [0])
    soft = to_sphere(torch.tensor([[1.0, 0.12], [1.0, 0.08], [-1.0, 1.0]]))
    levels: Any = [Unfolding([[0, 1, 2], [2], [2, 1]], soft)]
    strings = rebuild_segments(levels, [above._replace(choices=Choices(entries, table, torch.zeros(len(table))))])
    assert strings.right.tolist() == [2, 1, 1] and strings.exact.tolist() == [False, True, False]
    latents = rebuild_segments(levels, [above])
    assert latents.right.tolist() == [2, 0, 1] and latents.exact.tolist() == [False, False, False]


def test_held_out_rows_are_always_the_same() -> None:
    first, second = held_out_rows(SAMPLE, 64, 7), held_out_rows(SAMPLE, 64, 7)
    assert first is not None and second is not None
    assert first.values.shape == (7, 64) and first.values.dtype == torch.int64
    assert torch.equal(first.values, second.values) and torch.equal(first.document_mask, second.document_mask)
    assert first.exists_mask.all() and first.document_mask[0, 0]
    longer = held_out_rows(SourceSpec(sources=("sample",), split="test"), 128, 3)
    assert longer is not None
    assert torch.equal(longer.values[0, :64], first.values[0]), "the split that is asked for does not matter"


def test_some_sources_hold_nothing_out(tmp_path: Path) -> None:
    text = tmp_path / "one.txt"
    text.write_text("Only one line, which is for training.\n")
    assert held_out_rows(SourceSpec(sources=(str(text),)), 16) is None
    assert held_out_rows(SourceSpec(sources=("-",)), 16) is None


@pytest.mark.parametrize("levels", [1, 3])
def test_every_level_is_measured(levels: int) -> None:
    model = small_model(levels)
    rows = byte_rows((TEXT * 2).encode()[:300], (TEXT * 2).encode()[20:320])
    figures = quick_figures(model, rows)
    names = {name for index in range(levels) for name in (
        f"level {index}: {'position' if index else 'byte'} accuracy", f"level {index}: exact segments",
        f"level {index}: {'position' if index else 'byte'}s per segment",
    )}
    assert set(figures) == {*names, "level 0: whitespace F1"}
    for name, figure in figures.items():
        assert 1 <= figure <= 8 if name.endswith("per segment") else 0 <= figure <= 1


def test_ends_are_forecast_at_every_place_up_to_the_one_behind_a_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    level = small_model(1, window=6).bottom
    sequence = byte_rows(b"abcdefgh", b"ijklmnop")
    mask = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    starts = torch.tensor([[0, 3, 0], [0, 1, 7]])
    slot_mask = torch.tensor([[True, True, False], [True, True, True]])
    segmentation = Segmentation(starts, slot_mask, slot_mask & (starts == 0), mask.float())
    order = torch.arange(3).expand_as(slot_mask)
    slots = Slots(torch.zeros(2, 3, 5), None, slot_mask, slot_mask & False, starts, order, slot_mask)
    view = Ascent(sequence, segmentation, segmentation.start_prob, torch.eye(5), slots)

    def decode(latents: Tensor) -> DecodedWindows:
        """The logit names the segment and the place."""
        logits = latents.argmax(1, keepdim=True) / 10 + torch.arange(6) / 100
        return DecodedWindows(torch.zeros(len(latents), 6, 1), logits, torch.zeros_like(logits))

    monkeypatch.setattr(level, "decode", decode)
    found = forecast_ends(level, view)
    sizes = [3, 5, 1, 6, 1]
    assert found.rows.tolist() == [0] * 8 + [1] * 7
    places = [(segment, place) for segment, size in enumerate(sizes) for place in range(1, min(size, 5) + 1)]
    expected = torch.tensor([segment / 10 + place / 100 for segment, place in places]).sigmoid()
    torch.testing.assert_close(found.probs, expected)
    assert found.came_mask.tolist() == [place == sizes[segment] for segment, place in places]
