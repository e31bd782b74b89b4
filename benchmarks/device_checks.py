"""The comparison of a device with the CPU's float32, part by part; `gpu.py` runs it.

A *probe* computes named lists of tensors on a *side*: a model on a device under a precision. Its inputs are drawn on
the CPU beforehand and copied to each side. The error of a check is `|out - ref| / |ref|`, the largest over its tensors,
and NaN fails.

Models are untrained, but their splitters cut unevenly, and they know codes of latents and strings of the text. Where a
choice has no half-way, at cuts, drawn starts, codes, and the strings that are written and their numbers, the device is
held to the CPU's choices, lest one probability that crosses a threshold hide everything behind it; how far its own cuts
differ is the check named "cuts".
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import msgspec
import torch
from torch import Tensor, nn

from zonkey_core.config import Config
from zonkey_core.devices import autocast
from zonkey_core.inference import (
    block_decoding,
    block_generation,
    gap_filling,
    generation,
    infilling,
    latent_sampler,
    planning,
    shared_context,
    windows,
)
from zonkey_core.inference.gap_windows import Gap
from zonkey_core.inference.generation import SamplingOptions, generate
from zonkey_core.inference.infilling import InfillingOptions, infill
from zonkey_core.inference.latent_sampler import OpenText, form_slots
from zonkey_core.model.attention import FLEX_LENGTH, PLAIN_LENGTH, DocumentBias, attend, prepare_bias, window_bias
from zonkey_core.model.existence import cumulative_log_continue, decoded_log_existence
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.length_model import draw_counts
from zonkey_core.model.level import Level
from zonkey_core.model.model import Ascent, Zonkey
from zonkey_core.model.positions import PositionSequence
from zonkey_core.model.segmentation import Segmentation
from zonkey_core.model.slot_batches import Plans, slot_batch
from zonkey_core.model.stitcher import stitch
from zonkey_core.model.string_counter import StringCounter
from zonkey_core.model.unit_rows import unit_rows
from zonkey_core.slots import SlotBatch
from zonkey_core.training.denoiser_objective import denoising_losses, surely_first
from zonkey_core.training.objectives import autoencoder_losses, splitter_objective
from zonkey_core.training.optimizers import build_optimizers
from zonkey_core.training.order_sampling import draw_orders, known_and_open
from zonkey_core.training.splitter_distillation import guided_loss
from zonkey_core.training.stages import joint_losses

TOLERANCES = {
    "output": (0.02, 1e-4),
    "losses": (0.02, 1e-4),
    "gradient": (0.04, 1e-3),
    "gradient through all levels": (0.1, 1e-3),
    "latents": (0.02, 1e-4),
    "cuts": (0.25, 0.08),
    "Muon": (0.03, 0.03),
    "AdamW": (1e-5, 1e-5),
}
"""Largest error by what a check compares, in bfloat16 and in float32. The error of cuts is the root of the share that
differs. What reaches a module from all levels at once may nearly cancel out, and is the less exact by the draw. Muon
computes in bfloat16 whatever the precision."""
FLOORS = {"losses": 1.0}
"""Smallest size that an error is relative to. Losses count in nats below one nat: the square of a small difference,
such as the rate's, and the loss of events that hardly ever happen have no relative accuracy."""
RARE = -3.0
"""Logit of the end of a text or gap, slot by slot, so that some have more slots than a sampler has evaluations."""
PRECISE = (block_decoding, gap_filling, latent_sampler, shared_context, windows)
"""Modules that choose how precisely they compute."""
STEPS = 4
"""Evaluations of a sampler."""
FAINT = 0.03
"""Scale of what all latents of an untrained compressor have in common."""
T = TypeVar("T")


class Check(msgspec.Struct, frozen=True):
    """One comparison."""

    name: str
    precision: str
    error: float
    tolerance: float
    passed: bool
    note: str = ""


