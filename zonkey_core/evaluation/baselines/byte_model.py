"""A causal byte Transformer: the judge of generated text, the entropy cutter's model, and the autoregressive rival.

A text is read as a begin symbol and its bytes, in windows of W symbols, each of which begins S = W / 2 symbols after
the last. A byte is predicted in the first window that has at least S symbols before it, or all there are:

    p(text) = prod_i p(byte_i | symbols of its window before it),

which is the same whether a text is judged at once or written byte by byte with the key-value cache. All losses and
entropies are in nats. Shapes: B rows of L symbols, D channels, H heads, 256 outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.checkpoint import CONFIG, MODEL, pack_tensors, read_tensors
from zonkey_core.devices import autocast, choose_precision
from zonkey_core.errors import CheckpointError
from zonkey_core.model.attention import attend
from zonkey_core.model.bytes import BYTE_VALUES, SYMBOLS
from zonkey_core.model.hash_embeddings import lookup_table, ngram_keys, table_rows
from zonkey_core.model.transformer import Block, Transformer, rotary_phases, rotate

BEGIN = 256
"""The symbol before a text's first byte."""
SCORING_ROWS = 64
ORDERS = (2, 3, 4, 6)
"""Lengths of the n-grams whose vectors are added; each has an equal share of the channels."""
HIDDEN_SHARE = 0.5


class ByteModelShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of a `ByteModel`."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    window: int = 128
    """W, symbols in a row; an even number."""
    ngram_rows: int = 0
    """Rows of the table of vectors for the byte n-grams that end at a symbol; 0 for none."""


