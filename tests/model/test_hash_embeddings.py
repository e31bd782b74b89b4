"""Vectors of strings: the same for the same string, others for others."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.model_helpers import law
from zonkey_core.model.bytes import NO_BYTE
from zonkey_core.model.hash_embeddings import (
    NO_SYMBOL,
    NgramVectors,
    OwnedNgramVectors,
    is_lookup_table,
    lookup_table,
    ngram_keys,
    prints,
    table_rows,
)
from zonkey_core.model.ngram_tables import NGRAM_ORDERS, NOBODY, PRINTS, SPREAD

ROWS = 4096


def symbols_of(*texts: bytes) -> Tensor:
    """Texts of one length as rows of symbols."""
    return torch.tensor([list(text) for text in texts])


def ngram_vectors(rows: int = ROWS) -> NgramVectors:
    """Vectors that are far apart."""
    torch.manual_seed(0)
    vectors = NgramVectors(NGRAM_ORDERS, rows, 8).double()
    torch.nn.init.normal_(vectors.table)
    return vectors


# Hashes


def wrapped(number: int) -> int:
    """The signed 64-bit integer that is left of a number."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def test_hashes_are_what_saved_tables_were_learned_with() -> None:
    text = [3, 255, 0, NO_BYTE, 7]
    keys = ngram_keys(torch.tensor([text]), 3)
    for size, place in itertools.product((1, 2, 3), range(5)):
        key = 0
        for back in range(size):
            symbol = text[place - back] if place >= back else NO_BYTE
            key = wrapped((key + symbol + 1) * SPREAD)
        assert keys[size - 1][0, place] == key
        assert table_rows(keys[size - 1], 1000)[0, place] == (key >> 32) % 1000


def test_hashes_of_different_strings_differ_whatever_their_lengths() -> None:
    strings = torch.tensor(list(itertools.product((0, 1, 97, 255, NO_BYTE), repeat=4)))
    keys = [set(key[:, -1].tolist()) for key in ngram_keys(strings, 4)]
    assert [len(key) for key in keys] == [5, 25, 125, 625]
    assert len(set.union(*keys)) == 5 + 25 + 125 + 625


def test_rows_of_a_table_are_used_evenly() -> None:
    strings = torch.tensor(list(itertools.product(range(40, 104), repeat=2)))
    places = table_rows(ngram_keys(strings, 2)[1][:, 1], 64)
    counts = places.bincount(minlength=64)
    assert len(counts) == 64 and places.min() >= 0
    assert counts.min() > 30 and counts.max() < 110  # 64 each in the mean


def test_a_lookup_table_is_known_by_its_shape() -> None:
    table = lookup_table(5, 3)
    assert table.shape == (1, 5, 3) and is_lookup_table(table)
    assert not any(is_lookup_table(torch.zeros(shape)) for shape in ((5,), (1, 5), (2, 5, 3), (1, 1, 5, 3)))


# N-grams


@torch.no_grad()
def test_the_same_string_has_the_same_vector_wherever_it_stands() -> None:
    vectors = ngram_vectors()
    first, second = (vectors(symbols_of(text))[0] for text in (b"xyzabcdefgh", b"Qabcdef?"))
    torch.testing.assert_close(first[8], second[6])
    torch.testing.assert_close(first[7], second[5])
    assert not torch.allclose(first[6], second[4]), "the five bytes begin otherwise"


@torch.no_grad()
def test_a_vector_depends_on_each_byte_of_the_longest_string_and_no_other() -> None:
    vectors = ngram_vectors()
    text = b"01234abcdef0"
    place = text.index(b"f")
    true = vectors(symbols_of(text))[0, place]
    for changed in range(len(text)):
        other = text[:changed] + b"#" + text[changed + 1 :]
        same = torch.allclose(vectors(symbols_of(other))[0, place], true)
        assert same == (not place - 4 <= changed <= place)


@torch.no_grad()
def test_strings_of_the_same_bytes_in_another_order_differ() -> None:
    vectors = ngram_vectors()
    found = vectors(symbols_of(*(bytes(each) for each in itertools.permutations(b"abcd"))))[:, -1]
    assert (torch.cdist(found, found) + 9 * torch.eye(24) > 0.1).all()


@given(st.binary(min_size=1, max_size=12), st.integers(0, 8))
@law
@torch.no_grad()
def test_before_a_text_stands_no_byte(text: bytes, count: int) -> None:
    vectors = ngram_vectors(64)
    plain = symbols_of(text)
    padded = torch.cat([torch.full((1, count), NO_BYTE), plain], 1)
    assert torch.equal(ngram_keys(padded, 6)[5][:, count:], ngram_keys(plain, 6)[5])
    unpadded = torch.cat([torch.full((1, count), NO_SYMBOL), plain], 1)
    torch.testing.assert_close(vectors(unpadded)[:, count:], vectors(plain))


