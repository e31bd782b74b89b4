"""The vocabulary of level 0: any bytes are taken apart and spelled again, and its choice is a softmax over strings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.model_helpers import byte_rows, chance, law, normal, seeds, small_model
from tests.training_helpers import small_config
from zonkey_core.checkpoint import CONFIG, MODEL, describe, load_model, pack_tensors, read_tensors
from zonkey_core.committed_files import write_files
from zonkey_core.model import level as level_module
from zonkey_core.model import segment_vocabulary
from zonkey_core.model.bytes import BYTE_VALUES
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.pointer import NEVER
from zonkey_core.model.segment_vocabulary import ROWS_TOGETHER, UNUSED, SegmentTokens, SegmentVocabulary
from zonkey_core.model.string_counter import StringCounter
from zonkey_core.weight_rounding import restore_weights, round_weights

ENTRIES, WINDOW, CHANNELS = 300, 8, 6
WORDS = [b"a", b"the ", b"then ", b"he", b"heron ", b"ron ", b"on", b"\0\0", b"\0\0\0", "ü".encode(), b"th", b"en "]
SINGLE = [bytes([value]) for value in range(BYTE_VALUES)]


def vocabulary_of(words: Sequence[bytes], *, seed: int = 0, entries: int = ENTRIES) -> SegmentVocabulary:
    """A vocabulary of these words and the single bytes, with shares and latents by chance."""
    torch.manual_seed(seed)
    vocabulary = SegmentVocabulary(entries, WINDOW, CHANNELS)
    strings = [*SINGLE, *(word for word in words if len(word) > 1)]
    weights = normal(len(strings), seed=seed).mul(2).softmax(0).tolist()
    shares = dict(zip(strings, weights, strict=True))
    vocabulary.fill(shares, normal(len(shares), CHANNELS, seed=seed, dtype=torch.float32))
    return vocabulary


def some_segments() -> st.SearchStrategy[list[bytes]]:
    """Segments no longer than the window: words, spelled words, and any bytes."""
    likely = st.lists(st.sampled_from(b"then ro\0"), min_size=1, max_size=WINDOW).map(bytes)
    return st.lists(st.sampled_from(WORDS) | likely | st.binary(min_size=1, max_size=WINDOW), min_size=1, max_size=12)


def rows_of(rows: Sequence[Sequence[bytes]], *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of segments, cut to one length: bytes, where segments start, and where some documents do."""
    texts = [b"".join(row) for row in rows]
    length = min(map(len, texts))
    values = torch.tensor([list(text[:length]) for text in texts])
    start_mask = torch.zeros_like(values, dtype=torch.bool)
    for row, segments in enumerate(rows):
        starts = itertools.accumulate(map(len, segments[:-1]), initial=0)
        start_mask[row, [start for start in starts if start < length]] = True
    return values, start_mask, start_mask & (torch.rand(values.shape, generator=chance(seed)) < 0.3)


def taken_apart(
    vocabulary: SegmentVocabulary, values: Tensor, start_mask: Tensor, document_mask: Tensor
) -> SegmentTokens:
    """Rows without padding as strings of the vocabulary."""
    return vocabulary.tokenize(values, start_mask, document_mask, torch.ones_like(start_mask))


def strings_of(vocabulary: SegmentVocabulary, pieces: SegmentTokens, row: int) -> list[bytes]:
    """What each piece of a row spells."""
    return [vocabulary.detokenize([entry]) for entry in pieces.entries[row][pieces.slot_mask[row]].tolist()]


def spellings(text: bytes) -> Iterator[list[bytes]]:
    """All ways to cut a text."""
    if not text:
        yield []
    for size in range(1, len(text) + 1):
        for rest in spellings(text[size:]):
            yield [text[:size], *rest]


def costs_of(vocabulary: SegmentVocabulary) -> dict[bytes, float]:
    """What each string costs to write, in nats."""
    lengths = vocabulary.lengths.tolist()
    return {vocabulary.detokenize([entry]): -float(vocabulary.log_shares[entry])
            for entry, length in enumerate(lengths) if length}


# Taking apart and spelling


