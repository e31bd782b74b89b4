"""What a denoiser keeps of the slots that it has read, so that each is read once while text is told.

Shapes: B rows of L slots, n of them read at a time, by H heads of width D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zonkey_core.slots import Layout


class KVCache:
    """Keys, values and states of the slots that have been read, by their places in the rows."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.places: Tensor | None = None
        """[B, n] of the slots that are being read; None where whole rows are, n = L."""
        self.layers: dict[str, Tensor] = {}

    def keep(self, name: str, fresh: Tensor) -> Tensor:
        """Put [B, H, n, D] at the present places of the tensor [B, H, L, D] of this name, and return that."""
        if self.places is None:
            self.layers[name] = fresh.contiguous()
            return self.layers[name]
        kept = self.layers.get(name)
        if kept is None:
            batch, length = self.layout.order.shape
            kept = self.layers[name] = fresh.new_zeros(batch, fresh.shape[1], length, fresh.shape[3])
        rows = torch.arange(len(fresh), device=fresh.device).unsqueeze(1)
        kept[rows, :, self.places] = fresh.transpose(1, 2)
        return kept
