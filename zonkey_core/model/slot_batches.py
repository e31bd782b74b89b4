"""From rows of slots, and an order in which they are told, to what a denoiser reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zonkey_core.diffusion.decoding_order import OrderedRows
from zonkey_core.slots import Layout, SlotBatch, SlotKind


class Plans(NamedTuple):
    """What a level says of the blocks of the level below."""

    latents: Tensor
    """[B, M', C'] its estimates, clean where they are known."""
    alpha: Tensor
    """[B, M'] how much of the blocks is left of noise; 0 where nothing above is given."""
    drafts: Tensor
    """[B, M, C] the slots below as its decoder unfolds the estimates, zeros where nothing above is given."""


def side_by_side(plans: Sequence[Plans]) -> Plans:
    """Plans of single texts, without the first dimension, as rows of one batch."""
    return Plans(*(pad_sequence(list(column), batch_first=True) for column in zip(*plans, strict=True)))


def slot_batch(
    latents: Tensor, rows: OrderedRows, *, noisy: Tensor | None = None, alpha: Tensor | None = None,
    plans: Plans | None = None,
) -> SlotBatch:  # fmt: skip
    """Readings of slots with latents [B, M, C]; `noisy` are open ones, with `alpha` [B, M] left of them.

    Without these, open slots are pure noise.
    """
    held = gather_slots(latents, rows.source)
    if noisy is None or alpha is None:
        noise_free, seen = torch.zeros_like(rows.told, dtype=torch.float32), torch.zeros_like(held)
    else:
        noise_free = alpha.gather(1, rows.told.clamp(min=0)) * (rows.told >= 0)
        seen = gather_slots(noisy, rows.told) * (noise_free > 0).unsqueeze(-1)
    silent = rows.layout.silent_mask | ((rows.layout.kinds == SlotKind.OPEN) & (noise_free == 0))
    layout = rows.layout._replace(silent_mask=silent)
    if plans is None:
        return SlotBatch(
            layout, held, seen, noise_free, torch.zeros_like(seen), None, None, torch.zeros_like(rows.left)
        )
    plan_alpha = plans.alpha.gather(1, rows.blocks.clamp(min=0)) * (rows.blocks >= 0)
    given = plan_alpha > 0
    return SlotBatch(
        layout,
        held,
        seen,
        noise_free,
        gather_slots(plans.drafts, rows.told) * given.unsqueeze(-1),
        gather_slots(plans.latents, rows.blocks) * given.unsqueeze(-1),
        plan_alpha,
        rows.left * given,
    )


def gather_slots(values: Tensor, which: Tensor) -> Tensor:
    """[B, L, C] the vectors [B, M, C] at places [B, L], zeros at -1."""
    if not values.shape[1]:
        return values.new_zeros(*which.shape, values.shape[-1])
    index = which.clamp(min=0).unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return values.gather(1, index) * (which >= 0).unsqueeze(-1)


def gather_entries(entries: Tensor, which: Tensor) -> Tensor:
    """[B, L] the entries [B, M] of slots at places [B, L], -1 where there is none."""
    return entries.gather(1, which.clamp(min=0)).where(which >= 0, -1)


def at_slots(estimates: Tensor, told: Tensor, like: Tensor) -> Tensor:
    """[B, M, C] what readings [B, L, C] say of the slots that they ask, zeros for the others."""
    asked = told >= 0
    row = torch.arange(len(told), device=told.device).unsqueeze(1).expand_as(told)
    return torch.zeros_like(like, dtype=torch.float32).index_put((row[asked], told[asked]), estimates[asked].float())


def at_places(rows: OrderedRows, places: Tensor) -> OrderedRows:
    """The readings at places [B, n] alone."""
    layout = Layout(*(field.gather(1, places) for field in rows.layout))
    return OrderedRows(layout, *(field.gather(1, places) for field in rows[1:]))
