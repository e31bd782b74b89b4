"""Configuration of a model and of its training, read from TOML and checked strictly.

A model is a list of levels and every level has the same keys, so a third level is one more `[[model.levels]]` table.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from zonkey_core.errors import ConfigError


class _Struct(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Strict, immutable, keyword-only base."""


class LevelConfig(_Struct, frozen=True):
    """One level: positions in, segments of them out.

    Level 0's positions are bytes; level *l*'s are the segment latents of level *l-1*.
    """

    segment_length: float = 5.0
    """Target mean number of positions per segment; the splitter's rate is its inverse, unless one of bits is set."""
    bits_per_segment: float = 0.0
    """Target information of a segment of level 0, by what the level's own estimator says of a text; 0 for a rate of
    bytes, the same for all text. Words of all languages have about as much, while their bytes differ fourfold."""
    window: int = 24
    """S, the most positions that one segment may hold."""
    width: int = 64
    """D, width of a segment's latent vectors and of the Transformers over its window."""
    latents: int = 2
    """N, latent vectors per segment."""
    heads: int = 4
    """H, attention heads at width D."""
    compressor_layers: int = 1
    decoder_layers: int = 2
    decoder_noise: float = 0.5
    """Largest ratio of noise to signal that the decoder learns to undo; where a level is formed by denoising, that at
    which it is handed down, or more."""
    splitter_width: int = 96
    splitter_kernel: int = 5
    splitter_layers: int = 2
    splitter_ngrams: int = 32768
    """Rows of the splitter's table of n-grams of units; of use at level 0 alone."""
    reader_width: int = 64
    """Width of level 0's reader, which teaches the splitter, and of what estimates costs."""
    reader_units: int = 8192
    """Rows of the tables of units that level 0's reader tells and its estimator looks up."""
    reader_contexts: int = 32768
    """Rows of the table of strings around a hidden unit by which level 0's reader tells it."""
    lexicon: int = 0
    """Rows of the table that counts segments at level 0; with one, its splitter learns by what its segments cost as
    entries of a lexicon, each source of text that has a weight at a rate of its own, and 0 leaves it to masked
    modelling. For scripts that put no spaces between words."""
    mask_rate: float = 0.2
    """Share of the units hidden from level 0's splitter and its reader in training."""
    denoiser_width: int = 128
    denoiser_layers: int = 2
    denoiser_heads: int = 4
    vocabulary: int = 4096
    """Strings that level 0's denoiser chooses from."""
    noise_scale: float = 5.0
    """d of the noise schedule, alpha = 1 / sqrt(1 + d^2 tan^2(pi t / 2))."""


class ModelConfig(_Struct, frozen=True):
    """The stack of levels, lowest first."""

    levels: tuple[LevelConfig, ...]


class StageShares(_Struct, frozen=True):
    """Relative lengths of the stages of the curriculum; a share is given to each level in turn.

    The last value of a list repeats for the levels above it.
    """

    splitter: tuple[float, ...] = (1.2, 0.6)
    autoencoder: tuple[float, ...] = (1.6, 0.5)
    denoiser: tuple[float, ...] = (5.0, 0.8)
    plan: tuple[float, ...] = (3.0,)
    """Of the levels below the top one."""
    joint: float = 4.0


class TrainingConfig(_Struct, frozen=True):
    """How a model is trained."""

    row_bytes: int = 1024
    """Bytes in a row of a batch; a row is a piece of the stream of documents."""
    batch_rows: int = 6
    learning_rate: float = 3e-3
    """Peak rate of AdamW, which trains vectors, tables and convolutions."""
    table_learning_rate: float = 8e-3
    """Peak rate of AdamW for tables of strings, each row of which is met rarely."""
    matrix_learning_rate: float = 0.01
    """Peak rate of Muon, which trains the matrices."""
    weight_decay: float = 0.01
    warmup: float = 0.03
    """Share of a stage over which its learning rate rises."""
    final_rate: float = 0.05
    """Learning rate at the end of a stage as a share of its peak."""
    joint_rate: float = 0.5
    """Peak rate of the joint stage as a share of the other stages'."""
    gradient_clip: float = 1.0
    average_decay: float = 0.998
    """Decay per step of the averaged weights, which are the ones that a model is used with."""
    shuffle_documents: int = 2000
    """Documents held in memory to be shuffled."""
    guide_bytes: int = 12_000_000
    """Bytes of text, at most, from whose ends of documents the splitters above level 0 learn where segments begin, and
    whose n-grams the one of level 0 comes to know."""
    shares: StageShares = StageShares()