@law
@given(st.lists(some_segments(), min_size=1, max_size=3), seeds)
def test_any_bytes_come_back_exactly(rows: list[list[bytes]], seed: int) -> None:
    vocabulary = vocabulary_of(WORDS, seed=seed)
    values, start_mask, document_mask = rows_of(rows, seed=seed)
    pieces = taken_apart(vocabulary, values, start_mask, document_mask)
    for row in range(len(rows)):
        entries = pieces.entries[row][pieces.slot_mask[row]].tolist()
        assert vocabulary.detokenize(entries) == bytes(values[row].tolist())


@law
@given(st.lists(some_segments(), min_size=1, max_size=3), seeds)
def test_pieces_lie_where_their_strings_stand(rows: list[list[bytes]], seed: int) -> None:
    vocabulary = vocabulary_of(WORDS, seed=seed)
    values, start_mask, document_mask = rows_of(rows, seed=seed)
    pieces = taken_apart(vocabulary, values, start_mask, document_mask)
    counts = pieces.slot_mask.sum(1)
    assert pieces.slot_mask.shape[1] == counts.max(), "no more padding than is needed"
    assert torch.equal(pieces.slot_mask, torch.arange(int(counts.max())) < counts.unsqueeze(1))
    assert not any(field[~pieces.slot_mask].any() for field in (pieces.entries, pieces.starts, pieces.document_mask))
    for row in range(len(rows)):
        sizes = [len(string) for string in strings_of(vocabulary, pieces, row)]
        starts = pieces.starts[row][pieces.slot_mask[row]]
        assert starts.tolist() == list(itertools.accumulate(sizes[:-1], initial=0))
        assert set(start_mask[row].nonzero().flatten().tolist()) <= set(starts.tolist()), "none reaches over a cut"
        documents = pieces.document_mask[row][pieces.slot_mask[row]]
        assert torch.equal(documents, document_mask[row][starts])
        assert documents.sum() == document_mask[row].sum()


@law
@given(some_segments(), seeds)
def test_segments_are_one_piece_or_spelled_as_likely_as_can_be(segments: list[bytes], seed: int) -> None:
    vocabulary = vocabulary_of(WORDS, seed=seed)
    costs = costs_of(vocabulary)
    pieces = taken_apart(vocabulary, *rows_of([segments]))
    strings = iter(strings_of(vocabulary, pieces, 0))
    for segment in segments:
        found: list[bytes] = []
        while sum(map(len, found)) < len(segment):
            found.append(next(strings))
        assert b"".join(found) == segment
        if segment in costs:
            assert found == [segment]
            continue
        cheapest = min(
            sum(costs[piece] for piece in way) for way in spellings(segment) if all(piece in costs for piece in way)
        )
        assert sum(costs[piece] for piece in found) == pytest.approx(cheapest, abs=1e-4)
    assert not list(strings)


def test_a_known_segment_is_one_piece_whatever_it_costs() -> None:
    vocabulary = vocabulary_of([b"ab"])
    with torch.no_grad():
        vocabulary.log_shares[:] = -1.0
        vocabulary.log_shares[BYTE_VALUES] = -25.0
    assert strings_of(vocabulary, taken_apart(vocabulary, *rows_of([[b"ab", b"abc"]])), 0) == [b"ab", b"a", b"b", b"c"]


def test_rows_of_different_numbers_of_pieces_are_padded() -> None:
    vocabulary = vocabulary_of([b"heron ", b"the "])
    rows = [[b"the ", b"heron "], [b"qwqw", b"the ", b"zz"]]
    pieces = taken_apart(vocabulary, *rows_of(rows))
    assert pieces.slot_mask.sum(1).tolist() == [2, 7]
    assert strings_of(vocabulary, pieces, 0) == [b"the ", b"heron "]
    assert strings_of(vocabulary, pieces, 1) == [b"q", b"w", b"q", b"w", b"the ", b"z", b"z"]
    assert pieces.starts.tolist() == [[0, 4, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 8, 9]]


def test_a_row_is_taken_apart_alike_alone_and_among_others() -> None:
    vocabulary = vocabulary_of(WORDS)
    rows = [[b"heron ", b"qqq", b"then "], [b"a", b"thenthen", b"\0\0\0\0", b"on"], [b"x"] * 14]
    values, start_mask, document_mask = rows_of(rows)
    together = taken_apart(vocabulary, values, start_mask, document_mask)
    for row in range(3):
        alone = taken_apart(vocabulary, *(part[row : row + 1] for part in (values, start_mask, document_mask)))
        assert strings_of(vocabulary, alone, 0) == strings_of(vocabulary, together, row)


