"""Untrained models for the tests of inference, which know strings of a text and have strong opinions."""

from __future__ import annotations

import bisect
import functools

import torch
from torch import Tensor, nn

from tests.model_helpers import fit_vocabulary, small_model
from zonkey_core.diffusion.decoding_order import Order, lay_out
from zonkey_core.inference.block_decoding import read_whole
from zonkey_core.inference.text_reading import TextReader
from zonkey_core.model.length_model import EDGES
from zonkey_core.model.level import Level
from zonkey_core.model.model import Zonkey
from zonkey_core.model.pointer import with_copies
from zonkey_core.model.segment_vocabulary import SegmentVocabulary
from zonkey_core.model.slot_batches import Plans, gather_entries

SURE = 30.0
"""Logit of what is certain."""
NEVER = EDGES[-1]
"""Remaining slots of what is sure not to end."""


def strings_of(level: Level) -> SegmentVocabulary:
    """The level's vocabulary."""
    assert level.vocabulary is not None
    return level.vocabulary


def entries_of(model: Zonkey, text: bytes) -> Tensor:
    """[M] the strings that a text is read as."""
    return TextReader(model).read([text])[0].entries


def expect(level: Level, remaining: int | None) -> None:
    """Make a level sure of how many slots remain, up to what its bins tell apart; without a number, of nothing."""
    denoiser = level.denoiser
    nn.init.zeros_(denoiser.ending_out.weight)
    nn.init.zeros_(denoiser.ending_bias)
    nn.init.constant_(denoiser.ending_out.bias, -2.0 if remaining is None else -SURE)
    if remaining is not None and remaining < NEVER:
        denoiser.ending_out.bias[bisect.bisect_right(EDGES, remaining)] = SURE


@functools.lru_cache(maxsize=16)
def teller(remaining: int | None = None, levels: int = 1) -> Level:
    """A lowest level of strong opinions on strings of a text.

    So many slots remain wherever it is asked; where there is no number, it has opinions on that, too.
    """
    model = small_model(levels, seed=3)
    vocabulary, level = fit_vocabulary(model), model.bottom.eval().requires_grad_(False)
    nn.init.normal_(vocabulary.table)
    nn.init.normal_(level.denoiser.latent_out.weight, std=2.0)
    nn.init.normal_(level.denoiser.ending_out.weight, std=0.3)
    nn.init.constant_(level.denoiser.ending_out.bias, -2.0)
    if remaining is not None:
        expect(level, remaining)
    return level


@functools.lru_cache(maxsize=16)
def talker(levels: int = 2, *, remaining: int | None = NEVER, fitted: bool = True) -> Zonkey:
    """Every level expects so many slots wherever it is asked; without a number, a text may end anywhere.

    Windows hold a few positions.
    """
    model = small_model(levels, seed=levels)
    if fitted:
        nn.init.normal_(fit_vocabulary(model).table)
    model.eval().requires_grad_(False)
    for level in model.levels:
        nn.init.constant_(level.decoder.starts.bias, -1.5)
        nn.init.normal_(level.denoiser.latent_out.weight)
        expect(level, remaining)
    return model


@functools.lru_cache(maxsize=8)
def filler(levels: int = 2, *, closed: bool = False) -> Zonkey:
    """Gaps hold a few slots, or surely none."""
    model = small_model(levels, seed=levels + 10)
    nn.init.normal_(fit_vocabulary(model).table)
    model.eval().requires_grad_(False)
    for level in model.levels:
        nn.init.constant_(level.decoder.starts.bias, -1.5)
        expect(level, None)
    out = model.bottom.denoiser.ending_out
    nn.init.constant_(out.bias, -1.0)
    nn.init.constant_(out.bias[:2], SURE if closed else -SURE)
    return model


@torch.no_grad()
def read_at_once(level: Level, order: Order, entries: Tensor, plans: Plans | None = None) -> tuple[Tensor, Tensor]:
    """[n, K] probabilities for all slots that an order asks, and which these are, in a single reading of all."""
    vocabulary = strings_of(level)
    table, rows = vocabulary.latents(), lay_out([order], len(order.source), torch.device("cpu"))
    asked = rows.told[0] >= 0
    found = read_whole(level, rows, table[entries].unsqueeze(0), plans)
    assert found.copies is not None
    told = vocabulary.logits(found.latents[0][asked], torch.ones(int(asked.sum())), table).softmax(-1)
    held = gather_entries(entries.unsqueeze(0), rows.source).expand(len(told), -1)
    return with_copies(told, *(each[0][asked] for each in found.copies), held), rows.told[0][asked]
