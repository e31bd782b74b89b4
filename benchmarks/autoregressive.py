"""The autoregressive rival: a causal byte Transformer that writes from left to right with a key-value cache.

It is the evaluation's `ByteModel` with one more output, the boundary between documents, so that it decides itself
where a text ends. In infilling it reads only what stands before a gap, so that it cannot tell how long the gap is; nor
does anything in its training. How many words it writes is drawn from `GAP_WORDS`, the sizes of all gaps that there
are, and it stops where the last of them ends, or where it ends the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from neural_rival import BOUNDARY, SYMBOLS, Recipe, Rival, draw, heads_of
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.data.rows import RowBatch
from zonkey_core.evaluation.baselines.byte_model import ByteModel, ByteModelShape, KeyValueCache, byte_losses
from zonkey_core.evaluation.tasks.infills import GAP_WORDS
from zonkey_core.inference.gap_windows import Gap

WORD_BYTES = 24
"""A fill has at most this many bytes for each of its words."""
BATCH = 32
"""Texts that are written side by side."""


class Autoregressive(ByteModel):
    """Predicts the symbol after each symbol of a row from those before it; logits [B, L, SYMBOLS]."""

    def __init__(self, width: int, layers: int, row_bytes: int) -> None:
        super().__init__(ByteModelShape(width=width, layers=layers, heads=heads_of(width), window=row_bytes))
        self.output_bias = nn.Parameter(torch.zeros(SYMBOLS))

    def _predict(self, states: Tensor) -> Tensor:
        return functional.linear(self.norm(states), self.embedding.weight, self.output_bias)

    def loss(self, symbols: Tensor, _generator: torch.Generator) -> Tensor:
        """Mean nats per symbol of rows [B, L], each symbol but the first given those before it."""
        logits = self(symbols[:, :-1]).float()
        return functional.cross_entropy(logits.flatten(0, 1), symbols[:, 1:].flatten())


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How symbols are drawn."""

    temperature: float = 1.0
    top_p: float = 1.0


class AutoregressiveRival(Rival):
    """The trained network as a contestant."""

    def __init__(
        self, network: Autoregressive, recipe: Recipe, batch: RowBatch, *, name: str, drawing: Drawing
    ) -> None:
        super().__init__(name, network, recipe, batch, drawing)
        self.writer = network
        self.drawing = drawing

    @torch.no_grad()
    def generate(self, count: int, max_bytes: int, seed: int) -> list[bytes]:
        """Texts from the beginning of a document to its end, or `max_bytes`."""
        generator = torch.Generator().manual_seed(seed)
        texts: list[bytes] = []
        for first in range(0, count, BATCH):
            cache = KeyValueCache()
            columns = [torch.full((min(BATCH, count - first),), BOUNDARY, device=self.device)]
            ended = torch.zeros_like(columns[0], dtype=torch.bool)
            while len(columns) <= max_bytes and not ended.all():
                columns.append(self._next(columns[-1].unsqueeze(1), cache, generator))
                ended |= columns[-1] == BOUNDARY
            for row in torch.stack(columns[1:], 1).tolist():
                texts.append(bytes(row[: row.index(BOUNDARY)] if BOUNDARY in row else row))
        return texts

    @torch.no_grad()
    def infill(self, text: bytes, gaps: Sequence[Gap], answers: Sequence[bytes], seed: int) -> list[bytes]:
        """Fills for gaps from left to right, each from what stands before it; the answers are not looked at."""
        generator = torch.Generator().manual_seed(seed)
        before, position = b"", 0
        fills: list[bytes] = []
        for gap in gaps:
            before += text[position : gap.start]
            words = GAP_WORDS[int(torch.randint(len(GAP_WORDS), (1,), generator=generator))]
            fills.append(self._words(before, words, generator))
            before += fills[-1]
            position = gap.end
        return fills

    def nats(self, texts: Sequence[bytes]) -> list[float]:
        """-log p of each text, in windows as in writing; the boundary's share of each prediction is left out."""
        return [float(losses.sum()) for losses in byte_losses(self.writer, texts)]

    def _words(self, before: bytes, words: int, generator: torch.Generator) -> bytes:
        """That many words after a text, without the space that follows them."""
        cache = KeyValueCache()
        symbols = self.writer.prompt(before)
        fill = b""
        while len(fill) < WORD_BYTES * words:
            drawn = self._next(symbols, cache, generator)
            if int(drawn) == BOUNDARY:
                break
            fill += bytes(drawn.tolist())
            if fill[-1:].isspace() and len(fill.split()) == words:
                return fill[:-1]
            symbols = drawn.unsqueeze(1)
        return fill

    def _next(self, symbols: Tensor, cache: KeyValueCache, generator: torch.Generator) -> Tensor:
        """The symbol [B] after further symbols [B, n] of texts that are read side by side.

        In float32: a step is so small that the conversions of bfloat16 take longer than its products save.
        """
        logits = self.writer.read(symbols, cache)[:, -1]
        return draw(
            logits, temperature=self.drawing.temperature, top_p=self.drawing.top_p, generator=generator
        )
