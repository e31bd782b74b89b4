"""What a level's positions are: bytes at level 0, latents of the level below above that.

Both kinds are embedded and read out through the same two modules' interfaces, so the code of a level is written
once. Values are [..., L] integers for bytes and [..., L, C] floats for latents; a *soft* value is what a read-out
gives: byte probabilities [..., L, 256], or latents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.model.bytes import BYTE_VALUES
from zonkey_core.model.latents import choice_nats, contrastive_loss, to_sphere
from zonkey_core.model.units import unit_starts_mask

LARGEST_BANK = 2048
SHARPNESS = 24.0
"""What a cosine with the latent of a string is multiplied by to be its logit."""


class PositionSequence(NamedTuple):
    """Rows of positions of one level."""

    values: Tensor
    """[B, L] bytes or [B, L, C] latents."""
    exists_mask: Tensor
    """[B, L] false for padding at the end of a row."""
    document_mask: Tensor
    """[B, L] true at the first position of a document."""

    def cut_allowed(self) -> Tensor:
        """[B, L] mask: anywhere between latents, not inside a unit between bytes, and not in padding."""
        if self.values.dim() > 2:
            return self.exists_mask
        values = self.values.to(torch.uint8).cpu().numpy()
        mask = unit_starts_mask(values.reshape(-1), self.fresh_mask().cpu().numpy().reshape(-1))
        return torch.from_numpy(mask.reshape(values.shape)).to(self.values.device) & self.exists_mask

    def fresh_mask(self) -> Tensor:
        """[B, L] mask: where a row, a document or padding begins, across which nothing goes on."""
        fresh = self.document_mask.clone()
        fresh[:, 1:] |= self.exists_mask[:, 1:] != self.exists_mask[:, :-1]
        fresh[:, :1] = True
        return fresh

    def cut_open(self) -> Tensor:
        """[B, L] mask: where a cut is allowed and not certain, as at the beginnings of rows and documents."""
        mask = self.cut_allowed() & ~self.document_mask
        mask[:, 0] = False
        return mask


class Choices(NamedTuple):
    """What positions hold that stand for slots of a level with a vocabulary."""

    entries: Tensor
    """[B, L] which of its strings; or of some positions [K]."""
    latents: Tensor
    """[J, C] the latents of all of them."""
    log_shares: Tensor
    """[J] how often each is met, which is all that is known of it where a latent is lost in noise."""


class LocatedPositions(NamedTuple):
    """Rows of positions of a level with where they lie in the rows of bytes that they stand for."""

    sequence: PositionSequence
    offsets: Tensor
    """[B, L] the byte at which each begins; 0 in padding."""


class PositionEmbedding(nn.Module):
    """Values to vectors of `width`; `channels` is None for bytes."""

    def __init__(self, channels: int | None, width: int) -> None:
        super().__init__()
        self.channels = channels
        if channels is None:
            self.table = nn.Embedding(BYTE_VALUES, width)
        else:
            self.linear = nn.Linear(channels, width)

    def forward(self, values: Tensor) -> Tensor:
        """Embed true values."""
        embedded: Tensor = self.table(values) if self.channels is None else self.linear(values)
        return embedded

    def embed_soft(self, soft: Tensor) -> Tensor:
        """Embed what a read-out gave, differentiably: the mean embedding under byte probabilities, or latents."""
        if self.channels is None:
            return functional.linear(soft, self.table.weight.T)
        embedded: Tensor = self.linear(soft)
        return embedded


class PositionReadout(nn.Module):
    """States of `width` to values, with the loss against true ones."""

    def __init__(self, channels: int | None, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear = nn.Linear(width, BYTE_VALUES if channels is None else channels)

    def forward(self, states: Tensor) -> Tensor:
        """Soft values in float32: byte probabilities, or latents on their sphere."""
        raw: Tensor = self.linear(states).float()
        return raw.softmax(-1) if self.channels is None else to_sphere(raw)

    def log_prob(self, states: Tensor) -> Tensor:
        """Byte log-probabilities [..., 256] in float32; bytes only."""
        log_prob: Tensor = self.linear(states).float().log_softmax(-1)
        return log_prob

    def loss(self, states: Tensor, values: Tensor, choices: Choices | None = None) -> Tensor:
        """Per position, in nats: cross-entropy of bytes, or of strings of a vocabulary below, which are `choices`.

        For other latents it is `2 (1 - cos)` plus the contrastive loss, whose bank is the batch's own true values, at
        most `LARGEST_BANK` of them, so longer inputs are taken in parts. states [K, width], values [K] or [K, C];
        returns [K].
        """
        raw = self.linear(states)
        if self.channels is None:
            return functional.cross_entropy(raw.float(), values, reduction="none")
        if choices is not None:
            # Of vectors on the sphere, a product over their width is a cosine.
            queries = to_sphere(raw) * (SHARPNESS / self.channels)
            return choice_nats(queries, choices.entries, choices.latents, choices.log_shares)
        parts = []
        for estimate, target in zip(
            torch.split(raw, LARGEST_BANK), torch.split(values.detach(), LARGEST_BANK), strict=True
        ):
            distance = 2 * (1 - functional.cosine_similarity(estimate.float(), target.float(), dim=-1))
            parts.append(distance + contrastive_loss(estimate, target, target))
        return torch.cat(parts) if parts else raw.new_zeros(0)
