"""Gap filling: what shared reading keeps, what fills depend on, how long gaps become, what a score adds up to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.inference.model_helpers import NEVER, expect, read_at_once, strings_of, teller
from tests.model_helpers import chance, few, seeds, small_model
from zonkey_core.diffusion.decoding_order import GAP_WIDTH, lay_out, with_gaps
from zonkey_core.inference import block_decoding, gap_filling, shared_context
from zonkey_core.inference.block_decoding import read_whole
from zonkey_core.inference.gap_filling import (
    FOLLOWING,
    SCORED_CONTEXT,
    FilledRow,
    GappedRow,
    GapScore,
    draw_lengths,
    fill_gaps,
    score_fills,
)
from zonkey_core.inference.shared_context import Context, Pieces, Placed, read_contexts, take_up
from zonkey_core.model.denoiser import REACH
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.level import Level
from zonkey_core.model.slot_batches import slot_batch
from zonkey_core.slots import SlotKind

CPU = torch.device("cpu")


def around(*known: int, begins: bool = True, ends: bool = True) -> Pieces:
    """Pieces of so many slots with gaps between them."""
    entries = [40 + (20 * number + torch.arange(count)) % 200 for number, count in enumerate(known)]
    return Pieces(entries, begins, ends)


def fill(
    level: Level, pieces: Sequence[Pieces], lengths: Sequence[Sequence[int]], *, seed: int = 0, **options: Any
) -> list[list[Tensor]]:
    """Gaps of these lengths filled side by side, each text with chances of its own."""
    rows = [
        GappedRow(each, context, some, options.pop("prefixes", None) or [b""] * len(some))
        for each, context, some in zip(pieces, read_contexts(level, pieces), lengths, strict=True)
    ]
    generators = [chance(seed + index) for index in range(len(rows))]
    return fill_gaps(level, rows, generators, **{"steps": 4, "temperature": 1.0, **options})


@st.composite
def gapped(draw: st.DrawFn) -> tuple[Pieces, list[int]]:
    """Pieces with one gap or some, which may touch each other and the ends, and the lengths of these."""
    known = draw(st.lists(st.integers(0, 9), min_size=2, max_size=4))
    pieces = around(*known, begins=draw(st.booleans()), ends=draw(st.booleans()))
    return pieces, draw(st.lists(st.integers(1, 12), min_size=len(known) - 1, max_size=len(known) - 1))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is computed in float32."""
    for module in (block_decoding, gap_filling, shared_context):
        monkeypatch.setattr(module, "choose_precision", lambda *given: torch.float32)


# What shared reading keeps


@few
@given(gapped())
def test_a_gap_is_asked_for_its_length_as_in_training(case: tuple[Pieces, list[int]]) -> None:
    """Whoever asks otherwise gets an answer that was never learned."""
    pieces, lengths = case
    level = teller()
    spans, position, entries = [], 0, []
    for known, length in zip(pieces.known, [*lengths, 0], strict=True):
        entries += [known, torch.zeros(length, dtype=torch.long)]
        position += len(known)
        spans.append((position, position + length))
        position += length
    order = with_gaps(position, spans[:-1], begins=pieces.begins, ends=pieces.ends, measured=False)
    rows = lay_out([order], len(order.source), CPU)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_context, "choose_precision", lambda *given: torch.float32)
        asked = read_whole(level, rows, strings_of(level).latents()[torch.cat(entries)][None])
        (context,) = read_contexts(level, [pieces])
    expected = asked.ending_logits[rows.layout.kinds == SlotKind.GAP]
    torch.testing.assert_close(context.ending_logits, expected, atol=1e-3, rtol=1e-3)



