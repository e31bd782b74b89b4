"""`zonkey segment`: text in, its learned segments out, as the text arrives."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

import click

from zonkey_cli.escaping import BadEscapeError, undo
from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.files import Inputs, written_whole
from zonkey_cli.models import check_level, highest_level, load_cutting_levels, load_estimator
from zonkey_cli.options import (
    FILE,
    FiniteRange,
    Manual,
    Verb,
    common_options,
    compatible,
    cutting_device_option,
    forbid_with,
    json_option,
    model_option,
    null_option,
    require_with,
)
from zonkey_cli.segment_runs import Cutting, Shown, runs
from zonkey_cli.streams import Streams
from zonkey_cli.threads import shared_executor

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from zonkey_cli.segment_formats import Format

MANUAL = Manual(
    examples=(
        ("zonkey segment book.txt | sort | uniq -c | sort -rn | head", "The commonest segments of a book."),
        ("echo 'the unbelievable truth' | zonkey segment --join '|'", "Running text with the cuts marked."),
        ("zonkey segment --level 1 book.txt", "Sentence-like segments, one a line."),
        ("zonkey segment book.txt | zonkey segment --undo | cmp - book.txt", "There and back, byte for byte."),
        ("zonkey segment --prob book.txt | awk '$1 < 0.9' | cut -f2-", "The segments whose cut the model doubts."),
        ("zonkey segment --bytes-per-segment 4 book.txt", "Shorter segments, at the rate of a common tokenizer."),
        ("tail -f log | zonkey segment --line-buffered", "The segments of each line as soon as it is there."),
        ("zonkey segment --tree --json book.txt | jq '.segments | length'", "How many words a sentence has."),
        ("zonkey segment --stats --top 50 *.txt", "What the segments of many files are like."),
        ("zonkey segment --html page.html book.txt", "A page to look at, with every level and probability."),
    ),
    exit_status=(("1", "A file could not be read, or the input of --undo is no output of segment."),),
)

_CUTTING = ("threshold", "bytes_per_segment", "bits_per_segment", "line_buffered")
_FORMATS = ("as_json", "null", "join", "prob", "tree", "stats", "html")
_TOGETHER = ({"as_json", "tree"}, {"as_json", "stats"}, {"null", "prob"})
"""The formats that can be had together."""


@click.command("segment", cls=Verb, manual=MANUAL, short_help="Cut text into the segments that the model learned.")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=FILE)
@click.option(
    "--level", type=click.IntRange(min=0), metavar="N",
    help="Whose segments: 0 is word-like, 1 sentence-like, and so on.  "
    "[default: 0; with --tree and --html the model's highest]",
)
@click.option(
    "--threshold", type=FiniteRange(min=0, max=1, min_open=True, max_open=True), metavar="P",
    help="Cut where the probability is above P at the level shown; levels below keep 0.5, as the model was trained.  "
    "[default: 0.5]",
)
@click.option(
    "--bytes-per-segment", type=FiniteRange(min=1, min_open=True), metavar="R",
    help="Choose the threshold for segments of R bytes on average, on the first 64 KiB of each file.",
)
@click.option(
    "--bits-per-segment", type=FiniteRange(min=0, min_open=True), metavar="R",
    help="The same for R bits of information by the model's own estimate, of which words of all languages have about "
    "as much.",
)
@click.option(
    "--line-buffered/--no-line-buffered", default=None,
    help="Cut each line as a text of its own and write its segments at once; slower on long files. On for standard "
    "input that is a terminal, unless a length of segments is given.",
)
@click.option("--join", metavar="STR", help="Write running text with STR between segments, nothing escaped.")
@click.option(
    "--prob", is_flag=True,
    help="Show the probability of the cut at each segment's start: before it, with a tab between, or on a terminal by "
    "how its first character is shaded.",
)
@click.option("--tree", is_flag=True, help="Write segments nested, from level N to 0: each above those it is made of.")
@click.option(
    "--stats", is_flag=True,
    help="Write what the segments of all files are like: number, lengths, and the most frequent. "
    "Distinct segments are held in memory.",
)
@click.option(
    "--top", type=click.IntRange(min=0), metavar="N", default=20, show_default=True,
    help="How many of the most frequent segments --stats shows.",
)
@click.option(
    "--html", metavar="PAGE",
    help="Write a page with the segments of level N and all below, and their probabilities, to the file PAGE; "
    "- is standard output.",
)
@json_option(
    "Write one object a line: file, level, start and end in bytes, prob of the cut at start, text; with --tree also "
    "segments, with --stats one object with all figures."
)
@null_option(r"End each segment by NUL; only NUL and backslash are escaped, as \0 and \\.")
@click.option("--undo", is_flag=True, help="Turn lines (with -0, NUL-terminated records) back into the exact text.")
@model_option
@cutting_device_option
@common_options
@click.pass_context
def command(
    context: click.Context,
    files: tuple[str, ...],
    level: int | None,
    threshold: float | None,
    bytes_per_segment: float | None,
    bits_per_segment: float | None,
    line_buffered: bool | None,
    join: str | None,
    prob: bool,
    tree: bool,
    stats: bool,
    top: int,
    html: str | None,
    as_json: bool,
    null: bool,
    undo: bool,
    model: str,
    device: str,
) -> ExitCode:
    r"""Cut text into the segments that the model learned.

    Text is read from each FILE, or from standard input when there is none or it is "-", and used as it arrives, in
    bounded memory. Any bytes are text.

    Each segment becomes one line in which newline, tab, carriage return and backslash are written \n, \t, \r and \\,
    and every other byte stands for itself. On a terminal, without a format option, running text appears instead with
    its segments in alternating colours. In --json, text holds the replacement character where a segment is not valid
    UTF-8; start and end count bytes and are exact.

    Where the model's window allows no longer segment, it forces a cut, whatever its probability.
    """
    streams = context.ensure_object(Streams)
    inputs = Inputs(streams, files)
    if undo:
        forbid_with(context, "undo", "level", "top", *_CUTTING, *(name for name in _FORMATS if name != "null"))
        _undo(streams, inputs, end=b"\0" if null else b"\n")
    else:
        require_with(context, "top", "stats")
        formats = compatible(context, *_FORMATS, together=_TOGETHER)
        ways = compatible(context, *_CUTTING, together=[{"threshold", "line_buffered"}])
        _check_page(context, inputs, html if "html" in formats else None)
        executor = shared_executor() if device in ("auto", "cpu") else None
        check_level(model, level)
        if level is None:
            level = highest_level(model) if {"tree", "html"} & {*formats} else 0
        cutting = Cutting(
            level=level,
            threshold=threshold if "threshold" in ways else None,
            bytes_per_segment=bytes_per_segment if "bytes_per_segment" in ways else None,
            bits_per_segment=bits_per_segment if "bits_per_segment" in ways else None,
            line_buffered=False if {"bytes_per_segment", "bits_per_segment"} & {*ways} else line_buffered,
        )
        _segment(
            streams, inputs, cutting, model=model, device=device, executor=executor,
            page=html if "html" in formats else None,
            make_format=lambda: _format(streams, formats, level=cutting.level, join=join, top=top),
        )
    return ExitCode.SOFT_FAILURE if inputs.failed else ExitCode.DONE


def _check_page(context: click.Context, inputs: Inputs, page: str | None) -> None:
    """Raise a usage error when `page` names no file, or one that is read."""
    if page == "":
        raise click.BadParameter("the name of a file needs at least one character.", context, param_hint="'--html'")
    if page is None or not os.path.isfile(page):
        return
    for name in inputs.names:
        with contextlib.suppress(OSError, ValueError):
            if os.path.samestat(inputs.status(name), os.stat(page)):
                raise click.UsageError(f"--html {page} is also an input; give the page a name of its own.", context)


def _format(streams: Streams, formats: Collection[str], *, level: int, join: str | None, top: int) -> Format:
    """What writes the segments in the chosen formats."""
    from zonkey_cli.segment_formats import Coloured, Joined, JsonLines, Records

    if "html" in formats:
        from zonkey_cli.segment_page import Page

        return Page(level=level)
    if "stats" in formats:
        from zonkey_cli.segment_stats import Stats, drawn_report, json_report, plain_report

        plain = drawn_report if streams.colours_output else plain_report
        return Stats(level=level, top=top, report=json_report if "as_json" in formats else plain)
    if "as_json" in formats:
        return JsonLines(nested="tree" in formats)
    if "tree" in formats:
        from zonkey_cli.segment_tree import DrawnTree, IndentedTree

        return DrawnTree() if streams.colours_output else IndentedTree()
    if "join" in formats and join is not None:
        return Joined(join.encode("utf-8", "surrogateescape"))
    if streams.colours_output and "null" not in formats:
        return Coloured(prob="prob" in formats)
    return Records(null="null" in formats, prob="prob" in formats)


def _segment(
    streams: Streams,
    inputs: Inputs,
    cutting: Cutting,
    *,
    model: str,
    device: str,
    executor: Executor | None,
    page: str | None,
    make_format: Callable[[], Format],
) -> None:
    """Write the segments of every input; nothing is loaded or written when none can be opened."""
    files = iter(inputs)
    first = next(files, None)
    if first is None:
        return
    levels = load_cutting_levels(streams, model, device=device, level=cutting.level, executor=executor)
    estimate = None if cutting.bits_per_segment is None else load_estimator(streams, model)
    form = make_format()
    with _output(streams, page, form) as write:
        shown = Shown(form, write)
        for found in runs(streams, inputs, itertools.chain([first], files), levels, estimate, cutting, shown):
            shown.show(found)
        shown.begin_files()
        write(form.end())


@contextlib.contextmanager
def _output(streams: Streams, page: str | None, form: Format) -> Iterator[Callable[[bytes], object]]:
    """The function that writes to the file `page`, or to standard output, which gets every piece at once."""
    if page is not None and page != "-":
        with written_whole(page) as file:
            yield file.write
        return

    def write(data: bytes) -> None:
        if data:
            streams.write(data, styled=form.styled, null=form.null)
            streams.flush()

    yield write


def _undo(streams: Streams, inputs: Inputs, *, end: bytes) -> None:
    """Write the text that the records of every input were made of."""
    for name, file in inputs:
        try:
            for piece in undo(inputs.chunks(name, file), end=end):
                streams.write(piece)
                streams.flush()
        except BadEscapeError as error:
            inputs.fail(name, str(error))
