"""`zonkey train`: text in, a model folder out, with a view of the run on standard error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from zonkey_cli.exit_codes import BadValueError, ExitCode
from zonkey_cli.models import is_model, resolve_model
from zonkey_cli.options import (
    Duration,
    FiniteRange,
    Manual,
    ModelName,
    Verb,
    common_options,
    data_config_option,
    data_dir_option,
    device_option,
    forbid_with,
    one_of,
    require_with,
    seed_option,
)
from zonkey_cli.processes import together
from zonkey_cli.streams import Streams
from zonkey_cli.training_plan import PLAN_OPTIONS, plan_options, show_plan
from zonkey_cli.training_run import resume_run, start_run

if TYPE_CHECKING:
    from zonkey_core.config import Config
    from zonkey_core.data import SourceSpec
    from zonkey_core.training import TrainingOptions

PRESETS = ("tiny", "small", "base", "large")
STAGES = ("splitter", "autoencoder", "denoiser", "joint", "plan")
_CUTTING = ("splitter", "joint")
"""Those in which level 0's splitter learns."""
PRECISIONS = ("auto", "bf16", "fp32")
DEFAULT_PRESET = "tiny"
DEFAULT_MINUTES = 10.0
DEFAULT_OUT = "zonkey-model"
_STORED = (
    "data", "weights", "kept_cuts", "data_config", "data_dir", "steps", "minutes", "start_from", "preset",
    "config_file", "overrides", "bytes_per_segment", "bits_per_segment", "stage", "level", "seed", "device",
    "precision", "compile",
)
"""Options whose values a checkpoint keeps, so that `--resume` has no use for them."""
_HOW = ("device", "precision", "save_every", "keep", "accumulate", "checkpoint_activations", "compile", "shard")
"""Options that training takes as they are."""
_CHANGEABLE = ("save_every", "keep", "accumulate", "checkpoint_activations", "shard", "on_bad_data")
"""Options that say how a run goes on and not what comes of it, so that `--resume` may change them."""

MANUAL = Manual(
    examples=(
        ("zonkey train --data sample --minutes 5", "A small model of the sample text that comes with the package."),
        ("zonkey train --data wiki --data-dir ~/wikipedia --minutes 60", "A model of a local copy of Wikipedia."),
        ("zonkey train --resume", "Go on with the run in ./zonkey-model that was stopped."),
        ("zonkey train --resume --back-to 1200", "Go on from an earlier checkpoint, where the last is damaged."),
        ("zonkey train --from bundled --data letters/ --out my-letters", "Adapt the bundled model to your own text."),
        ("zonkey train --from bundled --stage splitter --data news.zh/", "Learn only how to split your text."),
        (
            "zonkey train --from bundled --stage splitter --data ko.txt --weight 3 --data sample --weight 1 "
            "--keep-cuts sample",
            "Learn to split Korean, and go on splitting English as before.",
        ),
        (
            "zonkey train --from my-model --stage splitter --set level.0.lexicon=1048576 --data zh.txt --weight 1 "
            "--data wiki --weight 1 --keep-cuts wiki",
            "The same of a script without spaces, by a lexicon, for a model that learned without one.",
        ),
        ("zonkey train --data de.txt --weight 1 --data zh.txt --weight 3", "Learn from two texts, one row to three."),
        ("zonkey train --preset small --set level.1.heads=8 --data book.txt", "Another size, with one value changed."),
        (
            "torchrun --nproc-per-node 8 -m zonkey_cli train --preset large --shard full",
            "Eight GPUs that share the rows of every batch, and the denoisers.",
        ),
        (
            "zonkey train --plan --preset large --shard full --gpus 64 --tokens 1e12",
            "What such a run needs: parameters, memory of a GPU by part, operations a byte, days.",
        ),
    ),
    environment=(
        ("HF_HOME, HF_TOKEN", "Where the Hugging Face hub keeps its cache, and who asks it, for --data wiki."),
    ),
    files=(
        ("zonkey-model/", "The model, unless --out says otherwise; see zonkey(1)."),
        ("zonkey-model/checkpoints/STEP/", "The checkpoints before it that --keep asks for, each a model of its own."),
        ("zonkey-model/metrics.jsonl", "The events of the run, one JSON object a line."),
    ),
    exit_status=(("130, 143", "Stopped by the signal; the checkpoint is complete and --resume goes on from it."),),
)