@law
@given(st.lists(some_segments(), min_size=1, max_size=3), st.binary(min_size=1, max_size=12), seeds)
def test_padding_is_of_no_string_and_lengthens_none(rows: list[list[bytes]], padding: bytes, seed: int) -> None:
    """Whatever bytes it is made of, and wherever starts are marked in it."""
    vocabulary = vocabulary_of(WORDS, seed=seed)
    texts = [b"".join(row) for row in rows]
    length = max(map(len, texts)) + len(padding)
    values = torch.tensor([list((text + padding * length)[:length]) for text in texts])
    exists = torch.arange(length) < torch.tensor([len(text) for text in texts]).unsqueeze(1)
    start_mask = torch.rand(values.shape, generator=chance(seed)) < 0.3
    for row, segments in enumerate(rows):
        start_mask[row, : len(texts[row])] = False
        start_mask[row, list(itertools.accumulate(map(len, segments[:-1]), initial=0))] = True
    document_mask = start_mask & (torch.rand(values.shape, generator=chance(seed + 1)) < 0.3)
    tokens = vocabulary.tokenize(values, start_mask, document_mask, exists)
    for row in range(len(rows)):
        own = (slice(row, row + 1), slice(len(texts[row])))
        alone = taken_apart(vocabulary, values[own], start_mask[own], document_mask[own])
        mine = tokens.slot_mask[row]
        for name in ("entries", "starts", "document_mask"):
            assert torch.equal(getattr(tokens, name)[row][mine], getattr(alone, name)[0]), name


# What it holds


def test_until_it_is_fitted_it_holds_every_byte_and_nothing_else() -> None:
    torch.manual_seed(0)
    vocabulary = SegmentVocabulary(ENTRIES, WINDOW, CHANNELS)
    assert not vocabulary.fitted and vocabulary.mean_length() == pytest.approx(1)
    text = bytes(range(256)) + "naïve 日本語\0".encode()
    values = torch.tensor([list(text)])
    start_mask = torch.arange(len(text)).unsqueeze(0) % 5 == 0
    pieces = taken_apart(vocabulary, values, start_mask, start_mask)
    assert torch.equal(pieces.entries, values) and vocabulary.detokenize(values[0].tolist()) == text
    assert vocabulary.detokenize([]) == b""
    assert (vocabulary.log_shares[BYTE_VALUES:] == UNUSED).all() and (vocabulary.lengths[BYTE_VALUES:] == 0).all()
    torch.testing.assert_close(vocabulary.bias.exp().sum(), torch.tensor(1.0))


