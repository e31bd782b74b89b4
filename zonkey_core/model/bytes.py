"""Bytes in, bytes out: level 0 reads UTF-8 bytes, and any bytes survive.

The symbols are the 256 byte values and one for no byte. A cut may fall before any byte but the later ones of a code
point; bytes that are not valid UTF-8 count as code points of one byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zonkey_core.model.units import LONGEST_CODE_POINT

BYTE_VALUES = 256
NO_BYTE = 256
"""What stands before the first byte of a text, and after its last."""
SYMBOLS = 257


def cut_allowed_mask(values: Tensor) -> Tensor:
    """Where a segment may begin: [B, L] byte values to a [B, L] mask, false inside a code point.

    A byte 0x80-0xBF is inside one when a lead byte stands before it, near enough to still claim it.
    """
    narrow = values.to(torch.int16)  # a quarter of the memory traffic
    continues = (narrow >= 0x80) & (narrow < 0xC0)
    lead_reach = (narrow >= 0xC0).to(torch.int8) + (narrow >= 0xE0) + (narrow >= 0xF0)
    inside = torch.zeros_like(continues)
    unbroken = continues
    for back in range(1, LONGEST_CODE_POINT):
        claimed = torch.zeros_like(continues)
        claimed[..., back:] = lead_reach[..., :-back] >= back
        inside |= unbroken & claimed
        previous = torch.zeros_like(continues)
        previous[..., back:] = continues[..., :-back]
        unbroken = unbroken & previous
    return ~inside
