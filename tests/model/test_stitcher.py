"""Laws of the stitcher: windows cut from a text give the text back, and windows that add nothing change nothing."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import chance, existence, law, normal
from zonkey_core.model.stitcher import MATCH_WEIGHT, disagreement, start_scores, stitch

ALPHABETS = (b"a", b"ha", b"abc", bytes(range(256)))


class Cut(NamedTuple):
    """A text of symbols 0..255 cut into windows that overlap."""

    text: Tensor
    """[L + S], the text and what stands after it."""
    starts: list[int]
    length: int
    exists: Tensor
    """[M, S] in float64."""

    def windows(self, contents: Tensor) -> Tensor:
        """The windows of what stands at each place of `text`: [L + S, V] to [M, S, V]."""
        return torch.stack([contents[start : start + self.exists.shape[1]] for start in self.starts])

    @property
    def one_hot(self) -> Tensor:
        return torch.nn.functional.one_hot(self.text, 256).double()


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """A text, periodic or not, any segmentation of it, and tails whose largest loss is where the next one starts."""
    window = draw(st.integers(2, 10))
    lengths = draw(st.lists(st.integers(1, window), min_size=1, max_size=8))
    total = sum(lengths)
    unit = draw(st.sampled_from(ALPHABETS))
    if draw(st.booleans()):
        text = unit * (total + window)
    else:
        text = bytes(draw(st.lists(st.sampled_from(unit), min_size=total + window, max_size=total + window)))
    exists = torch.ones(len(lengths), window, dtype=torch.float64)
    for index, length in enumerate(lengths):
        weights = draw(st.lists(st.floats(0, 0.98), min_size=window, max_size=window))
        last = index == len(lengths) - 1
        weights[length - 1] = 1.01 + sum(weights[: length - 1]) + sum(weights[length:]) if last else 1.0
        losses = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)
        exists[index, 1:] = 1 - losses.cumsum(0)[:-1]
    starts = [0, *itertools.accumulate(lengths)][:-1]
    return Cut(torch.tensor(list(text[: total + window])), starts, total, exists.clamp(min=0))


def soft_contents(text: Tensor, seed: int) -> Tensor:
    """Symbol probabilities [L, 256] whose likeliest symbol is the text's, unsure to a different degree each."""
    sure = 0.3 + 0.7 * torch.rand(len(text), 1, generator=chance(seed), dtype=torch.float64)
    noise = torch.rand(len(text), 256, generator=chance(seed + 1), dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(text, 256).double()
    return sure * one_hot + (1 - sure) * noise / noise.sum(-1, keepdim=True)


def all_exist(cut: Cut) -> Tensor:
    return torch.ones(len(cut.starts), dtype=torch.float64)


@law
@given(cuts())
def test_windows_of_a_text_give_the_text_back(cut: Cut) -> None:
    found = stitch(cut.windows(cut.one_hot), cut.exists.log(), all_exist(cut), symbols=True)
    assert found.starts.tolist() == cut.starts
    assert found.kept.tolist() == list(range(len(cut.starts)))
    assert found.contents.argmax(-1).tolist() == cut.text[: cut.length].tolist()
    strongest = torch.zeros(cut.length + cut.exists.shape[1], dtype=torch.float64)
    for start, window in zip(cut.starts, cut.exists, strict=True):
        place = slice(start, start + len(window))
        strongest[place] = strongest[place].maximum(window)
    torch.testing.assert_close(found.existence.double(), strongest[: cut.length], atol=1e-6, rtol=1e-5)


@law
@given(cuts(), st.integers(0, 1000))
def test_windows_of_unsure_symbols_give_the_text_back(cut: Cut, seed: int) -> None:
    contents = soft_contents(cut.text, seed)
    found = stitch(cut.windows(contents), cut.exists.log(), all_exist(cut), symbols=True)
    assert found.starts.tolist() == cut.starts
    torch.testing.assert_close(found.contents.double(), contents[: cut.length], atol=1e-6, rtol=1e-4)


@law
@given(cuts())
def test_windows_of_latents_give_the_latents_back(cut: Cut) -> None:
    contents = normal(256, 12, seed=1)[cut.text]
    found = stitch(cut.windows(contents), cut.exists.log(), all_exist(cut), symbols=False)
    assert found.starts.tolist() == cut.starts
    torch.testing.assert_close(found.contents.double(), contents[: cut.length], atol=1e-5, rtol=1e-4)


@law
@given(cuts(), st.data())
def test_windows_of_no_existence_change_nothing(cut: Cut, data: st.DataObject) -> None:
    count, window = cut.exists.shape
    order = data.draw(st.permutations([True] * count + [False] * data.draw(st.integers(1, 5))))
    real = torch.tensor(order)
    contents = soft_contents(torch.randint(256, (len(order) * window,), generator=chance(2)), 3)
    contents = contents.view(len(order), window, 256)
    contents[real] = cut.windows(cut.one_hot)
    log_exists = torch.zeros(len(order), window, dtype=torch.float64)
    log_exists[real] = cut.exists.log()
    slots = torch.tensor([0.0, 0.3, 0.5])[torch.arange(len(order)) % 3].masked_fill(real, 0.51)
    with_others = stitch(contents, log_exists, slots, symbols=True)
    alone = stitch(cut.windows(cut.one_hot), cut.exists.log(), all_exist(cut), symbols=True)
    assert torch.equal(with_others.contents, alone.contents)
    assert torch.equal(with_others.existence, alone.existence)
    assert torch.equal(with_others.starts, alone.starts)
    assert with_others.kept.tolist() == real.nonzero().flatten().tolist()


@law
@given(st.data())
def test_redundant_windows_change_nothing(data: st.DataObject) -> None:
    """Extra windows start where the splitter saw a possible start too, and existence has dropped partly."""
    lengths = data.draw(st.lists(st.integers(4, 7), min_size=2, max_size=6))
    starts = [0, *itertools.accumulate(lengths)]
    total, window = starts.pop(), 20
    text = torch.tensor(data.draw(st.permutations(range(total + window))))
    probs = torch.zeros(1, total + window, dtype=torch.float64)
    probs[0, [*starts, total]] = data.draw(st.floats(0.6, 0.8))
    probs[0, 0] = 1
    extra = [
        start + data.draw(st.integers(1, length - 1))
        for start, length in zip(starts, lengths, strict=True) if data.draw(st.booleans())
    ]
    probs[0, extra] = data.draw(st.floats(0.3, 0.4))
    contents = {False: torch.eye(256, dtype=torch.float64)[text], True: normal(256, 16, seed=2)[text]}

    for latents, content in contents.items():
        def run(places: list[int], content: Tensor = content, symbols: bool = not latents) -> tuple[Tensor, Tensor]:
            windows = torch.stack([content[start : start + window] for start in places])
            found = stitch(windows, existence(probs, places, window)[0].log(), torch.ones(len(places)), symbols=symbols)
            assert found.starts.tolist() == places
            return found.contents, found.existence

        alone, together = run(starts), run(sorted([*starts, *extra]))
        torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[0].double(), content[:total], atol=1e-5, rtol=1e-5)
        assert (together[1] >= alone[1]).all()


