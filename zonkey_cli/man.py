"""Manual pages in roff, written from the commands: `python -m zonkey_cli.man man/`.

The pages hold no date, no version and nothing of the machine or the environment that they are made on, so that making
them again changes nothing unless a command changed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from zonkey_cli.app import VERBS, cli
from zonkey_cli.exit_codes import MEANINGS
from zonkey_cli.options import Verb

Pairs = Sequence[tuple[str, str]]

_VERB_PAGES = [f"zonkey-{name}" for name in VERBS]
_HEADER = """\
.\\" Written by zonkey_cli/man.py; change the commands instead.
.TH {} 1 "" "zonkey" "User Commands"
"""
_EXAMPLE = """\
.PP
{}
.PP
.RS
.nf
{}
.fi
.RE
"""
_SAFE = {
    "\\": "\\e",
    "-": "\\-",
    "'": "\\(aq",
    "`": "\\(ga",
    "^": "\\(ha",
    "~": "\\(ti",
    '"': "\\(dq",
}
"""Characters that roff would take as a request, an escape or a typographic sign, and how to write them."""

_ENVIRONMENT: Pairs = (
    ("ZONKEY_HOME", "The folder that holds models/ and cache/, in place of the user's data and cache directories."),
    (
        "OMP_NUM_THREADS",
        "How many cores a run uses, at most; all by default. generate and infill start a process for each of up to 8.",
    ),
    ("NO_COLOR", "When set and not empty, no colour is used."),
    ("XDG_CONFIG_HOME, XDG_DATA_HOME", "The user's configuration and data directories."),
)
_GROUP_ENVIRONMENT: Pairs = (
    (
        "ZONKEY_VERB_OPTION",
        "The default of any long option of a verb, such as ZONKEY_GENERATE_MAX_BYTES for --max-bytes of generate.",
    ),
    ("ZONKEY_MODEL, ZONKEY_DEVICE, ZONKEY_SEED", "The defaults of --model, --device and --seed of every verb."),
    ("ZONKEY_WIKI_DIR", "The default of --data-dir of train and eval."),
)
_FILES: Pairs = (
    (
        "zonkey.toml",
        "Settings of the current folder. A key is the long name of an option; at the top it holds for every verb "
        "that has the option, in a table named after a verb for that verb alone.",
    ),
    ("~/.config/zonkey/zonkey.toml", "Settings of the user, which come after those of the current folder."),
    (
        "~/.local/share/zonkey/models/NAME/",
        "A model that --model can name. The model that comes with the package is called bundled.",
    ),
)
_MODEL_FILES: Pairs = (
    (
        "DIR/config.json, DIR/model.safetensors, DIR/training.json",
        "A model: its configuration, its averaged weights, and what it was trained on. A folder with these three is "
        "all that the other verbs need; train keeps what --resume needs beside them.",
    ),
)
_PRECEDENCE = (
    "An option takes its value from the command line, else from the environment, else from ./zonkey.toml, else from "
    "the user's zonkey.toml, else from the default shown."
)
_OUTPUT = "Data goes to standard output, everything else to standard error."
_COMPLETION = (
    ("bash", 'eval "$(_ZONKEY_COMPLETE=bash_source zonkey)"'),
    ("zsh", 'eval "$(_ZONKEY_COMPLETE=zsh_source zonkey)"'),
    ("fish", "_ZONKEY_COMPLETE=fish_source zonkey | source"),
)


def pages() -> dict[str, str]:
    """Every manual page, by the name of its file."""
    with click.Context(cli, info_name="zonkey", **cli.context_settings) as context:
        written = {"zonkey.1": _group_page(context)}
        for name in VERBS:
            command = cli.get_command(context, name)
            assert isinstance(command, Verb)
            with click.Context(command, info_name=name, parent=context) as inner:
                written[f"zonkey-{name}.1"] = _verb_page(inner, command)
    return written


def write_pages(directory: Path) -> None:
    """Write every page into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, "utf-8")


