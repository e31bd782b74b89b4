"""Windows of many latents, decoded in groups of one shape: products of other shapes round otherwise, and what becomes
of one text must not depend on those beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.devices import autocast, choose_precision
from zonkey_core.inference.shapes import padded_count
from zonkey_core.model.level import Level

WINDOWS_TOGETHER = 32

T = TypeVar("T")


class ReadWindows(NamedTuple):
    """Decoded windows, read as what the level below holds."""

    contents: Tensor
    """[n, S, V] logits of bytes, or [n, S, C] latents, in float32."""
    log_existence: Tensor
    """[n, S]"""


@torch.no_grad()
def read_windows(level: Level, latents: Tensor, window: int | None = None) -> ReadWindows:
    """Decode latents [n, C] to windows of the first `window` positions (all by default)."""

    def read(part: Tensor) -> tuple[Tensor, Tensor]:
        decoded = level.decode(part, window)
        return level.readout(decoded.states), decoded.log_existence

    contents, log_existence = map(torch.cat, zip(*_in_groups(latents, read), strict=True))
    return ReadWindows(contents[: len(latents)].float(), log_existence[: len(latents)])


@torch.no_grad()
def rebuild_latents(level: Level, latents: Tensor) -> Tensor:
    """Latents [n, C] decoded and compressed again: those of real windows (paper, "DDMM", dirty pass)."""
    parts = _in_groups(latents, lambda part: level.recompress(level.decode(part)))
    return torch.cat(list(parts))[: len(latents)].float()


def _in_groups(latents: Tensor, function: Callable[[Tensor], T]) -> Iterator[T]:
    """What a function makes of latents, one group after the other, at least one; the last is padded."""
    together = padded_count(len(latents), WINDOWS_TOGETHER, latents.device)
    count = max(1, -(-len(latents) // together)) * together
    padded = functional.pad(latents, (0, 0, 0, count - len(latents)))
    with autocast(latents.device, choose_precision("auto", latents.device)):
        for part in torch.split(padded, together):
            yield function(part)
