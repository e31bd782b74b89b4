"""Every component of every level takes part in what the model writes and fills, and changes it."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.inference.model_helpers import expect, filler
from tests.model_helpers import TEXT, chance
from zonkey_core.inference import gap_planning, generation, planning, text_reading
from zonkey_core.inference.gap_windows import find_gaps
from zonkey_core.inference.generation import SamplingOptions, generate
from zonkey_core.inference.infilling import InfillingOptions, infill
from zonkey_core.inference.torch_levels import TorchLevel
from zonkey_core.model.model import Zonkey, text_sequence

DATA = TEXT.encode()
GAPPED = DATA[:90] + b"___" + DATA[90:] + DATA[:80] + b"___" + DATA[90:]
PARTS = ("splitter", "embedding", "compressor", "denoiser", "decoder", "readout")
"""What every level has, and uses; readers are there for training alone."""
LEVELS = (2, 3)
components = pytest.mark.parametrize(
    ("levels", "part"), [(levels, f"{level}.{part}") for levels in LEVELS for level in range(levels) for part in PARTS]
)


@functools.lru_cache(maxsize=2)
def whole(levels: int) -> Zonkey:
    """A model whose every level expects a few slots of each kind."""
    model = copy.deepcopy(filler(levels))
    expect(model.bottom, 12)
    for level in model.levels:
        for layer in (level.denoiser.latent_in, level.denoiser.latent_out, level.denoiser.plan_in):
            if layer is not None:
                nn.init.normal_(layer.weight)
    for level in model.levels[1:]:
        expect(level, 4)
    rows = text_sequence(DATA, device=torch.device("cpu"))
    for index, level in enumerate(model.levels):
        logits = level.split(model.located_positions(rows, index).sequence).start_logits
        level.splitter.shift(float(logits.quantile(0.7)))
    return model


def written(model: Zonkey) -> bytes:
    """Texts of a few seeds."""
    options = SamplingOptions(steps=3, max_bytes=230)
    return b"|".join(sample.text for sample in generate(model, seeds=[1, 2], options=options, prompt=DATA[:150]))


def filled(model: Zonkey) -> bytes:
    """What could go into two gaps."""
    options = InfillingOptions(steps=3, candidates=2, temperature=2.0)
    fills = infill(model, GAPPED, find_gaps(GAPPED), seed=1, options=options)
    return b"|".join(candidate.text for fill in fills for candidate in fill.candidates)


USES = {"written": written, "filled": filled}
uses = pytest.mark.parametrize("use", USES)


def component(model: Zonkey, part: str) -> nn.Module:
    """A part of a level, as `LEVEL.PART`."""
    number, _, name = part.partition(".")
    return getattr(model.levels[int(number)], name)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=8)
def result(use: str, levels: int) -> bytes:
    """What the sound model makes."""
    return USES[use](whole(levels))


@functools.lru_cache(maxsize=8)
def calls(use: str, levels: int) -> Counter[str]:
    """How often each component runs, and the stitcher for symbols and for latents."""
    model, count = copy.deepcopy(whole(levels)), Counter[str]()

    def hook(name: str) -> Callable[..., None]:
        def called(*_given: Any) -> None:
            count[name] += 1

        return called

    for level in range(levels):
        for part in PARTS:
            component(model, f"{level}.{part}").register_forward_hook(hook(f"{level}.{part}"))
    with pytest.MonkeyPatch.context() as patch:
        # What numpy computes with a component's weights is computed by the component, to be counted.
        patch.setattr(text_reading, "cutting_levels", lambda model: [TorchLevel(level) for level in model.levels])
        for module in (generation, planning, gap_planning):

            def counted(*given: Any, sound: Callable[..., Any] = module.stitch, **options: Any) -> Any:
                count["stitcher of symbols" if options["symbols"] else "stitcher of latents"] += 1
                return sound(*given, **options)

            patch.setattr(module, "stitch", counted)
        USES[use](model)
    return count


@uses
@components
def test_every_component_of_every_level_runs(use: str, levels: int, part: str) -> None:
    assert calls(use, levels)[part] > 0


@uses
@pytest.mark.parametrize("levels", LEVELS)
def test_windows_of_every_level_are_stitched(use: str, levels: int) -> None:
    found = calls(use, levels)
    assert found["stitcher of symbols"] > 0 and found["stitcher of latents"] > 0


@uses
@components
def test_every_component_of_every_level_changes_what_is_made(use: str, levels: int, part: str) -> None:
    model = copy.deepcopy(whole(levels))
    for parameter in component(model, part).parameters():
        nn.init.normal_(parameter, generator=chance(3))
    assert USES[use](model) != result(use, levels)


@uses
@pytest.mark.parametrize("name", ["table", "bias"])
def test_the_vocabulary_changes_what_is_made(use: str, name: str) -> None:
    model = copy.deepcopy(whole(2))
    vocabulary = model.bottom.vocabulary
    assert vocabulary is not None
    with torch.no_grad():
        getattr(vocabulary, name).add_(torch.randn(getattr(vocabulary, name).shape, generator=chance(3)))
    assert USES[use](model) != result(use, 2)


@uses
def test_the_stitcher_changes_what_is_made(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of latents: drafts that are joined wrongly are other drafts."""
    sound, expected = planning.stitch, result(use, 2)

    def wrong(*given: Any, **options: Any) -> Any:
        joined = sound(*given, **options)
        return joined._replace(contents=joined.contents.flip(0))

    for module in (planning, gap_planning):
        monkeypatch.setattr(module, "stitch", wrong)
    assert USES[use](whole(2)) != expected
    for module in (planning, gap_planning):
        monkeypatch.setattr(module, "stitch", sound)
    monkeypatch.setattr(generation, "stitch", wrong)
    assert USES[use](whole(2)) != expected
