"""What the two neural rivals share: symbols, sizes, training against the clock, sampling of a symbol.

A rival reads rows of symbols: the 256 byte values, and `BOUNDARY` before the first byte of every document, so that
where documents begin and end is learned like everything else. It is trained as `zonkey train` trains: Muon and AdamW,
a learning rate that rises and then falls over the time given, averaged weights, bfloat16 where that is the default,
and the same stream of documents. A run that was stopped goes on from its last checkpoint.

Shapes: B rows of L symbols.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from zonkey_core.checkpoint import CONFIG, MODEL, OPTIMIZER, TRAINING, pack_tensors, read_tensors
from zonkey_core.committed_files import file_path, write_files
from zonkey_core.config import TrainingConfig
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import Prefetcher, RowBatch, RowStream
from zonkey_core.devices import autocast, choose_device, choose_precision
from zonkey_core.errors import CheckpointError, ConfigError, ZonkeyError
from zonkey_core.evaluation.store import fingerprint
from zonkey_core.model.bytes import BYTE_VALUES
from zonkey_core.training.optimizers import (
    build_optimizers,
    follow_weights,
    learning_rate_factor,
    restore_optimizers,
    resumable_tensors,
    set_learning_rates,
    split_resumable,
    take_step,
)

BOUNDARY = BYTE_VALUES
"""The symbol between documents."""
SYMBOLS = BYTE_VALUES + 1
LONGEST_ROW = 512
TOLERANCE = 0.02
"""Largest difference in the number of parameters, as a share of the model's."""
WIDTH_STEP = 16
WIDTH_PER_LAYER = 32
"""The proportion that is aimed at."""
HEAD_WIDTH = 32
OTHER_HEAD_WIDTHS = (48, 40, 56, 16)
UNEVEN_HEADS = 0.5
"""What an unusual width of heads weighs beside an unusual proportion, in units of its logarithm."""
WIDE = 512
"""Width from which heads are twice as wide."""
CHECKPOINT_SECONDS = 120.0
REPORT_SECONDS = 10.0
Builder = Callable[[int, int, int], "RivalNetwork"]
"""Makes an untrained network of a width, layers and symbols in a row."""


class RivalNetwork(Protocol):
    """A network that learns from rows of symbols; an `nn.Module`."""

    def loss(self, symbols: Tensor, generator: torch.Generator) -> Tensor:
        """Mean nats per symbol of [B, L] symbols."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a trained rival depends on."""

    kind: str
    width: int
    layers: int
    row_bytes: int
    parameters: int
    minutes: float
    seed: int
    device: str
    data: SourceSpec
    training: TrainingConfig


class Progress(msgspec.Struct, kw_only=True):
    """How far training is."""

    steps: int = 0
    seconds: float = 0.0
    bytes_seen: int = 0
    loss: float = 0.0
    """Mean nats per symbol, of the latest batches."""
    data_state: dict[str, Any] = {}


class Size(NamedTuple):
    """Sizes of a Transformer."""

    width: int
    layers: int
    parameters: int


def heads_of(width: int) -> int:
    """Heads of 32 channels where the width allows it, 64 where it is large, else of about as many; all even."""
    sizes = (2 * HEAD_WIDTH, HEAD_WIDTH, *OTHER_HEAD_WIDTHS) if width >= WIDE else (HEAD_WIDTH, *OTHER_HEAD_WIDTHS)
    return width // next(size for size in sizes if width % size == 0)


def match_size(target: int, build: Builder, row_bytes: int) -> Size:
    """The width and layers with about `target` parameters, within `TOLERANCE`, whose proportions are the most usual.

    Raises `ConfigError` where there are none.
    """
    found: list[Size] = []
    for width in range(WIDTH_STEP, target, WIDTH_STEP):
        one, two = (count_parameters(on_meta(build, width, layers, row_bytes)) for layers in (1, 2))
        if one > target * (1 + TOLERANCE):
            break
        layers = 1 + round((target - one) / (two - one))
        found.append(Size(width, layers, one + (layers - 1) * (two - one)))
    close = [size for size in found if abs(size.parameters - target) <= TOLERANCE * target]
    if not close:
        raise ConfigError(f"no rival has within {TOLERANCE:.0%} of {target:,} parameters; choose a larger preset")
    return min(close, key=_oddness)


