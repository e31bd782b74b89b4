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
    is_lookup_table,
    lookup_table,
    ngram_keys,
    table_rows,
)
from zonkey_core.model.ngram_tables import NGRAM_ORDERS, SPREAD

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

