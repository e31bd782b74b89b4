"""What the denoisers of all levels minimise: to tell what slots held from what is left of them under noise.

One recursion serves every number of levels. A level draws in which order its slots are asked, and tells the level above
which of its blocks are known; that level denoises its own slots, the blocks, in the same way, and what it makes of them
comes down as plans, and unfolded by its decoder as drafts of the slots. So each loss reaches every part above and below
that it went through: the compressors that made plans and slots, and through existence the splitters that cut them.

A level of blocks goes through the paper's three passes: clean, where slots are known; noised; and *dirty*, where it is
given its own first estimate, decoded and compressed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.diffusion.decoding_order import OrderedRows
from zonkey_core.model.decoder import DecodedWindows
from zonkey_core.model.existence import LOG_FLOOR
from zonkey_core.model.length_model import ending_losses
from zonkey_core.model.level import Level
from zonkey_core.model.model import Ascent
from zonkey_core.model.segmentation import Windows
from zonkey_core.model.slot_batches import Plans, at_slots, gather_entries, gather_slots, slot_batch
from zonkey_core.slots import SlotKind
from zonkey_core.training.losses import expected_segment_loss, latent_regression, spread_penalty
from zonkey_core.training.objectives import window_losses
from zonkey_core.training.order_sampling import draw_known, draw_orders, known_and_open
from zonkey_core.training.processes import mean_over

ENDINGS_WEIGHT = 0.3
LATER_ENDINGS = 0.05
"""Weight of the endings that are asked further on in a text, beside those asked where it opens."""
DECODED_WEIGHT = 0.2
LOWEST_RATIO, HIGHEST_RATIO = 0.1, 12.0
"""Noise-to-signal ratios between which plans are noised; uniform in the logarithm."""
COARSEST, FINEST = 12.0, 0.5
"""The same of slots that ask themselves."""
PURE = 0.1
"""Share of documents whose plans are pure noise, and of slots that are when all ask themselves."""
SHARED = 0.7
"""Share of documents all of whose plans have one noise level."""
EXACT = 0.5
"""Share of known plans that are exactly known; the others have a little noise."""
UNFOLDED = 0.25
"""Share of the blocks that are decoded where that is for the decoder's own sake."""
SPELLED = 0.15
"""Share of the slots of a vocabulary that are decoded as well."""
SURE = 0.75
"""Share of the segments of a row, those of whose starts the splitter is surest, with which a stream may open: one that
went on with a word of another stream would have to guess it."""
ESTIMATED, DIRTY = 0.5, 0.25
"""Shares of rows that are read beside an earlier estimate, and of those where it was decoded and compressed again."""


def denoising_losses(
    level: Level, views: Sequence[Ascent], generator: torch.Generator, *, learning: int | None = None
) -> dict[str, Tensor]:
    """Losses of `level`, whose view of a batch is the first, and of the levels above whose views follow.

    Named `LEVEL/NAME`, counted from this one. With `learning`, so many levels, from this one up, have losses; those
    above are as they are, and only plan. Where nothing that cuts or decodes learns, what it minimises is left out.
    """
    slots, above = views[0].slots, views[1:]
    learning = len(views) if learning is None else learning
    if level.vocabulary is None:
        known, alone = draw_known(slots.slot_mask, slots.document_mask, generator)
        return _plan(level, views, known, alone, generator, learning, handed=False)[1]
    block_mask = None
    if above:
        block_mask = above[0].segmentation.start_mask()
    drawn = draw_orders(slots.slot_mask, slots.document_mask, surely_first(views[0]), block_mask, generator)
    losses: dict[str, Tensor] = {}
    plans = None
    if above:
        assert level.above is not None and drawn.known_blocks is not None and drawn.alone_blocks is not None
        with _gradients(learning - 1):
            plans, losses = _plan(level.above, above, drawn.known_blocks, drawn.alone_blocks, generator, learning - 1)
        losses = _raised(losses)
    alpha = _drawn_alpha(drawn.at_once_mask.shape, generator, FINEST, COARSEST, level)
    alpha = alpha.to(slots.latents.device) * drawn.at_once_mask
    noisy = _noised(slots.latents, alpha, generator)
    batch = slot_batch(slots.latents, drawn.rows, noisy=noisy, alpha=alpha, plans=plans)
    found = level.denoiser(batch)
    assert slots.entries is not None
    asked = drawn.rows.told >= 0
    told, held = (gather_entries(slots.entries, which) for which in (drawn.rows.told, drawn.rows.source))
    entries = told[asked]
    sigma = (1 - batch.alpha[asked].square()).clamp(min=0).sqrt()
    assert found.copies is not None
    copied = found.copies.log_copied(held, told)[asked]
    choice, nats = level.vocabulary.loss(found.latents[asked], sigma, entries, copied, found.copies.log_rest[asked])
    own = {"choice": mean_over(choice * len(entries), len(entries))}
    own["endings"] = _endings_loss(found.ending_logits, drawn.rows)
    if views[0].segmentation.start_prob.requires_grad:
        own["cuts"] = _cut_loss(level, views[0], drawn.rows.told, asked, nats)
    if _learns(level.decoder):
        own["spelled"] = _spelling_loss(level, views[0].by_slots(), generator)
    return losses | {f"0/{name}": loss for name, loss in own.items()}


