"""One level of the hierarchy, written once for bytes and for latents: split, compress, denoise, decode.

A level turns positions [B, L] into segments with latents [B, M, C]; its latents are the next level's positions.
Windows of existing segments are kept flat, [K, S] with K segments over the whole batch, and short ones are handled
apart from long ones so that little work is spent on positions that do not exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.config import LevelConfig
from zonkey_core.diffusion.noise_schedule import NoiseSchedule
from zonkey_core.model.bytes import BYTE_VALUES, NO_BYTE
from zonkey_core.model.compressor import Compressor
from zonkey_core.model.denoiser import DecodedWindows, Decoder, Trunk
from zonkey_core.model.existence import (
    LOG_FLOOR,
    cumulative_log_continue,
    limit_segment_length,
    sample_starts,
    window_log_existence,
)
from zonkey_core.model.hash_embeddings import ngram_keys
from zonkey_core.model.positions import PositionEmbedding, PositionReadout, PositionSequence
from zonkey_core.model.segment_splitter import ContextReader, SegmentReader, SegmentSplitter, Splits
from zonkey_core.model.segment_vocabulary import SegmentTokens, SegmentVocabulary, StringCounter
from zonkey_core.model.writer import Writer

NEGLIGIBLE_EXISTENCE = 0.05
"""Positions of a window that exist with less than this are neither compressed nor decoded in training."""
COMPRESSED_TOGETHER = 1024
"""Strings of a dictionary that are compressed at once."""
WINDOW_STEPS = (7, 10, 14, 19)
"""Window lengths, below the level's own, at which segments are handled together."""


class Segmentation(NamedTuple):
    """A segmentation of a batch of rows."""

    starts: Tensor
    """[B, M] position of each segment's start; 0 in padding."""
    slot_mask: Tensor
    """[B, M] false in padding."""
    document_mask: Tensor
    """[B, M] true where the segment begins a document."""
    start_prob: Tensor
    """[B, L] the splitter's probabilities."""


class Windows(NamedTuple):
    """Windows of K segments, all of one length S."""

    segments: Tensor
    """[K] which of the batch's existing segments these are."""
    values: Tensor
    """[K, S] or [K, S, C]."""
    log_existence: Tensor
    """[K, S]."""
    start_prob: Tensor
    """[K, S] probability that a segment begins at each position."""


