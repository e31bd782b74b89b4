"""Which text a model is trained on, and which share of it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec


class SourceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where documents come from; it is kept with the model that was trained on them."""

    sources: tuple[str, ...]
    """`wiki`, `sample`, or paths: files, folders, and `-` for standard input."""
    weights: tuple[Annotated[float, msgspec.Meta(gt=0, le=1e6)], ...] = ()
    """Each source's share of the rows that are trained on, in any unit; without them, a source counts by its size."""
    kept_cuts: tuple[str, ...] = ()
    """The sources, each with a weight, whose cuts stay those of the model that training starts from."""
    wiki_config: str = "20231101.en"
    """Configuration of the Hugging Face dataset `wikimedia/wikipedia`: date of the dump and language."""
    wiki_dir: str | None = None
    """Local folder laid out like that dataset, `DIR/CONFIG/train-*.parquet`; None streams from the hub."""
    split: str = "train"
    """`train`, `validation` or `test`; `all` reads every document, which Wikipedia is too large for."""
    on_bad_data: Literal["stop", "skip"] = "stop"
    """Whether a damaged line or file ends the reading, or is left out."""
