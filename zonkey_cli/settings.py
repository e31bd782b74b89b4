"""Settings files: defaults for options, below flags and the environment and above the defaults of the program.

`./zonkey.toml` comes before `zonkey/zonkey.toml` in the user's configuration directory. A key is an option's long name;
at the top of the file it holds for every verb with that option, in a table named after a verb for that verb alone:

    model = "my-model"

    [generate]
    temperature = 0.8
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from zonkey_cli.exit_codes import BadValueError

FILE_NAME = "zonkey.toml"
_NOT_SETTINGS = {"help", "version"}

Verbs = Mapping[str, click.Command]


def settings_files() -> list[Path]:
    """The settings files that exist, the one with the last word last."""
    from platformdirs import user_config_path

    candidates = (user_config_path("zonkey", appauthor=False) / FILE_NAME, Path(FILE_NAME))
    return [path for path in candidates if path.is_file()]


def load_settings(group: click.Group, context: click.Context) -> dict[str, dict[str, Any]]:
    """For each verb, the defaults that the settings files give its parameters, as click's `default_map` wants them."""
    paths = settings_files()
    if not paths:
        return {}
    found = ((name, group.get_command(context, name)) for name in group.list_commands(context))
    verbs = {name: command for name, command in found if command is not None}
    defaults: dict[str, dict[str, Any]] = {name: {} for name in verbs}
    for path in paths:
        for name, values in _read_settings(path, verbs, context).items():
            defaults[name].update(values)
    return defaults


def _read_settings(path: Path, verbs: Verbs, context: click.Context) -> dict[str, dict[str, Any]]:
    """The checked settings of one file, by verb and parameter name."""
    from zonkey_core.config import CONFIG_BYTES, parse_toml
    from zonkey_core.safe_files import read_bounded

    try:
        tree = parse_toml(read_bounded(path, CONFIG_BYTES).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise BadValueError(f"{path}: cannot read these settings ({error})") from error
    parameters = {name: _setting_names(verb) for name, verb in verbs.items()}
    everywhere = {key for known in parameters.values() for key in known}
    defaults: dict[str, dict[str, Any]] = {name: {} for name in verbs}
    for key, value in tree.items():
        if key in verbs:
            if not isinstance(value, dict):
                raise BadValueError(f"{path}: {key!r} is a table of settings; write [{key}] on a line of its own")
            continue
        _check_key(path, key, everywhere | set(verbs))
        for name, known in parameters.items():
            if parameter := known.get(_spelling(key)):
                defaults[name][str(parameter.name)] = _checked(path, key, value, parameter, context)
    for name in verbs:
        for key, value in tree.get(name, {}).items():
            _check_key(path, key, set(parameters[name]), table=name)
            parameter = parameters[name][_spelling(key)]
            defaults[name][str(parameter.name)] = _checked(path, f"{name}.{key}", value, parameter, context)
    return defaults


def _spelling(key: str) -> str:
    """A key as options are spelled, so that `max_bytes` is `max-bytes`."""
    return key.replace("_", "-")


def _setting_names(verb: click.Command) -> dict[str, click.Parameter]:
    """The parameters of `verb` that a settings file may give, by key."""
    names: dict[str, click.Parameter] = {}
    for parameter in verb.params:
        if isinstance(parameter, click.Option):
            names[max(parameter.opts, key=len).lstrip("-")] = parameter
        elif parameter.nargs == 1:
            names[_spelling(str(parameter.name))] = parameter
    return {key: parameter for key, parameter in names.items() if key not in _NOT_SETTINGS}


def _check_key(path: Path, key: str, known: set[str], table: str = "") -> None:
    """Raise `BadValueError` with the nearest known key when `key` is unknown."""
    if _spelling(key) in known:
        return
    import difflib

    prefix = f"{table}." if table else ""
    near = difflib.get_close_matches(_spelling(key), sorted(known), n=1, cutoff=0.0)
    raise BadValueError(f"{path}: unknown key {prefix + key!r}; the nearest known key is {prefix + near[0]!r}")


def _checked(path: Path, key: str, value: Any, parameter: click.Parameter, context: click.Context) -> Any:
    """`value` as `parameter` takes it, or a `BadValueError` that names the file and the key."""
    if parameter.multiple and not isinstance(value, list):
        value = [value]
    try:
        parameter.type_cast_value(context, value)
    except click.BadParameter as error:
        raise BadValueError(f"{path}: bad value for {key!r}: {error.message}") from error
    except OverflowError as error:  # click turns numbers to whole ones without a look at their size
        raise BadValueError(f"{path}: bad value for {key!r}: {value!r} is no whole number") from error
    return value
