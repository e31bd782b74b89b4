"""What a text costs by a model's own estimate, which says how long segments of so much information are."""

from __future__ import annotations

import math

import torch

from zonkey_core.devices import autocast, choose_precision
from zonkey_core.model.model import Zonkey, text_sequence
from zonkey_core.model.readers import UnitKinds
from zonkey_core.model.unit_rows import unit_rows

READ_TOGETHER = 8192
"""Units whose cost is estimated at once, given which kinds of them there are: as many as in training, about."""


@torch.no_grad()
def bits_per_byte(model: Zonkey, text: bytes) -> float:
    """Bits that a byte of a text costs on average, told from what stands before it; 0 for no text."""
    level = model.bottom
    assert level.estimator is not None
    if not text:
        return 0.0
    units = unit_rows(text_sequence(text, device=model.device))
    nats = 0.0
    with autocast(model.device, choose_precision("auto", model.device)):
        for first in range(0, len(units.keys), READ_TOGETHER):
            some = type(units)(*(part[first : first + READ_TOGETHER] for part in units))
            asked = torch.arange(len(some.keys), device=model.device)
            nats += float(level.estimator(some, UnitKinds(some.keys), asked).sum())
    return nats / math.log(2) / len(text)
