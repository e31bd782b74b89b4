"""What the verbs share: the command class with its manual sections, and the options that mean the same everywhere."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import click
from click.core import ParameterSource

from zonkey_cli.models import BUNDLED, known_models
from zonkey_cli.streams import Streams

F = TypeVar("F", bound=Callable[..., Any])

DEVICES = ("auto", "cpu", "cuda", "mps")
WIKI_CONFIG = "20231101.en"
FILE = click.Path(allow_dash=True)
"""An input file or `-`; whether it can be read is found out on opening it, since a missing file is a soft error."""
LARGEST_SEED = (1 << 62) - 1
LONGEST_SECONDS = 1e9
_RANKS = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


@dataclass(frozen=True)
class Manual:
    """What the manual page and `--help` of a verb say beyond its options; each pair is a term and its explanation."""

    examples: Sequence[tuple[str, str]] = ()
    exit_status: Sequence[tuple[str, str]] = ()
    environment: Sequence[tuple[str, str]] = ()
    files: Sequence[tuple[str, str]] = ()


class Verb(click.Command):
    """A command with the sections of its manual page."""

    def __init__(self, *args: Any, manual: Manual, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.manual = manual

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """End the help with the examples."""
        with formatter.section("Examples"):
            for command, explanation in self.manual.examples:
                formatter.write_text(f"$ {command}")
                with formatter.indentation():
                    formatter.write_text(explanation)


class FiniteRange(click.FloatRange):
    """A range of numbers in which infinity and what is no number do not lie."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuse them as other values out of range are."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Duration(click.ParamType[float, str]):
    """A time in seconds, written as 30s, 2m, 1.5h, or a number of seconds."""

    name = "duration"
    _UNITS: ClassVar[dict[str, int]] = {"": 1, "s": 1, "m": 60, "h": 3600}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of seconds, above 0."""
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smh]?)", str(value).strip())
        seconds = float(match[1]) * self._UNITS[match[2]] if match else 0.0
        if not 0 < seconds <= LONGEST_SECONDS:
            self.fail(f"{str(value)!r} is no time above 0, as 30s, 2m or 1h.", param, ctx)
        return seconds


class ModelName(click.ParamType[str, str]):
    """The name or folder of a model, completed from the known names and from folders."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Offer the known names, or folders when none fits."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name) for name in known_models() if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="dir")]


def one_of(context: click.Context, *names: str) -> str | None:
    """The one parameter among alternatives that was given, or None; see `compatible`."""
    return next(iter(compatible(context, *names)), None)


def compatible(context: click.Context, *names: str, together: Sequence[set[str]] = ()) -> list[str]:
    """The parameters among alternatives that were given; only the pairs in `together` may be.

    The command line outranks the environment, which outranks the settings files; two of the same rank exclude each
    other, and of two ranks the higher has its way.
    """
    kept: list[str] = []
    for rank in _RANKS:
        given = [
            name for name in names
            if context.params[name] not in (None, False, ()) and context.get_parameter_source(name) is rank
        ]
        for first, second in itertools.combinations(given, 2):
            if {first, second} not in together:
                flags = f"{_flag(context, first)} and {_flag(context, second)}"
                raise click.UsageError(f"{flags} exclude each other.", context)
        kept += [name for name in given if all({name, other} in together for other in kept)]
    return kept


def forbid_with(context: click.Context, name: str, *others: str) -> None:
    """Raise a usage error when the command line gives any of `others`, which make no sense beside `name`."""
    for other in others:
        if context.get_parameter_source(other) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{_flag(context, other)} cannot be used with {_flag(context, name)}.", context)


def require_with(context: click.Context, name: str, other: str) -> None:
    """Raise a usage error when the command line gives `name`, which makes no sense without `other`, alone."""
    if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and not context.params[other]:
        raise click.UsageError(f"{_flag(context, name)} needs {_flag(context, other)}.", context)


def common_options(function: F) -> F:
    """`-q`, `-v` and `--debug`, which set up the streams before the verb begins."""
    for option in (
        click.option(
            "--debug", is_flag=True, expose_value=False, callback=_set_debug, envvar="ZONKEY_DEBUG",
            help="Show the traceback of an unexpected error.",
        ),
        click.option(
            "-v", "--verbose", count=True, expose_value=False, callback=_set_verbose, envvar="ZONKEY_VERBOSE",
            help="Say more on standard error.",
        ),
        click.option(
            "-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, envvar="ZONKEY_QUIET",
            help="Say nothing on standard error but errors.",
        ),
    ):
        function = option(function)
    return function


model_option = click.option(
    "-m", "--model", type=ModelName(), metavar="DIR|NAME", default=BUNDLED, show_default=True, envvar="ZONKEY_MODEL",
    help="The model: its folder, or the name of one in the models directory.",
)
def _device_option(help_text: str) -> Callable[[F], F]:
    """`--device`, with what it means to the verb."""
    return click.option(
        "--device", metavar=f"[{'|'.join(DEVICES)}]", default="auto", show_default=True, envvar="ZONKEY_DEVICE",
        help=help_text,
        shell_complete=lambda context, parameter, incomplete: [name for name in DEVICES if name.startswith(incomplete)],
    )


device_option = _device_option("Where to compute; auto takes a GPU when there is one, and cuda:1 the second.")
cutting_device_option = _device_option(
    "Where to compute; auto is the processor, which starts soonest, and cuda:1 the second GPU."
)
steps_option = click.option(
    "--steps", type=click.IntRange(min=1, max=128), metavar="N", default=8, show_default=True,
    help="Evaluations in which open slots are written, at most 128: fewer are faster, and write more side by side.",
)
temperature_option = click.option(
    "--temperature", type=click.FloatRange(min=0), metavar="T", default=1.0, show_default=True,
    help="How freely text is drawn; 0 always takes the likeliest.",
)


data_config_option = click.option(
    "--data-config", metavar="NAME", default=WIKI_CONFIG, show_default=True,
    help="Date and language of the Wikipedia dump.",
)
data_dir_option = click.option(
    "--data-dir", metavar="DIR", type=click.Path(), envvar="ZONKEY_WIKI_DIR",
    help="A local copy of the dataset wikimedia/wikipedia, instead of the Hugging Face hub.",
)


def seed_option(help_text: str) -> Callable[[F], F]:
    """`--seed`, with what it means to the verb."""
    return click.option(
        "--seed", type=click.IntRange(min=0, max=LARGEST_SEED), metavar="N", envvar="ZONKEY_SEED", help=help_text
    )


def null_option(help_text: str) -> Callable[[F], F]:
    """`-0`, with what it ends by NUL."""
    return click.option("-0", "--null", is_flag=True, help=help_text)


def json_option(help_text: str) -> Callable[[F], F]:
    """`--json`, with what the objects hold."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def draw_seed(streams: Streams, seed: int | None) -> int:
    """`seed`, or one drawn by chance, which `-v` tells so that the run can be repeated."""
    if seed is not None:
        return seed
    import secrets

    drawn = secrets.randbelow(1 << 31)
    streams.detail(f"seed {drawn}")
    return drawn


def _flag(context: click.Context, name: str) -> str:
    """The spelling of parameter `name` in messages."""
    return next(max(parameter.opts, key=len) for parameter in context.command.params if parameter.name == name)


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_object(Streams).debug = True  # type: ignore[union-attr]


def _set_verbose(context: click.Context, parameter: click.Parameter, value: int) -> None:
    if value:
        context.find_object(Streams).verbosity = value  # type: ignore[union-attr]


def _set_quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_object(Streams).verbosity = -1  # type: ignore[union-attr]