@click.command("train", cls=Verb, manual=MANUAL, short_help="Train a model on Wikipedia or on your own text.")
@click.option(
    "--data", metavar="SOURCE", multiple=True, default=("wiki",), show_default=True,
    help="Text to learn from: wiki, sample, a file, a folder, or - for standard input; may be repeated.",
)
@click.option(
    "--weight", "weights", type=FiniteRange(min=0, max=1e6, min_open=True), metavar="W", multiple=True,
    help="Share of the rows that a --data has, one for each of them in their order, as 2 and 1 for two rows of the "
    "first to one of the second.  [default: as much text as each has]",
)
@click.option(
    "--keep-cuts", "kept_cuts", metavar="SOURCE", multiple=True,
    help="A --data whose cuts stay as the model given by --from makes them, also under noise, while the splitter "
    "learns from the others, and all else from both; may be repeated. Every --data needs a --weight then.",
)
@data_config_option
@data_dir_option
@click.option(
    "-o", "--out", metavar="DIR", type=click.Path(), default=DEFAULT_OUT, show_default=True,
    help="Where the model goes.",
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Length of the run in training steps.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), metavar="M",
    help=f"Length of the run in minutes.  [default: {DEFAULT_MINUTES:g}, without --steps]",
)
@click.option(
    "--resume", is_flag=True,
    help="Go on with the run in --out where it was stopped; all other options are its own, but for --save-every, "
    "--keep, --accumulate, --checkpoint-activations, --shard and --on-bad-data."
)
@click.option(
    "--back-to", type=click.IntRange(min=0), metavar="STEP",
    help="With --resume, go on from the earlier checkpoint of this step, which the folder checkpoints in --out holds.",
)
@click.option(
    "--save-every", type=Duration(), metavar="TIME",
    help="Time between saves, as 30s, 2m or 1h. The first comes after the first step.  "
    "[default: as often as takes less than 2 % of the run]",
)
@click.option(
    "--keep", type=click.IntRange(min=1, max=1000), metavar="K", default=2, show_default=True,
    help="How many of the last checkpoints to keep.",
)
@click.option(
    "--accumulate", type=click.IntRange(min=1, max=1 << 16), metavar="N", default=1, show_default=True,
    help="Take each batch in N pieces, one after another, to need less memory.",
)
@click.option(
    "--checkpoint-activations", is_flag=True,
    help="Compute the inner states of Transformers anew on the way back, to need less memory.",
)
@click.option(
    "--compile", is_flag=True,
    help="Compile the denoisers with torch, which takes some minutes and a C++ compiler, and makes their steps about a "
    "third faster; for long runs. Not with --shard full.",
)
@click.option(
    "--shard", type=click.Choice(("none", "full")), default="none", show_default=True,
    help="Of several processes: whether they share out the parameters of the denoisers, their averages and states.",
)
@click.option(
    "--on-bad-data", type=click.Choice(("stop", "skip")), default="stop", show_default=True,
    help="What to do about a damaged line or file of the data: stop there, or leave it out, say so and count it.",
)
@click.option(
    "--from", "start_from", type=ModelName(), metavar="MODEL", help="Start from the weights of another model."
)
@click.option(
    "--preset", type=click.Choice(PRESETS), help=f"Size of the model.  [default: {DEFAULT_PRESET}]"
)
@click.option(
    "--config", "config_file", metavar="FILE.toml", type=click.Path(), help="A configuration instead of a preset."
)
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True,
    help="Change one value of the configuration, as in level.1.heads=8; may be repeated.",
)
@click.option(
    "--bytes-per-segment", type=FiniteRange(min=1, min_open=True), metavar="R",
    help="Mean length of a word-like segment that the model is to learn, the same for all text; short for --set "
    "level.0.segment_length=R --set level.0.bits_per_segment=0.",
)
@click.option(
    "--bits-per-segment", type=FiniteRange(min=1, min_open=True), metavar="R",
    help="Information of such a segment instead, so that each text has the length of its own language; short for --set "
    "level.0.bits_per_segment=R.",
)
@click.option("--stage", type=click.Choice(STAGES), help="Run one stage of the curriculum only.")
@click.option(
    "--level", type=click.IntRange(min=0, max=1 << 10), metavar="N",
    help="With --stage, run it for one level only.  [default: 0 for the splitter, all levels for the other stages]",
)
@seed_option("Seed of the weights, the order of the data and the noise.  [default: 0]")
@device_option
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True,
    help="Number format of the computation.",
)
@click.option(
    "--tensorboard", is_flag=True, help="Also write the losses for TensorBoard, below --out; needs zonkey[log]."
)
@plan_options
@common_options
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    data: tuple[str, ...],
    out: str,
    resume: bool,
    back_to: int | None,
    stage: str | None,
    level: int | None,
    tensorboard: bool,
    plan: bool,
    **given: Any,
) -> ExitCode:
    """Train a model on Wikipedia or on your own text.

    The stages of the curriculum share the time or the steps given. The model is saved in --out soon after the start,
    now and then, and at the end, with checksums that are compared whenever it is read. Its path is all that goes to
    standard output. On a terminal, a live view shows the losses, the current splits of a line of text, and a sample
    now and then; elsewhere, a line every ten seconds. A step whose loss or gradient is no number, or far out of
    proportion, is left out and told of.

    Ctrl-C or SIGTERM stops the run after the current step and saves it; a second one quits at once.

    Started by torchrun or accelerate launch, several processes train one model: training.batch_rows are the rows of a
    step in all, which they share evenly, one of them shows and writes, and a signal to any of them stops and saves the
    run. A run may go on with another number of processes.

    With --plan, nothing is trained. Steps of all stages are walked through without computing their products, and
    standard output gets what a run would need. Its length is that of --tokens, --minutes or --steps.
    """
    streams = context.ensure_object(Streams)
    limit = one_of(context, "steps", "minutes", "tokens")
    if resume:
        forbid_with(context, "resume", *_STORED, "plan")
    require_with(context, "back_to", "resume")
    if given["compile"] and given["shard"] == "full":
        raise click.UsageError("--compile cannot be used with --shard full.", context)
    require_with(context, "level", "stage")
    require_with(context, "kept_cuts", "start_from")
    require_with(context, "kept_cuts", "weights")
    if given["kept_cuts"] and stage not in (None, *_CUTTING):
        raise click.UsageError(f"--keep-cuts cannot be used with --stage {stage}, which moves no cuts.", context)
    _check_kept(data, given["kept_cuts"], stage)
    for name in PLAN_OPTIONS:
        require_with(context, name, "plan")
    if not plan:
        _check_out(out, resume=resume)
    if resume:
        changes = {name: context.params[name] for name in _CHANGEABLE if _is_given(context, name)}
        with together(streams, given["device"]):
            return resume_run(streams, Path(out), back_to, changes, tensorboard=tensorboard)
    config = _configuration(context)
    if plan:
        return show_plan(streams, config, context.params, limit)
    start_from = given["start_from"]
    source = None if start_from is None else resolve_model(start_from)
    spec, options = _spec(data, given), _options(context, limit, 0 if stage == "splitter" and level is None else level)
    with together(streams, given["device"]):
        return start_run(streams, config, spec, options, source, tensorboard=tensorboard)


