"""How a `ByteModel` learns: Muon and AdamW, a rate that rises and falls, for a number of bytes, not of minutes.

So the same texts, seed and number of bytes give the same model, however busy the machine is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.config import TrainingConfig
from zonkey_core.devices import autocast, choose_precision
from zonkey_core.evaluation.baselines.byte_model import BEGIN, ByteModel, ByteModelShape, text_symbols
from zonkey_core.training.optimizers import build_optimizers, learning_rate_factor, set_learning_rates, take_step

TRAINING = TrainingConfig(
    batch_rows=16, learning_rate=6e-3, table_learning_rate=6e-3, matrix_learning_rate=0.02, weight_decay=0.2,
    warmup=0.02, final_rate=0.02,
)
"""Chosen on validation text of Simple English Wikipedia for what is learned in a minute or two on a CPU."""


def fit_byte_model(
    texts: Sequence[bytes], *, read_bytes: int, seed: int, shape: ByteModelShape, report: Callable[[float], None]
) -> ByteModel:
    """A model that has read `read_bytes` bytes of the texts, as often as that takes.

    `report` is called after every step with the share of the work that is done.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ByteModel(shape)
    rows = _training_rows(texts, shape.window, TRAINING.batch_rows, seed)
    hiding = torch.Generator().manual_seed(seed)
    optimizers = build_optimizers(model.parameters(), TRAINING)
    precision = choose_precision("auto", model.device)
    steps = max(1, read_bytes // (TRAINING.batch_rows * shape.window))
    for step in range(steps):
        set_learning_rates(optimizers, learning_rate_factor(step / steps, step, TRAINING))
        with autocast(model.device, precision):
            loss = _next_byte_loss(model, next(rows), hiding)
        take_step(loss, model.parameters(), optimizers, TRAINING.gradient_clip)
        report((step + 1) / steps)
    return model.eval().requires_grad_(False)


def _next_byte_loss(model: ByteModel, rows: Tensor, hiding: torch.Generator) -> Tensor:
    """Mean nats per byte of [B, L + 1] symbols, each given those before it in its row; begin symbols do not count."""
    logits = model(rows[:, :-1], hiding).flatten(0, 1).float()
    return functional.cross_entropy(logits, rows[:, 1:].flatten(), ignore_index=BEGIN)


def _training_rows(texts: Sequence[bytes], window: int, batch_rows: int, seed: int) -> Iterator[Tensor]:
    """Endless batches [batch_rows, window + 1] of symbols.

    The texts are laid end to end, each after a begin symbol, and every pass over them cuts them at other places and
    shuffles the rows. Too little text for one batch is repeated.
    """
    symbols = np.concatenate([text_symbols(text) for text in texts])
    symbols = np.resize(symbols, max(len(symbols), (batch_rows + 1) * window + 1))
    generator = np.random.default_rng(seed)
    while True:
        phase = int(generator.integers(window))
        starts = generator.permutation(np.arange(phase, len(symbols) - window, window))
        for first in range(0, len(starts) - batch_rows + 1, batch_rows):
            places = starts[first : first + batch_rows, None] + np.arange(window + 1)
            yield torch.from_numpy(symbols[places])
