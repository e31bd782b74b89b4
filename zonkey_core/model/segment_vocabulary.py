"""Segment vocabulary: the strings that segments of bytes mostly are, with their latents.

A string's latent is what the Compressor makes of it, moved by what telling text has taught; it follows the Compressor.
The denoiser tells what a slot holds as a softmax over these, so that what is written is spelled as real text is.
Segments that are not in it are spelled with the likeliest row of strings that are; the 256 single bytes always are, so
every text can be written.

A string's logit adds up what the denoiser expects there, how often it is met, and the evidence of the noisy latent.
With noise of variance sigma^2 on alpha times a latent v on the sphere, that is exactly `alpha z.v / sigma^2` up to a
constant, so the denoiser has context to learn and no denoising (Dieleman et al. 2022, CDCD, learn both).

Shapes: K strings of at most S bytes, latents of width C; B rows of L bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.bytes import BYTE_VALUES
from zonkey_core.model.hash_embeddings import lookup_table, ngram_keys, string_keys
from zonkey_core.model.latents import ROWS_TOGETHER, product_dtype, to_sphere

LEAST_VARIANCE = 0.01
"""Variance of the noise below which a latent is evidence enough."""
UNUSED = -30.0
"""Logit of entries that hold no string."""


class SegmentTokens(NamedTuple):
    """Rows of bytes as strings of the vocabulary."""

    entries: Tensor
    """[B, M] which; 0 in padding."""
    starts: Tensor
    """[B, M] the position of each one's first byte; 0 in padding."""
    slot_mask: Tensor
    """[B, M] false in padding."""
    document_mask: Tensor
    """[B, M] true where a piece begins a document."""


