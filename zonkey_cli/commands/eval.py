"""`zonkey eval`: the figures of a model, each beside its floor, its ceiling and its rivals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zonkey_cli.console import parse_bytes, working
from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.models import load_model, resolve_model
from zonkey_cli.options import (
    Manual,
    Verb,
    common_options,
    data_config_option,
    data_dir_option,
    device_option,
    json_option,
    model_option,
    seed_option,
)
from zonkey_cli.streams import Streams
from zonkey_core.evaluation.tasks.runner import PARTS

if TYPE_CHECKING:
    from zonkey_cli.evaluation_view import ProgressView
    from zonkey_core.evaluation.context import EvaluationContext
    from zonkey_core.evaluation.results import Outcome

ALL = "all"
DEFAULT_LIMIT = "1MB"

MANUAL = Manual(
    examples=(
        ("zonkey eval --limit 200kB", "Everything about the bundled model, on 200 kB of the sample text."),
        ("zonkey eval segment -m my-model --data book.txt", "One part, for a model and a text of your own."),
        (
            "zonkey eval reconstruct generate --data wiki --data-dir ~/wikipedia --json > figures.json",
            "Two parts, on the test split of a local copy of Wikipedia, for a program.",
        ),
        ("zonkey eval --gold sentences.jsonl --domains letters/", "With gold sentences and texts of other domains."),
        (
            "zonkey eval segment --language Thai words.jsonl thai/",
            "With the words of a language, beside tokenizers that learn from text of it.",
        ),
    ),
    environment=(("XDG_CACHE_HOME", "The user's cache directory."),),
    files=(
        (
            "~/.cache/zonkey/eval/",
            "What need not be done again: finished parts, judges and rivals. With ZONKEY_HOME set, it is cache/eval/ "
            "there. It may be deleted at any time.",
        ),
    ),
    exit_status=(
        ("1", "A part could not be measured; the others are."),
        ("130, 143", "Stopped by the signal; finished parts are kept, and the same command goes on from there."),
    ),
)


class PartName(click.ParamType[str, str]):
    """The name of a part, or `all`."""

    name = "part"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take a known name, or name the nearest."""
        known = (*PARTS, ALL)
        if value in known:
            return value
        import difflib

        (near,) = difflib.get_close_matches(value, known, n=1, cutoff=0.0)
        self.fail(f"there is no part {value!r}; the nearest is {near!r}, of {', '.join(known)}.", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Offer the names."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in (*PARTS, ALL) if name.startswith(incomplete)]


class ByteCount(click.ParamType[int, str]):
    """A number of bytes, as 500000, 200kB or 1.5MB; units are decimal."""

    name = "bytes"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the number and its unit."""
        from zonkey_core.evaluation.texts import SMALLEST_REFERENCE

        try:
            count = parse_bytes(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        if count < SMALLEST_REFERENCE:
            self.fail(f"{value!r} is too little to measure on; give at least {SMALLEST_REFERENCE}.", param, ctx)
        return count


@click.command("eval", cls=Verb, manual=MANUAL, short_help="Measure a model beside floors, ceilings and rivals.")
@click.argument("parts", metavar=f"[{'|'.join((*PARTS, ALL))}]...", nargs=-1, type=PartName())
@click.option(
    "--data", metavar="SOURCE", multiple=True, default=("sample",), show_default=True,
    help="Held-out text to measure on: wiki (its test split), sample, a file, a folder, or - for standard input; may "
    "be repeated.",
)
@data_config_option
@data_dir_option
@click.option(
    "--train-data", metavar="SOURCE", multiple=True,
    help="Text that rivals learn from; may be repeated.  [default: a part of --data that is not measured on, or "
    "the train split of wiki]",
)
@click.option(
    "--domains", metavar="PATH", type=click.Path(), multiple=True,
    help="Text of other domains, a file each or a folder of such files; may be repeated.",
)
@click.option(
    "--gold", metavar="FILE.jsonl", type=click.Path(),
    help='Gold sentences: a JSON list a line, or an object with the field "sentences" or "paragraphs".',
)
@click.option(
    "--language", "languages", metavar="NAME WORDS.jsonl TEXT", nargs=3, type=str, multiple=True,
    help="Words of a language under the name NAME: a JSON list of words a line that add up to it, and the text that "
    "tokenizers learn from beside it, a file or a folder; may be repeated.",
)
@click.option(
    "--limit", metavar="BYTES", type=ByteCount(), default=DEFAULT_LIMIT, show_default=True,
    help="Most text to measure on, as 200kB or 1MB; all other work grows with it.",
)
@click.option("--fresh", is_flag=True, help="Forget what is kept of earlier runs, and do everything anew.")
@seed_option("Seed of all that is drawn by chance.  [default: 0]")
@json_option("Write one object at the end: for each metric its value, interval, floor, ceiling, rivals, n, seconds.")
@model_option
@device_option
@common_options
@click.pass_context
def command(
    context: click.Context,
    parts: tuple[str, ...],
    data: tuple[str, ...],
    data_config: str,
    data_dir: str | None,
    train_data: tuple[str, ...],
    domains: tuple[str, ...],
    gold: str | None,
    languages: tuple[tuple[str, str, str], ...],
    limit: int,
    fresh: bool,
    seed: int | None,
    as_json: bool,
    model: str,
    device: str,
) -> ExitCode:
    """Measure a model beside floors, ceilings and rivals.

    The parts are reconstruct, segment, likelihood, generate, infill and speed; several may be named, and all are
    measured when none is. A floor is what a trivial method scores, a ceiling what real text or a perfect answer
    scores; rivals are other methods that learn from the same text in the same run.

    Each part that is done becomes a table on standard output. The sign beside a value is a tick when it is better than
    its floor and every rival, ~ when a rival is at least as good, and a cross when its floor is. Intervals are 95 %
    by bootstrap, and in speed the slowest and fastest round.

    Finished parts, judges and rivals are kept, so that a run that was stopped goes on where it was.
    """
    streams = context.ensure_object(Streams)
    from zonkey_cli.evaluation_view import ProgressView

    view = ProgressView(streams)
    evaluation = _prepare(
        streams, view, model=model, device=device, data=data, train_data=train_data,
        wiki=(data_config, data_dir), domains=domains, gold=gold, languages=languages, limit=limit, seed=seed or 0,
    )
    if fresh:
        evaluation.store.clear()
    chosen = [part for part in PARTS if not parts or ALL in parts or part in parts]
    return _run(streams, view, evaluation, chosen, as_json=as_json)


def _prepare(
    streams: Streams,
    view: ProgressView,
    *,
    model: str,
    device: str,
    data: tuple[str, ...],
    train_data: tuple[str, ...],
    wiki: tuple[str, str | None],
    domains: tuple[str, ...],
    gold: str | None,
    languages: tuple[tuple[str, str, str], ...],
    limit: int,
    seed: int,
) -> EvaluationContext:
    """Read all that is measured and measured on, what may be missing before what takes long."""
    directory = resolve_model(model)
    from zonkey_core.checkpoint import read_model_card
    from zonkey_core.data import SourceSpec

    read_model_card(directory)  # a damaged model is told of at once
    held_out, learned = (
        SourceSpec(sources=names, wiki_config=wiki[0], wiki_dir=wiki[1]) for names in (data, train_data)
    )
    with working(streams, "reading the texts"):
        from zonkey_core.evaluation.tasks.sources import read_domains, read_gold

        sentences = read_gold(Path(gold)) if gold is not None else []
        others = read_domains(domains, limit)
        from zonkey_core.evaluation.tasks.languages import LEARNED_BYTES, read_language

        spoken = [read_language(*each, LEARNED_BYTES) for each in languages]
        from zonkey_core.evaluation.context import EvaluationContext, EvaluationOptions
        from zonkey_core.evaluation.store import Store
        from zonkey_core.evaluation.tasks.runner import identify_model
        from zonkey_core.evaluation.texts import load_texts

        options = EvaluationOptions(limit=limit, seed=seed)
        texts = load_texts(
            held_out, learned if train_data else None, limit=limit, training_bytes=options.training_bytes, seed=seed
        )
    return EvaluationContext(
        model=load_model(streams, model, device=device),
        model_path=directory,
        model_identity=identify_model(directory),
        texts=texts,
        options=options,
        store=Store(store_directory()),
        report=view,
        domains=others,
        gold=sentences,
        languages=spoken,
    )


def store_directory() -> Path:
    """Where work is kept: `ZONKEY_HOME/cache/eval`, else `zonkey/eval` in the user's cache directory."""
    home = os.environ.get("ZONKEY_HOME")
    if home:
        return Path(home) / "cache" / "eval"
    from platformdirs import user_cache_path

    return user_cache_path("zonkey", appauthor=False) / "eval"


def _run(
    streams: Streams, view: ProgressView, context: EvaluationContext, parts: Sequence[str], *, as_json: bool
) -> ExitCode:
    """Measure the parts; one that cannot be measured is told of, and the others go on."""
    from zonkey_core.errors import ZonkeyError
    from zonkey_core.evaluation.tasks.runner import evaluate

    outcomes: list[Outcome] = []
    failed = False
    for number, part in enumerate(parts, 1):
        try:
            with view.part(part, number, len(parts)):
                found = list(evaluate(context, [part]))
        except ZonkeyError as error:
            streams.error(f"{part}: {error}")
            failed = True
            continue
        except (KeyboardInterrupt, SystemExit):
            streams.note(f"stopped in {part}; finished parts are kept, and the same command goes on from there")
            raise
        outcomes += found
        _tell(streams, part, found, tables=not as_json)
    if as_json:
        import msgspec

        from zonkey_core.evaluation.results import as_json as one_object

        streams.write(msgspec.json.encode(one_object(outcomes)) + b"\n")  # a value that is no number becomes null
    return ExitCode.SOFT_FAILURE if failed else ExitCode.DONE


def _tell(streams: Streams, part: str, outcomes: Sequence[Outcome], *, tables: bool) -> None:
    """Write the table of a part that is done, and say what it leaves out."""
    from zonkey_cli.evaluation_view import part_table
    from zonkey_core.evaluation.results import LeftOut, Measure

    measures = [outcome for outcome in outcomes if isinstance(outcome, Measure)]
    if tables and measures:
        streams.write(part_table(streams, part, measures), styled=True)
        streams.flush()
    for outcome in outcomes:
        if isinstance(outcome, LeftOut):
            streams.note(f"left out: {outcome.name}: {outcome.reason}")