def _oddness(size: Size) -> float:
    """How far a size is from the usual: the proportion, and heads that are not a multiple of 32 wide."""
    uneven = size.width // heads_of(size.width) % HEAD_WIDTH > 0
    return abs(math.log(size.width / size.layers / WIDTH_PER_LAYER)) + UNEVEN_HEADS * uneven


def count_parameters(network: RivalNetwork | nn.Module) -> int:
    """How many numbers are learned."""
    assert isinstance(network, nn.Module)
    return sum(parameter.numel() for parameter in network.parameters())


def on_meta(build: Builder, width: int, layers: int, row_bytes: int) -> RivalNetwork:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build(width, layers, row_bytes)


def document_symbols(batch: RowBatch) -> Tensor:
    """Rows of symbols [B, L] of a batch of rows of bytes; what the boundaries push over the end is dropped."""
    text = batch.bytes.astype(np.int64).ravel()
    marked = np.insert(text, np.flatnonzero(batch.document_starts), BOUNDARY)
    return torch.from_numpy(marked[: text.size].reshape(batch.bytes.shape))


def draw(logits: Tensor, *, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One symbol for each row of logits [N, K]: [N], from the likeliest symbols that together have at least `top_p`."""
    probs, order = (logits.float().cpu() / temperature).softmax(-1).sort(-1, descending=True)
    probs = probs.where(probs.cumsum(-1) - probs < top_p, 0.0)
    places = torch.multinomial(probs, 1, generator=generator)
    return order.gather(-1, places).squeeze(-1).to(logits.device)


class Updates:
    """Training steps of a network, and the average of its weights."""

    def __init__(self, network: Any, training: TrainingConfig, *, seed: int, steps: int = 0) -> None:
        self.network = network.train().requires_grad_(True)
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.training = training
        self.seed = seed
        self.steps = steps
        self.device = next(network.parameters()).device
        self.precision = choose_precision("auto", self.device)
        self.optimizers = build_optimizers(network.parameters(), training)

    def update(self, batch: RowBatch, fraction: float) -> float:
        """One step at a fraction, 0 to 1, of the training; returns the loss in nats per symbol."""
        set_learning_rates(self.optimizers, learning_rate_factor(fraction, self.steps, self.training))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps)
        with autocast(self.device, self.precision):
            loss: Tensor = self.network.loss(document_symbols(batch).to(self.device), generator)
        take_step(loss, self.network.parameters(), self.optimizers, self.training.gradient_clip)
        self.steps += 1
        follow_weights(self.average.parameters(), self.network.parameters(), self.steps, self.training)
        return float(loss.detach())


class Rival:
    """The part of a contestant that does not depend on how its network writes."""

    def __init__(self, name: str, network: nn.Module, recipe: Recipe, batch: RowBatch, settings: object) -> None:
        self.name = name
        self.device = next(network.parameters()).device
        self.row_bytes = recipe.row_bytes
        self._network = network
        self._recipe = recipe
        self._batch = batch
        self._settings = settings

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the weights and of the settings of sampling."""
        return fingerprint(self._recipe.kind, self._settings, pack_tensors(self._network.state_dict()))

    @functools.cached_property
    def _updates(self) -> Updates:
        """For timing, on a copy: the contestant itself stays as it is."""
        return Updates(copy.deepcopy(self._network), self._recipe.training, seed=self._recipe.seed)

    def train_step(self) -> int:
        """One update from a batch that stays the same; returns its bytes."""
        self._updates.update(self._batch, 0.5)
        return int(self._batch.bytes.size)


def train_rival(directory: Path, build: Builder, recipe: Recipe, report: Callable[[str], None]) -> nn.Module:
    """The trained network that `directory` holds; where it holds none yet, one is trained, or trained on.

    Raises `CheckpointError` where the folder holds a network of another recipe, and what opening the data raises.
    """
    kept = _kept_recipe(directory)
    if kept is not None and kept != recipe:
        raise CheckpointError(f"{directory}: holds a rival that was trained otherwise; choose another --out")
    network = _new_network(build, recipe)
    if not file_path(directory, MODEL).exists():
        average = _run(directory, network, recipe, report)
        report(f"{recipe.kind}: saved in {directory}")
        return average
    report(f"{recipe.kind}: found in {directory}")
    network.load_state_dict(read_tensors(directory, MODEL))
    return network.eval().requires_grad_(False)


def _kept_recipe(directory: Path) -> Recipe | None:
    path = file_path(directory, CONFIG)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Recipe)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); choose another --out") from error