def _gradients(learning: int) -> torch.set_grad_enabled:
    """Nothing is kept for the way back through levels of which none learns."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and learning > 0)


def surely_first(view: Ascent) -> Tensor:
    """[B, M] the slots with which one of the segments begins whose starts are surest in their row (`SURE`)."""
    slots = view.slots
    start_prob = view.split_prob.detach().gather(1, slots.starts).masked_fill(~slots.first_mask, -1.0)
    count = (slots.first_mask.sum(1, keepdim=True) * SURE).ceil().long().clamp(min=1)
    least = start_prob.sort(1, descending=True).values.gather(1, count - 1)
    return slots.first_mask & (start_prob >= least)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _raised(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of losses as the level below counts them."""
    result = {}
    for name, loss in losses.items():
        number, _, rest = name.partition("/")
        result[f"{int(number) + 1}/{rest}"] = loss
    return result


def _plan(
    level: Level,
    views: Sequence[Ascent],
    known_mask: Tensor,
    alone_mask: Tensor,
    generator: torch.Generator,
    learning: int,
    *,
    handed: bool = True,
) -> tuple[Plans, dict[str, Tensor]]:
    """Denoise the slots of a level, the blocks of the one below, of which some are known and some not used at all.

    So many levels as are `learning`, from this one up, have losses. Where the plan is not `handed` down, some of the
    blocks are unfolded for the decoder to learn from, and the drafts are no use.
    """
    view, above = views[0], views[1:]
    slots = view.slots
    clean, mask = slots.latents, slots.slot_mask
    alpha = _plan_alpha(level, slots.document_mask, known_mask, generator).to(clean.device)
    counted = alone_mask & mask
    held = mask & torch.where(counted, _prefix(mask, slots.document_mask, generator), alpha == 1)
    asked = mask & ~held & ~counted
    rows = known_and_open(
        mask, slots.document_mask, held, counted, above[0].segmentation.start_mask() if above else None
    )
    losses: dict[str, Tensor] = {}
    upper = None
    if above:
        assert level.above is not None
        with _gradients(learning - 1):
            upper, losses = _upper_plan(level.above, above, held, counted, generator, learning - 1)
    noisy = _noised(clean, alpha, generator)
    batch = slot_batch(clean, rows, noisy=noisy, alpha=alpha * asked, plans=upper)
    with torch.no_grad():
        first = at_slots(level.denoiser(batch).latents, rows.told, clean)
        estimate = _given_estimates(level, view, first, asked, generator)
    estimate = gather_slots(estimate, rows.told)
    batch = batch._replace(estimate=batch.estimate.where(estimate == 0, estimate.to(batch.estimate.dtype)))
    found = level.denoiser(batch)
    estimates = torch.where(asked.unsqueeze(-1), at_slots(found.latents, rows.told, clean), clean.float())
    flat, unfolded = estimates[mask], None
    if not handed:
        # The decoder learns to read what the denoiser makes, which stays the mean of what is possible.
        flat, unfolded = flat.detach(), torch.rand(int(mask.sum()), generator=generator).to(mask.device) < UNFOLDED
    drafts, parts = _unfold(level, view, flat, unfolded)
    plans = Plans(estimates, alpha.where(~held, 1.0) * mask * ~counted, drafts)
    if learning <= 0:
        return plans, losses
    questions = rows.told >= 0
    truth = gather_slots(clean, rows.told)
    own = {
        "latents": latent_regression(found.latents, truth.detach(), _weights(batch.alpha, questions)),
        "spread": spread_penalty(clean[mask]),
        "endings": _endings_loss(found.ending_logits, rows),
    }
    if _learns(level.decoder):
        starts = view.segmentation.start_prob.gather(1, view.segmentation.starts)[view.segmentation.slot_mask]
        told, lengths = window_losses(level, parts, starts)
        own |= {"decoded": DECODED_WEIGHT * told, "lengths": ENDINGS_WEIGHT * lengths}
    return plans, losses | {f"0/{name}": loss for name, loss in own.items()}