def _group_page(context: click.Context) -> str:
    """zonkey(1)."""
    parts = [
        _title("zonkey"),
        _section("NAME", _name("zonkey", "hierarchical diffusion language model without a tokenizer")),
        _section("SYNOPSIS", ".B zonkey\n.RI [ options ]\n.I verb\n.RI [ argument ...]\n"),
        _section("DESCRIPTION", _paragraphs([*_help_paragraphs(cli), _OUTPUT, _PRECEDENCE])),
        _section("VERBS", "".join(_tagged(f"zonkey-{name}(1)", summary) for name, summary in VERBS.items())),
        _section("OPTIONS", _options(context)),
        _section(
            "COMPLETION",
            _paragraphs(["Put one of these lines into the start-up file of the shell:"])
            + "".join(_tagged(shell, line) for shell, line in _COMPLETION),
        ),
        _section("EXIT STATUS", _exit_status(())),
        _section("ENVIRONMENT", _pairs([*_GROUP_ENVIRONMENT, *_ENVIRONMENT])),
        _section("FILES", _pairs([*_FILES, *_MODEL_FILES])),
        _section(
            "EXAMPLES",
            _examples(
                (
                    ("zonkey train --data sample --minutes 5", "Train a small model of the sample text."),
                    ("zonkey generate -m zonkey-model -n 3", "Let it write three texts."),
                    ("zonkey --help; zonkey segment --help", "What there is, in short."),
                )
            ),
        ),
        _section("SEE ALSO", _references(_VERB_PAGES)),
    ]
    return "".join(parts)


def _verb_page(context: click.Context, command: Verb) -> str:
    """zonkey-VERB(1)."""
    name = f"zonkey-{context.info_name}"
    manual = command.manual
    arguments = "".join(f"\n.I {_escape(piece)}" for piece in command.collect_usage_pieces(context)[1:])
    parts = [
        _title(name),
        _section("NAME", _name(name, VERBS[str(context.info_name)].rstrip(".").lower())),
        _section("SYNOPSIS", f".B zonkey {context.info_name}\n.RI [ options ]{arguments}\n"),
        _section("DESCRIPTION", _paragraphs(_help_paragraphs(command))),
        _section("OPTIONS", _options(context)),
        _section("EXIT STATUS", _exit_status(manual.exit_status)),
        _section("ENVIRONMENT", _pairs([*_variables(command), *manual.environment, *_ENVIRONMENT])),
        _section("FILES", _pairs([*manual.files, *_FILES])),
        _section("EXAMPLES", _examples(manual.examples)),
        _section("SEE ALSO", _references(other for other in ["zonkey", *_VERB_PAGES] if other != name)),
    ]
    return "".join(parts)


def _help_paragraphs(command: click.Command) -> list[str]:
    """The help text of a command, a paragraph each."""
    text = re.sub(r"\n[ ]+", "\n", command.help or "")
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _variables(command: Verb) -> list[tuple[str, str]]:
    """The environment variables that options of `command` name."""
    named = []
    for parameter in command.params:
        if isinstance(parameter, click.Option) and isinstance(parameter.envvar, str):
            named.append((parameter.envvar, f"The default of {max(parameter.opts, key=len)}."))
        elif isinstance(parameter.envvar, str):
            named.append((parameter.envvar, f"The default of {parameter.human_readable_name}."))
    return named


def _options(context: click.Context) -> str:
    """Every option with its help, as click words it."""
    options = (each for each in context.command.get_params(context) if isinstance(each, click.Option))
    records = (option.get_help_record(context) for option in options)
    return "".join(_tagged(*record) for record in records if record is not None)


def _exit_status(particular: Pairs) -> str:
    """The exit codes, and what some of them mean for one verb."""
    extra = {code: explanation for codes, explanation in particular for code in codes.split(", ")}
    return "".join(
        _tagged(str(int(code)), f"{meaning} {extra.get(str(int(code)), '')}".rstrip())
        for code, meaning in MEANINGS.items()
    )


def _examples(examples: Pairs) -> str:
    """Commands, each with what it does."""
    return "".join(_EXAMPLE.format(_escape(explanation), _escape(line)) for line, explanation in examples)


def _references(names: Iterable[str]) -> str:
    """Other pages, by name and section."""
    return ",\n".join(f".BR {_escape(name)} (1)" for name in names) + "\n"


def _pairs(pairs: Pairs) -> str:
    """Terms and their explanations."""
    return "".join(_tagged(term, explanation) for term, explanation in pairs)


def _title(name: str) -> str:
    return _HEADER.format(_escape(name.upper()))


def _name(name: str, summary: str) -> str:
    return f"{_escape(name)} \\- {_escape(summary)}\n"


def _section(title: str, body: str) -> str:
    return f".SH {title}\n{body}"


def _paragraphs(paragraphs: Iterable[str]) -> str:
    return "".join(f".PP\n{_escape(paragraph)}\n" for paragraph in paragraphs)


def _tagged(term: str, explanation: str) -> str:
    return f".TP\n.B {_escape(term)}\n{_escape(explanation)}\n"


def _escape(text: str) -> str:
    """`text` so that roff shows it as it is."""
    safe = "".join(_SAFE.get(character, character) for character in text)
    return "\\&" + safe if safe.startswith(".") else safe


if __name__ == "__main__":
    write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else "man"))
