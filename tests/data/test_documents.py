"""Documents of files, folders, standard input and the sample: how they are read, split and refused."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_helpers import SPLITS, compressed, error, read
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.files import cut_text
from zonkey_core.data.shards import split_of
from zonkey_core.data.stream import SAMPLE
from zonkey_core.errors import DataError


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    return put


def test_import_leaves_the_heavy_libraries_alone() -> None:
    code = "import sys, zonkey_core.data; print({'datasets', 'huggingface_hub', 'pyarrow', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_spec_survives_json_and_refuses_unknown_keys() -> None:
    spec = SourceSpec(sources=("wiki", "a.txt"), wiki_dir="d", split="test")
    assert msgspec.json.decode(msgspec.json.encode(spec), type=SourceSpec) == spec
    with pytest.raises(msgspec.ValidationError, match="shuffle"):
        msgspec.json.decode(b'{"sources": [], "shuffle": 1}', type=SourceSpec)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("extension", ["txt", "md", "jsonl"])
def test_files_plain_and_compressed(tmp_path: Path, extension: str, suffix: str) -> None:
    text = b"Eins\n\nZwei \xc3\xa9"
    data = json.dumps({"text": text.decode(), "title": "x"}).encode() + b"\n\n" if extension == "jsonl" else text
    path = tmp_path / f"a.{extension}{suffix}"
    path.write_bytes(compressed(data, {".gz": "gzip", ".zst": "zstd"}[suffix]) if suffix else data)
    assert read(path) == [text]


def test_parquet_file_skips_empty_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "", "b", "c"]}), path, row_group_size=2)
    assert sorted(read(path)) == [b"a", b"b", b"c"]


@settings(deadline=None)
@given(data=st.binary(min_size=1, max_size=300))
def test_any_bytes_survive_in_a_file_of_any_name(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.unknown")
        path.write_bytes(data)
        assert read(path) == [data]


@settings(deadline=None)
@given(
    data=st.lists(st.sampled_from([b"a", b" ", b"\n", b"\n\n", b"\r\n\r\n", "é€😀".encode(), b"\xff"])).map(b"".join),
    limit=st.integers(5, 40),
    step=st.integers(1, 50),
)
def test_cut_text_keeps_every_byte_and_does_not_depend_on_the_pieces(data: bytes, limit: int, step: int) -> None:
    whole = list(cut_text(iter([data]), limit))
    assert list(cut_text((data[i : i + step] for i in range(0, len(data), step)), limit)) == whole
    assert b"".join(whole) == data
    assert all(0 < len(text) <= limit for text in whole)


def test_cut_text_prefers_blank_lines_then_lines_then_code_points() -> None:
    assert list(cut_text(iter([b"ab\n\ncd\nef"]), 8)) == [b"ab\n\n", b"cd\nef"]
    assert list(cut_text(iter([b"ab\r\n\r\ncd\nef"]), 10)) == [b"ab\r\n\r\n", b"cd\nef"]
    assert list(cut_text(iter([b"ab\ncdefgh"]), 8)) == [b"ab\n", b"cdefgh"]
    assert list(cut_text(iter(["aaé€".encode()]), 6)) == ["aaé".encode(), "€".encode()]


def test_a_long_text_streams_as_bounded_documents_with_some_held_out(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    draw = random.Random(1)
    path.write_bytes(b"".join(bytes(draw.choices(b"abc ", k=900)) + b"\n\n" for _ in range(14_000)))
    texts = {split: read(path, split=split) for split in SPLITS}
    assert sum(len(text) for group in texts.values() for text in group) == path.stat().st_size
    assert max(len(text) for text in texts["train"]) <= 64 * 1024
    assert texts["validation"] and texts["test"]


def test_one_document_is_training_text_whatever_its_hash(tmp_path: Path) -> None:
    text = next(str(i).encode() for i in range(1000) if split_of(str(i).encode()) == "validation")
    path = tmp_path / "one.txt"
    path.write_bytes(text)
    assert read(path) == [text]
    assert read(path, split="validation") == []


def test_folder_takes_known_extensions_below_it_and_hash_splits_cover_it(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name in ("b/c/x.txt", "b/Y.MD", "z.txt.gz", "no.py", ".git/h.txt", "b/.h.txt", "gz", "q.parquet.txt"):
        (tmp_path / name).write_bytes(compressed(name.encode(), "gzip") if name.endswith(".gz") else name.encode())
    lines = b"".join(b'{"text": "%d"}\n' % i for i in range(400))
    (tmp_path / "b" / "rows.jsonl").write_bytes(lines)
    found = {split: read(tmp_path, split=split) for split in SPLITS}
    expected = [b"b/c/x.txt", b"b/Y.MD", b"z.txt.gz", b"q.parquet.txt", *(b"%d" % i for i in range(400))]
    assert sorted(text for texts in found.values() for text in texts) == sorted(expected)
    assert found["validation"] and all(split_of(text) == "validation" for text in found["validation"])


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    def put(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    assert error(tmp_path / "no.txt") == f"{tmp_path / 'no.txt'}: no such file or folder"
    (tmp_path / "empty").mkdir()
    assert error(tmp_path / "empty").startswith(f"{tmp_path / 'empty'}: no .txt, .md")
    assert "neither a file nor a folder" in error("/dev/null")
    zipped = compressed(b"text " * 5000, "gzip")
    for data in (b"plain", zipped[:-9], zipped[:30] + b"\0\0\0" + zipped[33:]):
        gz = put("a.gz", data)
        assert error(gz).startswith(f"{gz}: cannot read this file (")
    zst = put("a.zst", b"plain text")
    assert error(zst).startswith(f"{zst}: cannot read this file (")
    parquet = put("a.parquet", b"plain")
    assert error(parquet).startswith(f"{parquet}: not a readable Parquet file (")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), parquet)
    assert "no column named text, only body, n" in error(parquet)
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), parquet)
    assert "column text holds int64" in error(parquet)
    assert "decompress it first" in error(put("a.parquet.gz", b""))
    nothing = put("nothing.txt", b"")
    assert error(nothing).startswith(f"{nothing}: no text to train on")
    assert read(nothing, split="validation") == []
    assert "no data is named" in error()
    assert "unknown split 'dev'" in error(nothing, split="dev")


def test_damaged_files_leave_nothing_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(compressed(b"text " * 5000, "gzip")[:-9])
    code = """