def _upper_plan(
    level: Level, views: Sequence[Ascent], held: Tensor, counted: Tensor, generator: torch.Generator, learning: int
) -> tuple[Plans, dict[str, Tensor]]:
    """The plan of the level above a level of plans: it knows the blocks that hold no open slot."""
    cuts = views[0].segmentation
    block = (cuts.start_mask().long().cumsum(1) - 1).clamp(min=0)
    blocks = torch.zeros(cuts.slot_mask.shape, device=held.device)
    unknown = blocks.scatter_reduce(1, block, (~held).float(), "amax") > 0
    alone = blocks.scatter_reduce(1, block, counted.float(), "amax") > 0
    plans, losses = _plan(level, views, ~unknown & cuts.slot_mask, alone & cuts.slot_mask, generator, learning)
    return plans, _raised(losses)


def _noised(latents: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """[B, M, C] slots of which `alpha` [B, M] is left of noise."""
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    sigma = (1 - alpha.square()).clamp(min=0).sqrt()
    return alpha.unsqueeze(-1) * latents + sigma.unsqueeze(-1) * noise


def _weights(alpha: Tensor, asked: Tensor) -> Tensor:
    """[B, L] weights of squared errors by how much noise there was."""
    return asked / (1 - alpha.square()).clamp(min=0.04)


def _drawn_alpha(
    shape: torch.Size, generator: torch.Generator, lowest: float, highest: float, level: Level
) -> Tensor:
    """[B, M] what noise leaves of slots: half of the rows have one ratio of noise to signal, some slots pure noise."""
    alpha = _alpha_between(torch.rand(shape, generator=generator), lowest, highest, level)
    alpha = alpha.where(torch.rand(shape[0], 1, generator=generator) < 0.5, alpha[:, :1])
    return alpha * (torch.rand(shape, generator=generator) >= PURE)


def _alpha_between(chance: Tensor, lowest: float, highest: float, level: Level) -> Tensor:
    ratios = lowest * (highest / lowest) ** chance
    return level.schedule.alpha(level.schedule.levels_for_ratios(ratios))


def _plan_alpha(
    level: Level, document_mask: Tensor, known_mask: Tensor, generator: torch.Generator
) -> Tensor:
    """[B, M'] what noise leaves of plans: mostly one share for a document; 1 for half of those that are known."""
    shape = known_mask.shape
    document = document_mask.cpu().long().cumsum(1)
    chance = torch.rand(shape, generator=generator)
    common = torch.rand(shape, generator=generator).gather(1, document.clamp(max=shape[1] - 1))
    together = torch.rand(shape, generator=generator).gather(1, document.clamp(max=shape[1] - 1)) < SHARED
    pure = torch.rand(shape, generator=generator).gather(1, document.clamp(max=shape[1] - 1)) < PURE
    chance = common.where(together, chance)
    alpha = _alpha_between(chance, LOWEST_RATIO, HIGHEST_RATIO, level) * ~pure
    known = _alpha_between(chance * torch.rand(shape, generator=generator), LOWEST_RATIO, HIGHEST_RATIO, level)
    known = known.where(torch.rand(shape, generator=generator) >= EXACT, 1.0)
    return known.where(known_mask.cpu(), alpha)


def _prefix(mask: Tensor, document_mask: Tensor, generator: torch.Generator) -> Tensor:
    """[B, M'] some slots from the front of each document."""
    order = torch.arange(mask.shape[1], device=mask.device)
    begins = document_mask.clone()
    begins[:, 0] = True
    first = order.where(begins, 0).cummax(1).values
    number = begins.long().cumsum(1) - 1
    sizes = torch.zeros(mask.shape, device=mask.device).scatter_add(1, number, mask.float())
    share = torch.rand(mask.shape, generator=generator).to(mask.device)
    wanted = (share * (sizes + 1)).floor().clamp(max=sizes)
    return order - first < wanted.gather(1, number)


def _endings_loss(logits: Tensor, rows: OrderedRows) -> Tensor:
    """How long documents and gaps go on, where that is asked; what is asked further on weighs little."""
    measured = rows.remaining >= 0
    losses = ending_losses(logits[measured], rows.remaining[measured], rows.certain_mask[measured])
    weight = torch.where(rows.layout.kinds == SlotKind.TEXT, LATER_ENDINGS, 1.0)[measured]
    return ENDINGS_WEIGHT * mean_over((losses * weight).sum(), weight.sum(), least=LATER_ENDINGS)


def _cut_loss(level: Level, view: Ascent, told: Tensor, asked: Tensor, nats: Tensor) -> Tensor:
    """Nats a position of what was told, expected over segmentations: its gradient goes to the splitter alone."""
    slots, segmentation = view.slots, view.segmentation
    row = torch.arange(len(told), device=told.device).unsqueeze(1).expand_as(told)[asked]
    count = segmentation.slot_mask.shape[1]
    segment = slots.segments.gather(1, told.clamp(min=0))[asked]
    flat = torch.zeros(len(told) * count, device=nats.device).index_add(0, row * count + segment, nats.detach().float())
    total = flat.view(len(told), count)[segmentation.slot_mask]
    starts = segmentation.start_prob.gather(1, segmentation.starts)[segmentation.slot_mask]
    losses, existences, probs = [], [], []
    for windows in level.windows(view.sequence, segmentation):
        inside = windows.log_existence.detach() > LOG_FLOOR / 2
        begun = windows.start_prob.detach() > 0.5
        begun[:, 0] = False
        inside = inside & (begun.long().cumsum(1) == 0)
        beyond = (0, level.config.window - inside.shape[1])
        share = total[windows.segments] / inside.sum(1).clamp(min=1)
        losses.append(functional.pad(share.unsqueeze(1) * inside, beyond))
        existence = windows.log_existence.masked_fill(~inside, LOG_FLOOR)
        existences.append(functional.pad(existence, beyond, value=LOG_FLOOR))
        probs.append(starts[windows.segments])
    return expected_segment_loss(torch.cat(losses), torch.cat(existences), torch.cat(probs))


def _spelling_loss(level: Level, view: Ascent, generator: torch.Generator) -> Tensor:
    """What it costs to decode some of the slots, as they are told, into their bytes and lengths."""
    parts = []
    some = torch.rand(len(view.latents), generator=generator).to(view.latents.device) < SPELLED
    for windows in level.windows(view.sequence, view.segmentation, some):
        parts.append((windows, level.decode(view.latents[windows.segments], windows.values.shape[1])))
    certain = torch.ones(len(view.latents), device=view.latents.device)
    positions, lengths = window_losses(level, parts, certain)
    return positions + lengths


def _given_estimates(
    level: Level, view: Ascent, first: Tensor, asked: Tensor, generator: torch.Generator
) -> Tensor:
    """Earlier estimates [B, M', C'] for some of the rows, zeros elsewhere; dirty ones were decoded and compressed."""
    chance = torch.rand(len(first), generator=generator).to(first.device)
    dirty = (chance < DIRTY).unsqueeze(1) & asked
    mask = view.slots.slot_mask
    flat = first[mask]
    rebuilt = flat.clone()
    for windows in level.windows(view.sequence, view.segmentation, dirty[mask]):
        decoded = level.decode(flat[windows.segments], windows.values.shape[1])
        rebuilt[windows.segments] = level.recompress(decoded)
    estimate = first.masked_scatter(mask.unsqueeze(-1), rebuilt)
    return estimate * ((chance < ESTIMATED).unsqueeze(1) & asked).unsqueeze(-1)


def _unfold(
    level: Level, view: Ascent, estimates: Tensor, chosen: Tensor | None
) -> tuple[Tensor, list[tuple[Windows, DecodedWindows]]]:
    """Decode blocks [K, C'], or those of the mask `chosen` [K], to drafts [B, M, C] of the slots below at their true
    places; the windows too."""
    positions, segmentation = view.sequence, view.segmentation
    rows, places = segmentation.slot_mask.nonzero(as_tuple=True)
    starts = segmentation.starts[rows, places]
    count = positions.exists_mask.sum(1)
    following = torch.cat([starts[1:], starts.new_zeros(1)])
    ends = following.where(following > starts, count[rows])
    parts: list[tuple[Windows, DecodedWindows]] = []
    drafts = torch.zeros(positions.values.shape, device=estimates.device)
    for windows in level.windows(positions, segmentation, chosen, view.choices):
        decoded = level.decode(estimates[windows.segments], windows.values.shape[1])
        parts.append((windows, decoded))
        at = starts[windows.segments].unsqueeze(1) + torch.arange(windows.values.shape[1], device=starts.device)
        inside = at < ends[windows.segments].unsqueeze(1)
        row = rows[windows.segments].unsqueeze(1).expand_as(at)[inside]
        drafts = drafts.index_put((row, at[inside]), level.readout(decoded.states[inside]))
    return drafts, parts
