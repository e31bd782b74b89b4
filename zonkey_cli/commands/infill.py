"""`zonkey infill`: text with gaps in, the same text with the gaps filled out; no other byte changes."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, BinaryIO

import click

from zonkey_cli.console import working
from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.files import Inputs, edit_in_place
from zonkey_cli.models import load_model
from zonkey_cli.options import (
    FILE,
    Manual,
    Verb,
    common_options,
    device_option,
    draw_seed,
    json_option,
    model_option,
    seed_option,
    steps_option,
    temperature_option,
)
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.inference.infilling import Fill, Gap, InfillingOptions
    from zonkey_core.model.model import Zonkey

MANUAL = Manual(
    examples=(
        ("echo 'The capital of France ___ Paris.' | zonkey infill", "Fill one gap."),
        ("zonkey infill -i.orig letter.txt", "Fill a file in place, and keep the old one as letter.txt.orig."),
        ("zonkey infill --mask '[...]' --seed 3 notes.txt", "Gaps written in another way, filled the same every time."),
        ("zonkey infill --json notes.txt | jq '.fills[].text'", "Only what goes into the gaps."),
    ),
    exit_status=(("1", "A file could not be read or replaced, or no file has a gap."),),
)

_BARE_IN_PLACE = re.compile(r"(?:-([qv]*)i|--in-place)")


class InfillVerb(Verb):
    """A verb whose `-i` takes its value only when attached, as sed's does; click would take the next argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give each bare `-i` an empty value."""
        end = args.index("--") if "--" in args else len(args)
        rewritten: list[str] = []
        for argument in args[:end]:
            bare = _BARE_IN_PLACE.fullmatch(argument)
            if bare is None:
                rewritten.append(argument)
                continue
            rewritten += [f"-{bare[1]}"] if bare[1] else []
            rewritten.append("--in-place=")
        return super().parse_args(ctx, rewritten + args[end:])


@click.command("infill", cls=InfillVerb, manual=MANUAL, short_help="Fill the gaps in existing text.")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=FILE)
@click.option("--mask", metavar="STR", help="What marks a gap.  [default: three or more underscores]")
@click.option(
    "-i", "--in-place", metavar="[SUFFIX]",
    help="Replace each FILE by the result; with SUFFIX, attached to the option, keep the old file under that ending.",
)
@click.option(
    "--candidates", type=click.IntRange(min=1), metavar="N", default=8, show_default=True,
    help="Fillings to draw; the one that the model scores best is kept.",
)
@seed_option("Seed of the draws, the same for every file.  [default: by chance]")
@steps_option
@temperature_option
@json_option("Write one object for each file instead of its text: file, fills (start, end, text, score).")
@model_option
@device_option
@common_options
@click.pass_context
def command(
    context: click.Context,
    files: tuple[str, ...],
    mask: str | None,
    in_place: str | None,
    candidates: int,
    seed: int | None,
    steps: int,
    temperature: float,
    as_json: bool,
    model: str,
    device: str,
) -> ExitCode:
    """Fill the gaps in existing text.

    A gap is a run of three or more underscores, or what --mask says. Its length says nothing about how much goes in.
    All gaps of a file are filled together, and every byte outside them stays as it is. Text is read from each FILE, or
    from standard input when there is none or it is "-", and the result goes to standard output, or with --in-place
    into the file, in one step. In --json, start and end are the gap's byte offsets in the input.
    """
    streams = context.ensure_object(Streams)
    _check_in_place(context, in_place, files)
    if mask == "":
        raise click.BadParameter("a mask needs at least one character.", context, param_hint="'--mask'")
    first = draw_seed(streams, seed)
    from zonkey_core.inference.infilling import InfillingOptions

    options = InfillingOptions(steps=steps, temperature=temperature, candidates=candidates)
    filler = _Filler(streams, model=model, device=device, mask=mask, seed=first, options=options)
    inputs = Inputs(streams, files)
    for name, file in inputs:
        _infill_file(streams, inputs, filler, name, file, in_place=in_place, as_json=as_json)
    if not filler.gaps and not inputs.failed:
        streams.note(f"no gap found; mark one with {'___' if mask is None else mask}")
    return ExitCode.DONE if filler.gaps and not inputs.failed else ExitCode.SOFT_FAILURE


def _check_in_place(context: click.Context, suffix: str | None, files: tuple[str, ...]) -> None:
    """Raise a usage error when `--in-place` has nothing to replace, or a suffix that leads elsewhere."""
    if suffix is None:
        return
    if not files or "-" in files:
        raise click.UsageError("--in-place needs files; standard input cannot be replaced.", context)
    if os.sep in suffix:
        raise click.BadParameter(f"{suffix!r} holds a {os.sep!r}.", context, param_hint="'--in-place'")


class _Filler:
    """Fills gaps with one model, which is loaded at the first gap, and counts the gaps."""

    def __init__(
        self, streams: Streams, *, model: str, device: str, mask: str | None, seed: int, options: InfillingOptions
    ) -> None:
        self.gaps = 0
        self._streams = streams
        self._name = model
        self._device = device
        self._mask = None if mask is None else mask.encode("utf-8", "surrogateescape")
        self._seed = seed
        self._options = options
        self._model: Zonkey | None = None

    def fills(self, data: bytes) -> list[Fill]:
        """What goes into each gap of `data`."""
        from zonkey_core.inference.infilling import find_gaps, infill

        gaps: list[Gap] = find_gaps(data, self._mask)
        if not gaps:
            return []
        self.gaps += len(gaps)
        if self._model is None:
            self._model = load_model(self._streams, self._name, device=self._device)
        message = f"filling {len(gaps):,} {'gap' if len(gaps) == 1 else 'gaps'}"
        with working(self._streams, message) as tell:
            return infill(
                self._model, data, gaps, seed=self._seed, options=self._options,
                on_filled=lambda count: tell(f"{message}, {count:,} done"),
            )  # fmt: skip


def _infill_file(
    streams: Streams, inputs: Inputs, filler: _Filler, name: str, file: BinaryIO, *, in_place: str | None, as_json: bool
) -> None:
    """Fill the gaps of one file and put the result where it belongs."""
    from zonkey_core.inference.infilling import apply_fills

    try:
        data = file.read()
    except OSError as error:
        inputs.fail(name, error)
        return
    if in_place is not None and not os.path.isfile(name):
        inputs.fail(name, "not a regular file, so it cannot be replaced")
        return
    fills = filler.fills(data)
    if as_json:
        streams.write_json({"file": name, "fills": [_fill_object(fill) for fill in fills]})
    if in_place is None:
        if not as_json:
            streams.write(apply_fills(data, fills))
    elif fills:
        try:
            edit_in_place(name, data, apply_fills(data, fills), suffix=in_place)
        except OSError as error:
            inputs.fail(name, error)
    streams.flush()


def _fill_object(fill: Fill) -> dict[str, object]:
    """A fill for JSON."""
    return {
        "start": fill.start,
        "end": fill.end,
        "text": fill.text.decode("utf-8", "replace"),
        "score": round(fill.score, 6),
    }