class Side(NamedTuple):
    """One of the two that are compared."""

    model: Zonkey
    device: torch.device
    precision: torch.dtype

    def put(self, value: T) -> T:
        """A copy of tensors, or named tuples of them, on this side's device."""
        result: Any = value
        if isinstance(value, Tensor):
            result = value.to(self.device, copy=True)
        elif isinstance(value, tuple):
            result = type(value)(*(self.put(field) for field in value))
        return result  # type: ignore[no-any-return]

    def computing(self) -> torch.autocast:
        """The context in which this side's model runs."""
        return autocast(self.device, self.precision)


Probe = Callable[[Side], dict[str, Sequence[Tensor]]]
Part = Callable[[Side], Sequence[Tensor]]
Objective = Callable[[Side, torch.Generator], dict[str, Tensor]]


class Choices:
    """Keeps what the first run chooses and holds later ones to it, with gradients to their own starts."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Any]] = {}
        self.own: list[Tensor] = []

    def keeper(self, kind: str, side: Side) -> Callable[[T], T]:
        """Gives back each choice of a kind as it was in the first run, in which it keeps what it is given."""
        kept = self.kept.get(kind)
        if kept is not None:
            past = iter(kept)
            return lambda _found: side.put(next(past))
        record = self.kept[kind] = []

        def keep(found: T) -> T:
            record.append(found)
            return found

        return keep

    @contextlib.contextmanager
    def pinned(self, side: Side) -> Iterator[None]:
        """Within, a model chooses as in the first run; `own` becomes the starts that it would have chosen."""
        choose = Level.choose_starts
        keep_segmentation = self.keeper("segmentations", side)
        self.own = []

        def hold(
            level: Level, sequence: PositionSequence, start_prob: Tensor, *, certain: bool = True
        ) -> Segmentation:
            found = choose(level, sequence, start_prob, certain=certain)
            mask = torch.zeros_like(sequence.exists_mask)
            self.own.append(mask.scatter(1, found.starts, found.slot_mask) | mask.scatter(1, found.starts[:, :1], True))
            kept = keep_segmentation(found._replace(start_prob=found.start_prob.detach()))
            return kept._replace(start_prob=found.start_prob + (kept.start_prob - found.start_prob).detach())

        with mock.patch.object(Level, "choose_starts", hold):
            yield

    @contextlib.contextmanager
    def written(self, side: Side) -> Iterator[list[Tensor]]:
        """Within, open slots are as many and are filled as in the first run, by denoisers of the side's precision.

        Gives the probabilities that strings [n, K] and numbers of slots [n, E] were drawn by, step by step.
        """
        draw, size = block_decoding.draw_entries, planning._draw_sizes
        keep_entries, keep_counts = self.keeper("entries", side), self.keeper("counts", side)
        keep_sizes, keep_texts = self.keeper("sizes", side), self.keeper("texts", side)
        unfold = generation.unfold_entries
        probs: list[Tensor] = []

        def hold_entries(prob: Tensor, chance: Tensor, temperature: float, least_share: float) -> Tensor:
            if len(prob):
                probs.append(prob)
            return keep_entries(draw(prob, chance, temperature, least_share))

        def hold_counts(logits: Tensor, chance: Tensor) -> Tensor:
            probs.append(logits.sigmoid())
            return keep_counts(draw_counts(logits, chance))

        def hold_sizes(*given: Any) -> list[int]:
            return keep_sizes(size(*given))

        def hold_texts(level: Level, texts: Sequence[Tensor]) -> list[bytes]:
            return keep_texts(unfold(level, texts))

        with contextlib.ExitStack() as patches:
            for module, name, held in (
                (block_decoding, "draw_entries", hold_entries),
                (block_generation, "draw_counts", hold_counts),
                (planning, "draw_counts", hold_counts),
                (planning, "_draw_sizes", hold_sizes),
                (generation, "unfold_entries", hold_texts),
                (infilling, "unfold_entries", hold_texts),
                *((module, "choose_precision", lambda _name, _device: side.precision) for module in PRECISE),
            ):
                patches.enter_context(mock.patch.object(module, name, held))
            patches.enter_context(torch.autocast(side.device.type, enabled=False))
            yield probs


def attention_probe(length: int, *, window: bool, generator: torch.Generator) -> Probe:
    """Attention with gradients to queries, keys, values and starts; the length decides which branch is taken."""
    inputs = torch.randn(4, 2, 4, length, 32, generator=generator)
    starts = 0.05 + 0.9 * torch.rand(2, length, generator=generator)

    def probe(side: Side) -> dict[str, Sequence[Tensor]]:
        *heads, direction = side.put(inputs)
        leaves = [leaf.requires_grad_() for leaf in (*heads, side.put(starts))]
        with side.computing():
            cumulative = cumulative_log_continue(leaves[3])
            bias = window_bias(cumulative - cumulative[:, :1]) if window else DocumentBias(cumulative)
            queries, keys, values = (leaf.to(side.precision) for leaf in leaves[:3])
            mixed = attend(queries, keys, values, prepare_bias(bias, queries[:, 0]))
        return {"output": [mixed], "gradient": torch.autograd.grad((mixed.float() * direction).sum(), leaves)}

    return probe


def component_probes(index: int, level: Level, views: Sequence[Ascent], generator: torch.Generator) -> dict[str, Probe]:
    """The parts of one level, whose view is the first, each on inputs of its own."""
    view = views[0]
    config, channels = level.config, level.channels
    below = level.readout.channels
    hidden = torch.rand(view.sequence.exists_mask.shape, generator=generator) < config.mask_rate
    shape = (48, config.window)
    values = torch.randint(256, shape, generator=generator)
    if below is not None:
        values = to_sphere(torch.randn(*shape, below, generator=generator))
    existence = decoded_log_existence(torch.randn(shape, generator=generator) - 2)
    contents = torch.randn(*shape, below or 256, generator=generator)
    contents = contents.mul(3).softmax(-1) if below is None else to_sphere(contents)
    kept = torch.rand(shape[0], generator=generator) + 0.1
    latents = to_sphere(torch.randn(2, 96, channels, generator=generator))
    slots = noisy_slots(level, views, generator)
    known = torch.rand(96, generator=generator) < 0.3

    def of(side: Side) -> Level:
        return side.model.levels[index]

    def decode(side: Side) -> Sequence[Tensor]:
        decoded = of(side).decode(side.put(latents[0]))
        return [decoded.states, decoded.start_logits, decoded.log_existence, of(side).readout(decoded.states)]

    choices = Choices()

    def read(side: Side) -> Sequence[Tensor]:
        start_prob = side.put(view.segmentation.start_prob)
        units = unit_rows(side.put(view.sequence))
        masked, starts = (each.flatten()[units.offsets] for each in (side.put(hidden), start_prob))
        return [of(side).reader(units.keys, masked, starts)]

    def denoise(side: Side) -> Sequence[Tensor]:
        said = of(side).denoiser(side.put(slots))
        shares = () if said.copies is None else tuple(each.exp() for each in said.copies)
        return said.latents, said.ending_logits, *shares

    def sample(side: Side) -> Sequence[Tensor]:
        text = OpenText(side.put(latents[0]), side.put(known), True, True)
        draws = [torch.Generator().manual_seed(index)]
        with choices.written(side):
            return form_slots(of(side), [text], None, draws, steps=STEPS, temperature=1.0, length=96).latents

    parts: dict[str, Part] = {
        "splitter": lambda side: of(side).split(side.put(view.sequence)),
        "compressor": lambda side: [of(side).compress(side.put(values), side.put(existence))],
        "decoder": decode,
        "stitcher": lambda side: stitch(
            side.put(contents), side.put(existence), side.put(kept), symbols=below is None
        ),
        "denoiser": denoise,
    }
    if level.reader is not None:
        parts["reader"] = read
    if level.vocabulary is not None:
        parts |= writing_parts(index, level, view, generator)
    else:
        parts[f"sampler, {STEPS} steps"] = sample

    def probing(part: Part) -> Probe:
        def probe(side: Side) -> dict[str, Sequence[Tensor]]:
            with torch.no_grad(), side.computing():
                return {"output": part(side)}

        return probe

    return {f"level {index}: {name}": probing(part) for name, part in parts.items()}


def noisy_slots(level: Level, views: Sequence[Ascent], generator: torch.Generator) -> SlotBatch:
    """What a denoiser reads in training: slots in some order, under noise, with any plans from above."""
    slots, plans, block_mask = views[0].slots, None, None
    shape = slots.slot_mask.shape
    if level.above is not None:
        cuts = views[1].segmentation
        block_mask = cuts.start_mask()
        plans = Plans(
            to_sphere(torch.randn(*cuts.slot_mask.shape, level.above.channels, generator=generator)),
            torch.rand(cuts.slot_mask.shape, generator=generator),
            to_sphere(torch.randn(*shape, level.channels, generator=generator)),
        )
    if level.vocabulary is not None:
        rows = draw_orders(slots.slot_mask, slots.document_mask, surely_first(views[0]), block_mask, generator).rows
    else:
        held = (torch.rand(shape, generator=generator) < 0.3) & slots.slot_mask
        rows = known_and_open(slots.slot_mask, slots.document_mask, held, torch.zeros_like(held), block_mask)
    noisy = to_sphere(torch.randn(*shape, level.channels, generator=generator))
    alpha = (1.5 * torch.rand(shape, generator=generator) - 0.25).clamp(0, 1)
    return slot_batch(slots.latents, rows, noisy=noisy, alpha=alpha, plans=plans)


def writing_parts(index: int, level: Level, view: Ascent, generator: torch.Generator) -> dict[str, Part]:
    """How the lowest level denoises: it takes text apart, tells strings from what is known, and writes them."""
    assert level.vocabulary is not None
    shape = (2, 96)
    noise_level = (1.5 * torch.rand(shape, generator=generator) - 0.25).clamp(0.1, 1)
    strings = torch.randint(int((level.vocabulary.lengths > 0).sum()), shape, generator=generator)
    content = to_sphere(torch.randn(*shape, level.channels, generator=generator))
    noisy = level.schedule.add_noise(level.vocabulary.latents()[strings].detach(), content, noise_level)
    estimate, sigma = level.schedule.alpha(noise_level).unsqueeze(-1) * noisy, level.schedule.sigma(noise_level)
    text, gaps = bytes(view.sequence.values[0, :96].tolist()), [Gap(32, 40), Gap(64, 72)]
    choices = Choices()

    def of(side: Side) -> Level:
        return side.model.levels[index]

    def tokenize(side: Side) -> Sequence[Tensor]:
        found = of(side).read_tokens(side.put(view.sequence), side.put(view.segmentation))
        assert found.entries is not None
        return [found.entries, found.starts]

    def choose(side: Side) -> Sequence[Tensor]:
        vocabulary = of(side).vocabulary
        assert vocabulary is not None
        latents = vocabulary.latents()
        return [vocabulary.logits(side.put(estimate), side.put(sigma), latents).softmax(-1) @ latents]

    def write(side: Side) -> Sequence[Tensor]:
        writing = SamplingOptions(steps=STEPS, max_bytes=2 * len(text))
        with choices.pinned(side), choices.written(side) as probs:
            list(generate(side.model, seeds=[1, 2], options=writing, prompt=text))
            infill(side.model, text, gaps, seed=1, options=InfillingOptions(steps=STEPS, candidates=1))
        return probs

    return {"tokens": tokenize, "vocabulary": choose, f"sampler, {STEPS} steps": write}


def objective_probe(objective: Objective, seed: int, kind: str = "gradient") -> Probe:
    """Every loss, and the gradient of their sum, of this kind, to each module that it reaches; choices are pinned."""
    choices = Choices()

    def probe(side: Side) -> dict[str, Sequence[Tensor]]:
        with choices.pinned(side), side.computing():
            losses = objective(side, torch.Generator().manual_seed(seed))
        total = torch.stack(list(losses.values())).sum()
        modules = [module for level in side.model.levels for module in level.children()]
        owned = [list(module.parameters()) for module in modules]
        flat = iter(torch.autograd.grad(total, [each for own in owned for each in own], allow_unused=True))
        gradients = [[gradient.flatten() for gradient in itertools.islice(flat, len(own)) if gradient is not None]
                     for own in owned]
        return {
            "losses": [losses[name] for name in sorted(losses)],
            kind: [torch.cat(parts) for parts in gradients if parts],
        }

    return probe


def objective_probes(index: int, rows: PositionSequence, views: Sequence[Ascent], seed: int) -> dict[str, Probe]:
    """The objectives of one level, whose view is the first, on the reference's positions, cuts and latents."""
    view = views[0]

    def splitter(side: Side, generator: torch.Generator) -> dict[str, Tensor]:
        return splitter_objective(side.model.levels[index], side.put(view.sequence), generator)

    def autoencoder(side: Side, generator: torch.Generator) -> dict[str, Tensor]:
        put = side.put(view)
        return autoencoder_losses(side.model.levels[index], put.sequence, put.segmentation, generator)

    def denoiser(side: Side, generator: torch.Generator) -> dict[str, Tensor]:
        return denoising_losses(side.model.levels[index], [side.put(each) for each in views], generator)

    def following(side: Side, generator: torch.Generator) -> dict[str, Tensor]:
        return {"following": guided_loss(side.model, index, side.put(rows), generator, None)}

    named = {"autoencoder": autoencoder, "denoiser": denoiser}
    named |= {"following": following} if index else {"splitter": splitter}
    return {f"level {index}: {name} objective": objective_probe(each, seed) for name, each in named.items()}


