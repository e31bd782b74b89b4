"""The noise under which a decoder learns to read latents."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.model_helpers import chance
from zonkey_core.model.latents import to_sphere
from zonkey_core.training.objectives import LEAST_NOISE, NOISED_LATENTS, noised_latents


@pytest.mark.parametrize("largest", [0.05, 0.5, 4.0])
def test_most_latents_are_noised_up_to_a_ratio_and_keep_their_length(largest: float) -> None:
    clean = to_sphere(torch.randn(4000, 256, generator=chance(1)))
    noised = noised_latents(clean, largest, chance(2))
    changed = (noised != clean).any(-1)
    assert float(changed.float().mean()) == pytest.approx(NOISED_LATENTS, abs=0.03)
    cosines = functional.cosine_similarity(noised.double(), clean.double(), dim=-1)[changed].clamp(0.01, 1)
    ratios = (cosines.pow(-2) - 1).sqrt()
    least = min(LEAST_NOISE, largest)
    assert ratios.min() > 0.8 * least and ratios.quantile(0.95) < 1.2 * largest
    middle = (least * largest) ** 0.5
    assert float(ratios.median()) == pytest.approx(middle, rel=0.15)
    assert float(noised.square().mean()) == pytest.approx(1.0, abs=0.02)
