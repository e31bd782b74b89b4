"""Noise on text: how much of it, and that every byte of it is known to come from where it does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import law
from zonkey_core.evaluation.metrics.boundaries import code_points, f1_of_sums
from zonkey_core.evaluation.tasks.noises import NOISES, Noised, add_noise, stability_counts

PROSE = ("The quick brown fox jumps over the lazy dog near the river bank. " * 200).encode()
texts = st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))


def signs_of(text: bytes) -> list[str]:
    """The characters of a text of any bytes."""
    return list(text.decode("utf-8", "surrogateescape"))


def offsets(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@law
@given(text=texts, noise=st.sampled_from(NOISES), seed=st.integers(0, 1000))
def test_every_byte_is_the_one_that_it_came_from_up_to_case(text: bytes, noise: str, seed: int) -> None:
    noised = add_noise(text, noise, seed)
    assert len(noised.origins) == len(noised.text)
    if noise in ("drop", "repeat"):
        assert bytes(text[origin] for origin in noised.origins) == noised.text
    else:
        assert noised.origins.tolist() == list(range(len(text)))
        for before, after in zip(signs_of(text), signs_of(noised.text), strict=True):
            assert after in (before, before.upper(), before.lower())


@law
@given(text=texts, noise=st.sampled_from(NOISES), seed=st.integers(0, 1000))
def test_characters_stay_whole_and_in_order(text: bytes, noise: str, seed: int) -> None:
    noised = add_noise(text, noise, seed)
    begins = set(code_points(text).bounds[:-1].tolist())
    kept = [origin for origin in noised.origins.tolist() if origin in begins]
    assert kept == sorted(kept)
    assert len(set(kept)) == len(kept) or noise == "repeat"
    if noise == "repeat":
        assert set(kept) == begins
        assert all(kept.count(origin) <= 2 for origin in begins)


@pytest.mark.parametrize(("noise", "low", "high"), [("drop", 0.88, 0.92), ("repeat", 1.17, 1.23)])
def test_as_much_is_dropped_and_repeated_as_is_said(noise: str, low: float, high: float) -> None:
    assert low < len(add_noise(PROSE, noise, 0).text) / len(PROSE) < high


@pytest.mark.parametrize("text", [PROSE, PROSE.upper()])
def test_random_case_is_even(text: bytes) -> None:
    noised = add_noise(text, "random_case", 0).text.decode()
    letters = [sign for sign in noised if sign.isalpha()]
    assert 0.47 < sum(sign.isupper() for sign in letters) / len(letters) < 0.53
    assert noised.lower() == PROSE.decode().lower()


def test_a_letter_whose_upper_case_is_longer_keeps_its_own() -> None:
    assert add_noise("straße ärgert ﬁn ÿ".encode(), "upper_case", 0).text == "STRAßE ÄRGERT ﬁN Ÿ".encode()
    assert add_noise(b"a\xffb\xc3", "upper_case", 0).text == b"A\xffB\xc3"


def test_the_same_seed_gives_the_same_noise_and_another_does_not() -> None:
    for noise in ("drop", "repeat", "random_case"):
        assert add_noise(PROSE, noise, 3).text == add_noise(PROSE, noise, 3).text != add_noise(PROSE, noise, 4).text


def test_an_unknown_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="drop, repeat"):
        add_noise(b"text", "shuffle", 0)


def test_stability_by_hand() -> None:
    """Clean `ab cd ef`, cut at 3 and 6; its `c` is dropped and its `e` is repeated: `ab d eef`."""
    noise = Noised(b"ab d eef", offsets(0, 1, 2, 4, 5, 6, 6, 7))
    found = stability_counts(offsets(0, 3, 6), offsets(0, 3, 5), noise, 8)
    assert found.tolist() == [2, 2, 2]  # the cut before `c` is now the one before `d`
    found = stability_counts(offsets(0, 3, 6), offsets(0, 2, 6), noise, 8)
    assert found.tolist() == [1, 2, 2]  # the space is another place; the second `e` is the same
    found = stability_counts(offsets(0, 3), offsets(0), noise, 8)
    assert found.tolist() == [0, 0, 1]


def test_the_cut_before_what_is_left_of_a_text_is_no_merit() -> None:
    noise = Noised(b"bc", offsets(1, 2))
    assert stability_counts(offsets(0, 1, 2), offsets(0, 1), noise, 3).tolist() == [1, 1, 1]
    assert stability_counts(offsets(0), offsets(), Noised(b"", offsets()), 3).tolist() == [0, 0, 0]


@law
@given(text=texts.filter(bool), noise=st.sampled_from(NOISES), seed=st.integers(0, 1000), data=st.data())
def test_cuts_between_the_same_characters_are_stable(text: bytes, noise: str, seed: int, data: st.DataObject) -> None:
    """Cuts that are put into the noised text where the clean ones were score 1; others score less."""
    noised = add_noise(text, noise, seed)
    begins = code_points(text).bounds[:-1]
    wanted = data.draw(st.sets(st.sampled_from(begins.tolist())))
    clean = np.array(sorted({0, *wanted}), dtype=np.int64)
    firsts = [int(np.flatnonzero(noised.origins >= cut)[0]) for cut in clean if (noised.origins >= cut).any()]
    found = stability_counts(clean, np.unique(offsets(*firsts)), noised, len(text))
    assert found[0] == found[1] == found[2]
    none = stability_counts(clean, offsets(0) if noised.text else offsets(), noised, len(text))
    assert none[0] == 0 and none[2] == found[2]
    if found[2]:
        assert f1_of_sums(found[None])[0] == 1 > f1_of_sums(none[None])[0]