def test_what_is_filled_in_is_there() -> None:
    vocabulary = vocabulary_of(WORDS)
    costs = costs_of(vocabulary)
    longer = [word for word in WORDS if len(word) > 1]
    assert vocabulary.fitted and set(costs) == {*SINGLE, *longer}
    assert sum(math.exp(-cost) for cost in costs.values()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(vocabulary.bias, vocabulary.log_shares)
    used = BYTE_VALUES + len(longer)
    latents = normal(used, CHANNELS, seed=0, dtype=torch.float32)
    torch.testing.assert_close(vocabulary.latents()[:used], to_sphere(latents))
    torch.testing.assert_close(vocabulary.latents()[:used].norm(dim=1), torch.full((used,), CHANNELS**0.5))
    assert vocabulary.mean_length() == pytest.approx(
        sum(math.exp(-cost) * len(string) for string, cost in costs.items()), rel=1e-4
    )
    values, exists = vocabulary.windows()
    assert [bytes(row[mask].tolist()) for row, mask in zip(values, exists, strict=True)][:used] == [*SINGLE, *longer]
    assert not exists[used:].any()


@law
@given(st.binary(max_size=4) | st.sampled_from(WORDS) | st.sampled_from([b"a\0", b"\0", b"\0\0\0\0", b"\xc3", b""]))
def test_strings_are_found_by_what_they_begin_with(prefix: bytes) -> None:
    vocabulary = vocabulary_of(WORDS)
    found = vocabulary.begins_with(prefix).tolist()
    for entry, (length, mine) in enumerate(zip(vocabulary.lengths.tolist(), found, strict=True)):
        assert mine == (length > 0 and vocabulary.detokenize([entry]).startswith(prefix))


def test_segments_may_be_longer_than_a_byte_can_count() -> None:
    torch.manual_seed(0)
    vocabulary = SegmentVocabulary(257, 300, CHANNELS)
    long = bytes(index % 251 for index in range(300))
    vocabulary.fill({**dict.fromkeys(SINGLE, 0.001), long: 0.5}, torch.ones(257, CHANNELS))
    assert strings_of(vocabulary, taken_apart(vocabulary, *rows_of([[long, b"a", long]])), 0) == [long, b"a", long]


# Choosing the strings


def counted(counts: dict[bytes, int]) -> StringCounter:
    """A counter that has met segments so often."""
    counter = StringCounter()
    for segment, count in counts.items():
        for _ in range(count):
            values, start_mask, _ = rows_of([[segment]])
            counter.add(values, start_mask)
    return counter


@law
@given(st.lists(some_segments(), min_size=1, max_size=3))
def test_segments_are_counted_as_they_were_cut(rows: list[list[bytes]]) -> None:
    counter = StringCounter()
    values, start_mask, _ = rows_of(rows)
    counter.add(values, start_mask)
    counter.add(values[:1], start_mask[:1])
    expected: list[bytes] = []
    for row in [*range(len(rows)), 0]:
        edges = [*start_mask[row].nonzero().flatten().tolist(), values.shape[1]]
        expected += [bytes(values[row, start:end].tolist()) for start, end in itertools.pairwise(edges)]
    assert dict(counter.counts) == {segment: expected.count(segment) for segment in set(expected)}


@law
@given(st.dictionaries(st.binary(min_size=1, max_size=WINDOW), st.integers(1, 9), max_size=30), st.integers(256, 300))
def test_shares_are_of_every_byte_and_add_up(counts: dict[bytes, int], entries: int) -> None:
    shares = counted(counts).shares(entries)
    assert list(shares)[:BYTE_VALUES] == SINGLE and len(shares) <= entries
    assert all(share > 0 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1)
    assert max(map(len, shares)) <= WINDOW
    backwards = counted(dict(reversed(counts.items()))).shares(entries)
    assert list(backwards.items()) == list(shares.items()), "the order of the text says nothing"


def test_the_commonest_segments_are_chosen() -> None:
    counts = {b"heron ": 20, b"the ": 50, b"of ": 30, b"q": 90, b"waited ": 3}
    shares = counted(counts).shares(BYTE_VALUES + 3)
    assert list(shares)[BYTE_VALUES:] == [b"the ", b"of ", b"heron "]
    pieces = sum(counts.values()) - 3 + 3 * len(b"waited ")
    total = pieces + BYTE_VALUES + 3
    assert shares[b"the "] == pytest.approx(51 / total)
    assert shares[b"q"] == pytest.approx(91 / total)
    assert shares[b"w"] == pytest.approx(4 / total) and shares[b"z"] == pytest.approx(1 / total)
    assert list(counted(counts).shares(BYTE_VALUES)) == SINGLE
    assert list(counted(counts).shares(1000))[BYTE_VALUES:] == [b"the ", b"of ", b"heron ", b"waited "]


def test_what_many_rare_segments_share_is_chosen() -> None:
    letters = b"abcdefhjklmopqrstuvwxyz"
    words = {bytes([first, second]) + b"ing": 1 for first, second in itertools.permutations(letters, 2)}
    shares = counted(words).shares(BYTE_VALUES + 4)
    assert b"ing" not in words and b"ing" in shares
    assert shares[b"ing"] > 20 * max(shares[word] for word in shares if word in words or len(word) == 2)


@torch.no_grad()
def test_collecting_gives_each_string_the_latent_that_it_compresses_to() -> None:
    level = small_model(1, vocabulary=ENTRIES).bottom
    vocabulary = level.vocabulary
    assert vocabulary is not None and not vocabulary.fitted
    words = [b"heron ", b"the ", "über".encode(), b"stood in"]
    counter = counted({word: 9 - index for index, word in enumerate(words)})
    with mock.patch.object(level_module, "COMPRESSED_TOGETHER", 100):
        level.collect(counter)
    assert vocabulary.fitted
    strings = [*SINGLE, *words]
    assert [vocabulary.detokenize([entry]) for entry in range(len(strings))] == strings
    shares = counter.shares(ENTRIES)
    torch.testing.assert_close(
        vocabulary.log_shares[: len(strings)], torch.tensor([math.log(share) for share in shares.values()])
    )
    assert torch.equal(vocabulary.bias, vocabulary.log_shares)
    latents = vocabulary.latents()
    used = latents[: len(strings)]
    torch.testing.assert_close(used.norm(dim=1), torch.full((len(strings),), level.channels**0.5))
    for entry in (0, 65, 99, 100, 255, *range(256, 260)):
        string = strings[entry]
        alone = level.compress(torch.tensor([list(string)]), torch.zeros(1, len(string)))
        torch.testing.assert_close(latents[entry], alone[0], atol=1e-4, rtol=1e-4)


def test_latents_move_as_far_as_what_the_strings_compress_to() -> None:
    vocabulary = vocabulary_of(WORDS)
    before, entries = vocabulary.table[0].detach().clone(), torch.tensor([3, 258, 3])
    torch.testing.assert_close(vocabulary.moved(entries, vocabulary.compressed[entries]), vocabulary.latents()[entries])
    step = 0.3 * normal(ENTRIES, CHANNELS, seed=1, dtype=torch.float32)
    compressed = vocabulary.compressed + step
    moved = vocabulary.moved(entries, compressed[entries])
    torch.testing.assert_close(moved, to_sphere(before + step)[entries])
    (gradient,) = torch.autograd.grad(moved.sum(), vocabulary.table)
    assert gradient[0].any(-1).nonzero().flatten().tolist() == [3, 258], "what was told to them is kept"
    vocabulary.follow(compressed)
    torch.testing.assert_close(vocabulary.latents(), to_sphere(before + step))
    torch.testing.assert_close(vocabulary.moved(entries, compressed[entries]), moved)
    vocabulary.follow(compressed)
    torch.testing.assert_close(vocabulary.table[0].detach(), before + step)


@torch.no_grad()
def test_a_level_reads_text_as_the_strings_that_it_collected() -> None:
    level = small_model(1, vocabulary=ENTRIES).bottom
    vocabulary = level.vocabulary
    assert vocabulary is not None
    text = b"The heron stood in the shallows. It waited, and waited, and the water went by. Then it flew."
    rows = byte_rows(text, text[::-1])
    start_prob = level.split(rows).start_prob
    start_mask = level.choose_starts(rows, start_prob).start_prob > 0.5
    counter = StringCounter()
    counter.add(rows.values, start_mask)
    level.collect(counter)
    pieces = level.read_tokens(rows, level.choose_starts(rows, start_prob))
    assert torch.equal(pieces.first_mask, pieces.slot_mask), "each is a string"
    for row, expected in enumerate((text, text[::-1])):
        starts = pieces.starts[row][pieces.slot_mask[row]]
        assert torch.equal(starts, start_mask[row].nonzero().flatten())
        assert b"".join(strings_of(vocabulary, pieces, row)) == expected
    assert pieces.document_mask[:, 0].all() and pieces.document_mask.sum() == 2


# The choice


@law
@given(seeds, st.floats(0.12, 1))
@torch.no_grad()
def test_logits_under_noise_are_exact_evidence(seed: int, sigma: float) -> None:
    """Where the denoiser adds nothing, its estimate is alpha z, and the choice is what Bayes' rule makes of z."""
    vocabulary = vocabulary_of(WORDS, seed=seed)
    vocabulary.bias.add_(0.5 * normal(ENTRIES, seed=seed + 1, dtype=torch.float32))
    latents = vocabulary.latents().double()
    alpha = math.sqrt(1 - sigma**2)
    held = torch.randint(BYTE_VALUES + 5, (7,), generator=chance(seed))
    noisy = alpha * latents[held] + sigma * normal(7, CHANNELS, seed=seed + 2)
    log_density = -(noisy.unsqueeze(1) - alpha * latents).square().sum(-1) / (2 * sigma**2)
    posterior = (log_density + vocabulary.bias.double()).softmax(-1)
    logits = vocabulary.logits((alpha * noisy).float(), torch.full((7,), sigma), vocabulary.latents())
    assert logits.shape == (7, ENTRIES) and logits.dtype == torch.float32
    torch.testing.assert_close(logits.softmax(-1).double(), posterior, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_pure_noise_says_nothing_and_little_noise_all() -> None:
    vocabulary = vocabulary_of(WORDS)
    latents = vocabulary.latents()
    silent = vocabulary.logits(torch.zeros(1, CHANNELS), torch.ones(1), latents)
    torch.testing.assert_close(silent[0], vocabulary.bias.detach())
    used = torch.arange(BYTE_VALUES + 5)
    for sigma in (0.0, 1e-6, 0.01):
        clear = vocabulary.logits(latents[used], torch.full((len(used),), sigma), latents)
        assert clear.isfinite().all() and torch.equal(clear.argmax(-1), used)


def gradients(loss: Tensor, estimate: Tensor, vocabulary: SegmentVocabulary) -> tuple[Tensor, ...]:
    """Of a loss, to the estimates and to all that the vocabulary learns."""
    return torch.autograd.grad(loss, (estimate, vocabulary.table, vocabulary.bias))


def uncopied(count: int) -> tuple[Tensor, Tensor]:
    """The logarithms of what is copied where nothing is."""
    return torch.full((count,), NEVER), torch.zeros(count)


@pytest.mark.parametrize("count", [1, 7, ROWS_TOGETHER, 2 * ROWS_TOGETHER + 90])
def test_the_loss_is_the_cross_entropy_of_the_logits(count: int) -> None:
    vocabulary = vocabulary_of(WORDS)
    estimate = normal(count, CHANNELS, seed=1, dtype=torch.float32).mul(0.2).requires_grad_()
    sigma = 0.6 + 0.4 * torch.rand(count, generator=chance(2))
    entries = torch.randint(BYTE_VALUES + 5, (count,), generator=chance(3))
    expected = functional.cross_entropy(vocabulary.logits(estimate, sigma, vocabulary.latents()), entries)
    each = functional.cross_entropy(
        vocabulary.logits(estimate, sigma, vocabulary.latents()), entries, reduction="none"
    ).detach()
    found, nats = vocabulary.loss(estimate, sigma, entries, *uncopied(count))
    assert found.shape == () and not nats.requires_grad
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(nats, each, atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(
        gradients(3 * found, estimate, vocabulary), gradients(3 * expected, estimate, vocabulary), strict=True
    ):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_what_is_copied_adds_to_what_is_told_and_each_learns_by_its_part() -> None:
    vocabulary = vocabulary_of(WORDS)
    count = ROWS_TOGETHER + 40
    estimate = normal(count, CHANNELS, seed=1, dtype=torch.float32).mul(0.2).requires_grad_()
    sigma, entries = torch.ones(count), torch.randint(BYTE_VALUES + 5, (count,), generator=chance(3))
    share = torch.rand(count, generator=chance(4)).mul(0.9).requires_grad_()
    right = torch.rand(count, generator=chance(5))
    told = vocabulary.logits(estimate, sigma, vocabulary.latents()).softmax(-1).gather(1, entries.unsqueeze(1))
    each = -((1 - share) * told.squeeze(1) + share * right).log()
    found, nats = vocabulary.loss(estimate, sigma, entries, (share * right).log(), (1 - share).log())
    torch.testing.assert_close(nats, each.detach(), atol=1e-4, rtol=1e-4)
    learning = estimate, vocabulary.table, vocabulary.bias, share
    for mine, theirs in zip(
        torch.autograd.grad(3 * found, learning), torch.autograd.grad(3 * each.mean(), learning), strict=True
    ):
        assert theirs.any()
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


def test_a_hopeless_choice_still_teaches() -> None:
    vocabulary = vocabulary_of(WORDS)
    held = torch.arange(4)
    estimate = (-vocabulary.latents()[held]).detach().requires_grad_()
    sigma = torch.full((4,), 0.2)
    expected = functional.cross_entropy(vocabulary.logits(estimate, sigma, vocabulary.latents()), held)
    found, nats = vocabulary.loss(estimate, sigma, held, *uncopied(4))
    assert expected > 50 and 15 < found < expected and nats.isfinite().all(), "what it costs is limited"
    for mine, theirs in zip(
        gradients(found, estimate, vocabulary), gradients(expected, estimate, vocabulary), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_in_bfloat16_the_loss_and_its_gradients_are_nearly_the_same() -> None:
    vocabulary = vocabulary_of(WORDS)
    estimate = normal(600, CHANNELS, seed=1, dtype=torch.float32).requires_grad_()
    sigma, entries = torch.ones(600), torch.randint(BYTE_VALUES, (600,), generator=chance(3))
    expected, _ = vocabulary.loss(estimate, sigma, entries, *uncopied(600))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = vocabulary.loss(estimate, sigma, entries, *uncopied(600))
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0.01)
    for mine, theirs in zip(
        gradients(found, estimate, vocabulary), gradients(expected, estimate, vocabulary), strict=True
    ):
        assert mine.dtype == torch.float32
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02


def test_nothing_asked_costs_nothing() -> None:
    vocabulary = vocabulary_of(WORDS)
    estimate = torch.zeros(0, CHANNELS, requires_grad=True)
    loss, nats = vocabulary.loss(estimate, torch.zeros(0), torch.zeros(0, dtype=torch.long), *uncopied(0))
    assert loss == 0 and nats.shape == (0,)
    for gradient in gradients(loss, estimate, vocabulary):
        assert not gradient.any()


# Saved and loaded


def test_a_loaded_model_has_the_vocabulary_that_was_saved(tmp_path: Path) -> None:
    config = small_config(1)
    model = small_model(1, vocabulary=config.model.levels[0].vocabulary)
    saved = model.bottom.vocabulary
    assert saved is not None
    model.bottom.collect(counted({b"heron ": 3, b"the ": 2, "über".encode(): 1}))
    files = {MODEL: pack_tensors(model.state_dict(), half=True), CONFIG: describe(config, 1)}
    write_files(tmp_path, files)
    kept = read_tensors(tmp_path, MODEL, ("bottom.vocabulary.",))
    assert kept["bottom.vocabulary.strings"].dtype == saved.strings.dtype == torch.uint8
    assert not kept["bottom.vocabulary.lengths"].is_floating_point()
    loaded = load_model(tmp_path).bottom.vocabulary
    assert loaded is not None and loaded.fitted
    assert loaded.strings.dtype == saved.strings.dtype and torch.equal(loaded.strings, saved.strings)
    assert loaded.lengths.dtype == saved.lengths.dtype and torch.equal(loaded.lengths, saved.lengths)
    expected = restore_weights(round_weights(model.state_dict()))
    for name in ("log_shares", "bias", "table"):
        found = getattr(loaded, name)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected[f"bottom.vocabulary.{name}"].float()), name
    assert loaded.detokenize([256, 257, 258]) == "heron the über".encode()
    assert strings_of(loaded, taken_apart(loaded, *rows_of([[b"the ", b"heron "]])), 0) == [b"the ", b"heron "]


def test_strings_are_looked_up_anew_once_they_are_others() -> None:
    vocabulary = vocabulary_of([b"the ", b"heron "])
    values, start_mask, document_mask = rows_of([[b"the ", b"heron "]])
    before = taken_apart(vocabulary, values, start_mask, document_mask)
    assert strings_of(vocabulary, before, 0) == [b"the ", b"heron "]
    with mock.patch.object(segment_vocabulary, "string_keys", side_effect=AssertionError):
        again = taken_apart(vocabulary, values, start_mask, document_mask)
    assert torch.equal(before.entries, again.entries)
    vocabulary.fill(dict.fromkeys([*SINGLE, b"heron ", b"the "], 1 / 258), torch.randn(258, CHANNELS))
    after = taken_apart(vocabulary, values, start_mask, document_mask)
    assert strings_of(vocabulary, after, 0) == [b"the ", b"heron "]
    assert after.entries[0].tolist() == before.entries[0].flip(0).tolist()
    vocabulary.load_state_dict(vocabulary_of([b"he", b"ron "]).state_dict())
    assert b"".join(strings_of(vocabulary, taken_apart(vocabulary, values, start_mask, document_mask), 0)) == (
        b"the heron "
    )
    assert b"ron " in strings_of(vocabulary, taken_apart(vocabulary, values, start_mask, document_mask), 0)


def test_latents_are_kept_while_nothing_is_learned_and_made_anew_where_they_are_others() -> None:
    vocabulary = SegmentVocabulary(300, 4, CHANNELS)
    assert vocabulary.latents().requires_grad and vocabulary.latents() is not vocabulary.latents()
    vocabulary.requires_grad_(False)
    assert vocabulary.latents() is not vocabulary.latents()
    vocabulary.eval()
    before = vocabulary.latents()
    assert vocabulary.latents() is before
    vocabulary.table[0, 7] = torch.arange(CHANNELS, dtype=torch.float32) + 1
    assert torch.equal(vocabulary.latents(), to_sphere(vocabulary.table[0])) and vocabulary.latents() is not before
    vocabulary.table.data = -vocabulary.table.data
    assert torch.equal(vocabulary.latents(), to_sphere(vocabulary.table[0]))
