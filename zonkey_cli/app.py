"""The `zonkey` command: a group that imports a verb when it is used, and the one place where errors become exit codes.

Neither this module nor a module of a verb imports torch, datasets, rich or the model at its top, so that `--help`,
completion and mistakes in the command line answer at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn, cast

import click

from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.files import describe
from zonkey_cli.options import common_options
from zonkey_cli.settings import load_settings
from zonkey_cli.streams import Streams
from zonkey_cli.threads import TRAINING_SHAPES, WRITING_SHAPES, bound_libraries, leave_with_threads

VERBS: dict[str, str] = {
    "train": "Train a model on Wikipedia or on your own text.",
    "segment": "Cut text into the segments that the model learned.",
    "generate": "Write new text from noise.",
    "infill": "Fill the gaps in existing text.",
    "eval": "Measure a model beside floors, ceilings and rivals.",
    "info": "Show what a model is and what it was trained on.",
}
"""Every verb and its summary; the manual's test holds the summaries to those of the commands."""

_COMPLETION_VARIABLE = "_ZONKEY_COMPLETE"


class ZonkeyGroup(click.Group):
    """A group of lazy verbs whose `main` maps every way to end to an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order in which one meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb."""
        if cmd_name not in VERBS:
            return None
        return cast(click.Command, importlib.import_module(f"zonkey_cli.commands.{cmd_name}").command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command line and leave with its exit code; `obj` may bring other streams than the process's own."""
        streams: Streams = extra.setdefault("obj", None) or Streams.system()
        extra["obj"] = streams
        arguments = list(sys.argv[1:] if args is None else args)
        sys.exit(_guarded(streams, lambda: self._run(arguments, prog_name or "zonkey", extra)))

    def _run(self, arguments: list[str], prog_name: str, extra: dict[str, Any]) -> int:
        """Answer a shell's request for completions, or run the command."""
        instruction = os.environ.get(_COMPLETION_VARIABLE)
        if instruction:
            from click.shell_completion import shell_complete

            return shell_complete(self, extra, prog_name, _COMPLETION_VARIABLE, instruction)
        with self.make_context(prog_name, arguments, **extra) as context:
            return int(self.invoke(context) or ExitCode.DONE)


@click.group(cls=ZonkeyGroup, context_settings={"auto_envvar_prefix": "ZONKEY", "help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, allow_from_autoenv=False,
    callback=lambda context, parameter, value: _show_version(context) if value else None,
    help="Show the version and exit.",
)
@common_options
@click.pass_context
def cli(context: click.Context) -> None:
    """A hierarchical diffusion language model without a tokenizer.

    It learns on its own where words and sentences begin, and writes text from noise, in parallel at every level.
    """
    import warnings

    streams = context.ensure_object(Streams)
    if streams.verbosity <= 0 and not sys.warnoptions:
        warnings.simplefilter("ignore")
    context.default_map = load_settings(cli, context)
    bound_libraries(TRAINING_SHAPES if context.invoked_subcommand in ("train", "eval") else WRITING_SHAPES)


def main() -> NoReturn:
    """The entry point of the `zonkey` program."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli.main(prog_name="zonkey")
    except SystemExit as leaving:
        leave_with_threads(int(leaving.code or ExitCode.DONE))
        raise


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End on SIGTERM by way of every `finally`."""
    raise SystemExit(ExitCode.TERMINATED)


def _show_version(context: click.Context) -> NoReturn:
    from zonkey_core import __version__

    click.echo(f"zonkey {__version__}")
    context.exit()


def _guarded(streams: Streams, action: Callable[[], int]) -> int:
    """Run `action`, flush standard output, and turn whatever happens into an exit code."""
    try:
        try:
            code = action()
        except click.exceptions.Exit as leaving:
            code = leaving.exit_code
        streams.flush()
        return code
    except BrokenPipeError:
        streams.discard_output()
        return ExitCode.DONE
    except (KeyboardInterrupt, click.Abort):
        if streams.stderr_is_terminal:
            streams.note("")  # ends the line in which the terminal shows ^C
        code = ExitCode.INTERRUPTED
    except SystemExit as leaving:
        code = int(leaving.code or ExitCode.DONE)
    except Exception as error:
        code = _report(streams, error)
    return _flush_after_failure(streams, code)


def _flush_after_failure(streams: Streams, code: int) -> int:
    """Hand over what was written before a failure, where that is still possible."""
    try:
        streams.flush()
    except OSError:
        streams.discard_output()
    return code


def _report(streams: Streams, error: Exception) -> int:
    """Say in a line what went wrong, and choose the exit code."""
    from zonkey_core.errors import ConfigError, DeviceError, ZonkeyError

    if isinstance(error, click.UsageError):
        return _report_usage(streams, error)
    if isinstance(error, (ConfigError, DeviceError)):
        streams.error(str(error))
        return ExitCode.USAGE
    if isinstance(error, ZonkeyError):
        streams.error(str(error))
    elif isinstance(error, click.ClickException):
        streams.error(error.format_message())
        return error.exit_code
    elif isinstance(error, OSError) and not streams.debug:
        name = error.filename or ("standard output" if error.errno in (errno.ENOSPC, errno.EBADF) else "error")
        streams.error(f"{os.fsdecode(name)}: {describe(error)}")
    elif streams.debug:
        import traceback

        streams.error("unexpected error\n" + traceback.format_exc().rstrip())
    else:
        words = " ".join(str(error).split()) or "no message"
        streams.error(f"unexpected {type(error).__name__}: {words} (--debug shows where)")
    return ExitCode.SOFT_FAILURE


def _report_usage(streams: Streams, error: click.UsageError) -> int:
    """Say what is wrong with the command line, and where the help is."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        streams.error(f"no command given\n{error.format_message()}")
        return ExitCode.USAGE
    where = error.ctx.command_path if error.ctx else "zonkey"
    streams.error(f"{error.format_message()}\nTry '{where} --help' for help." if error.ctx else error.format_message())
    return ExitCode.USAGE
