"""What is made of a model's weights when it is first needed: made once, before workers are forked, they all have it in
common."""

from __future__ import annotations

import torch

from zonkey_core.devices import choose_precision, in_precision
from zonkey_core.inference.shapes import rounds_alike
from zonkey_core.model.model import Zonkey


def make_copies(model: Zonkey) -> None:
    """Make the denoisers in the precision that they compute in, and what the lowest level looks its strings up in, and
    try how products round, for as many threads as torch has now."""
    for level in model.levels:
        in_precision(level.denoiser, choose_precision("auto", level.device))
    if model.bottom.vocabulary is not None:
        model.bottom.vocabulary.make_tables()
    rounds_alike(model.device, torch.get_num_threads())


def keep_one_precision(model: Zonkey) -> None:
    """Leave a model's denoisers in the precision that they compute in alone, for uses that need no other."""
    for level in model.levels:
        level.denoiser.to(choose_precision("auto", level.device))
