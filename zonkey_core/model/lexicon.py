"""What segments cost as entries of a lexicon, which teaches the splitter of units where to cut.

A text of segments is told shortest where these are strings that come back. With starts of probability p, one of `l`
units at *i* is there with probability `q = p_i e(i, i + l - 1) p_{i + l}`, by the existence that is under all of the
model, and the splitter is moved along the gradient of what the text is expected to cost, less the entropy of its cuts:
the bound of variational inference for a Pitman-Yor process of segments (Teh 2006; of words, Goldwater et al. 2009,
Mochihashi et al. 2009). Its posterior is the splitter, which sees what stands around a cut, and its counts are the sums
of `q` over what was read of late. An entry's own occurrence is taken off its count, and one that was not met before is
spelled by units.

Since entries are told independently of each other, too few cuts are worth their while: a cut has a price, which rises
while text is cut more often than its information says. It is one price for all text, so what a cut saves is the same
everywhere, and a source may be cut more or less often than what a compressor makes of it says.

Shapes: T units of a batch, as `UnitRows`; lengths 1 to `LONGEST` of segments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.existence import cumulative_log_continue
from zonkey_core.model.hash_embeddings import ngram_keys, table_rows
from zonkey_core.model.ngram_tables import SPREAD
from zonkey_core.model.segment_splitter import Splits
from zonkey_core.model.unit_rows import UnitRows

LONGEST = 12
"""Units of the longest segment that is an entry."""
DISCOUNT = 0.8
"""What the Pitman-Yor process takes off the count of every entry, for those that were not met yet."""
STRENGTH = 10.0
"""Entries that it holds to be new, in any case."""
UNIT_ROWS = 1 << 16
KEPT_UNITS = 1 << 21
"""Units of text that counts are sums over; what is older fades."""
UNTOLD = 12.0
"""Nats of a unit in a segment longer than any entry."""
PRICE_RATE = 0.1
"""How much a price rises by a batch that has one cut too many for each unit."""
LARGEST_PRICE = 3.0
"""Of either sign; a text whose information says too little of its words, as boilerplate, may miss its rate."""
FIRMNESS = 60.0
"""What is added to a price while text has, in the mean of its last batches, one cut too many for each unit."""
EXCESS_DECAY = 0.5
"""How much of that mean a batch leaves."""
LIKELY = 0.1
"""Probability below which a segment is not counted: most of all substrings, which would crowd the table."""


class Lexicon(nn.Module):
    """Counts of segments and of units, by hash, and the price of a cut; none of it is saved with a model."""

    counts: Tensor
    unit_counts: Tensor
    information: Tensor
    """[sources] bits of a unit of each source of text, as a compressor has it; 0 where that is not known."""
    cut_price: Tensor
    """[] nats"""
    excess: Tensor
    """[] cuts a unit, in the mean of the last batches, beyond what there should be."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(rows), persistent=False)
        self.register_buffer("unit_counts", torch.zeros(UNIT_ROWS), persistent=False)
        self.register_buffer("cut_price", torch.zeros(()), persistent=False)
        self.register_buffer("excess", torch.zeros(()), persistent=False)
        self.expect_sources(1)

    def expect_sources(self, count: int) -> None:
        """Have room for so many sources of text, and know of none what it costs."""
        self.register_buffer("information", torch.zeros(count, device=self.counts.device), persistent=False)

    def forward(self, units: UnitRows, splits: Splits) -> tuple[Tensor, Tensor]:
        """Nats, summed, of units [T] that are cut with these probabilities, and how much of each entry there is.

        The second, [T, LONGEST], without gradient, is what `learn` counts.
        """
        share = log_segment_shares(splits, units.fresh_mask).exp()
        met = share.detach()
        with torch.no_grad():
            cost = self.costs(units.keys, met)
        lengths = torch.arange(1, LONGEST + 1, device=share.device)
        untold = len(units.keys) - (share * lengths).sum()
        open_cuts = splits.start_logits[~units.fresh_mask]
        probable = open_cuts.sigmoid()
        entropy = -(
            probable * functional.logsigmoid(open_cuts) + (1 - probable) * functional.logsigmoid(-open_cuts)
        )
        return (share * cost).sum() + UNTOLD * untold - entropy.sum(), met

    def costs(self, keys: Tensor, met: Tensor) -> Tensor:
        """[T, LONGEST] nats of the segments that begin at units [T], less their own occurrence `met`."""
        places = self._places(keys)
        count = (self.counts[places] - met).clamp(min=0)
        kept = count - DISCOUNT * count.clamp(max=1)
        known = self.unit_counts + 1.0
        spelled = -(known[self._unit_places(keys)] / known.sum()).log()
        spelling = functional.pad(functional.pad(spelled.double().cumsum(0), (1, 0)), (0, LONGEST), value=torch.inf)
        ends = torch.arange(len(keys), device=keys.device).unsqueeze(1) + torch.arange(
            1, LONGEST + 1, device=keys.device
        )
        new = (spelling[: len(keys), None] - spelling[ends]).exp() / LONGEST  # below what float32 holds, often
        entries = self.counts.clamp(max=1).sum()
        probability = (kept + (STRENGTH + DISCOUNT * entries) * new) / (self.counts.sum() + STRENGTH)
        return -probability.clamp(min=torch.finfo(probability.dtype).tiny).log().float()

    @torch.no_grad()
    def learn(self, keys: Tensor, met: Tensor, sum_over: Callable[[Tensor], Tensor]) -> None:
        """Count the segments of a batch; `sum_over` gives the sum of a tensor over all processes."""
        likely = met > LIKELY
        found = torch.zeros_like(self.counts).index_add_(0, self._places(keys)[likely], met[likely])
        units = torch.zeros_like(self.unit_counts)
        units.index_add_(0, self._unit_places(keys), torch.ones(len(keys), device=units.device))
        units = sum_over(units)
        fading = (1 - units.sum() / KEPT_UNITS).clamp(min=0)
        self.counts.mul_(fading).add_(sum_over(found))
        self.unit_counts.mul_(fading).add_(units)

    @torch.no_grad()
    def price(self, excess: Tensor, sum_over: Callable[[Tensor], Tensor]) -> Tensor:
        """[] nats of a cut, where rows have `excess` [R] more cuts a unit than they should.

        The price changes by that; `sum_over` as above.
        """
        rows, found = sum_over(torch.stack([excess.new_tensor(len(excess)), excess.sum()]))
        mean = found / rows.clamp(min=1)
        self.cut_price += PRICE_RATE * mean
        self.cut_price.clamp_(-LARGEST_PRICE, LARGEST_PRICE)
        self.excess.lerp_(mean, 1 - EXCESS_DECAY)
        return self.cut_price + FIRMNESS * self.excess

    def _places(self, keys: Tensor) -> Tensor:
        """[T, LONGEST] rows of the segments that begin at units [T]."""
        padded = functional.pad(keys, (0, LONGEST))
        key = torch.zeros_like(keys)
        places = []
        for length in range(LONGEST):
            key = (key + padded[length : length + len(keys)] + 1) * SPREAD
            key = key ^ (key >> 29)
            places.append(table_rows(key * SPREAD, len(self.counts)))
        return torch.stack(places, 1)

    @staticmethod
    def _unit_places(keys: Tensor) -> Tensor:
        return table_rows(ngram_keys(keys[None], 1)[0][0], UNIT_ROWS)


def log_segment_shares(splits: Splits, fresh_mask: Tensor) -> Tensor:
    """[T, LONGEST] logarithm of the probability of a segment of each length at units [T].

    fresh_mask [T]: where a segment begins for certain; another does behind the last unit.
    """
    total = len(fresh_mask)
    log_start = functional.logsigmoid(splits.start_logits.float()).masked_fill(fresh_mask, 0.0)
    starts = functional.pad(functional.pad(log_start, (0, 1)), (0, LONGEST), value=-torch.inf)
    cumulative = cumulative_log_continue(splits.start_prob.double())
    ends = functional.pad(cumulative, (0, LONGEST), value=-torch.inf)
    shares = [
        log_start
        + (ends[length - 1 : length - 1 + total] - cumulative).float()
        + starts[length : length + total]
        for length in range(1, LONGEST + 1)
    ]
    return torch.stack(shares, 1)

