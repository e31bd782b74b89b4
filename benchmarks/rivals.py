"""The model against two neural rivals of its size, trained on the same text for the same time, in one run.

    python benchmarks/rivals.py --data wiki --data-config 20180101.simple --data-dir DIR --minutes 10 --out DIR

First the model is trained, unless `--model` names a trained one; then, for as long and one after another, an
autoregressive and a masked-diffusion byte Transformer (`autoregressive.py`, `masked_diffusion.py`). Both have the
model's number of parameters within 2 %, its stream of documents and its threads, and rows as long as the model's, up
to 512 bytes. Then the parts `likelihood`, `generate`, `infill` and `speed` of `zonkey eval` are measured with both as
contestants; the masked one knows only a bound of its likelihood, which is left out. In infilling it is called
`masked_true_length`, because it is told how long each gap was.

Models have learned from the train split; the test split is scored, and the judge learns from the validation split. All
is kept below `--out`: a run that was stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import autoregressive
import masked_diffusion
import msgspec
from autoregressive import Autoregressive, AutoregressiveRival
from masked_diffusion import MaskedDiffusion, MaskedRival
from neural_rival import LONGEST_ROW, Recipe, RivalNetwork, count_parameters, match_size, train_rival

from zonkey_cli.console import parse_bytes
from zonkey_cli.evaluation_view import part_table
from zonkey_cli.streams import Streams
from zonkey_core.checkpoint import CONFIG, ModelCard, load_model, read_model_card
from zonkey_core.committed_files import file_path
from zonkey_core.config import PRESETS, Config, TrainingConfig, load_preset
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import RowStream
from zonkey_core.devices import choose_device
from zonkey_core.errors import CheckpointError, ConfigError, ZonkeyError
from zonkey_core.evaluation.context import Contestant, EvaluationContext, EvaluationOptions
from zonkey_core.evaluation.results import LeftOut, Measure, Outcome, as_json
from zonkey_core.evaluation.store import Store
from zonkey_core.evaluation.tasks.runner import evaluate, identify_model
from zonkey_core.evaluation.texts import load_texts
from zonkey_core.training import Event, StageEvent, StepEvent, TrainingOptions, resume, train
from zonkey_core.training.curriculum import plan_stages

COMPARED_PARTS = ("likelihood", "generate", "infill", "speed")
DEFAULT_MINUTES = 10.0
REPORT_SECONDS = 10.0
RATE_FACTOR = 2.0
"""The rivals' learning rates by the model's."""
BATCH_FACTOR = 0.5
"""The rivals' bytes in a batch by the model's. With both factors they learned fastest in a given time."""


class Trained(NamedTuple):
    """The model, and what the rivals have to match."""

    path: Path
    config: Config
    minutes: float


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def trained_model(arguments: argparse.Namespace, data: SourceSpec) -> Trained:
    """The model that `--model` names, or the one below `--out`, which is trained, or trained on, where it must be."""
    if arguments.model is not None:
        card = read_model_card(arguments.model)
        minutes = arguments.minutes
        if minutes is None and card.training is not None:
            minutes = card.training.seconds / 60
        if not minutes:
            raise ConfigError(f"{arguments.model}: does not say how long it was trained; give --minutes")
        return Trained(arguments.model, card.config, minutes)
    out, minutes = arguments.out / "zonkey", arguments.minutes or DEFAULT_MINUTES
    config = load_preset(arguments.preset, arguments.overrides)
    options = TrainingOptions(out=str(out), minutes=minutes, seed=arguments.seed, device=arguments.device)
    if not file_path(out, CONFIG).exists():
        train(config, data, options, on_event=_teller(), should_stop=lambda: False)
    elif _is_finished(_own_card(out, config, data, options)):
        say(f"zonkey: found in {out}")
    else:
        resume(out, on_event=_teller(), should_stop=lambda: False)
    return Trained(out, config, minutes)


def _own_card(out: Path, config: Config, data: SourceSpec, options: TrainingOptions) -> ModelCard:
    """The card of a model that this very command has begun; raises `CheckpointError` for another one."""
    card = read_model_card(out)
    ours = msgspec.to_builtins(options), msgspec.to_builtins(data)
    theirs = None if card.training is None else ({**card.training.options, "out": str(out)}, card.training.data)
    if card.config != config or theirs != msgspec.json.decode(msgspec.json.encode(ours), type=tuple[Any, Any]):
        raise CheckpointError(f"{out}: holds a model that was trained otherwise; choose another --out")
    return card


def _is_finished(card: ModelCard) -> bool:
    record = card.training
    return record is not None and record.stage == len(plan_stages(card.config.model, card.config.training.shares))


def _teller() -> Callable[[Event], None]:
    """What says where training of the model stands."""
    told = 0.0

    def tell(event: Event) -> None:
        nonlocal told
        if isinstance(event, StageEvent):
            say(f"zonkey: {event.stage}{'' if event.level is None else f' of level {event.level}'}")
        elif isinstance(event, StepEvent) and time.monotonic() - told >= REPORT_SECONDS:
            told = time.monotonic()
            say(
                f"zonkey: step {event.step}, {event.fraction:.0%}, {event.bytes_per_second:,.0f} bytes/s, "
                f"{event.seconds_left:.0f} s left"
            )

    return tell


def build_autoregressive(width: int, layers: int, row_bytes: int) -> RivalNetwork:
    """An untrained one."""
    return Autoregressive(width, layers, row_bytes)


def build_masked(width: int, layers: int, _row_bytes: int) -> RivalNetwork:
    """An untrained one."""
    return MaskedDiffusion(width, layers)


def rival_training(training: TrainingConfig) -> TrainingConfig:
    """The rivals' training: the model's, with rows of at most `LONGEST_ROW` bytes and rates that suit them."""
    row_bytes = min(training.row_bytes, LONGEST_ROW) // 2 * 2
    return msgspec.structs.replace(
        training,
        row_bytes=row_bytes,
        batch_rows=max(1, round(BATCH_FACTOR * training.batch_rows * training.row_bytes / row_bytes)),
        learning_rate=RATE_FACTOR * training.learning_rate,
        matrix_learning_rate=RATE_FACTOR * training.matrix_learning_rate,
    )


def contestants(
    arguments: argparse.Namespace, model: Trained, data: SourceSpec, parameters: int
) -> dict[str, list[Contestant]]:
    """The trained rivals for each part."""
    training = rival_training(model.config.training)
    builders = {"autoregressive": build_autoregressive, "masked_diffusion": build_masked}
    recipes: dict[str, Recipe] = {}
    networks: dict[str, Any] = {}
    for kind, build in builders.items():
        size = match_size(parameters, build, training.row_bytes)
        recipes[kind] = Recipe(
            kind=kind, width=size.width, layers=size.layers, parameters=size.parameters, row_bytes=training.row_bytes,
            minutes=model.minutes, seed=arguments.seed, device=arguments.device, data=data, training=training,
        )
        say(f"{kind}: {size.layers} layers of {size.width}, {size.parameters:,} parameters for {parameters:,}")
        networks[kind] = train_rival(arguments.out / kind, build, recipes[kind], say)
    documents = open_stream(data, seed=arguments.seed, shuffle_documents=training.shuffle_documents)
    batch = RowStream(documents, training.row_bytes, training.batch_rows).next_batch()
    writer = AutoregressiveRival(
        networks["autoregressive"], recipes["autoregressive"], batch,
        name="autoregressive",
        drawing=autoregressive.Drawing(temperature=arguments.temperature, top_p=arguments.top_p),
    )
    drawing = masked_diffusion.Drawing(
        steps=arguments.masked_steps, temperature=arguments.temperature, top_p=arguments.top_p
    )
    result: dict[str, list[Contestant]] = {}
    for part in COMPARED_PARTS:
        name = "masked_true_length" if part == "infill" else "masked_diffusion"
        masked = MaskedRival(
            networks["masked_diffusion"], recipes["masked_diffusion"], batch, name=name, drawing=drawing
        )
        result[part] = [writer, masked]
    return result


def compare(arguments: argparse.Namespace) -> list[Outcome]:
    """Train what is not trained yet, and measure."""
    data = SourceSpec(sources=tuple(arguments.data), wiki_config=arguments.data_config, wiki_dir=arguments.data_dir)
    options = EvaluationOptions(limit=arguments.limit, seed=arguments.seed)
    texts = load_texts(
        data, None, limit=options.limit, training_bytes=options.training_bytes, seed=options.seed, by_splits=True
    )
    trained = trained_model(arguments, data)
    model = load_model(trained.path, device=choose_device(arguments.device))
    rivals = contestants(arguments, trained, data, count_parameters(model))
    outcomes: list[Outcome] = []
    for part in arguments.parts or COMPARED_PARTS:
        context = EvaluationContext(
            model=model,
            model_path=trained.path,
            model_identity=identify_model(trained.path),
            texts=texts,
            options=options,
            store=Store(arguments.out / "eval"),
            report=_reporter(part),
            contestants=rivals[part],
        )
        outcomes += evaluate(context, [part])
    return outcomes


def _reporter(part: str) -> Callable[[str, float | None], None]:
    """What says what is being measured."""
    told = 0.0

    def report(what: str, share: float | None) -> None:
        nonlocal told
        if time.monotonic() - told >= REPORT_SECONDS:
            told = time.monotonic()
            say(f"{part}: {what}{'' if share is None else f', {share:.0%}'}")

    return report


def byte_count(text: str) -> int:
    """A number of bytes, as 200kB."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> float:
    """A positive number."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", action="append", metavar="SOURCE", help="wiki, sample, a file or a folder [wiki]")
    parser.add_argument("--data-config", default="20231101.en", metavar="NAME", help="Wikipedia dump [%(default)s]")
    parser.add_argument("--data-dir", metavar="DIR", help="local copy of the dataset wikimedia/wikipedia")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="size of the model [%(default)s]")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="change one value of the preset")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a trained model, instead of training one")
    parser.add_argument("--minutes", type=positive, metavar="M",
                        help=f"training time of each [{DEFAULT_MINUTES:g}, or the training time of --model]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything is kept")
    parser.add_argument("--limit", type=byte_count, default=200_000, metavar="BYTES", help="text to measure on [200kB]")
    parser.add_argument("--part", dest="parts", action="append", choices=COMPARED_PARTS,
                        help="measure this part only; may be repeated [all]")
    parser.add_argument("--masked-steps", type=int, default=masked_diffusion.Drawing().steps, metavar="N",
                        help="sampling steps of the masked rival [%(default)s]")
    parser.add_argument("--temperature", type=positive, default=1.0, metavar="T",
                        help="temperature of both rivals [%(default)g]")
    parser.add_argument("--top-p", type=positive, default=1.0, metavar="P",
                        help="both rivals draw from the likeliest symbols that have this share [%(default)g]")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--device", default="auto", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args(given)
    arguments.data = arguments.data or ["wiki"]
    if arguments.masked_steps < 1:
        parser.error("--masked-steps must be at least 1")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code."""
    arguments = parse(given)
    try:
        outcomes = compare(arguments)
    except ZonkeyError as error:
        say(f"rivals: {error}")
        return 1
    streams = Streams.system()
    if arguments.json:
        streams.write(msgspec.json.encode(as_json(outcomes)) + b"\n")
        return 0
    for part in arguments.parts or COMPARED_PARTS:
        measures = [each for each in outcomes if isinstance(each, Measure) and each.name.startswith(f"{part}.")]
        streams.write(part_table(streams, part, measures))
    for each in outcomes:
        if isinstance(each, LeftOut):
            say(f"left out: {each.name}: {each.reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