@law
@given(cuts(), st.booleans(), st.integers(0, 1000))
def test_windows_of_known_sizes_give_the_text_back(cut: Cut, symbols: bool, seed: int) -> None:
    """Whatever their existence says of where they end, and whatever else agrees."""
    contents = soft_contents(cut.text, seed) if symbols else normal(256, 12, seed=1)[cut.text]
    sizes = torch.tensor([*cut.starts[1:], cut.length]) - torch.tensor(cut.starts)
    exists = torch.rand(cut.exists.shape, generator=chance(seed), dtype=torch.float64)
    found = stitch(cut.windows(contents), exists.log(), all_exist(cut), symbols=symbols, sizes=sizes)
    assert found.starts.tolist() == cut.starts and found.kept.tolist() == list(range(len(cut.starts)))
    torch.testing.assert_close(found.contents.double(), contents[: cut.length], atol=1e-5, rtol=1e-4)


@law
@given(cuts(), st.data())
def test_sizes_of_windows_of_no_existence_change_nothing(cut: Cut, data: st.DataObject) -> None:
    count, window = cut.exists.shape
    order = data.draw(st.permutations([True] * count + [False] * data.draw(st.integers(1, 4))))
    real = torch.tensor(order)
    contents = soft_contents(torch.randint(256, (len(order) * window,), generator=chance(2)), 3)
    contents = contents.view(len(order), window, 256)
    contents[real] = cut.windows(cut.one_hot)
    log_exists = torch.zeros(len(order), window, dtype=torch.float64)
    log_exists[real] = cut.exists.log()
    sizes = torch.full((len(order),), window)
    own = torch.tensor([*cut.starts[1:], cut.length]) - torch.tensor(cut.starts)
    sizes[real] = own
    with_others = stitch(contents, log_exists, real.double(), symbols=True, sizes=sizes)
    alone = stitch(cut.windows(cut.one_hot), cut.exists.log(), all_exist(cut), symbols=True, sizes=own)
    assert torch.equal(with_others.contents, alone.contents)
    assert torch.equal(with_others.existence, alone.existence)
    assert torch.equal(with_others.starts, alone.starts)


@law
@given(cuts())
def test_the_sizes_that_are_inferred_are_as_good_as_given(cut: Cut) -> None:
    inferred = stitch(cut.windows(cut.one_hot), cut.exists.log(), all_exist(cut), symbols=True)
    sizes = torch.tensor([*cut.starts[1:], cut.length]) - torch.tensor(cut.starts)
    given_sizes = stitch(cut.windows(cut.one_hot), cut.exists.log(), all_exist(cut), symbols=True, sizes=sizes)
    for name in ("contents", "existence", "starts", "kept"):
        assert torch.equal(getattr(inferred, name), getattr(given_sizes, name)), name