class SegmentVocabulary(nn.Module):
    """K strings with their latents; until it is fitted, the 256 single bytes alone."""

    strings: Tensor
    lengths: Tensor
    compressed: Tensor
    """[K, C] what the Compressor made of each when the latents last followed it; not part of a saved model."""
    log_shares: Tensor
    """[K] how often each is met in text."""

    def __init__(self, entries: int, window: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("strings", torch.zeros(entries, window, dtype=torch.uint8))
        self.register_buffer("lengths", torch.zeros(entries, dtype=torch.int16))
        self.table = lookup_table(entries, channels)
        self.register_buffer("compressed", torch.zeros(entries, channels), persistent=False)
        self.register_buffer("log_shares", torch.full((entries,), UNUSED))
        self.bias = nn.Parameter(torch.full((entries,), UNUSED))
        nn.init.normal_(self.table)
        self._sorted: tuple[tuple[Tensor, int, Tensor, int], Tensor, Tensor] | None = None
        self._on_sphere: tuple[tuple[int, int], Tensor] | None = None
        single = {bytes([value]): 1 / BYTE_VALUES for value in range(BYTE_VALUES)}
        self.fill(single, self.table.detach()[0, :BYTE_VALUES].clone())

    @property
    def fitted(self) -> bool:
        """Whether it holds more than single bytes."""
        return bool((self.lengths > 1).any())

    def latents(self) -> Tensor:
        """[K, C] on the sphere; while nothing is learned, kept until the vectors are others."""
        if self.training or self.table.requires_grad:
            return to_sphere(self.table[0])
        state = self.table.data_ptr(), self.table._version
        if self._on_sphere is None or self._on_sphere[0] != state:
            self._on_sphere = state, to_sphere(self.table[0])
        return self._on_sphere[1]

    def make_tables(self) -> None:
        """Make what strings and latents are looked up in, for all who need it later."""
        self.latents()
        self._lookup()

    def used_latents(self) -> Tensor:
        """[K, C] the same, zeros for entries that hold no string, to which nothing is near."""
        return self.latents() * (self.lengths > 0).unsqueeze(1)

    def moved(self, entries: Tensor, compressed: Tensor) -> Tensor:
        """[n, C] latents of entries [n] for what the Compressor makes of their strings now."""
        return to_sphere(functional.embedding(entries, self.table[0]) + compressed - self.compressed[entries])

    @torch.no_grad()
    def follow(self, compressed: Tensor) -> None:
        """Move the latents as far as the Compressor, which makes this [K, C] of the strings now, has moved."""
        self.table[0] += compressed - self.compressed
        self.compressed.copy_(compressed)

    def fill(self, shares: Mapping[bytes, float], compressed: Tensor) -> None:
        """Take up these strings with their shares of a text's segments and what [len(shares), C] they compress to."""
        lengths = [len(string) for string in shares]
        packed = b"".join(string.ljust(self.strings.shape[1], b"\0") for string in shares)
        count = len(lengths)
        with torch.no_grad():
            self.strings[:count] = torch.frombuffer(bytearray(packed), dtype=torch.uint8).view(count, -1)
            self.lengths[:count] = torch.tensor(lengths, dtype=torch.int16)
            self.table[0, :count] = to_sphere(compressed)
            self.compressed[:count] = to_sphere(compressed)
            self.log_shares[:count] = torch.tensor([math.log(share) for share in shares.values()])
            self.bias.copy_(self.log_shares)

    def detokenize(self, entries: Sequence[int]) -> bytes:
        """The text of a row of entries."""
        index = torch.tensor(entries, dtype=torch.long)
        strings, lengths = self.strings.cpu()[index].numpy(), self.lengths.cpu()[index].tolist()
        return b"".join(string[:length].tobytes() for string, length in zip(strings, lengths, strict=True))

    def begins_with(self, prefix: bytes) -> Tensor:
        """[K] true for the strings that begin so."""
        wanted = torch.tensor(list(prefix), dtype=torch.uint8, device=self.strings.device)
        same = (self.strings[:, : len(prefix)] == wanted).all(1)
        return same & (self.lengths >= max(1, len(prefix)))

    def mean_length(self) -> float:
        """Bytes of a string of text, on average."""
        return float((self.log_shares.exp() * self.lengths).sum())

    def windows(self) -> tuple[Tensor, Tensor]:
        """The strings as windows [K, S] of bytes, and a mask [K, S] of the positions that exist."""
        order = torch.arange(self.strings.shape[1], device=self.strings.device)
        return self.strings.long(), order < self.lengths.unsqueeze(1)

    def tokenize(
        self, values: Tensor, start_mask: Tensor, document_mask: Tensor, exists_mask: Tensor
    ) -> SegmentTokens:
        """Rows of bytes [B, L], of which a mask [B, L] tells the starts of segments, as strings of the vocabulary.

        `exists_mask` [B, L] is false for padding at the ends of rows.
        """
        start_mask = start_mask | ~exists_mask
        length = values.shape[1]
        keys, places = self._lookup()
        text_keys = torch.stack(ngram_keys(values, self.strings.shape[1]))
        row, start = start_mask.nonzero(as_tuple=True)
        end = functional.pad(start[1:], (0, 1), value=length)
        end = end.where(end > start, length)
        entry = _find(keys, places, text_keys[end - start - 1, row, end - 1])
        entries = torch.full_like(values, -1)
        entries[row, start] = entry
        rare = entry < 0
        if rare.any():
            self._spell_out(entries, text_keys, (row[rare], start[rare], end[rare]), (keys, places))
        mask = (entries >= 0) & exists_mask
        counts = mask.sum(1)
        slot_mask = torch.arange(int(counts.max()), device=values.device) < counts.unsqueeze(1)
        order = torch.argsort((~mask).long(), dim=1, stable=True)[:, : slot_mask.shape[1]]
        return SegmentTokens(
            entries.gather(1, order).where(slot_mask, 0),
            order.where(slot_mask, 0),
            slot_mask,
            document_mask.gather(1, order) & slot_mask,
        )

    def _spell_out(
        self, entries: Tensor, text_keys: Tensor, segments: tuple[Tensor, ...], lookup: tuple[Tensor, Tensor]
    ) -> None:
        """Write into `entries` [B, L] the likeliest spellings of n segments, given by row, start and end (Viterbi)."""
        row, start, end = segments
        count, longest = len(row), int((end - start).max())
        sizes = torch.arange(longest, device=row.device)
        place = (start.unsqueeze(1) + sizes).clamp(max=entries.shape[1] - 1)
        # found[n, i, k]: the entry of k + 1 bytes that ends with the segment's byte i.
        found = _find(*lookup, text_keys[sizes, row[:, None, None], place.unsqueeze(2)].contiguous())
        inside = sizes <= sizes.unsqueeze(1)
        cost = -self.log_shares[found.clamp(min=0)].masked_fill((found < 0) | ~inside, -torch.inf)
        best = torch.full((count, longest + 1), torch.inf, device=row.device)
        best[:, 0] = 0
        taken = torch.zeros(count, longest, dtype=torch.long, device=row.device)
        for last in range(longest):
            total = best[:, : last + 1].flip(1) + cost[:, last, : last + 1]
            best[:, last + 1], taken[:, last] = total.min(1)
        each = torch.arange(count, device=row.device)
        left = end - start
        while bool((left > 0).any()):
            open_mask = left > 0
            end_byte = (left - 1).clamp(min=0)
            size = taken[each, end_byte]
            begin = start + end_byte - size
            entries[row[open_mask], begin[open_mask]] = found[each, end_byte, size][open_mask]
            left = torch.where(open_mask, end_byte - size, left)

    def _lookup(self) -> tuple[Tensor, Tensor]:
        """The hashes of the strings, sorted, and their entries; made anew only when the strings are others."""
        state = (self.strings, self.strings._version, self.lengths, self.lengths._version)
        if self._sorted is None or any(a is not b for a, b in zip(self._sorted[0], state, strict=True)):
            self._sorted = state, *string_keys(self.strings, self.lengths).sort()
        return self._sorted[1:]

    def queries(self, estimate: Tensor, sigma: Tensor) -> Tensor:
        """[..., C] vectors whose products with the latents are logits, from estimates [..., C] at noise [...]."""
        variance = sigma.float().square().clamp(min=LEAST_VARIANCE)
        return estimate.float() / variance.unsqueeze(-1)

    def logits(self, estimate: Tensor, sigma: Tensor, latents: Tensor) -> Tensor:
        """[n, K] in float32; latents [K, C] are those of `latents`, in the precision to multiply in."""
        products = self.queries(estimate, sigma).to(latents.dtype) @ latents.T
        return products.float() + self.bias

    def loss(
        self, estimate: Tensor, sigma: Tensor, entries: Tensor, log_copied: Tensor, log_rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean of `-log p(entry)`, in nats, of n estimates, a scalar; and each of them [n], without gradient.

        log_copied, log_rest [n]: that an entry is a copy and the right one, and that it is no copy (`Copies`).
        """
        mean, nats = _Choice.apply(  # type: ignore[no-untyped-call]
            self.queries(estimate, sigma), self.latents(), self.bias, entries, log_copied, log_rest
        )
        return mean, nats


def _find(keys: Tensor, places: Tensor, wanted: Tensor) -> Tensor:
    """Which of the sorted `keys` [K], whose entries are `places`, each of the `wanted` [...] is; -1 for none."""
    index = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return places[index].where(keys[index] == wanted, -1)


class _Choice(torch.autograd.Function):
    """Mean cross-entropy of a softmax over many entries, with its gradients made on the way.

    The distributions of some rows at a time stay in the cache and are never written out; on two cores this takes a
    third of the time of a linear layer and `cross_entropy`, which memory traffic decides.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        queries, latents, bias, entries, log_copied, log_rest = inputs
        dtype = product_dtype(queries)
        coarse = bias.to(dtype)
        fine = (bias - coarse.to(bias.dtype)).to(dtype)
        table = torch.cat([latents.to(dtype), torch.stack([coarse, fine], 1)], 1)
        queries = functional.pad(queries.to(dtype), (0, 2), value=1.0)
        to_queries = [queries.new_zeros(0, queries.shape[1] - 2).to(bias.dtype)]
        to_table = torch.zeros_like(table, dtype=bias.dtype)
        nats, told_shares = [bias.new_zeros(0)], [bias.new_zeros(0)]
        columns = (torch.split(each, ROWS_TOGETHER) for each in (queries, entries, log_copied, log_rest))
        for part, chosen, copied, rest in zip(*columns, strict=True):
            prob = (part @ table.T).softmax(-1)
            rows = torch.arange(len(part), device=part.device)
            log_told = rest + prob[rows, chosen].float().clamp(min=1e-9).log()
            log_both = torch.logaddexp(log_told, copied)
            nats.append(-log_both)
            # What of a choice was the vocabulary's is its share of the gradient.
            told_share = (log_told - log_both).exp()
            told_shares.append(told_share)
            prob[rows, chosen] -= 1
            prob *= told_share.to(dtype).unsqueeze(1)
            to_queries.append((prob @ table[:, :-2]).to(bias.dtype))
            to_table += (prob.T @ part).to(bias.dtype)
        count = max(1, len(queries))
        found = torch.cat(to_queries), to_table[:, :-2], to_table[:, -2], -torch.cat(told_shares)
        ctx.save_for_backward(*(each / count for each in found))
        each = torch.cat(nats)
        ctx.mark_non_differentiable(each)
        return each.sum() / count, each

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *told, to_rest = (gradients[0] * each for each in ctx.saved_tensors)  # type: ignore[attr-defined]
        to_copied = -gradients[0] / max(1, len(to_rest)) - to_rest
        return *told, None, to_copied, to_rest
