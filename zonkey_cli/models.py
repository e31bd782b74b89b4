"""Where models are: the one that comes with the package, folders, and names under the data directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from zonkey_cli.console import working
from zonkey_cli.exit_codes import BadValueError
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from zonkey_core.inference.level_cutter import CuttingLevel
    from zonkey_core.model.model import Zonkey

BUNDLED = "bundled"
WRITING = tuple(
    f"bottom.{part}."
    for part in ("splitter", "embedding", "compressor", "denoiser", "decoder", "readout", "vocabulary", "above")
)
"""How the names of the tensors begin that writing needs; the others only teach."""


def models_directory() -> Path:
    """The folder that holds named models: `ZONKEY_HOME/models`, else `zonkey/models` in the user's data directory."""
    home = os.environ.get("ZONKEY_HOME")
    if home:
        return Path(home) / "models"
    from platformdirs import user_data_path

    return user_data_path("zonkey", appauthor=False) / "models"


def known_models() -> list[str]:
    """The names that `resolve_model` accepts: the bundled model first, then those in the models directory."""
    directory = models_directory()
    found = sorted(path.name for path in directory.iterdir() if is_model(path)) if directory.is_dir() else []
    return [BUNDLED, *(name for name in found if name != BUNDLED)]


def is_model(directory: Path) -> bool:
    """Whether `directory` looks like a model; its files may still be damaged."""
    from zonkey_core.checkpoint import CONFIG
    from zonkey_core.committed_files import file_path

    return file_path(directory, CONFIG).is_file()


def resolve_model(name: str | None) -> Path:
    """The folder of model `name`: `bundled` (also None), a path to a folder, or a name in the models directory."""
    if name is None or name == BUNDLED:
        return _bundled_directory()
    path = Path(name)
    if is_model(path):
        return path
    named = models_directory() / name
    if os.sep not in name and is_model(named):
        return named
    if path.is_dir():
        raise BadValueError(f"{name}: not a model folder, it holds no config.json")
    raise BadValueError(
        f"unknown model {name!r}; give the folder of a model or one of: {', '.join(known_models())}"
    )


def load_model(streams: Streams, name: str | None, *, device: str, prefixes: tuple[str, ...] = ("",)) -> Zonkey:
    """Read model `name` for use on `device`, with a sign of life on a terminal.

    With `prefixes`, only the tensors whose names begin with one of them are kept.
    """
    directory = resolve_model(name)
    with working(streams, "loading the model"):
        from zonkey_core.checkpoint import load_model as load
        from zonkey_core.devices import choose_device

        chosen = choose_device(device)
        model = load(directory, device=chosen, prefixes=prefixes)
    streams.detail(f"model {directory} on {chosen}")
    return model


def load_writer(streams: Streams, name: str | None, *, device: str) -> Zonkey:
    """Read what writes text in model `name`: all of it but what only teaches."""
    return load_model(streams, name, device=device, prefixes=WRITING)


def load_cutting_levels(
    streams: Streams, name: str | None, *, device: str, level: int, executor: Executor | None
) -> list[CuttingLevel]:
    """What cuts text up to `level` in model `name`; on a CPU, which `auto` stands for here, torch is not imported."""
    directory = resolve_model(name)
    chosen = "cpu" if device == "auto" else device
    with working(streams, "loading the model"):
        from zonkey_core.inference.cutting_levels import load_cutting_levels as load

        levels = load(directory, level=level, device=chosen, executor=executor)
    streams.detail(f"model {directory} on {chosen}")
    return levels


def load_estimator(streams: Streams, name: str | None) -> Callable[[bytes], float]:
    """What tells how many bits a byte of a text has, by the estimate of model `name`; torch is not imported."""
    directory = resolve_model(name)
    with working(streams, "loading the model"):
        from zonkey_core.inference.text_cost import load_text_cost

        return load_text_cost(directory)


def check_level(name: str | None, level: int | None) -> None:
    """Raise `BadValueError` when model `name` has no level `level`; reads no weights and imports no torch."""
    if level is not None and level > (highest := highest_level(name)):
        raise BadValueError(f"--level {level}: {resolve_model(name)} has levels 0 to {highest}")


def highest_level(name: str | None) -> int:
    """The highest level of model `name`; reads no weights and imports no torch."""
    from zonkey_core.checkpoint import read_model_card

    return len(read_model_card(resolve_model(name)).config.model.levels) - 1


def _bundled_directory() -> Path:
    """The folder of the model that comes with the package."""
    import zonkey_core

    return Path(zonkey_core.__path__[0]) / "pretrained"
