"""`zonkey info`: what a model is and what it was trained on; its weights are only seen to be whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zonkey_cli.console import aligned, human_bytes, human_seconds, printable
from zonkey_cli.exit_codes import ExitCode
from zonkey_cli.models import BUNDLED, resolve_model
from zonkey_cli.options import Manual, ModelName, Verb, common_options, json_option
from zonkey_cli.streams import Streams

if TYPE_CHECKING:
    from zonkey_core.checkpoint import ModelCard

_WORKING_STATE = ("data_state", "random_state", "stage", "stage_step", "stage_seconds")
"""What a training record holds for `--resume` alone."""

_LEVEL_COLUMNS = {
    "positions per segment": "segment_length",
    "window": "window",
    "latent vectors": "latents",
    "width": "width",
    "denoiser width": "denoiser_width",
}
"""What the table of levels shows, and the configuration key that it comes from."""
_SHOWN_OPTIONS = ("seed", "device", "precision")

MANUAL = Manual(
    examples=(
        ("zonkey info", "The model that comes with the package."),
        ("zonkey info zonkey-model", "One of your own."),
        ("zonkey info --json | jq .parameters", "One value, for a program."),
    ),
    exit_status=(("1", "The model is damaged, or was written by a newer version."),),
)

Table = list[list[str]]


@click.command("info", cls=Verb, manual=MANUAL, short_help="Show what a model is and what it was trained on.")
@click.argument("model", metavar="[MODEL]", type=ModelName(), default=BUNDLED, envvar="ZONKEY_MODEL")
@json_option("Write one object with all that is known.")
@common_options
@click.pass_context
def command(context: click.Context, model: str, as_json: bool) -> ExitCode:
    """Show what a model is and what it was trained on.

    MODEL is a folder or the name of a model, and the bundled model when it is left out. Shown are its levels, the
    number of its parameters, its training, and the figures that were measured on held-out text.
    """
    streams = context.ensure_object(Streams)
    directory = resolve_model(model)
    from zonkey_core.checkpoint import check_weights, read_model_card

    card = read_model_card(directory)
    check_weights(directory)
    if as_json:
        import msgspec

        known = msgspec.to_builtins(card)
        if known["training"] is not None:
            known["training"] = {key: value for key, value in known["training"].items() if key not in _WORKING_STATE}
        streams.write_json({"path": str(directory), **known})
    elif streams.colours_output:
        streams.write(_rich_text(model, directory, card), styled=True)
    else:
        streams.write(_plain_text(model, directory, card))
    return ExitCode.DONE


def _facts(name: str, directory: Path, card: ModelCard) -> Table:
    """What is known of the model as a whole: term and value."""
    rows = [["model", name], ["path", str(directory)], ["parameters", f"{card.parameters:,}"]]
    if training := card.training:
        rows += [
            ["trained on", _sources(training.data)],
            ["bytes seen", human_bytes(training.bytes_seen)],
            ["steps", f"{training.steps:,}"],
            ["time", human_seconds(training.seconds)],
            *([["started from", training.parent]] if training.parent else []),
            *([key, str(training.options[key])] for key in _SHOWN_OPTIONS if key in training.options),
            ["torch", training.torch_version],
        ]
    return [[printable(cell) for cell in row] for row in rows]


def _sources(data: dict[str, Any]) -> str:
    """The text that a model was trained on, as far as the record tells."""
    sources, config = data.get("sources"), data.get("wiki_config")
    if not isinstance(sources, list):
        return "unknown"
    return ", ".join(f"wiki ({config})" if source == "wiki" else str(source) for source in sources)


def _figures(card: ModelCard) -> Table:
    """The measured figures: name and value."""
    return [[printable(name), f"{value:.4g}"] for name, value in card.training.figures.items()] if card.training else []


def _levels(card: ModelCard) -> Table:
    """The levels, a row each below the titles."""
    rows = [
        [str(index), *(f"{getattr(level, key):g}" for key in _LEVEL_COLUMNS.values())]
        for index, level in enumerate(card.config.model.levels)
    ]
    return [["level", *_LEVEL_COLUMNS], *rows]


def _plain_text(name: str, directory: Path, card: ModelCard) -> bytes:
    """The model as aligned text."""
    blocks = [_facts(name, directory, card), _levels(card), _figures(card)]
    return "\n".join(aligned(block) for block in blocks if block).encode("utf-8", "replace")


def _rich_text(name: str, directory: Path, card: ModelCard) -> bytes:
    """The model as tables for a terminal."""
    import io

    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=io.StringIO(), force_terminal=True, highlight=False)
    facts = RichTable(box=None, show_header=False, pad_edge=False)
    for term, value in _facts(name, directory, card):
        facts.add_row(Text(term, style="dim"), Text(value))
    console.print(facts)
    titles, *rows = _levels(card)
    levels = RichTable(title="Levels", title_justify="left")
    for title in titles:
        levels.add_column(title, justify="right")
    for row in rows:
        levels.add_row(*row)
    console.print(levels)
    if measured := _figures(card):
        figures = RichTable("figure", "value", title="Measured on held-out text", title_justify="left")
        for row in measured:
            figures.add_row(*row)
        console.print(figures)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().encode("utf-8", "replace")