class Level(nn.Module):
    """Splitter, reader, compressor and denoiser of one level."""

    def __init__(self, config: LevelConfig, channels_below: int | None) -> None:
        super().__init__()
        self.config = config
        self.reads_bytes = channels_below is None
        self.channels = config.latents * config.width
        self.schedule = NoiseSchedule(config.noise_scale)
        splitter_width = config.splitter_width
        self.splitter = SegmentSplitter(
            channels_below,
            splitter_width,
            config.splitter_kernel,
            config.splitter_layers,
            config.segment_length,
            config.splitter_ngrams,
        )
        self.guide: SegmentSplitter | None = None
        """Above bytes: the splitter that the masked-modelling loss trains, from each position alone."""
        self.reader: ContextReader | SegmentReader
        if channels_below is None:
            self.reader = ContextReader(splitter_width, config.reader_contexts)
            kinds = BYTE_VALUES
        else:
            kinds = config.reader_codes
            self.guide = SegmentSplitter(channels_below, splitter_width, 1, 1, config.segment_length, 0)
            self.reader = SegmentReader(
                channels_below, splitter_width, config.heads, config.reader_layers, config.reader_span, kinds
            )
        self.reader_readout = nn.Linear(splitter_width, kinds)
        self.embedding = PositionEmbedding(channels_below, config.width)
        self.compressor = Compressor(
            config.width, config.latents, config.heads, config.compressor_layers, config.window
        )
        self.dictionary: SegmentVocabulary | None = None
        """Of bytes: what the denoiser chooses from."""
        self.writer: Writer | None = None
        self.trunk: Trunk | None = None
        """What denoises: a writer where there is a dictionary, a trunk above."""
        sizes = self.channels, config.trunk_width, config.trunk_heads, config.trunk_layers, self.schedule
        if channels_below is None:
            self.dictionary = SegmentVocabulary(config.dictionary, config.window, self.channels)
            self.writer = Writer(*sizes)
        else:
            self.trunk = Trunk(*sizes)
        self.decoder = Decoder(config.width, config.latents, config.heads, config.decoder_layers, config.window)
        self.readout = PositionReadout(channels_below, config.width)

    def splitter_parameters(self) -> Iterator[nn.Parameter]:
        """What cuts, and what teaches it to."""
        for module in (self.splitter, self.guide, self.reader, self.reader_readout):
            if module is not None:
                yield from module.parameters()

    def autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        """What compresses and decodes."""
        for module in (self.embedding, self.compressor, self.decoder, self.readout):
            yield from module.parameters()

    def denoiser_parameters(self) -> Iterator[nn.Parameter]:
        """What denoises; a dictionary spells what it chooses, and latents need a decoder that knows the trunk."""
        upper = (self.trunk, self.decoder, self.readout)
        for module in upper if self.dictionary is None else (self.writer, self.dictionary):
            assert module is not None
            yield from module.parameters()

    def split(self, sequence: PositionSequence) -> Splits:
        """The probability of a start at every position."""
        splits: Splits = self.splitter(sequence)
        return splits

    def reader_loss(self, states: Tensor, values: Tensor) -> Tensor:
        """What it cost the reader to tell hidden bytes [K], or the codes of hidden latents [K, C]: [K], in nats."""
        kinds = self.reader.codebook(values) if isinstance(self.reader, SegmentReader) else values
        return functional.cross_entropy(self.reader_readout(states).float(), kinds, reduction="none")

    def choose_starts(
        self, sequence: PositionSequence, start_prob: Tensor, *, generator: torch.Generator | None = None
    ) -> Segmentation:
        """A segmentation: drawn from `start_prob` with a generator, else its starts above one half.

        The latter is the one that a model is used with: no segment of it is longer than the window, and every cut of
        it is certain.
        """
        if generator is None:
            likely = (start_prob > 0.5) | ~sequence.exists_mask
            likely[:, 0] = True
            mask = limit_segment_length(likely, sequence.cut_allowed(), self.config.window)
            start_prob = mask.to(start_prob.dtype)
        else:
            mask = sample_starts(start_prob.detach(), generator)
        mask = mask & sequence.exists_mask
        length = mask.shape[1]
        order = torch.arange(length, device=mask.device).expand_as(mask)
        slots = int(mask.sum(1).max())
        starts = order.where(mask, length).sort(1).values[:, :slots]
        slot_mask = starts < length
        starts = starts.where(slot_mask, 0)
        documents = sequence.document_mask.gather(1, starts) & slot_mask
        return Segmentation(starts, slot_mask, documents, start_prob)

    def pieces(self, sequence: PositionSequence, start_prob: Tensor) -> SegmentTokens:
        """The segments of rows of bytes that a model is used with, as strings of its dictionary."""
        assert self.dictionary is not None
        start_mask = self.choose_starts(sequence, start_prob).start_prob > 0.5
        return self.dictionary.tokenize(sequence.values, start_mask, sequence.document_mask)

    @torch.no_grad()
    def collect(self, counter: StringCounter) -> None:
        """Fill the dictionary with the strings that a text has most, each with the latent that it compresses to."""
        assert self.dictionary is not None
        shares = counter.shares(len(self.dictionary.lengths))
        self.dictionary.fill(shares, self.dictionary.latents()[: len(shares)])
        values, exists = self.dictionary.windows()
        log_existence = torch.full(exists.shape, LOG_FLOOR, device=exists.device).masked_fill(exists, 0.0)
        windows = (torch.split(part[: len(shares)], COMPRESSED_TOGETHER) for part in (values, log_existence))
        self.dictionary.fill(shares, torch.cat([self.compress(*part) for part in zip(*windows, strict=True)]))

    def windows(
        self, sequence: PositionSequence, segmentation: Segmentation, chosen: Tensor | None = None
    ) -> Iterator[Windows]:
        """The windows of the existing segments, or of those in the mask `chosen` [K], in groups of similar length."""
        longest = self.config.window
        start_prob = segmentation.start_prob * sequence.exists_mask + (~sequence.exists_mask).float()
        log_existence = window_log_existence(cumulative_log_continue(start_prob), segmentation.starts, longest)
        log_existence = log_existence[segmentation.slot_mask]
        rows = torch.arange(len(sequence.values), device=start_prob.device)
        rows = rows.unsqueeze(1).expand_as(segmentation.starts)[segmentation.slot_mask]
        starts = segmentation.starts[segmentation.slot_mask]
        useful = (log_existence.detach().exp() > NEGLIGIBLE_EXISTENCE).sum(-1)
        useful = (useful + 1).clamp(max=longest)  # what stands behind a segment says that it ends
        if chosen is not None:
            useful = useful.where(chosen, 0)
        lower = 0
        for length in sorted({min(step, longest) for step in (*WINDOW_STEPS, longest)}):
            index = ((useful > lower) & (useful <= length)).nonzero().flatten()
            lower = length
            if not index.numel():
                continue
            place = starts[index].unsqueeze(-1) + torch.arange(length, device=starts.device)
            at = place.clamp(max=sequence.values.shape[1] - 1)
            row = rows[index].unsqueeze(-1)
            begins = start_prob[row, at].where(place == at, 1.0)
            yield Windows(index, sequence.values[row, at], log_existence[index, :length], begins)

    def compress(self, values: Tensor, log_existence: Tensor) -> Tensor:
        """Windows [K, S] of true values to latents [K, C] on the sphere."""
        latents: Tensor = self.compressor(self.embedding(values), log_existence)
        return latents

    def encode(self, sequence: PositionSequence, segmentation: Segmentation) -> Tensor:
        """Latents [K, C] of all existing segments, in order; segments of the same bytes are compressed once."""
        latents = segmentation.start_prob.new_zeros(int(segmentation.slot_mask.sum()), self.channels)
        for windows in self.windows(sequence, segmentation):
            latents = latents.index_copy(0, windows.segments, self._compress_distinct(windows))
        return latents

    def _compress_distinct(self, windows: Windows) -> Tensor:
        """Latents of windows, of which equal ones are compressed once where they are of bytes with certain ends."""
        values, log_existence = windows.values, windows.log_existence
        exists = log_existence == 0
        if not self.reads_bytes or not bool((exists | (log_existence <= LOG_FLOOR)).all()):
            return self.compress(values, log_existence)
        symbols = values.masked_fill(~exists, NO_BYTE)
        keys, which = torch.unique(ngram_keys(symbols, symbols.shape[1])[-1][:, -1], return_inverse=True)
        order = torch.arange(len(values), device=values.device)
        each = order.new_zeros(len(keys)).scatter_(0, which, order)
        return self.compress(values[each], log_existence[each])[which]

    def recompress(self, decoded: DecodedWindows) -> Tensor:
        """Decoded windows to the latents that they stand for, differentiably: the sampler's clean estimate."""
        embedded = self.embedding.embed_soft(self.readout(decoded.states))
        latents: Tensor = self.compressor(embedded, decoded.log_existence)
        return latents

    def decode(self, latents: Tensor, window: int | None = None) -> DecodedWindows:
        """Latents [K, C] to windows [K, S]."""
        decoded: DecodedWindows = self.decoder(latents, window)
        return decoded

    def upper_sequence(self, latents: Tensor, segmentation: Segmentation) -> PositionSequence:
        """Flat latents [K, C] of existing segments as the positions of the next level."""
        shape = (*segmentation.slot_mask.shape, latents.shape[-1])
        values = latents.new_zeros(shape).masked_scatter(segmentation.slot_mask.unsqueeze(-1), latents)
        return PositionSequence(values, segmentation.slot_mask, segmentation.document_mask)
