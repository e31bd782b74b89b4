"""What the tests of the model's laws share: settings, seeded tensors, and models of a few thousand parameters."""

from __future__ import annotations

import itertools

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from zonkey_core.config import LevelConfig, ModelConfig
from zonkey_core.model.existence import cumulative_log_continue, window_log_existence
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey, byte_sequence
from zonkey_core.model.ngram_tables import NOBODY
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segment_vocabulary import SegmentTokens, SegmentVocabulary
from zonkey_core.model.string_counter import StringCounter

torch.set_num_threads(1)

law = settings(max_examples=25, deadline=None)
"""Settings of a property test."""
few = settings(max_examples=8, deadline=None)
"""Settings of a property test that runs a model."""
seeds = st.integers(0, 10_000)

TEXT = (
    "The heron stood in the shallows, naïve as ever. Über die Brücke kam niemand; 日本語 was on the sign. "
    "It waited, and waited, and the water went by. Then — very late — it flew. "
)


def chance(seed: int) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=chance(seed), dtype=dtype)


def start_probs(length: int, *, rows: int = 1, seed: int = 0, low: float = 0.05, high: float = 0.95) -> Tensor:
    """Probabilities [rows, length] in float64 strictly between `low` and `high`, but 1 at position 0."""
    probs = low + (high - low) * torch.rand(rows, length, generator=chance(seed), dtype=torch.float64)
    probs[:, 0] = 1
    return probs


def existence(start_prob: Tensor, starts: list[int], window: int) -> Tensor:
    """`e(s, s + k)` for the same starts in every row: [B, L] to [B, M, window]."""
    positions = torch.tensor(starts).expand(len(start_prob), -1)
    return window_log_existence(cumulative_log_continue(start_prob), positions, window).exp()


def level_config(**changes: object) -> LevelConfig:
    """A very small level."""
    fields: dict[str, object] = {
        "segment_length": 3.0, "window": 8, "width": 16, "latents": 2, "heads": 2, "splitter_width": 16,
        "reader_width": 16, "decoder_layers": 1, "denoiser_width": 16, "denoiser_layers": 1, "denoiser_heads": 2,
        "mask_rate": 0.3, "splitter_ngrams": 512, "reader_units": 512, "reader_contexts": 512, "vocabulary": 300,
    }
    return LevelConfig(**{**fields, **changes})  # type: ignore[arg-type]


def small_model(levels: int = 2, *, seed: int = 0, **changes: object) -> Zonkey:
    """An untrained model; its splitters cut about every third position, unevenly, and half of the n-grams are known."""
    torch.manual_seed(seed)
    model = Zonkey(ModelConfig(levels=tuple(level_config(**changes) for _ in range(levels))))
    for level in model.levels:
        torch.nn.init.normal_(level.splitter.head.weight, std=1.0)
    ngrams = model.bottom.splitter.ngrams
    assert ngrams is not None
    ngrams.owners[::2] = NOBODY
    return model


def fit_vocabulary(model: Zonkey, text: str = TEXT) -> SegmentVocabulary:
    """Level 0's vocabulary, with the strings that the model cuts a text into."""
    level, sequence, counter = model.bottom, byte_rows(text.encode()), StringCounter()
    counter.add(sequence.values, level.choose_starts(sequence, level.split(sequence).start_prob).start_prob > 0.5)
    level.collect(counter)
    assert level.vocabulary is not None
    return level.vocabulary


def byte_rows(*rows: bytes) -> PositionSequence:
    """Byte rows of one length, each the beginning of a document."""
    values = torch.tensor([list(row) for row in rows])
    document_mask = torch.zeros_like(values, dtype=torch.bool)
    document_mask[:, 0] = True
    return byte_sequence(values, document_mask)


def latent_rows(level: Level, lengths: list[int], *, seed: int, padding: int = 0) -> PositionSequence:
    """Random rows of positions for a level above the lowest, padded to the longest and by `padding` more."""
    channels = level.embedding.channels
    assert channels is not None
    longest = max(lengths) + padding
    exists = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    values = torch.zeros(len(lengths), longest, channels)
    for row, length in enumerate(lengths):
        values[row, :length] = normal(length, channels, seed=seed + row, dtype=torch.float32)
    document_mask = torch.zeros_like(exists)
    document_mask[:, 0] = True
    return PositionSequence(values, exists, document_mask)


def pieces_of(lengths: list[list[int]], *, begins: list[bool] | None = None) -> SegmentTokens:
    """Rows of documents of these lengths; each piece is an entry of its own. The first may have begun before."""
    totals = torch.tensor([sum(row) for row in lengths])
    slot_mask = torch.arange(int(totals.max())) < totals.unsqueeze(1)
    order = torch.arange(slot_mask.shape[1]).expand_as(slot_mask)
    document_mask = torch.zeros_like(slot_mask)
    for row, documents in enumerate(lengths):
        document_mask[row, list(itertools.accumulate(documents[:-1], initial=0))] = True
        document_mask[row, 0] = begins is None or begins[row]
    return SegmentTokens((order + 7) * slot_mask, order * slot_mask, slot_mask, document_mask)