def _spec(data: tuple[str, ...], given: Mapping[str, Any]) -> SourceSpec:
    """Where the text comes from."""
    from zonkey_core.data import SourceSpec

    return SourceSpec(
        sources=data, weights=given["weights"], kept_cuts=given["kept_cuts"], wiki_config=given["data_config"],
        wiki_dir=given["data_dir"], on_bad_data=given["on_bad_data"],
    )  # fmt: skip


def _options(context: click.Context, limit: str | None, level: int | None) -> TrainingOptions:
    """How the run goes on, for how long, and which of its stages."""
    from zonkey_core.training import TrainingOptions

    given = context.params
    length = {"steps": given["steps"]} if limit == "steps" else {"minutes": given["minutes"] or DEFAULT_MINUTES}
    how = {name: given[name] for name in _HOW}
    return TrainingOptions(
        out=given["out"], seed=given["seed"] or 0, stage=given["stage"], level=level, **how, **length
    )


def _is_given(context: click.Context, name: str) -> bool:
    """Whether parameter `name` comes from outside."""
    return context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)


def _check_out(out: str, *, resume: bool) -> None:
    """Raise `BadValueError` when the run would overwrite a checkpoint, or has none to go on with."""
    found = is_model(Path(out))
    if os.path.exists(out) and not os.path.isdir(out):
        raise BadValueError(f"{out}: not a folder; choose another --out")
    if found and not resume:
        raise BadValueError(f"{out}: holds a model already; add --resume to go on with it, or choose another --out")
    if resume and not found:
        raise BadValueError(f"{out}: holds no model to resume; name its folder with --out")


def _check_kept(data: tuple[str, ...], kept: tuple[str, ...], stage: str | None) -> None:
    """Raise `BadValueError` where the cuts of something are to be kept that is no text of the run, or of all of it
    while nothing but a splitter learns."""
    for source in kept:
        if source not in data:
            raise BadValueError(f"--keep-cuts {source}: not a --data of this run; give it as one, too")
    if stage == "splitter" and kept and set(kept) == set(data):
        raise BadValueError("--keep-cuts: nothing is left to learn from; give a --data beside it")


def _configuration(context: click.Context) -> Config:
    """The configuration: that of the model to start from, of a file, or of a preset, with the overrides."""
    from zonkey_core.config import load_config, load_preset, parse_config

    given = context.params
    chosen, rate = one_of(context, "preset", "config_file", "start_from"), _rate(context)
    overrides = (*given["overrides"], *rate)
    if chosen == "config_file":
        return load_config(Path(given["config_file"]), overrides)
    if chosen == "start_from":
        import msgspec

        from zonkey_core.checkpoint import read_model_card

        directory = resolve_model(given["start_from"])
        return parse_config(msgspec.to_builtins(read_model_card(directory).config), overrides, origin=str(directory))
    return load_preset(given["preset"] or DEFAULT_PRESET, overrides)


def _rate(context: click.Context) -> tuple[str, ...]:
    """The overrides that the option for the length of segments stands for, if one is given."""
    chosen = one_of(context, "bytes_per_segment", "bits_per_segment")
    if chosen is None:
        return ()
    if chosen == "bits_per_segment":
        return (f"level.0.bits_per_segment={context.params[chosen]}",)
    return f"level.0.segment_length={context.params[chosen]}", "level.0.bits_per_segment=0"