@pytest.mark.parametrize("sizes", [None, torch.tensor([3, 4])])
def test_where_windows_overlap_gradients_reach_both(sizes: Tensor | None) -> None:
    contents = normal(2, 4, 6, seed=1).softmax(-1).requires_grad_()
    log_exists = torch.tensor([[1.0, 0.95, 0.9, 0.2], [1.0, 0.9, 0.8, 0.7]], dtype=torch.float64).log()
    log_exists.requires_grad_()
    found = stitch(contents, log_exists, torch.ones(2), symbols=True, match_weight=0, sizes=sizes)
    assert found.starts.tolist() == [0, 3] and len(found.contents) == 7
    weights = normal(6, seed=2)
    to_contents, to_existence = torch.autograd.grad((found.contents[3] @ weights.float()), (contents, log_exists))
    at = torch.zeros(2, 4, dtype=torch.bool)
    at[0, 3] = at[1, 0] = True
    assert torch.equal(to_contents.any(-1), at) and torch.equal(to_existence != 0, at)
    torch.testing.assert_close(to_contents[0, 3], weights * 0.2 / 1.2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(to_contents[1, 0], weights * 1.0 / 1.2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("symbols", [True, False])
def test_start_scores_are_the_formula(symbols: bool) -> None:
    window, width = 5, 8
    contents = normal(4, window, width, seed=1)
    contents = contents.softmax(-1) if symbols else contents
    exists = torch.rand(4, window, generator=chance(2), dtype=torch.float64).sort(1, descending=True).values
    found = start_scores(contents, exists.log(), symbols=symbols)
    assert found.shape == (3, window + 1)
    for pair, start in itertools.product(range(3), range(window + 1)):
        if start == 0:
            assert found[pair, 0] == -math.inf
            continue
        after = exists[pair, start] if start < window else 0.0
        score = math.log(exists[pair, start - 1] - after)
        for offset in range(window - start):
            first, second = contents[pair, start + offset], contents[pair + 1, offset]
            differs = disagreement(first, second, symbols=symbols).item()
            score -= MATCH_WEIGHT * (exists[pair, start + offset] * exists[pair + 1, offset]).item() * differs
        assert found[pair, start].item() == pytest.approx(score)


def test_disagreement_of_symbols() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.4, 0.6, 0.0]])
    assert disagreement(rows[0], rows[1], symbols=True) == 1
    for row in rows:
        assert disagreement(row, row, symbols=True) == pytest.approx(0, abs=1e-6)
    assert disagreement(rows[0], rows[2], symbols=True) == pytest.approx(1 - math.sqrt(0.4))


def test_disagreement_of_latents() -> None:
    first, other = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])
    assert disagreement(first, 2 * first, symbols=False) == pytest.approx(0)
    assert disagreement(first, other, symbols=False) == pytest.approx(1 - math.sqrt(0.5))
    assert disagreement(first, -first, symbols=False) == 1


def test_disagreeing_text_overrules_the_largest_loss() -> None:
    symbols = torch.eye(256)[torch.tensor([list(b"abcdef"), list(b"cdefgh")])]
    log_exists = torch.tensor([[1, 1, 0.7, 0.69, 0.3, 0.3], [1, 1, 1, 1, 1, 1]]).log()
    found = stitch(symbols, log_exists, torch.ones(2), symbols=True)
    assert bytes(found.contents.argmax(-1).tolist()) == b"abcdefgh"


def test_the_overlap_is_merged_by_existence() -> None:
    contents = torch.eye(3)[torch.tensor([[0, 0, 1], [2, 2, 2]])]
    log_exists = torch.tensor([[1.0, 1.0, 0.25], [1.0, 0.75, 0.6]]).log()
    found = stitch(contents, log_exists, torch.ones(2), symbols=True, match_weight=0)
    assert found.starts.tolist() == [0, 2]
    expected = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0.2, 0.8], [0, 0, 1], [0, 0, 1]])
    torch.testing.assert_close(found.contents, expected)
    torch.testing.assert_close(found.existence, torch.tensor([1, 1, 1, 0.75, 0.6]))


def test_a_text_ends_where_the_last_window_has_decayed_to_one_half() -> None:
    contents = torch.eye(3)[torch.tensor([[0, 1, 2, 0]])]
    found = stitch(contents, torch.tensor([[1, 0.9, 0.5, 0.1]]).log(), torch.ones(1), symbols=True)
    assert found.contents.argmax(-1).tolist() == [0, 1]


def test_nothing_stitched_is_nothing() -> None:
    contents = torch.eye(3)[torch.tensor([[0, 1], [2, 0]])]
    found = stitch(contents, torch.zeros(2, 2), torch.tensor([0.5, 0.1]), symbols=True)
    assert found.contents.shape == (0, 3)
    assert found.existence.numel() == found.starts.numel() == found.kept.numel() == 0
