"""Wikipedia through Hugging Face `datasets`: streamed from the hub, or from a local folder of the same layout.

The dataset `wikimedia/wikipedia` has a folder per configuration with the files `train-00000-of-0000N.parquet` and the
columns `id`, `url`, `title` and `text`. Where a folder has no `validation-*` or `test-*` files, that split is 1 % of
the train files, by the md5 of the id. This is the only module that imports `datasets` or `huggingface_hub`.
"""

from __future__ import annotations

import difflib
import glob
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet

from zonkey_core.data.files import check_text_column, first_line
from zonkey_core.data.shards import ALL_SPLITS, SPLITS, START, Document, Position, Shard
from zonkey_core.data.spec import SourceSpec
from zonkey_core.errors import DataError

REPOSITORY = "wikimedia/wikipedia"
HUB_TIMEOUT_SECONDS = 5.0
PARQUET_ROWS = 256
READ_AHEAD_BYTES = 256 * 1024
"""Fetched from the hub beyond what is asked for; the usual 5 MiB would be thrown away at every row group."""
_HUB = "hf://"
_ADVICE = "give a local copy with --data-dir DIR (or ZONKEY_WIKI_DIR), or use --data sample or --data FILE"

datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else each local file read is reported to a server
datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is raised as a DataError


@dataclass(frozen=True)
class WikiShard:
    """One Parquet file; a position is a row group and a row in it."""

    name: str
    kept: frozenset[str]
    location: str
    """A path, or an `hf://` address."""
    pinned: bool = False

    def read(self, start: Position = START) -> Iterator[Document]:
        """Stream the rows; `reshard` makes a shard of each row group, so that those before `start` are not read.

        They come from the library many at a time, which is several times as fast as one by one.
        """
        groups = self._call(self._open)
        for group in range(start[0], groups.num_shards):
            batches = groups.shard(num_shards=groups.num_shards, index=group).iter(batch_size=PARQUET_ROWS)
            row = 0
            while (batch := self._call(next, batches, None)) is not None:
                for text, key in zip(batch["text"], batch["id"], strict=True):
                    row += 1
                    if (row > start[1] or group > start[0]) and text is not None:
                        yield Document(text=text.encode(), key=str(key).encode(), end=(group, row))

    def _open(self) -> Any:
        local = not self.location.startswith(_HUB)
        with tempfile.TemporaryDirectory() as cache:  # streaming puts nothing into it but a lock
            return datasets.load_dataset(
                "parquet",
                data_files={"train": [glob.escape(self.location) if local else self.location]},
                columns=["id", "text"],
                batch_size=PARQUET_ROWS,
                split="train",
                streaming=True,
                cache_dir=cache,
                storage_options={"hf": {"block_size": READ_AHEAD_BYTES}},
            ).reshard()

    def _call(self, function: Any, *arguments: Any) -> Any:
        """Call the library, and turn whatever it raises (its own errors, Arrow's, the network's) into a DataError."""
        try:
            return function(*arguments)
        except Exception as error:
            advice = "try again later" if self.location.startswith(_HUB) else "replace this file"
            raise DataError(f"{self.location}: reading failed ({first_line(error)}); {advice}") from error


def wiki_shards(spec: SourceSpec) -> list[Shard]:
    """The files that hold the split of `spec`, on the hub or in its local folder."""
    return _local_shards(spec, Path(spec.wiki_dir).expanduser()) if spec.wiki_dir is not None else _hub_shards(spec)


def _local_shards(spec: SourceSpec, root: Path) -> list[Shard]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {_ADVICE}")
    found = sorted({path.parent.name for path in root.glob("*/train-*.parquet")})
    if spec.wiki_config not in found:
        hint = "; give the folder above this one" if any(root.glob("train-*.parquet")) else ""
        raise DataError(_unknown_config(str(root), spec.wiki_config, found) + hint)
    shards = _choose(spec, (path.name for path in (root / spec.wiki_config).glob("*.parquet")), str(root))
    for shard in shards if spec.on_bad_data == "stop" else ():
        _check_columns(Path(shard.location))
    return list(shards)


def _check_columns(path: Path) -> None:
    """Report a file of another kind before a long training run meets it."""
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({first_line(error)})") from error
    check_text_column(schema, path)
    if "id" not in schema.names:
        raise DataError(f"{path}: has no column named id, only {', '.join(schema.names)}; name the file itself as data")


def _hub_shards(spec: SourceSpec) -> list[Shard]:
    """Ask the hub once, with a short timeout and no retries, for the files and the revision that has them."""
    try:
        info = huggingface_hub.HfApi().dataset_info(REPOSITORY, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # the network's, the HTTP library's or the hub's own
        raise DataError(
            f"cannot reach the Hugging Face hub for {REPOSITORY} ({spec.wiki_config}): {first_line(error)}; {_ADVICE}"
        ) from error
    names = [file.rfilename for file in info.siblings or ()]
    found = sorted({name.split("/")[0] for name in names if name.endswith(".parquet") and "/" in name})
    if spec.wiki_config not in found:
        raise DataError(_unknown_config(f"Hugging Face hub, {REPOSITORY}", spec.wiki_config, found))
    folder = f"{spec.wiki_config}/"
    files = (name.removeprefix(folder) for name in names if name.startswith(folder) and name.endswith(".parquet"))
    return list(_choose(spec, files, hub_address(info.sha)))


def hub_address(revision: str | None) -> str:
    """The address of the dataset's files, at the revision that was listed so that no later one gets mixed in."""
    return f"{_HUB}datasets/{REPOSITORY}" + (f"@{revision}" if revision else "")


def _choose(spec: SourceSpec, files: Iterable[str], root: str) -> list[WikiShard]:
    """Pick the files of a split, or the train files with the split drawn by hash where it has none of its own."""
    names = sorted(files)
    own = {split for split in SPLITS if any(name.startswith(f"{split}-") for name in names)}
    kept = frozenset({spec.split})
    if spec.split == "train":
        kept |= own  # the documents of a split without files are among these, and must be left out
    elif spec.split in own:
        kept = ALL_SPLITS
    prefix = spec.split if spec.split in own else "train"
    return [
        WikiShard(name=f"wiki/{spec.wiki_config}/{name}", kept=kept, location=f"{root}/{spec.wiki_config}/{name}")
        for name in names
        if name.startswith(f"{prefix}-")
    ]


def _unknown_config(where: str, config: str, found: list[str]) -> str:
    """A message that names the configurations there are, or the nearest ones of many."""
    if not found:
        return f"{where}: holds no CONFIG/train-*.parquet, so no configuration {config}"
    shown = found if len(found) <= 12 else difflib.get_close_matches(config, found, n=5, cutoff=0.0)
    return f"{where}: has no configuration {config}; pass --data-config with one of {', '.join(shown)}"