def ascend_probe(rows: PositionSequence) -> Probe:
    """A whole ascent from bytes to the top."""
    choices = Choices()

    def probe(side: Side) -> dict[str, Sequence[Tensor]]:
        with choices.pinned(side), side.computing():
            views = side.model.ascend(side.put(rows), len(side.model.levels) - 1)
        cuts = torch.cat([mask.flatten() for mask in choices.own]).float()
        return {"latents": [view.latents for view in views], "cuts": [cuts]}

    return probe


def optimizer_probe(model: Zonkey, config: Config, generator: torch.Generator) -> Probe:
    """How far two steps on given gradients move the parameters."""
    gradients = [[torch.randn(each.shape, generator=generator) for each in model.parameters()] for _ in range(2)]

    def probe(side: Side) -> dict[str, Sequence[Tensor]]:
        moved = copy.deepcopy(side.model)
        optimizers = build_optimizers(moved.parameters(), config.training)
        for step in gradients:
            for parameter, gradient in zip(moved.parameters(), step, strict=True):
                parameter.grad = side.put(gradient)
            for optimizer in optimizers:
                optimizer.step()
        before = dict(zip(moved.parameters(), side.model.parameters(), strict=True))
        distances: dict[str, list[Tensor]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                moves = [(each - before[each]).flatten() for each in group["params"]]
                distances.setdefault(type(optimizer).__name__, []).append(torch.cat(moves))
        return dict(distances)

    return probe


def all_probes(model: Zonkey, config: Config, rows: PositionSequence, seed: int) -> dict[str, Probe]:
    """Every check by name, with inputs drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    probes: dict[str, Probe] = {
        "attention, window": attention_probe(PLAIN_LENGTH // 4, window=True, generator=generator),
        "attention, document": attention_probe(PLAIN_LENGTH + 64, window=False, generator=generator),
        "attention, long document": attention_probe(FLEX_LENGTH + 64, window=False, generator=generator),
    }
    views = model.ascend(rows, len(model.levels) - 1)
    for index, level in enumerate(model.levels):
        probes |= component_probes(index, level, views[index:], generator)
        probes |= objective_probes(index, rows, views[index:], seed + index)

    def joint(side: Side, draws: torch.Generator) -> dict[str, Tensor]:
        return joint_losses(side.model, side.put(rows), draws, upper_gradient=0.5)

    probes["whole ascend"] = ascend_probe(rows)
    probes["joint objective"] = objective_probe(joint, seed, "gradient through all levels")
    probes["optimizer, 2 steps"] = optimizer_probe(model, config, generator)
    return probes


def relative_error(outputs: Sequence[Tensor], references: Sequence[Tensor], floor: float = 0.0) -> float:
    """Largest `|out - ref| / max(|ref|, floor)`; NaN where there is one, infinite for another shape or over zero."""
    errors = []
    for output, reference in zip(outputs, references, strict=True):
        wide, true = output.detach().cpu().double(), reference.detach().double()
        size = max(float(true.norm()), floor)
        errors.append(float((wide - true).norm()) / size if wide.shape == true.shape and size else math.inf)
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def run_checks(probes: dict[str, Probe], reference: Side, sides: Sequence[Side]) -> Iterator[Check]:
    """Compare every probe on every side; one that raises there has failed, and the others still run."""
    for name, probe in probes.items():
        expected = probe(reference)
        for side in sides:
            column = 0 if side.precision == torch.bfloat16 else 1
            found: dict[str, Sequence[Tensor]] | None = None
            note = ""
            try:
                found = probe(side)
            except Exception as error:  # reported as a failed check
                frame = traceback.extract_tb(error.__traceback__)[-1]
                note = f"{frame.filename}:{frame.lineno}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            for kind, references in expected.items():
                floor, limit = FLOORS.get(kind, 0.0), TOLERANCES[kind][column]
                error_size = math.nan if found is None else relative_error(found[kind], references, floor)
                yield Check(f"{name}: {kind}", ("bf16", "fp32")[column], error_size, limit, error_size <= limit, note)


@torch.no_grad()
def untrained_model(config: Config, rows: PositionSequence, seed: int, *, frequency: float = 1.0) -> Zonkey:
    """A model on the CPU whose splitters are unsure and cut these rows unevenly, as often as configured.

    The vocabulary knows the first half of each row, so that
    the other has strings to spell out. Latents differ as a trained model's do; pointing in nearly one direction, they
    are more than bfloat16 can tell apart. A `frequency` above 1 cuts that much more often: then the rate's loss is no
    difference of equals, which no precision tells apart.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Zonkey(config.model)
        for level in model.levels:
            level.compressor.queries.mul_(FAINT)
            nn.init.constant_(level.denoiser.ending_out.bias, RARE)
            nn.init.normal_(level.splitter.head.weight, std=0.5 / level.config.splitter_width**0.5)
    for index, level in enumerate(model.levels):
        sequence = model.located_positions(rows, index).sequence
        logits = level.splitter(sequence).start_logits[sequence.exists_mask]
        level.splitter.shift(float(logits.quantile(max(0.0, 1 - frequency / level.config.segment_length))))
        if level.vocabulary is not None:
            half, counter = sequence.values.shape[1] // 2, StringCounter()
            starts = level.choose_starts(sequence, level.split(sequence).start_prob).start_prob > 0.5
            counter.add(sequence.values[:, :half], starts[:, :half])
            shares = counter.shares(len(level.vocabulary.lengths))
            generator = torch.Generator().manual_seed(seed)
            level.vocabulary.fill(shares, torch.randn(len(shares), level.channels, generator=generator))
    return model