class Config(_Struct, frozen=True):
    """A whole configuration file: the model and its training."""

    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    memory: str = ""
    """Stated need of memory, for people."""


OPTIONAL = ("bits_per_segment", "lexicon")
"""Keys of a level that 0 turns off."""
LEVELS = 8
"""The most levels of a model."""
LAYERS = 1024
"""The most layers of all its Transformers and splitters together."""
LARGEST = {"layers": 128, "heads": 256, "width": 16384, "window": 4096, "latents": 64, "kernel": 255}
"""The largest value of a level's key, by its last word; of other whole numbers, `LARGEST_COUNT`."""
LARGEST_COUNT = 1 << 22
LARGEST_TRAINING = {"row_bytes": 1 << 24, "batch_rows": 1 << 16, "shuffle_documents": 1 << 24, "guide_bytes": 1 << 30}
"""The same for the keys of `training`. What lies above would be a slip or an attack, and exhaust any machine."""
CONFIG_BYTES = 1 << 20

PRESETS = ("tiny", "small", "base", "large")


def load_preset(name: str, overrides: Iterable[str] = ()) -> Config:
    """Read the preset `name`, one of `PRESETS`, with `overrides` such as `level.1.heads=8` applied."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    text = resources.files("zonkey_core.presets").joinpath(f"{name}.toml").read_text("utf-8")
    return parse_config(tomllib.loads(text), overrides, origin=f"preset {name}")


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML configuration file, with `overrides` applied."""
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read this configuration file ({error})") from error
    if len(content) > CONFIG_BYTES:
        raise ConfigError(f"{path}: cannot read this configuration file (larger than {CONFIG_BYTES:,} bytes)")
    try:
        tree = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from error
    return parse_config(tree, overrides, origin=str(path))


