"""One level of the hierarchy, written once for bytes and for latents: split, compress, denoise, decode.

A level turns positions [B, L] into segments with latents, and holds the level above, which reads these. Its *slots* are
what its denoiser tells and what the level above compresses into blocks: its segments, or where it has a vocabulary, the
strings that spell them. Windows of existing segments are kept flat, [K, S] with K segments over the whole batch, and
short ones are handled apart from long ones so that little work is spent on positions that do not exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.config import LevelConfig
from zonkey_core.diffusion.noise_schedule import NoiseSchedule
from zonkey_core.model.bytes import NO_BYTE
from zonkey_core.model.compressor import Compressor
from zonkey_core.model.decoder import DecodedWindows, Decoder
from zonkey_core.model.denoiser import Denoiser
from zonkey_core.model.existence import (
    LOG_FLOOR,
    cumulative_log_continue,
    limit_segment_length,
    window_log_existence,
)
from zonkey_core.model.hash_embeddings import ngram_keys
from zonkey_core.model.latents import nearest_rows
from zonkey_core.model.lexicon import Lexicon
from zonkey_core.model.positions import Choices, PositionEmbedding, PositionReadout, PositionSequence
from zonkey_core.model.readers import ContextReader, CostEstimator
from zonkey_core.model.segment_splitter import SegmentSplitter, Splits
from zonkey_core.model.segment_vocabulary import SegmentTokens, SegmentVocabulary
from zonkey_core.model.segmentation import Segmentation, Slots, Windows, length_groups
from zonkey_core.model.string_counter import StringCounter

NEGLIGIBLE_EXISTENCE = 0.05
"""Positions of a window that exist with less than this are neither compressed nor decoded in training."""
COMPRESSED_TOGETHER = 1024
"""Strings of a vocabulary that are compressed at once."""


class Level(nn.Module):
    """Splitter, reader, compressor, decoder and denoiser of one level, and the level above it, if any.

    `configs` are those of this level and the ones above it.
    """

    def __init__(self, configs: Sequence[LevelConfig], channels_below: int | None) -> None:
        super().__init__()
        self.config = config = configs[0]
        self.reads_bytes = channels_below is None
        self.channels = config.latents * config.width
        self.above = Level(configs[1:], self.channels) if len(configs) > 1 else None
        self.schedule = NoiseSchedule(config.noise_scale)
        self.splitter = SegmentSplitter(
            channels_below,
            config.splitter_width,
            config.splitter_kernel,
            config.splitter_layers,
            config.segment_length,
            config.splitter_ngrams,
        )
        self.former: SegmentSplitter | None = None
        """Of bytes, in a run that keeps the cuts of some text: the splitter that it began with."""
        self.reader: ContextReader | None = None
        """Of bytes: what teaches the splitter by masked modelling; none where a lexicon does."""
        self.estimator: CostEstimator | None = None
        """Of bytes: what text costs, which sets how often it is cut."""
        self.lexicon: Lexicon | None = None
        """Of bytes, where the configuration has one: what segments cost as entries of it."""
        self.vocabulary: SegmentVocabulary | None = None
        """Of bytes: the strings that the denoiser chooses from."""
        if channels_below is None:
            if config.lexicon:
                self.lexicon = Lexicon(config.lexicon)
            else:
                self.reader = ContextReader(config.reader_width, config.reader_units, config.reader_contexts)
            self.estimator = CostEstimator(config.reader_width, config.reader_units)
            self.vocabulary = SegmentVocabulary(config.vocabulary, config.window, self.channels)
        self.embedding = PositionEmbedding(channels_below, config.width)
        self.compressor = Compressor(
            config.width, config.latents, config.heads, config.compressor_layers, config.window
        )
        self.denoiser = Denoiser(
            self.channels,
            None if self.above is None else self.above.channels,
            config.denoiser_width,
            config.denoiser_heads,
            config.denoiser_layers,
            blocks=0 if self.above is None else self.above.config.window,
            copying=self.vocabulary is not None,
        )
        self.decoder = Decoder(config.width, config.latents, config.heads, config.decoder_layers, config.window)
        self.readout = PositionReadout(channels_below, config.width)

    @property
    def device(self) -> torch.device:
        """Where the parameters are; those of the splitter, which is always there."""
        return self.splitter.head.weight.device

    def stack(self) -> Iterator[Level]:
        """This level and those above it, from the lowest to the highest."""
        yield self
        if self.above is not None:
            yield from self.above.stack()

    def splitter_parameters(self) -> Iterator[nn.Parameter]:
        """What cuts, and what teaches it to."""
        for module in (self.splitter, self.reader, self.estimator):
            if module is not None:
                yield from module.parameters()

    def autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        """What compresses and decodes."""
        for module in (self.embedding, self.compressor, self.decoder, self.readout):
            yield from module.parameters()

    def denoiser_parameters(self) -> Iterator[nn.Parameter]:
        """What denoises, what is told (the vectors of a vocabulary), and the decoder, which has to know what comes."""
        for module in (self.denoiser, self.vocabulary, self.decoder, self.readout):
            if module is not None:
                yield from module.parameters()

    def split(self, sequence: PositionSequence) -> Splits:
        """The probability of a start at every position."""
        splits: Splits = self.splitter(sequence)
        return splits

    def choose_starts(
        self, sequence: PositionSequence, start_prob: Tensor, *, certain: bool = True
    ) -> Segmentation:
        """The segmentation that a model is used with: starts above one half, no segment longer than the window.

        With `certain`, every cut of it is certain; otherwise `start_prob` is kept, so that existence fades as the
        splitter says, and gradients reach it.
        """
        likely = (start_prob > 0.5) | ~sequence.exists_mask
        likely[:, 0] = True
        mask = limit_segment_length(likely, sequence.cut_allowed(), self.config.window)
        if certain:
            start_prob = mask.to(start_prob.dtype)
        mask = mask & sequence.exists_mask
        length = mask.shape[1]
        order = torch.arange(length, device=mask.device).expand_as(mask)
        slots = int(mask.sum(1).max())
        starts = order.where(mask, length).sort(1).values[:, :slots]
        slot_mask = starts < length
        starts = starts.where(slot_mask, 0)
        documents = sequence.document_mask.gather(1, starts) & slot_mask
        return Segmentation(starts, slot_mask, documents, start_prob)

    def read_slots(self, sequence: PositionSequence, segmentation: Segmentation, latents: Tensor) -> Slots:
        """The slots of rows of which a segmentation, with latents [K, C] of its segments, is given."""
        if self.vocabulary is None:
            upper = self.upper_sequence(latents, segmentation)
            order = torch.arange(upper.exists_mask.shape[1], device=latents.device).expand_as(upper.exists_mask)
            mask = upper.exists_mask
            return Slots(upper.values, None, mask, upper.document_mask, segmentation.starts, order, mask)
        return self.read_tokens(sequence, segmentation)

    def read_tokens(self, sequence: PositionSequence, segmentation: Segmentation) -> Slots:
        """The segments of rows of bytes as strings of the vocabulary, with their latents.

        These carry gradients to the Compressor where it learns.
        """
        assert self.vocabulary is not None
        begins = segmentation.start_mask()
        tokens = self._tokenize(sequence, begins)
        first_mask = begins.gather(1, tokens.starts) & tokens.slot_mask
        latents = self._token_latents(tokens.entries[tokens.slot_mask])
        values = latents.new_zeros(*tokens.entries.shape, self.channels)
        return Slots(
            values.masked_scatter(tokens.slot_mask.unsqueeze(-1), latents),
            tokens.entries,
            tokens.slot_mask,
            tokens.document_mask,
            tokens.starts,
            (begins.long().cumsum(1) - 1).gather(1, tokens.starts),
            first_mask,
        )

    def choices(self, slots: Slots) -> Choices | None:
        """What the positions of the level above hold, which are these slots; None without a vocabulary."""
        if self.vocabulary is None or slots.entries is None:
            return None
        return Choices(slots.entries, self.vocabulary.used_latents(), self.vocabulary.log_shares)

    def slot_masks(self, sequence: PositionSequence, segmentation: Segmentation) -> tuple[Tensor, Tensor]:
        """`slot_mask` and `document_mask` [B, M] of the slots of rows, for which no latents are needed."""
        if self.vocabulary is None:
            return segmentation.slot_mask, segmentation.document_mask
        tokens = self._tokenize(sequence, segmentation.start_mask())
        return tokens.slot_mask, tokens.document_mask

    def _tokenize(self, sequence: PositionSequence, begins: Tensor) -> SegmentTokens:
        assert self.vocabulary is not None
        return self.vocabulary.tokenize(sequence.values, begins, sequence.document_mask, sequence.exists_mask)

    def _token_latents(self, entries: Tensor) -> Tensor:
        """[n, C] latents of entries of the vocabulary; a Compressor that learns compresses their strings anew."""
        assert self.vocabulary is not None
        if not (torch.is_grad_enabled() and self.compressor.queries.requires_grad):
            return functional.embedding(entries, self.vocabulary.latents())
        distinct, which = torch.unique(entries, return_inverse=True)
        return self.vocabulary.moved(distinct, self._compress_strings(distinct))[which]

    def _compress_strings(self, entries: Tensor) -> Tensor:
        """[n, C] what strings of the vocabulary compress to, short ones apart from long ones."""
        assert self.vocabulary is not None
        values, exists = (part[entries] for part in self.vocabulary.windows())
        log_existence = torch.full(exists.shape, LOG_FLOOR, device=exists.device).masked_fill(exists, 0.0)
        sizes = exists.sum(1)
        latents = log_existence.new_zeros(len(entries), self.channels)
        for length, chosen in length_groups(sizes, values.shape[1]):
            for index in torch.split(chosen, COMPRESSED_TOGETHER):
                compressed = self.compress(values[index, :length], log_existence[index, :length])
                latents = latents.index_copy(0, index, compressed.to(latents.dtype))
        return latents

    def settle(self, latents: Tensor) -> Tensor:
        """Latents [n, C] of slots that a level above unfolded, each moved to the nearest of the vocabulary, if any."""
        if self.vocabulary is None:
            return latents
        return self.vocabulary.latents()[self.nearest_entries(latents)]

    def nearest_entries(self, latents: Tensor) -> Tensor:
        """[n] the entries of the vocabulary whose latents are nearest to some [n, C]."""
        assert self.vocabulary is not None
        return nearest_rows(latents, self.vocabulary.used_latents())

    def drift(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """The distinct strings of slots [n], and how far each has drifted: `2 (1 - cos)` between what it compresses to
        and what it did when the vocabulary last followed the Compressor."""
        assert self.vocabulary is not None and slots.entries is not None
        distinct = torch.unique(slots.entries[slots.slot_mask])
        before = self.vocabulary.compressed[distinct]
        return distinct, 2 * (1 - functional.cosine_similarity(self._compress_strings(distinct), before, dim=-1))

    @torch.no_grad()
    def anchor_vocabulary(self) -> None:
        """Note what the Compressor makes of the vocabulary, if any, for `follow_compressor` to start from."""
        if self.vocabulary is not None:
            self.vocabulary.compressed.copy_(self._compress_all())

    @torch.no_grad()
    def follow_compressor(self) -> None:
        """Let the latents of the vocabulary, where there is one, follow what the Compressor has learned since."""
        if self.vocabulary is not None:
            self.vocabulary.follow(self._compress_all())

    def _compress_all(self) -> Tensor:
        """[K, C] what the strings of the vocabulary compress to, zeros for unused entries."""
        assert self.vocabulary is not None
        used = (self.vocabulary.lengths > 0).nonzero().flatten()
        return torch.zeros_like(self.vocabulary.compressed).index_copy(0, used, self._compress_strings(used))

    @torch.no_grad()
    def collect(self, counter: StringCounter) -> None:
        """Fill the vocabulary with the strings that a text has most, each with the latent that it compresses to."""
        assert self.vocabulary is not None
        shares = counter.shares(len(self.vocabulary.lengths))
        self.vocabulary.fill(shares, self.vocabulary.compressed[: len(shares)])
        self.vocabulary.fill(shares, self._compress_all()[: len(shares)])

    def windows(
        self,
        sequence: PositionSequence,
        segmentation: Segmentation,
        chosen: Tensor | None = None,
        choices: Choices | None = None,
    ) -> Iterator[Windows]:
        """The windows of the existing segments, or of those in the mask `chosen` [K], in groups of similar length.

        `choices` tell of the rows what their windows then tell of themselves.
        """
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
        for length, index in length_groups(useful, longest):
            place = starts[index].unsqueeze(-1) + torch.arange(length, device=starts.device)
            at = place.clamp(max=sequence.values.shape[1] - 1)
            row = rows[index].unsqueeze(-1)
            begins = start_prob[row, at].where(place == at, 1.0)
            held = None if choices is None else choices._replace(entries=choices.entries[row, at])
            yield Windows(index, sequence.values[row, at], log_existence[index, :length], begins, held)

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
