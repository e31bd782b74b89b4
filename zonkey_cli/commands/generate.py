"""`zonkey generate`: text from noise, each sample written when it is ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zonkey_cli.console import error_console, working
from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.models import check_level, load_writer
from zonkey_cli.options import (
    Manual,
    Verb,
    common_options,
    device_option,
    draw_seed,
    json_option,
    model_option,
    null_option,
    one_of,
    seed_option,
    steps_option,
    temperature_option,
)
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.inference.generation import Sample

MANUAL = Manual(
    examples=(
        ("zonkey generate", "One text of the model's own choice of length."),
        ("zonkey generate -n 5 --seed 7", "Five texts, the same five every time."),
        ("zonkey generate --prompt 'The town of' --max-bytes 200", "A text that begins with these words."),
        ("zonkey generate -n 100 --json > samples.jsonl", "A hundred texts for a program to read."),
        ("zonkey generate --watch --seed 7", "Watch a text form from noise."),
        ("zonkey generate --best-of 8", "The likeliest of eight, by the model's own score."),
    ),
)


@click.command("generate", cls=Verb, manual=MANUAL, short_help="Write new text from noise.")
@click.option(
    "-n", "--count", type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="How many texts."
)
@click.option(
    "--max-bytes", type=click.IntRange(min=1), metavar="N", default=512, show_default=True,
    help="The most bytes in a text; it may end earlier on its own.",
)
@click.option("--prompt", metavar="TEXT", default="", help="The beginning of every text.")
@click.option(
    "--best-of", type=click.IntRange(min=1), metavar="K", default=1, show_default=True,
    help="Write K texts for each one that is wanted, and keep the likeliest.",
)
@click.option("--watch", is_flag=True, help="Show on the terminal how each text forms.")
@click.option(
    "--level", type=click.IntRange(min=0), metavar="N", default=None,
    help="The highest level that forms the text; the top one by default. At 0 the lowest level stands alone.",
)
@seed_option("Seed of the first text; the next has the next seed.  [default: by chance]")
@steps_option
@temperature_option
@json_option("Write one object a line: seed, text; with --best-of, score.")
@null_option("End each text by NUL.")
@model_option
@device_option
@common_options
@click.pass_context
def command(
    context: click.Context,
    count: int,
    max_bytes: int,
    prompt: str,
    best_of: int,
    watch: bool,
    level: int | None,
    seed: int | None,
    steps: int,
    temperature: float,
    as_json: bool,
    null: bool,
    model: str,
    device: str,
) -> ExitCode:
    """Write new text from noise.

    Up to 512 bytes at a time take shape side by side, in as many streams as --steps makes necessary, several texts at
    once, and each text ends where the model says that it ends. Text i of several is the one that its seed, the first
    seed + i, gives alone, so -n 1 is the first of -n 5. A blank line parts the texts unless --json or --null is given.
    With --watch, which needs a terminal on standard error, texts are written one after another.
    """
    streams = context.ensure_object(Streams)
    style = one_of(context, "as_json", "null")
    check_level(model, level)
    first = draw_seed(streams, seed)
    zonkey = load_writer(streams, model, device=device)
    from zonkey_core.inference.generation import SamplingOptions, generate

    options = SamplingOptions(
        steps=steps, temperature=temperature, max_bytes=max_bytes, level=level, best_of=best_of
    )
    seeds = [first + index for index in range(count)]
    start = prompt.encode("utf-8", "surrogateescape")
    if watch and streams.shows_progress:
        from zonkey_cli.forming_view import forming_view

        for index, seed in enumerate(seeds):
            with forming_view(streams) as show:
                (sample,) = generate(zonkey, seeds=[seed], options=options, prompt=start, watch=show)
            _hand_over(streams, sample, style=style, number=index, count=count)
        return ExitCode.DONE
    samples = iter(generate(zonkey, seeds=seeds, options=options, prompt=start))
    for index in range(count):
        with working(streams, f"writing text {index + 1} of {count}"):
            sample = next(samples)
        _hand_over(streams, sample, style=style, number=index, count=count)
    return ExitCode.DONE


def _hand_over(streams: Streams, sample: Sample, *, style: str | None, number: int, count: int) -> None:
    """Write text `number` of `count`."""
    if style is None and count > 1:
        _heading(streams, sample.seed)
    _write(streams, sample, style=style, last=number == count - 1)


def _heading(streams: Streams, seed: int) -> None:
    """Tell a reader at a terminal which seed the next text comes from."""
    if streams.shows_progress and streams.stdout_is_terminal:
        error_console(streams).print(f"seed {seed}", style="dim")


def _write(streams: Streams, sample: Sample, *, style: str | None, last: bool) -> None:
    """Write one text and hand it over."""
    if style == "as_json":
        scored = {} if sample.score is None else {"score": sample.score}
        streams.write_json({"seed": sample.seed, "text": sample.text.decode("utf-8", "replace"), **scored})
    elif style == "null":
        streams.write(sample.text + b"\0", null=True)
    else:
        streams.write(sample.text + (b"\n" if last else b"\n\n"))
    streams.flush()