import resource, sys
from zonkey_core.data.bytestreams import FileBytes
from zonkey_core.errors import DataError
from pathlib import Path
held = []
for _ in range(600):
    try:
        list(FileBytes(Path(sys.argv[1])).pieces())
    except DataError:
        held.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(len(held), (held[-1] - held[99]) / 500)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    failed, grown = done.stdout.split()
    assert int(failed) == 600
    assert float(grown) < 16 * (1024 if sys.platform == "darwin" else 1)  # kB a file; a piece has 256


@pytest.mark.parametrize("line", ["{", "[1]", '"x"', '{"body": "x"}', '{"text": 3}', '{"text": null}', "caf\udce9"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "good"}}\n\n{line}\n', "utf-8", "surrogateescape")
    assert error(path).startswith(f"{path}, line 3: not a JSON object")


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zonkey_core.data.files.LINE_BYTES", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "' + b"a" * (2 << 20))
    assert error(path).startswith(f"{path}, line 2: longer than 1 MiB")


def test_standard_input_repeats_and_serves_several_streams(stdin: Any) -> None:
    text = b"".join(b"%06d\n\n" % i for i in range(40_000))
    stdin(text)
    spec = SourceSpec(sources=("-",))
    stream = open_stream(spec, seed=0, shuffle_documents=1)
    first = next(stream)
    assert b"".join(read("-", shuffle=1)) == text
    rest = []
    while stream.epochs == 0:
        rest.append(next(stream))
    assert b"".join([first, *rest[:-1]]) == text
    assert rest[-1] == first


def test_standard_input_cannot_be_resumed(stdin: Any) -> None:
    stdin(b"text")
    spec = SourceSpec(sources=("-",))
    state = open_stream(spec, seed=0, shuffle_documents=1).state()
    with pytest.raises(DataError, match="save the input to a file"):
        open_stream(spec, seed=0, shuffle_documents=1, state=state)


def test_sample_is_small_split_and_attributed() -> None:
    sizes = {split: sum(map(len, read("sample", split=split))) for split in SPLITS}
    assert 250_000 < sum(sizes.values()) < 400_000
    assert len(read("sample", split="validation")) >= 4 and len(read("sample", split="test")) >= 4
    assert SAMPLE.stat().st_size < 200_000
    rows = [json.loads(line) for line in gzip.decompress(SAMPLE.read_bytes()).splitlines()]
    assert all(row["title"] and row["url"].startswith("https://simple.wikipedia.org/wiki/") for row in rows)
    note = SAMPLE.with_name("SAMPLE.md").read_text("utf-8")
    assert "Attribution-ShareAlike 3.0" in note and f"holds {len(rows)} articles" in note
