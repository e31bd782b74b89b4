"""The model's own opinion of a text: masked pseudo-likelihood of chosen segments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from zonkey_core.denoiser import NoisySlots
from zonkey_core.level import Level
from zonkey_core.model import Zonkey, text_sequence

FOLDS = 2
"""Passes over which the chosen segments are hidden, every other one at a time."""


@torch.no_grad()
def pseudo_log_likelihood(model: Zonkey, text: bytes, spans: Sequence[tuple[int, int]]) -> float:
    """Log-probability, in nats, of the segments that touch `spans`, each given all the others, added up.

    Each of them is replaced by pure noise in one of `FOLDS` passes of level 0's trunk and then decoded.
    """
    level = model.levels[0]
    view = model.ascend(text_sequence(text, device=model.device), 0)[0]
    starts = view.segmentation.starts[0]
    ends = torch.cat([starts[1:], starts.new_tensor([len(text)])])
    chosen = torch.zeros_like(starts, dtype=torch.bool)
    for begin, end in spans:
        chosen |= (starts <= end) & (ends >= begin)
    clean = view.latents.float()
    total = torch.zeros((), device=model.device)
    generator = torch.Generator().manual_seed(0)
    for fold in range(FOLDS):
        hidden = chosen & (torch.arange(len(starts), device=starts.device) % FOLDS == fold)
        if not hidden.any():
            continue
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        slots = NoisySlots(
            torch.where(hidden.unsqueeze(-1), noise, clean)[None],
            hidden.float()[None],
            torch.zeros_like(clean)[None],
            view.segmentation.document_mask[:1],
            torch.ones_like(hidden)[None],
        )
        estimate = level.trunk(slots)
        total = total + _segment_log_prob(level, estimate.latents[0][hidden], text, starts[hidden], ends[hidden])
        total = total + functional.logsigmoid(estimate.existence_logits[0][hidden]).sum()
    return float(total)


def _segment_log_prob(level: Level, latents: Tensor, text: bytes, starts: Tensor, ends: Tensor) -> Tensor:
    """Summed log-probability of segments' bytes and lengths under their decoded windows."""
    decoded = level.decode(latents)
    log_prob = level.readout.log_prob(decoded.states)
    window = log_prob.shape[1]
    offsets = torch.arange(window, device=starts.device)
    values = torch.tensor(list(text), device=starts.device)
    at = (starts.unsqueeze(-1) + offsets).clamp(max=len(text) - 1)
    lengths = (ends - starts).unsqueeze(-1)
    inside = offsets < lengths
    symbols = log_prob.gather(-1, values[at].unsqueeze(-1)).squeeze(-1)
    goes_on = functional.logsigmoid(-decoded.start_logits) * (inside & (offsets > 0))
    stops = functional.logsigmoid(decoded.start_logits) * (offsets == lengths)
    return (symbols * inside + goes_on + stops).sum()