@torch.no_grad()
def test_no_byte_is_none_of_the_bytes() -> None:
    vectors = ngram_vectors()
    first = vectors(symbols_of(b"a"))[0, 0]
    before = torch.stack([vectors(symbols_of(bytes([byte, 97])))[0, 1] for byte in range(256)])
    assert ((before - first).abs().amax(-1) > 1e-3).all()


def test_a_vector_is_the_sum_of_those_of_its_ngrams() -> None:
    vectors = ngram_vectors()
    keys = ngram_keys(symbols_of(b"some text"), 6)
    rows = [table_rows(keys[order - 1] + order, ROWS)[0, 7] for order in NGRAM_ORDERS]
    expected = vectors.linear(sum(vectors.table[0, row] for row in rows))
    torch.testing.assert_close(vectors(symbols_of(b"some text"))[0, 7], expected)



# Rows that have owners


def owned_vectors(rows: int = 64) -> OwnedNgramVectors:
    """Vectors that are far apart, with rows so few that many n-grams fall on each."""
    torch.manual_seed(0)
    vectors = OwnedNgramVectors(NGRAM_ORDERS, rows, 8).double()
    torch.nn.init.normal_(vectors.table)
    torch.nn.init.normal_(vectors.unknown)
    return vectors


def summed(vectors: OwnedNgramVectors, symbols: Tensor, known: Tensor) -> Tensor:
    """What the last symbol's n-grams add up to where those that a mask [orders] names are known."""
    keys = vectors.keys(symbols)[0, -1]
    parts = [vectors.table[0, table_rows(key, vectors.rows)] if each else vectors.unknown[index]
             for index, (key, each) in enumerate(zip(keys, known.tolist(), strict=True))]  # fmt: skip
    found: Tensor = vectors.linear(torch.stack(parts).sum(0))
    return found


@torch.no_grad()
def test_a_table_that_nobody_claimed_is_shared_by_all() -> None:
    vectors, plain = owned_vectors(), ngram_vectors(64)
    plain.load_state_dict(vectors.state_dict(), strict=False)
    torch.testing.assert_close(vectors(symbols_of(b"some text")), plain(symbols_of(b"some text")))


@torch.no_grad()
def test_what_owns_no_row_is_not_known() -> None:
    vectors, symbols = owned_vectors(), symbols_of(b"some text")
    keys = vectors.keys(symbols)[0, -1]
    vectors.claim(table_rows(keys[[0, 2]], vectors.rows), prints(keys[[0, 2]]))
    known = torch.tensor([True, False, True, False, False])
    torch.testing.assert_close(vectors(symbols)[0, -1], summed(vectors, symbols, known))
    left_out = torch.ones(1, 9, 5, dtype=torch.bool)
    left_out[..., 2] = False
    known[2] = False
    torch.testing.assert_close(vectors(symbols, left_out)[0, -1], summed(vectors, symbols, known))


def test_what_stands_in_for_a_kind_does_so_in_longer_ngrams_alone() -> None:
    vectors = owned_vectors()
    plain = vectors.keys(symbols_of(b"the THE"))
    assert not torch.equal(plain[0, 2, 1:], plain[0, -1, 1:])
    kinds = torch.tensor(list(b"EHT"))
    vectors.stand_in(kinds, kinds + 32)
    keys = vectors.keys(symbols_of(b"the THE"))
    assert torch.equal(keys[0, 2, 1:3], keys[0, -1, 1:3]) and torch.equal(keys[..., 0], plain[..., 0])
    assert torch.equal(keys[0, :3], plain[0, :3])
    vectors.stand_in(kinds[:0], kinds[:0])
    assert torch.equal(vectors.keys(symbols_of(b"the THE")), plain)


def test_prints_tell_apart_what_falls_on_one_row() -> None:
    strings = torch.tensor(list(itertools.product(range(40, 104), repeat=2)))
    found = prints(ngram_keys(strings, 2)[1][:, 1])
    assert int(found.min()) >= 1 and int(found.max()) <= PRINTS < NOBODY
    assert found.long().bincount(minlength=PRINTS + 1)[1:].max() < 50  # 16 each in the mean
    places = table_rows(ngram_keys(strings, 2)[1][:, 1], 64)
    assert abs(float(torch.corrcoef(torch.stack([found.long(), places]).double())[0, 1])) < 0.1


def test_a_row_forgets_whom_it_belonged_to_but_not_what_all_had_of_it() -> None:
    vectors = owned_vectors(8)
    before = vectors.table.clone()
    vectors.claim(torch.tensor([1, 2, 3]), torch.tensor([7, 8, 9], dtype=torch.uint8))
    assert vectors.owners.tolist() == [NOBODY, 7, 8, 9, *[NOBODY] * 4] and torch.equal(vectors.table, before)
    vectors.claim(torch.tensor([0, 1, 3]), torch.tensor([5, 7, 6], dtype=torch.uint8))
    assert vectors.owners.tolist() == [5, 7, 8, 6, *[NOBODY] * 4]
    assert not vectors.table[0, [0, 3]].any()
    kept = [1, 2, 4, 5, 6, 7]
    assert torch.equal(vectors.table[0, kept], before[0, kept])
