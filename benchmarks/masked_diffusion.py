"""The masked-diffusion rival: a bidirectional byte Transformer in the manner of MDLM (Sahoo et al., 2024).

Forward process: by time t in (0, 1] each symbol has been replaced by a mask with probability t (absorbing state,
log-linear schedule, alpha_t = 1 - t). The network reads the masked row and gives each masked position a distribution
over symbols, never over the mask, and known symbols are carried over (SUBS); it needs not be told the time. The
negative evidence lower bound is then

    E_t [ 1/t * sum over masked positions of -log p(symbol) ].

The times of a batch are spread evenly (low discrepancy), which takes most of the noise out of it.

Sampling goes back from all masked: in a step from t to s, each mask is lifted with probability (t - s) / t, whatever
the network thinks of the position. A step that lifts nothing needs no evaluation, because the network does not depend
on the time. A document that ends earlier than its row has a boundary there. In infilling, each gap is masked at its
*true length*: the method knows no other way, and is given that much more than those it is compared with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from neural_rival import BOUNDARY, SYMBOLS, Recipe, Rival, draw, heads_of
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.data.rows import RowBatch
from zonkey_core.devices import autocast, choose_precision
from zonkey_core.inference.gap_windows import Gap
from zonkey_core.model.transformer import Transformer

MASK = SYMBOLS
"""The absorbing symbol, behind all those that the network may predict."""
SMALLEST_TIME = 1e-3
"""Times are drawn from here to 1, so that 1/t stays finite."""
BATCH = 16
"""Rows that are sampled side by side."""


class MaskedDiffusion(nn.Module):
    """Predicts every symbol of a row from those that are not masked."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.mask = nn.Parameter(torch.randn(width) * width**-0.5)
        self.transformer = Transformer(width, heads_of(width), layers, rotary=True)
        self.norm = nn.LayerNorm(width, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(SYMBOLS))

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits of the symbol at each of [B, L] positions: [B, L, SYMBOLS]; `MASK` where it is not known."""
        table = torch.cat([self.embedding.weight, self.mask.unsqueeze(0)])
        states = functional.embedding(symbols, table) * math.sqrt(len(self.mask))
        return functional.linear(self.norm(self.transformer(states, None)), self.embedding.weight, self.output_bias)

    def loss(self, symbols: Tensor, generator: torch.Generator) -> Tensor:
        """The bound, in nats per symbol, of rows [B, L] at one time each."""
        rows = len(symbols)
        even = (torch.arange(rows) + torch.rand(1, generator=generator)) / rows
        times = (SMALLEST_TIME + (1 - SMALLEST_TIME) * even).unsqueeze(1)
        masked = (torch.rand(symbols.shape, generator=generator) < times).to(symbols.device)
        logits = self(symbols.masked_fill(masked, MASK)).float()
        nats = functional.cross_entropy(logits.flatten(0, 1), symbols.flatten(), reduction="none").view(symbols.shape)
        return (nats * masked / times.to(nats.device)).mean()


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How rows are sampled."""

    steps: int = 128
    """From all masked to none."""
    temperature: float = 1.0
    top_p: float = 1.0


@torch.no_grad()
def unmask(
    network: MaskedDiffusion,
    symbols: Tensor,
    drawing: Drawing,
    generator: torch.Generator,
    *,
    boundaries: bool = True,
) -> Tensor:
    """Rows [B, L] with every `MASK` replaced, by bytes alone without `boundaries`; all other symbols stay."""
    symbols = symbols.clone()
    times = torch.linspace(1, 0, drawing.steps + 1, dtype=torch.float64).tolist()
    for now, following in itertools.pairwise(times):
        chances = torch.rand(symbols.shape, generator=generator, dtype=torch.float64).to(symbols.device)
        lifted = (symbols == MASK) & (chances < (now - following) / now)
        rows = lifted.any(1)
        if rows.any():
            with autocast(symbols.device, choose_precision("auto", symbols.device)):
                logits = network(symbols[rows])[lifted[rows]]
            symbols[lifted] = draw(
                logits if boundaries else logits[:, :BOUNDARY],
                temperature=drawing.temperature,
                top_p=drawing.top_p,
                generator=generator,
            )
    return symbols


class MaskedRival(Rival):
    """The trained network as a contestant."""

    def __init__(
        self, network: MaskedDiffusion, recipe: Recipe, batch: RowBatch, *, name: str, drawing: Drawing
    ) -> None:
        super().__init__(name, network, recipe, batch, drawing)
        self.denoiser = network
        self.drawing = drawing

    def generate(self, count: int, max_bytes: int, seed: int) -> list[bytes]:
        """Texts from the beginning of a document to its end, or `max_bytes`.

        A text longer than a row goes on from its own end, half a row at a time.
        """
        generator = torch.Generator().manual_seed(seed)
        texts: list[bytes] = []
        for first in range(0, count, BATCH):
            rows = torch.full((min(BATCH, count - first), 1), BOUNDARY, device=self.device)
            while rows.shape[1] <= max_bytes:
                before = rows if rows.shape[1] == 1 else rows[:, -(self.row_bytes // 2) :]
                room = min(max_bytes + 1 - rows.shape[1], self.row_bytes + 1 - before.shape[1])
                opened = torch.full((len(rows), room), MASK, device=self.device)
                filled = unmask(self.denoiser, torch.cat([before, opened], 1), self.drawing, generator)
                rows = torch.cat([rows, filled[:, before.shape[1] :]], 1)
                if (rows[:, 1:] == BOUNDARY).any(1).all():
                    break
            texts += [_until_boundary(row) for row in rows[:, 1:].tolist()]
        return texts

    def infill(self, text: bytes, gaps: Sequence[Gap], answers: Sequence[bytes], seed: int) -> list[bytes]:
        """Fills as long as the true answers, gaps in one row together, each with as much text on either side.

        A boundary inside a gap is not taken: a gap lies within a document.
        """
        generator = torch.Generator().manual_seed(seed)
        symbols: list[int] = [BOUNDARY]
        spans: list[tuple[int, int]] = []
        position = 0
        for gap, answer in zip(gaps, answers, strict=True):
            symbols += text[position : gap.start]
            spans.append((len(symbols), len(symbols) + len(answer)))
            symbols += [MASK] * len(answer)
            position = gap.end
        row = torch.tensor([*symbols, *text[position:]], device=self.device)
        while (masked := (row == MASK).nonzero().flatten()).numel():
            middle = int(masked[0] + masked[masked < masked[0] + self.row_bytes // 2][-1]) // 2
            start = max(0, min(middle - self.row_bytes // 2, len(row) - self.row_bytes))
            window = slice(start, start + self.row_bytes)
            row[window] = unmask(self.denoiser, row[window][None], self.drawing, generator, boundaries=False)[0]
        return [bytes(row[begin:end].tolist()) for begin, end in spans]

    def nats(self, texts: Sequence[bytes]) -> None:
        """Only a bound of a text's likelihood is known."""


def _until_boundary(symbols: list[int]) -> bytes:
    """The bytes before the first boundary."""
    return bytes(itertools.takewhile(lambda symbol: symbol != BOUNDARY, symbols))