@few
@given(st.lists(st.integers(3, 9), min_size=2, max_size=3), st.integers(REACH, GAP_WIDTH))
def test_keys_are_those_of_the_places_that_they_move_to(known: list[int], width: int) -> None:
    """In the first layer, where a key depends on what stands just before and on its place alone."""
    level, pieces = teller(), around(*known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_context, "choose_precision", lambda *given: torch.float32)
        (context,) = read_contexts(level, [pieces])
    firsts = [sum(known[: gap + 1]) + width * gap for gap in range(len(known) - 1)]
    bounds = [(first, first + width) for first in firsts]
    count = sum(known) + width * len(bounds)
    order = with_gaps(count, bounds, begins=True, ends=True, measured=True)
    rows = lay_out([order], len(order.source), CPU)
    moved = take_up([Placed(context, order)], rows.layout, level.denoiser.head_width)
    cache = KVCache(rows.layout)
    cache.places = torch.arange(len(order.source))[None]
    entries = torch.zeros(count, dtype=torch.long)
    held = torch.cat([torch.arange(len(piece)) + first for piece, first in zip(
        pieces.known, [0, *(last for _, last in bounds)], strict=True)])  # fmt: skip
    entries[held] = torch.cat(list(pieces.known))
    with torch.no_grad():
        level.denoiser(slot_batch(strings_of(level).latents()[entries][None], rows), cache)
    inside = np.flatnonzero((order.kinds == SlotKind.TEXT) & (order.order == 0))
    assert len(inside) == sum(known)
    torch.testing.assert_close(
        moved.layers["keys 0"][0, :, inside], cache.layers["keys 0"][0, :, inside], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(moved.layers["values 0"][0, :, inside], cache.layers["values 0"][0, :, inside])


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("known", [(5, 7), (0, 4), (4, 0), (2, 6, 3)])
def test_a_gap_that_is_as_wide_as_it_seemed_is_filled_as_if_all_was_read_at_once(known: tuple[int, ...]) -> None:
    level, pieces = teller(), around(*known)
    (filled,) = fill(level, [pieces], [[GAP_WIDTH] * (len(known) - 1)], steps=GAP_WIDTH, temperature=0.0)
    parts, bounds, position = [pieces.known[0]], [], known[0]
    for entries, piece in zip(filled, pieces.known[1:], strict=True):
        parts += [entries, piece]
        bounds.append((position, position + GAP_WIDTH))
        position += GAP_WIDTH + len(piece)
    prob, slots = read_at_once(
        level, with_gaps(position, bounds, begins=True, ends=True, measured=True), torch.cat(parts)
    )
    assert torch.equal(prob.argmax(-1), torch.cat(parts)[slots])


@few
@given(st.lists(gapped(), min_size=1, max_size=4), seeds, st.integers(1, 9))
def test_a_text_is_filled_and_scored_alike_alone_and_beside_others(
    cases: list[tuple[Pieces, list[int]]], seed: int, steps: int
) -> None:
    level = teller()
    pieces, lengths = [list(column) for column in zip(*cases, strict=True)]
    together = fill(level, pieces, lengths, seed=seed, steps=steps)
    scores = score_fills(level, [FilledRow(each, fills) for each, fills in zip(pieces, together, strict=True)])
    for index, (each, some) in enumerate(cases):
        (alone,) = fill(level, [each], [some], seed=seed + index, steps=steps)
        assert all(torch.equal(*both) for both in zip(alone, together[index], strict=True))
        assert score_fills(level, [FilledRow(each, alone)]) == [scores[index]]


def test_rows_told_together_take_about_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is told until its longest row is, so short gaps are not told beside long ones."""
    level, told = teller(), []
    run = block_decoding.Board.run

    def noted(board: block_decoding.Board, *arguments: Any) -> None:
        told.append(sorted(int(times.max()) for times in board.times if len(times) > 1))
        run(board, *arguments)

    monkeypatch.setattr(gap_filling, "ROWS_TOGETHER", 2)
    monkeypatch.setattr(block_decoding.Board, "run", noted)
    lengths = [[1], [6], [2], [5]]
    found = fill(level, [around(4, 4)] * 4, lengths, steps=6)
    assert [len(fills[0]) for fills in found] == [1, 6, 2, 5]
    assert len(told) == 2 and told[0][-1] < told[1][0]


def test_fills_that_are_the_same_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    level, pieces, other = teller(), around(4, 4), around(4, 5)
    fills = [torch.tensor([50, 60]), torch.tensor([50, 61]), torch.tensor([50, 60])]
    rows = [FilledRow(pieces, [each]) for each in fills] + [FilledRow(other, fills[:1])]
    apart = [score_fills(level, [row])[0] for row in rows]
    widest = []
    sound = gap_filling._score_different

    def noted(level: Level, some: list[FilledRow]) -> list[list[GapScore]]:
        widest.append(len(some))
        return sound(level, some)

    monkeypatch.setattr(gap_filling, "_score_different", noted)
    assert score_fills(level, rows) == apart and widest == [3]
    assert apart[0] == apart[2] and apart[0] != apart[1] and apart[0] != apart[3]


def test_nothing_global_is_touched() -> None:
    level = teller(NEVER)
    before = {name: tensor.clone() for name, tensor in level.state_dict().items()}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        ((filled,),) = fill(level, [around(2, 3)], [[4]])
        assert torch.equal(state, torch.random.get_rng_state())
        found.append(filled)
    assert torch.equal(*found)
    assert all(torch.equal(before[name], tensor) for name, tensor in level.state_dict().items())


@pytest.mark.parametrize(("side", "place"), [(0, 0), (0, 3), (1, 0), (1, 3)])
@pytest.mark.usefixtures("exact")
def test_what_stands_on_both_sides_decides_what_a_gap_holds(side: int, place: int) -> None:
    level, pieces = teller(), around(4, 4)
    known = [piece.clone() for piece in pieces.known]
    known[side][place] = 7
    changed = Pieces(known, True, True)
    scores = score_fills(level, [FilledRow(each, [torch.tensor([50, 60])]) for each in (pieces, changed, pieces)])
    assert scores[0] == scores[2] and scores[0] != scores[1]
    contexts = read_contexts(level, [pieces, changed])
    assert not torch.equal(contexts[0].ending_logits, contexts[1].ending_logits)


# What gaps hold


@few
@given(gapped(), st.integers(1, 9))
def test_gaps_hold_as_many_slots_as_is_said(case: tuple[Pieces, list[int]], steps: int) -> None:
    (filled,) = fill(teller(), [case[0]], [case[1]], steps=steps)
    assert [len(entries) for entries in filled] == case[1]
    assert all((entries >= 0).all() for entries in filled)


@pytest.mark.parametrize("which", [40, 256, 260, 270])
def test_gaps_begin_as_they_should(which: int) -> None:
    level = teller(4)
    prefix = strings_of(level).detokenize([which])[:2]
    (context,) = read_contexts(level, [around(3, 3)])
    rows = [GappedRow(around(3, 3), context, [2], [prefix])]
    ((entries,),) = fill_gaps(level, rows, [chance(1)], steps=4, temperature=1.0)
    assert strings_of(level).detokenize(entries[:1].tolist()).startswith(prefix)


# How long gaps become


def lengths_of(level: Level, pieces: Pieces, *shares: float, **bounds: int) -> list[list[int]]:
    """How long the level thinks the gaps of a text are."""
    (context,) = read_contexts(level, [pieces])
    return draw_lengths(context, shares, **bounds)


@few
@given(gapped(), st.integers(0, 400))
def test_a_gap_is_as_long_as_is_sure(case: tuple[Pieces, list[int]], remaining: int) -> None:
    pieces, _ = case
    (found,) = lengths_of(teller(remaining), pieces, 0.5)
    assert len(found) == len(pieces.known) - 1 and all(1 <= count <= GAP_WIDTH for count in found)
    assert remaining > 7 or set(found) == {max(1, remaining)}


@few
@given(gapped(), st.lists(st.floats(0, 1), min_size=2, max_size=5), st.integers(1, 5), st.integers(5, GAP_WIDTH))
def test_a_longer_share_never_gives_a_shorter_gap(
    case: tuple[Pieces, list[int]], shares: list[float], least: int, most: int
) -> None:
    found = lengths_of(teller(), case[0], *sorted(shares), least=least, most=most)
    assert all(least <= count <= most for row in found for count in row)
    for shorter, longer in itertools.pairwise(found):
        assert all(one <= other for one, other in zip(shorter, longer, strict=True))


def test_shares_reach_from_the_shortest_to_the_longest() -> None:
    level = small_model(1, seed=3).bottom.eval().requires_grad_(False)
    expect(level, NEVER)
    level.denoiser.ending_out.bias[1:6] = torch.tensor([1 / 5, 1 / 4, 1 / 3, 1 / 2, 0.9999]).logit()
    shares = [(index + 0.5) / 5 for index in range(5)]
    assert lengths_of(level, around(2, 2), *shares) == [[1], [2], [3], [4], [5]]


def test_how_long_a_gap_is_is_asked_before_it_is_known() -> None:
    (context,) = read_contexts(teller(), [around(3, 0, 4)])
    gates = context.order.positions[context.order.kinds == SlotKind.GAP]
    assert gates.tolist() == [2, 2 + GAP_WIDTH]
    assert context.ending_logits.shape[0] == 2


# What a score adds up to


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("behind", [0, 2, FOLLOWING, 9])
def test_a_score_is_the_chain_rule_over_the_fill_and_what_follows(behind: int) -> None:
    """Compared with a reading of all at once, where the gap is as wide as it seemed."""
    level = teller()
    pieces = around(6, behind)
    following = min(behind, FOLLOWING)
    fills = 40 + torch.arange(GAP_WIDTH - following) % 200
    ((score,),) = score_fills(level, [FilledRow(pieces, [fills])])
    entries = torch.cat([pieces.known[0], fills, pieces.known[1]])
    order = with_gaps(len(entries), [(6, 6 + GAP_WIDTH)], begins=True, ends=True, measured=True)
    prob, slots = read_at_once(level, order, entries)
    each = prob.gather(1, entries[slots].unsqueeze(1)).squeeze(1).log()
    told = dict(zip(slots.tolist(), each.tolist(), strict=True))
    assert (score.fill.pieces, score.following.pieces) == (len(fills), following)
    assert score.fill.total == pytest.approx(sum(told[6 + place] for place in range(len(fills))), rel=1e-4)
    expected = sum(told[6 + len(fills) + place] for place in range(following))
    assert score.following.total == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.usefixtures("exact")
def test_a_fill_is_not_given_what_follows_it_at_once() -> None:
    """But what comes later is."""
    level = teller()

    def score(changed: int) -> GapScore:
        known = list(around(6, 12).known)
        known[1] = known[1].clone()
        known[1][changed] = 7
        ((found,),) = score_fills(level, [FilledRow(Pieces(known, True, True), [torch.tensor([50, 60])])])
        return found

    plain = score_fills(level, [FilledRow(around(6, 12), [torch.tensor([50, 60])])])[0][0]
    for place in range(12):
        assert (score(place).fill.total == plain.fill.total) == (place < FOLLOWING)
        assert score(place).following.total != plain.following.total


@pytest.mark.usefixtures("exact")
def test_text_far_from_gaps_is_not_scored_with() -> None:
    level, fills = teller(), [torch.tensor([50, 60])]
    size = SCORED_CONTEXT + FOLLOWING + 3
    far = [piece.clone() for piece in around(size, size).known]
    far[0][:3], far[1][-3:] = 7, 7
    plain, changed = (
        score_fills(level, [FilledRow(Pieces(known, True, True), fills)]) for known in (around(size, size).known, far)
    )
    assert plain == changed


def test_contexts_of_every_number_are_read_as_each_alone() -> None:
    level = teller()
    pieces = [around(number % 5 + 1, 3) for number in range(2 * shared_context.CONTEXTS_TOGETHER + 1)]
    alone: list[Context] = [read_contexts(level, [each])[0] for each in pieces]
    for one, other in zip(read_contexts(level, pieces), alone, strict=True):
        assert torch.equal(one.ending_logits, other.ending_logits)
        assert all(torch.equal(one.layers[name], other.layers[name]) for name in other.layers)
