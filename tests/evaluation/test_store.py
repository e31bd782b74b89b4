"""Entries of the store appear whole or not at all, and are made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zonkey_core.evaluation.store import Store, fingerprint

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
keys = st.text("0123456789abcdef", min_size=1)
files = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.binary(max_size=20), min_size=1)
law = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "store")


def write(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).write_bytes(data)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@law
@given(content=files, key=keys)
def test_an_entry_is_made_once_and_appears_whole(store: Store, content: dict[str, bytes], key: str) -> None:
    store.clear()
    assert store.find("kind", key) is None

    def make(folder: Path) -> None:
        for name, data in content.items():
            (folder / name).write_bytes(data)
            assert store.find("kind", key) is None  # however much is written, it is not there yet

    made = store.entry("kind", key, make)
    assert read(made) == content
    assert store.find("kind", key) == made
    assert store.entry("kind", key, lambda folder: pytest.fail("made twice")) == made
    assert store.find("other", key) is None


@law
@given(content=files, error=st.sampled_from([ValueError, KeyboardInterrupt, SystemExit]), key=keys)
def test_a_make_that_fails_leaves_nothing(
    store: Store, content: dict[str, bytes], error: type[BaseException], key: str
) -> None:
    def fail(folder: Path) -> None:
        write(folder, content)
        raise error

    store.clear()
    with pytest.raises(error):
        store.entry("kind", key, fail)
    assert store.find("kind", key) is None
    assert list(store.directory.iterdir()) == []
    assert read(store.entry("kind", key, lambda folder: write(folder, content))) == content


def test_whoever_is_first_wins(store: Store) -> None:
    def slow(folder: Path) -> None:
        store.entry("kind", "key", lambda other: write(other, {"by": b"the other"}))
        write(folder, {"by": b"this one"})

    assert read(store.entry("kind", "key", slow)) == {"by": b"the other"}
    assert [path.name for path in store.directory.iterdir()] == ["kind-key"]


def test_a_work_folder_stays_until_all_is_forgotten(store: Store) -> None:
    folder = store.work_folder("run", "key")
    write(folder, {"half": b"done"})
    assert store.work_folder("run", "key") == folder
    assert read(folder) == {"half": b"done"}
    store.clear()
    assert not store.directory.exists()
    store.clear()  # nothing to forget is no error
    assert read(store.work_folder("run", "key")) == {}


@given(plain, plain)
def test_fingerprints_tell_values_apart(first: object, second: object) -> None:
    same = repr(first) == repr(second)
    if same:
        assert fingerprint(first) == fingerprint(second)
    elif isinstance(first, str | int | list) and type(first) is type(second):
        assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first, second) != fingerprint(first)


def test_fingerprints_read_files_and_ignore_the_order_of_keys(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"same")
    (tmp_path / "two").write_bytes(b"same")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two").write_bytes(b"other")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(b"ab", b"c") != fingerprint(b"a", b"bc")
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