def _new_network(build: Builder, recipe: Recipe) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = build(recipe.width, recipe.layers, recipe.row_bytes)
    assert isinstance(network, nn.Module)
    return network.to(choose_device(recipe.device))


def _run(directory: Path, network: Any, recipe: Recipe, report: Callable[[str], None]) -> nn.Module:
    """Train until the time is over, and return the averaged network."""
    updates, progress = _begin(directory, network, recipe)
    average: nn.Module = updates.average
    documents = open_stream(
        recipe.data,
        seed=recipe.seed,
        shuffle_documents=recipe.training.shuffle_documents,
        state=progress.data_state.get("documents"),
    )
    rows = RowStream(documents, recipe.row_bytes, recipe.training.batch_rows, progress.data_state or None)
    budget = recipe.minutes * 60
    with Prefetcher(rows) as batches:
        last = saved = time.monotonic()
        reported = -REPORT_SECONDS
        while progress.seconds < budget:
            batch = batches.next_batch()
            loss = updates.update(batch, progress.seconds / budget)
            progress.steps += 1
            progress.loss += (loss - progress.loss) / min(progress.steps, 50)
            progress.bytes_seen += batch.bytes.size
            now = time.monotonic()
            progress.seconds += now - last
            last = now
            if progress.loss != progress.loss:
                raise ZonkeyError(f"{recipe.kind}: training diverged at step {progress.steps}; choose another --seed")
            if progress.seconds - reported >= REPORT_SECONDS:
                reported = progress.seconds
                speed = progress.bytes_seen / progress.seconds
                report(
                    f"{recipe.kind}: step {progress.steps}, {min(1.0, progress.seconds / budget):.0%}, "
                    f"loss {progress.loss:.3f} nats per byte, {speed:,.0f} bytes/s, "
                    f"{max(0.0, budget - progress.seconds):.0f} s left"
                )
            if now - saved >= CHECKPOINT_SECONDS:
                _save(directory, recipe, progress, updates, batches.state())
                saved = now
        _save(directory, recipe, progress, updates, batches.state(), finished=True)
    return average


def _begin(directory: Path, network: Any, recipe: Recipe) -> tuple[Updates, Progress]:
    """The state that `_save` left, or that of a new run."""
    path = file_path(directory, TRAINING)
    if not path.exists():
        return Updates(network, recipe.training, seed=recipe.seed), Progress()
    try:
        progress = msgspec.json.decode(path.read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete {directory}") from error
    parts = split_resumable(read_tensors(directory, OPTIMIZER))
    network.load_state_dict(parts["live"])
    updates = Updates(network, recipe.training, seed=recipe.seed, steps=progress.steps)
    updates.average.load_state_dict(parts["average"])
    restore_optimizers(updates.optimizers, parts["state"])
    return updates, progress


def _save(
    directory: Path,
    recipe: Recipe,
    progress: Progress,
    updates: Updates,
    data_state: dict[str, Any],
    *,
    finished: bool = False,
) -> None:
    """Write a checkpoint whole; the averaged weights appear on their own when training is over."""
    progress.data_state = data_state
    files = {
        CONFIG: msgspec.json.format(msgspec.json.encode(recipe), indent=2),
        TRAINING: msgspec.json.format(msgspec.json.encode(progress), indent=2),
        OPTIMIZER: pack_tensors(resumable_tensors(updates.network, updates.average, updates.optimizers)),
    }
    write_files(directory, files | ({MODEL: pack_tensors(updates.average.state_dict())} if finished else {}))