class KeyValueCache:
    """What a `ByteModel` has read of the present window of B texts that are read side by side."""

    def __init__(self) -> None:
        self.symbols: Tensor | None = None
        """[B, L] symbols read in this window."""
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Keys and values of every layer, [B, H, W, D/H], of which the first L are filled."""

    @property
    def length(self) -> int:
        """L, the symbols read in this window."""
        return 0 if self.symbols is None else self.symbols.shape[1]


class NgramVectors(nn.Module):
    """Vectors for the n-grams of several lengths that end at each symbol, looked up by hash.

    They hold what a small corpus can teach of short strings at hardly any cost in time; the same n-gram always has
    the same vectors, and different ones may share theirs.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows = rows
        self.table = lookup_table(len(ORDERS) * rows, width // len(ORDERS))

    def forward(self, symbols: Tensor, hiding: torch.Generator | None) -> Tensor:
        """[B, L] symbols to [B, L, D]; what stands before the first of them counts as begin symbols.

        With a generator, each vector is hidden with probability `HIDDEN_SHARE` and the others grow to make up for it.
        Without that the vectors learn a text by heart when it is read a second time.
        """
        keys = ngram_keys(symbols, max(ORDERS))
        places = [table_rows(keys[order - 1], self.rows) + which * self.rows for which, order in enumerate(ORDERS)]
        vectors = functional.embedding(torch.stack(places, -1), self.table[0])
        if hiding is not None:
            shown = torch.rand(vectors.shape[:-1], generator=hiding, device=vectors.device) >= HIDDEN_SHARE
            vectors = vectors * (shown / (1 - HIDDEN_SHARE)).unsqueeze(-1)
        return vectors.flatten(2)


class ByteModel(nn.Module):
    """Predicts every byte from those before it."""

    def __init__(self, shape: ByteModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(SYMBOLS, shape.width)
        nn.init.normal_(self.embedding.weight, std=shape.width**-0.5)
        self.transformer = Transformer(shape.width, shape.heads, shape.layers, rotary=True)
        self.ngrams = NgramVectors(shape.ngram_rows, shape.width) if shape.ngram_rows else None
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(BYTE_VALUES))

    @property
    def window(self) -> int:
        """W, the most symbols that a byte is predicted from."""
        return self.shape.window

    @property
    def stride(self) -> int:
        """S, how far each window begins after the last."""
        return self.shape.window // 2

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def forward(self, symbols: Tensor, hiding: torch.Generator | None = None) -> Tensor:
        """Logits of the byte after each of [B, L] symbols: [B, L, 256].

        `hiding`, in training, is where it is drawn from which n-grams the model must do without.
        """
        states = self._embed(symbols, 0, hiding)
        return self._predict(self.transformer(states, _causal_bias(0, symbols.shape[1], self.device)))

    def read(self, symbols: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits of the byte after each of [B, n] further symbols, [B, n, 256]; the cache takes them in.

        Where the window is full, a new one begins S symbols later, as in judging.
        """
        logits = []
        while symbols.shape[1]:
            if cache.length == self.window:
                assert cache.symbols is not None
                kept = cache.symbols[:, self.stride :]
                cache.symbols = None
                self._extend(kept, cache)
            piece = symbols[:, : self.window - cache.length]
            logits.append(self._predict(self._extend(piece, cache)))
            symbols = symbols[:, piece.shape[1] :]
        return torch.cat(logits, 1)

    def prompt(self, text: bytes) -> Tensor:
        """[1, n] symbols to `read` with an empty cache so as to go on after `text`: those of its last window."""
        begin = self.window_of(len(text))
        return torch.from_numpy(text_symbols(text)[None, begin:]).to(self.device)

    def window_of(self, offset: int) -> int:
        """How many symbols of a text stand before the window in which the byte at an offset is predicted."""
        return max(0, -(-(offset + 1 - self.window) // self.stride)) * self.stride

    def _embed(self, symbols: Tensor, start: int, hiding: torch.Generator | None = None) -> Tensor:
        """Vectors of the symbols from `start` on, which are read with those before them."""
        embedded: Tensor = self.embedding(symbols[:, start:])
        if self.ngrams is not None:
            embedded = embedded + self.ngrams(symbols, hiding)[:, start:]
        return embedded * math.sqrt(self.shape.width)

    def _predict(self, states: Tensor) -> Tensor:
        return functional.linear(self.norm(states), self.embedding.weight[:BYTE_VALUES], self.output_bias)

    def _extend(self, symbols: Tensor, cache: KeyValueCache) -> Tensor:
        """States [B, n, D] of symbols that still fit into the cache's window, which takes them in."""
        start, count = cache.length, symbols.shape[1]
        cache.symbols = symbols if cache.symbols is None else torch.cat([cache.symbols, symbols], 1)
        states = self._embed(cache.symbols, start)
        phases = rotary_phases(torch.arange(start, start + count, device=self.device), self.transformer.head_width)
        bias = _causal_bias(start, count, self.device)
        for index, block in enumerate(self.transformer.blocks):
            assert isinstance(block, Block)
            joint = block.attention_in(block.attention_norm(states))
            queries, keys, values = joint.unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
            if index == len(cache.layers):
                room = (*keys.shape[:2], self.window, keys.shape[-1])
                cache.layers.append((keys.new_empty(room), keys.new_empty(room)))
            all_keys, all_values = (tensor[:, :, : start + count] for tensor in cache.layers[index])
            all_keys[:, :, start:] = rotate(keys, phases)
            all_values[:, :, start:] = values
            mixed = attend(rotate(queries, phases), all_keys, all_values, bias)
            states = states + block.attention_out(mixed.transpose(1, 2).flatten(2))
            hidden = functional.silu(block.feedforward_in(block.feedforward_norm(states)))
            states = states + block.feedforward_out(hidden)
        return states


def _causal_bias(start: int, count: int, device: torch.device) -> Tensor:
    """[1, 1, count, start + count]: which symbols each of those from `start` on may attend to."""
    bias = torch.full((count, start + count), -torch.inf, device=device)
    return bias.triu(start + 1)[None, None]


def text_symbols(*parts: bytes) -> NDArray[np.int64]:
    """[n + 1] symbols of a text of n bytes, which may be given in parts: a begin symbol and the bytes."""
    return np.concatenate([[BEGIN], np.frombuffer(b"".join(parts), dtype=np.uint8)], dtype=np.int64)


class _Span(NamedTuple):
    """A window of a text, and the bytes that are predicted in it."""

    text: int
    begin: int
    """Symbols of the text before the window."""
    first: int
    end: int
    """The bytes [first, end) of the text."""


def byte_losses(
    model: ByteModel,
    texts: Sequence[bytes],
    *,
    befores: Sequence[bytes] | None = None,
    report: Callable[[float], None] | None = None,
) -> list[NDArray[np.float64]]:
    """Nats of every byte of every text, -log p(byte | all that stands before it).

    With `befores`, each text goes on where another, from its beginning on, stopped. `report` is called with the share
    that is done.
    """

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits[..., :BYTE_VALUES]  # a model that can end texts is asked for bytes alone
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

    return _scan(model, texts, befores, losses, report)


def next_byte_entropies(model: ByteModel, texts: Sequence[bytes]) -> list[NDArray[np.float64]]:
    """Entropy, in nats, of the distribution from which every byte of every text is predicted."""

    def entropies(logits: Tensor, _targets: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    return _scan(model, texts, None, entropies, None)


@torch.no_grad()
def _scan(
    model: ByteModel,
    texts: Sequence[bytes],
    befores: Sequence[bytes] | None,
    measure: Callable[[Tensor, Tensor], Tensor],
    report: Callable[[float], None] | None,
) -> list[NDArray[np.float64]]:
    """What `measure` makes of logits [B, L, 256] and the bytes that came [B, L], for every byte of the texts."""
    before = [b""] * len(texts) if befores is None else befores
    symbols = [text_symbols(left, text) for left, text in zip(before, texts, strict=True)]
    spans = sorted(
        (
            span
            for index, (left, text) in enumerate(zip(before, texts, strict=True))
            for span in _spans(model, index, len(left), len(left) + len(text))
        ),
        key=lambda span: span.end - span.begin,
    )
    results = [np.zeros(len(text)) for text in texts]
    precision = choose_precision("auto", model.device)
    for first in range(0, len(spans), SCORING_ROWS):
        batch = spans[first : first + SCORING_ROWS]
        rows = np.zeros((len(batch), batch[-1].end - batch[-1].begin + 1), dtype=np.int64)
        for row, span in zip(rows, batch, strict=True):
            row[: span.end - span.begin + 1] = symbols[span.text][span.begin : span.end + 1]
        given = torch.from_numpy(rows).to(model.device)
        with autocast(model.device, precision):
            logits = model(given[:, :-1])
        values = measure(logits.float(), given[:, 1:]).double().cpu().numpy()
        for row, span in zip(values, batch, strict=True):
            left = len(before[span.text])
            kept = row[span.first - span.begin : span.end - span.begin]
            results[span.text][span.first - left : span.end - left] = kept
        if report is not None:
            report(min(1.0, (first + SCORING_ROWS) / len(spans)))
    return results


def _spans(model: ByteModel, text: int, first: int, end: int) -> Iterator[_Span]:
    """The windows in which bytes [first, end) of a text are predicted."""
    while first < end:
        begin = model.window_of(first)
        last = min(end, begin + model.window)
        yield _Span(text, begin, first, last)
        first = last


def save_byte_model(model: ByteModel, directory: Path) -> None:
    """Write a model into an existing folder."""
    (directory / CONFIG).write_bytes(msgspec.json.encode(model.shape))
    (directory / MODEL).write_bytes(pack_tensors(model.state_dict()))


def load_byte_model(directory: Path) -> ByteModel:
    """Read what `save_byte_model` wrote; raises `CheckpointError`."""
    try:
        shape = msgspec.json.decode((directory / CONFIG).read_bytes(), type=ByteModelShape)
        with torch.device("meta"):
            model = ByteModel(shape)
        model.load_state_dict(read_tensors(directory, MODEL), assign=True)
    except (OSError, msgspec.DecodeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{directory}: cannot be read ({reason}); delete it and measure again") from error
    return model.eval().requires_grad_(False)
