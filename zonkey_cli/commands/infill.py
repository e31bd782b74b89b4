"""`zonkey infill`: text with gaps in, the same text with the gaps filled out; no other byte changes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import click

from zonkey_cli.console import progress
from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.files import Inputs, edit_in_place
from zonkey_cli.gap_session import GapSession, NoTerminalError, Terminal
from zonkey_cli.infill_formats import as_object, write_candidates, write_diff, write_text
from zonkey_cli.models import load_writer
from zonkey_cli.options import (
    FILE,
    Manual,
    Verb,
    common_options,
    device_option,
    draw_seed,
    json_option,
    model_option,
    one_of,
    seed_option,
    steps_option,
    temperature_option,
)
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.inference.gap_windows import Gap
    from zonkey_core.inference.infilling import Candidate, Fill, InfillingOptions
    from zonkey_core.model.model import Zonkey

LARGEST_TEXT = 1 << 28
"""Bytes of the longest text, which is held whole; what has no end, as a device, is longer."""

MANUAL = Manual(
    examples=(
        ("echo 'The capital of France ___ Paris.' | zonkey infill", "Fill one gap."),
        ("zonkey infill -i.orig letter.txt", "Fill a file in place, and keep the old one as letter.txt.orig."),
        ("zonkey infill --interactive -i letter.txt", "Choose among candidates, gap by gap."),
        ("zonkey infill --diff letter.txt | git apply", "See what changes, or hand it to git."),
        ("zonkey infill --mask '[...]' --seed 3 notes.txt", "Gaps written in another way, filled the same every time."),
        ("zonkey infill --mask-regex '<(gap|hole) ?/>' page.html", "Gaps written in several ways."),
        ("zonkey infill --json notes.txt | jq '.fills[].text'", "Only what goes into the gaps."),
        ("zonkey infill -k 5 --all notes.txt", "Five candidates for each gap, the best first, with their scores."),
        (":'<,'>!zonkey infill -q", "In vim: select lines that hold ___, and let them be filled."),
        (":!zonkey infill -q --interactive -i %", "In vim: choose gap by gap in the open file; :e then shows it."),
        ('{"label": "infill", "type": "shell", "command": "zonkey", "args": ["infill", "-q", "-i", "${file}"]}',
         "In VS Code: a task for .vscode/tasks.json, which fills the file that is open; with --interactive before -i, "
         "it asks in the terminal panel."),
    ),
    exit_status=(
        ("1", "A file could not be read or replaced, no file has a gap, a gap could not be filled and stays as it was, "
              "or nothing was chosen."),
        ("2", "--interactive without a terminal."),
    ),
)  # fmt: skip

MOST_CANDIDATES = 1000
OTHER_DRAWS = 1_000_003
"""What parts the seeds of draws for the same gap."""
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
    "--mask-regex", metavar="RE",
    help="The same as a regular expression of Python's, over bytes; empty matches are no gaps.",
)
@click.option(
    "-i", "--in-place", metavar="[SUFFIX]",
    help="Replace each FILE by the result; with SUFFIX, attached to the option, keep the old file under that ending.",
)
@click.option("--diff", is_flag=True, help="Write a unified diff of the change.")
@click.option("--interactive", is_flag=True, help="Ask at the terminal what goes into each gap, among candidates.")
@click.option(
    "-k", "--candidates", type=click.IntRange(min=1, max=MOST_CANDIDATES), metavar="N", default=8, show_default=True,
    help="Fills to draw for each gap. They are ranked by how likely the model finds the fill and the text after it.",
)
@click.option("--all", "every", is_flag=True, help="Write all candidates, one a line: offset of the gap, score, text.")
@click.option("--min-bytes", type=click.IntRange(min=0), metavar="N", default=0, help="Bytes of a fill at least.")
@click.option("--max-bytes", type=click.IntRange(min=0), metavar="N", help="Bytes of a fill at most.")
@seed_option("Seed of the draws, the same for every file.  [default: by chance]")
@steps_option
@temperature_option
@json_option(
    "Write one object for each file instead of its text: file, fills (start, end, text, score, candidates); text is "
    "null where a gap stays."
)
@model_option
@device_option
@common_options
@click.pass_context
def command(
    context: click.Context,
    files: tuple[str, ...],
    mask: str | None,
    mask_regex: str | None,
    in_place: str | None,
    diff: bool,
    interactive: bool,
    candidates: int,
    every: bool,
    min_bytes: int,
    max_bytes: int | None,
    seed: int | None,
    steps: int,
    temperature: float,
    as_json: bool,
    model: str,
    device: str,
) -> ExitCode:
    """Fill the gaps in existing text.

    A gap is a run of three or more underscores, or what --mask or --mask-regex says. Its length says nothing about how
    much goes in. Every byte outside the gaps stays as it is. Text is read from each FILE, or from standard input when
    there is none or it is "-", and the result goes to standard output, or with --in-place into the file, in one step;
    on a terminal, fills are green. In --json and --all, gaps are told by their byte offsets in the input.

    The same seed fills a gap in the same way, whatever other gaps there are far from it.

    With --interactive, each gap is shown with numbered candidates: a number takes one, Enter the first; n draws others,
    t types your own, s skips, u undoes, q ends. Nothing is written before the last question is answered.
    """
    streams = context.ensure_object(Streams)
    _check_in_place(context, in_place, files)
    one_of(context, "as_json", "every", "diff")
    one_of(context, "every", "interactive")
    if max_bytes is not None and max_bytes < min_bytes:
        raise click.BadParameter(f"it is less than --min-bytes {min_bytes}.", context, param_hint="'--max-bytes'")
    pattern = _gap_pattern(context, mask, mask_regex)
    first = draw_seed(streams, seed)
    from zonkey_core.inference.infilling import InfillingOptions

    options = InfillingOptions(
        steps=steps, temperature=temperature, candidates=candidates, min_bytes=min_bytes, max_bytes=max_bytes
    )
    filler = _Filler(streams, model=model, device=device, pattern=pattern, seed=first, options=options)
    terminal = _open_terminal(context) if interactive else None
    output = _Output(in_place, diff=diff, every=every, as_json=as_json)
    inputs = Inputs(streams, files)
    for name, file in inputs:
        _infill_file(streams, inputs, filler, name, file, output, terminal)
    if not filler.gaps and not inputs.failed:
        marked = f"--mask-regex {mask_regex} matches nothing" if mask_regex else f"mark one with {mask or '___'}"
        streams.note(f"no gap found; {marked}")
    return ExitCode.DONE if filler.filled and not inputs.failed else ExitCode.SOFT_FAILURE


def _check_in_place(context: click.Context, suffix: str | None, files: tuple[str, ...]) -> None:
    """Raise a usage error when `--in-place` has nothing to replace, or a suffix that leads elsewhere."""
    if suffix is None:
        return
    if not files or "-" in files:
        raise click.UsageError("--in-place needs files; standard input cannot be replaced.", context)
    if os.sep in suffix:
        raise click.BadParameter(f"{suffix!r} holds a {os.sep!r}.", context, param_hint="'--in-place'")


def _gap_pattern(context: click.Context, mask: str | None, regex: str | None) -> re.Pattern[bytes] | None:
    """What marks a gap; None for the default."""
    chosen = one_of(context, "mask", "mask_regex")
    if mask == "" or regex == "":
        raise click.BadParameter(
            "a mask needs at least one character.", context, param_hint="'--mask'" if mask == "" else "'--mask-regex'"
        )
    if chosen == "mask_regex" and regex is not None:
        try:
            return re.compile(regex.encode("utf-8", "surrogateescape"))
        except (re.error, OverflowError, RecursionError) as error:
            raise click.BadParameter(f"{regex!r}: {error}.", context, param_hint="'--mask-regex'") from error
    return re.compile(re.escape(mask.encode("utf-8", "surrogateescape"))) if chosen == "mask" and mask else None


def _open_terminal(context: click.Context) -> Terminal:
    try:
        return Terminal()
    except NoTerminalError as error:
        raise click.UsageError("--interactive asks at a terminal, and there is none.", context) from error


class _Output(NamedTuple):
    """What is written, and where."""

    suffix: str | None
    """Of the old file, where files are replaced."""
    diff: bool
    every: bool
    as_json: bool

    def write(self, streams: Streams, name: str, data: bytes, gaps: Sequence[Gap], fills: Sequence[Fill]) -> None:
        """Put the result where it belongs; raises `OSError` where a file cannot be replaced."""
        from zonkey_core.inference.infilling import apply_fills

        if self.as_json:
            streams.write_json(as_object(name, gaps, fills))
        elif self.every:
            write_candidates(streams, fills)
        elif self.diff:
            write_diff(streams, name, data, fills)
        elif self.suffix is None:
            write_text(streams, data, fills)
        if self.suffix is not None:
            new = apply_fills(data, fills)
            if new != data:
                edit_in_place(name, data, new, suffix=self.suffix)


class _Filler:
    """Fills gaps with one model, which is loaded at the first gap, and counts the gaps."""

    def __init__(
        self,
        streams: Streams,
        *,
        model: str,
        device: str,
        pattern: re.Pattern[bytes] | None,
        seed: int,
        options: InfillingOptions,
    ) -> None:
        self.gaps = self.filled = 0
        self._streams = streams
        self._name = model
        self._device = device
        self._pattern = pattern
        self._seed = seed
        self._options = options
        self._model: Zonkey | None = None

    def find(self, data: bytes) -> list[Gap]:
        """The gaps of `data`."""
        from zonkey_core.inference.gap_windows import find_gaps

        gaps = find_gaps(data, self._pattern)
        self.gaps += len(gaps)
        return gaps

    def fill(self, data: bytes, gaps: Sequence[Gap], *, draws: int = 0) -> list[Fill]:
        """What goes into each gap of `data` that can be filled; other fills where some were drawn before."""
        from zonkey_core.inference.infilling import infill
        from zonkey_core.inference.model_copies import keep_one_precision

        if not gaps:
            return []
        if self._model is None:
            self._model = load_writer(self._streams, self._name, device=self._device)
            keep_one_precision(self._model)
        with progress(self._streams, "filling gaps", len(gaps)) as advance:
            return infill(
                self._model, data, gaps, seed=self._seed + OTHER_DRAWS * draws, options=self._options, on_filled=advance
            )

    def ask(self, terminal: Terminal, name: str, data: bytes, gaps: Sequence[Gap]) -> list[Fill]:
        """What a person puts into the gaps."""
        from zonkey_core.inference.gap_windows import CONTEXT_BYTES
        from zonkey_core.inference.infilling import Fill

        def draw(text: bytes, left: Sequence[Gap], draws: int) -> Sequence[Candidate]:
            near = [gap for gap in left if gap.start <= left[0].end + CONTEXT_BYTES]
            fills = self.fill(text, near, draws=draws)
            return fills[0].candidates if fills and fills[0].start == left[0].start else ()

        chosen = GapSession(terminal, name, data, gaps, draw).run() if gaps else None
        return [Fill(gap.start, gap.end, text, 0.0) for gap, text in chosen or []]


def _infill_file(
    streams: Streams,
    inputs: Inputs,
    filler: _Filler,
    name: str,
    file: BinaryIO,
    output: _Output,
    terminal: Terminal | None,
) -> None:
    """Fill the gaps of one file and put the result where it belongs."""
    try:
        data = file.read(LARGEST_TEXT + 1)
    except OSError as error:
        inputs.fail(name, error)
        return
    if len(data) > LARGEST_TEXT:
        inputs.fail(name, f"longer than {LARGEST_TEXT:,} bytes, which is the most that is held at once; divide it")
        return
    if output.suffix is not None and not os.path.isfile(name):
        inputs.fail(name, "not a regular file, so it cannot be replaced")
        return
    gaps = filler.find(data)
    fills = filler.fill(data, gaps) if terminal is None else filler.ask(terminal, name, data, gaps)
    filler.filled += len(fills)
    try:
        output.write(streams, name, data, gaps, fills)
    except OSError as error:
        if output.suffix is None:
            raise
        inputs.fail(name, error)
    streams.flush()
    if terminal is None and len(fills) < len(gaps):
        found = {fill.start for fill in fills}
        offsets = ", ".join(str(gap.start) for gap in gaps if gap.start not in found)
        inputs.fail(name, f"no fill of the length asked for at byte {offsets}; more candidates (-k) may find one")
