"""`zonkey segment`: text in, its learned segments out, as the text arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from zonkey_cli.escaping import BadEscapeError, line_record, null_record, undo
from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.files import Inputs
from zonkey_cli.models import check_level, load_model
from zonkey_cli.options import (
    FILE,
    Manual,
    Verb,
    common_options,
    device_option,
    forbid_with,
    json_option,
    model_option,
    null_option,
    one_of,
)
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.segmenting import Segment

_COLOURS = (b"\x1b[36m", b"\x1b[33m")
_RESET = b"\x1b[0m"

MANUAL = Manual(
    examples=(
        ("zonkey segment book.txt | sort | uniq -c | sort -rn | head", "The commonest segments of a book."),
        ("echo 'the unbelievable truth' | zonkey segment --join '|'", "Running text with the cuts marked."),
        ("zonkey segment --level 1 book.txt", "Sentence-like segments, one a line."),
        ("zonkey segment book.txt | zonkey segment --undo | cmp - book.txt", "There and back, byte for byte."),
        ("zonkey segment --json book.txt | jq .prob", "How sure the model is of each cut."),
    ),
    exit_status=(("1", "A file could not be read, or the input of --undo is no output of segment."),),
)

Render = Callable[[Iterable[bytes]], Iterator[bytes]]
"""Turns the segments of one file, in order, into what is written for each."""


@click.command("segment", cls=Verb, manual=MANUAL, short_help="Cut text into the segments that the model learned.")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=FILE)
@click.option(
    "--level", type=click.IntRange(min=0), metavar="N", default=0, show_default=True,
    help="Whose segments: 0 is word-like, 1 sentence-like, and so on.",
)
@click.option("--join", metavar="STR", help="Write running text with STR between segments, nothing escaped.")
@json_option("Write one object a line: file, level, start and end in bytes, prob of the cut at start, text.")
@null_option(r"End each segment by NUL; only NUL and backslash are escaped, as \0 and \\.")
@click.option("--undo", is_flag=True, help="Turn lines (with -0, NUL-terminated records) back into the exact text.")
@model_option
@device_option
@common_options
@click.pass_context
def command(
    context: click.Context,
    files: tuple[str, ...],
    level: int,
    join: str | None,
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
    """
    streams = context.ensure_object(Streams)
    inputs = Inputs(streams, files)
    if undo:
        forbid_with(context, "undo", "as_json", "join", "level")
        _undo(streams, inputs, end=b"\0" if null else b"\n")
    else:
        chosen = one_of(context, "as_json", "null", "join")
        check_level(model, level)
        _segment(streams, inputs, model=model, device=device, level=level, render=_renderer(streams, chosen, join))
    return ExitCode.SOFT_FAILURE if inputs.failed else ExitCode.DONE


def _renderer(streams: Streams, chosen: str | None, join: str | None) -> Render | None:
    """What writes the segments in the chosen format; None stands for JSON, which tells more than their text."""
    if chosen == "as_json":
        return None
    if chosen == "null":
        return lambda segments: map(null_record, segments)
    if chosen == "join" and join is not None:
        separator = _argument_bytes(join)
        return lambda segments: _joined(segments, separator)
    if streams.colours_output:
        return _coloured
    return lambda segments: map(line_record, segments)


def _segment(
    streams: Streams, inputs: Inputs, *, model: str, device: str, level: int, render: Render | None
) -> None:
    """Write the segments of every input; the model is loaded at the first that can be opened."""
    loaded = None
    for name, file in inputs:
        if loaded is None:
            loaded = load_model(streams, model, device=device)
        from zonkey_core.segmenting import segment_stream

        batches = segment_stream(loaded, inputs.chunks(name, file), level=level)
        if render is None:
            for batch in batches:
                _write_json(streams, name, batch)
                streams.flush()
        else:
            _write_rendered(streams, batches, render)


def _write_rendered(streams: Streams, batches: Iterable[list[Segment]], render: Render) -> None:
    """Write what `render` makes of the segments, and flush after every batch."""

    def texts() -> Iterator[bytes]:
        for batch in batches:
            for segment in batch:
                yield segment.text
            streams.flush()

    for piece in render(texts()):
        streams.write(piece)


def _write_json(streams: Streams, name: str, batch: Iterable[Segment]) -> None:
    """Write a batch as JSON lines."""
    for segment in batch:
        streams.write_json(
            {
                "file": name,
                "level": segment.level,
                "start": segment.start,
                "end": segment.end,
                "prob": round(segment.prob, 6),
                "text": segment.text.decode("utf-8", "replace"),
            }
        )


def _joined(segments: Iterable[bytes], separator: bytes) -> Iterator[bytes]:
    """Running text with `separator` between segments."""
    for index, segment in enumerate(segments):
        yield separator + segment if index else segment


def _coloured(segments: Iterable[bytes]) -> Iterator[bytes]:
    """Running text whose segments alternate in colour."""
    for index, segment in enumerate(segments):
        yield _COLOURS[index % 2] + segment + _RESET


def _argument_bytes(argument: str) -> bytes:
    """The bytes that were typed on the command line."""
    return argument.encode("utf-8", "surrogateescape")


def _undo(streams: Streams, inputs: Inputs, *, end: bytes) -> None:
    """Write the text that the records of every input were made of."""
    for name, file in inputs:
        try:
            for piece in undo(inputs.chunks(name, file), end=end):
                streams.write(piece)
                streams.flush()
        except BadEscapeError as error:
            inputs.fail(name, str(error))