def parse_toml(text: str) -> dict[str, Any]:
    """The tree of a TOML document; raises `ValueError` for whatever is wrong with it."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_config(tree: Mapping[str, Any], overrides: Iterable[str] = (), *, origin: str) -> Config:
    """Turn a parsed TOML tree into a checked `Config`; `origin` names the file in error messages."""
    config = _convert(tree, origin=origin)
    overrides = list(overrides)
    if overrides:
        plain: dict[str, Any] = msgspec.to_builtins(config)
        for override in overrides:
            _apply_override(plain, override)
        origin = f"{origin} with {' '.join(' '.join(overrides).split())}"
        config = _convert(plain, origin=origin)
    check_model_config(config.model, origin=origin)
    check_training_config(config.training, origin=origin)
    return config


def check_model_config(model: ModelConfig, *, origin: str) -> None:
    """Raise `ConfigError` where values that are valid one by one do not fit each other."""
    if not model.levels:
        raise ConfigError(f"{origin}: a model needs at least one level")
    if len(model.levels) > LEVELS:
        raise ConfigError(f"{origin}: model.levels must be at most {LEVELS} levels, not {len(model.levels):,}")
    layers = 0
    for index, level in enumerate(model.levels):
        for key, value in msgspec.to_builtins(level).items():
            if not 0 < value < math.inf and not (key in OPTIONAL and value == 0):
                raise ConfigError(f"{origin}: level.{index}.{key} must be positive and finite, not {_shown(value)}")
            largest = LARGEST.get(key.rpartition("_")[2], LARGEST_COUNT)
            if value > largest:
                raise ConfigError(f"{origin}: level.{index}.{key} must be at most {largest}, not {_shown(value)}")
            layers += value if key.endswith("_layers") else 0
        for width, heads in (("width", "heads"), ("denoiser_width", "denoiser_heads"), ("splitter_width", "heads")):
            if getattr(level, width) % (2 * getattr(level, heads)):
                raise ConfigError(f"{origin}: level.{index}.{width} must be a multiple of twice level.{index}.{heads}")
        if level.splitter_kernel % 2 == 0:
            raise ConfigError(f"{origin}: level.{index}.splitter_kernel must be odd")
        if not 1 < level.segment_length < level.window:
            raise ConfigError(f"{origin}: level.{index}.segment_length must lie between 1 and level.{index}.window")
        if level.mask_rate >= 1:
            raise ConfigError(f"{origin}: level.{index}.mask_rate must be below 1")
    if layers > LAYERS:
        raise ConfigError(f"{origin}: level.*.*_layers must add up to at most {LAYERS}, not {layers}")
    if model.levels[0].vocabulary < 256:
        raise ConfigError(f"{origin}: level.0.vocabulary must be at least 256, to hold every byte")


def check_training_config(training: TrainingConfig, *, origin: str) -> None:
    """Raise `ConfigError` where a value of `training` is out of its range."""
    rates = ("learning_rate", "table_learning_rate", "matrix_learning_rate", "joint_rate")
    for key in ("row_bytes", "batch_rows", *rates, "gradient_clip", "shuffle_documents", "guide_bytes"):
        if not 0 < getattr(training, key) < math.inf:
            raise ConfigError(
                f"{origin}: training.{key} must be positive and finite, not {_shown(getattr(training, key))}"
            )
    for key, largest in LARGEST_TRAINING.items():
        if getattr(training, key) > largest:
            raise ConfigError(
                f"{origin}: training.{key} must be at most {largest}, not {_shown(getattr(training, key))}"
            )
    for key in ("weight_decay", "warmup", "final_rate", "average_decay"):
        if not 0 <= getattr(training, key) <= 1:
            raise ConfigError(f"{origin}: training.{key} must lie between 0 and 1, not {getattr(training, key)}")
    if training.average_decay == 1:
        raise ConfigError(f"{origin}: training.average_decay must be below 1, or the averaged weights never change")
    shares = training.shares
    for key, values in (("splitter", shares.splitter), ("autoencoder", shares.autoencoder),
                        ("denoiser", shares.denoiser), ("plan", shares.plan), ("joint", (shares.joint,))):
        if not values or not all(0 <= value < math.inf for value in values):
            raise ConfigError(f"{origin}: training.shares.{key} must hold finite numbers of 0 or more")
    if not any((*shares.splitter, *shares.autoencoder, *shares.denoiser, *shares.plan, shares.joint)):
        raise ConfigError(f"{origin}: training.shares must leave at least one stage above 0")


def _shown(value: float) -> str:
    """A number for a message; one with thousands of digits is not spelled out."""
    return "a number without bounds" if abs(value) > sys.float_info.max else f"{value:g}"


def override_keys(levels: int = 2) -> list[str]:
    """Every key that an override may name, for a model of `levels` levels."""
    level_keys = [
        f"level.{index}.{name}" for index in range(levels) for name in LevelConfig.__struct_fields__
    ]
    training = [f"training.{name}" for name in TrainingConfig.__struct_fields__ if name != "shares"]
    shares = [f"training.shares.{name}" for name in StageShares.__struct_fields__]
    return level_keys + training + shares


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `key=value` in a complete tree; `level.I.key` is short for `model.levels[I].key`."""
    key, sign, text = override.partition("=")
    key = key.strip()
    if not sign:
        raise ConfigError(f"override {override!r}: write KEY=VALUE, for example level.1.heads=8")
    levels = tree["model"]["levels"]
    known = override_keys(len(levels))
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        raise ConfigError(f"unknown key {key!r}; the nearest is {near[0]!r}")
    try:
        parsed = parse_toml(f"value = {text}")
    except ValueError as error:
        raise ConfigError(f"override {override!r}: {text!r} is not a TOML value") from error
    if len(parsed) != 1:
        raise ConfigError(f"override {override!r}: give one value on one line")
    *path, last = key.split(".")
    if path[0] == "level":
        node = levels[int(path[1])]
    else:
        node = tree
        for name in path:
            node = node[name]
    node[last] = parsed["value"]


def _convert(tree: Mapping[str, Any], *, origin: str) -> Config:
    """Check names and types; an error names the key as an override would write it, and the nearest known one."""
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        key = re.sub(r"model\.levels\[(\d+)\]", r"level.\1", place.rstrip("`").lstrip("."))
        where = f"{origin}: {key}" if key else origin
        raise ConfigError(f"{where}: {reason}{_suggestion(reason, key)}") from error


def _suggestion(reason: str, table: str) -> str:
    """Name the key of `table` that is nearest to the unknown one in a validation message."""
    unknown = re.search(r"unknown field `(.*)`", reason)
    if unknown is None:
        return ""
    structs = {"": Config, "model": ModelConfig, "training": TrainingConfig, "training.shares": StageShares}
    fields = structs.get(table, LevelConfig).__struct_fields__
    near = difflib.get_close_matches(unknown[1], fields, n=1, cutoff=0.0)
    return f"; the nearest known key is {near[0]!r}"
