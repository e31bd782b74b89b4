"""Sampling: what a sample depends on, what is kept, how texts end, and levels by configuration."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model_helpers import chance, law, normal, small_model
from zonkey_core import sampling
from zonkey_core.errors import ConfigError
from zonkey_core.latents import to_sphere
from zonkey_core.model import Zonkey, text_sequence
from zonkey_core.positions import PositionSequence
from zonkey_core.sampling import (
    END_RUN,
    DenoisedSlots,
    Slots,
    _trim,
    _until_end,
    denoise,
    generate,
    read_bytes,
    unfold,
)
from zonkey_core.sampling import SamplingOptions as Options


@functools.lru_cache(maxsize=16)
def talker(levels: int = 2, *, existence: float = 4.0) -> Zonkey:
    """An untrained model whose slots exist, or do not, and whose windows hold a few positions."""
    model = small_model(levels, seed=levels)
    for level in model.levels:
        torch.nn.init.constant_(level.trunk.existence_out.bias, existence)
        torch.nn.init.constant_(level.decoder.starts.bias, -1.5)
    return model.eval().requires_grad_(False)


def texts(model: Zonkey, seeds: list[int], prompt: bytes = b"", **options: Any) -> list[bytes]:
    """The samples of some seeds."""
    settings = Options(**{"steps": 4, "max_bytes": 60, **options})
    samples = list(generate(model, seeds=seeds, options=settings, prompt=prompt))
    assert [sample.seed for sample in samples] == seeds
    return [sample.text for sample in samples]


# What a sample depends on


@pytest.mark.parametrize("level", [None, 0])
@pytest.mark.parametrize("prompt", [b"", b"The heron "])
def test_a_sample_depends_on_its_own_seed_alone(
    level: int | None, prompt: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "REBUILD_RATIO", 0.0)  # an untrained compressor makes all windows alike
    model = talker()
    first, second = texts(model, [3, 4], prompt, level=level)
    assert texts(model, [4], prompt, level=level) == [second]
    assert texts(model, [4, 7, 3], prompt, level=level)[::2] == [second, first]
    assert first != second


def test_nothing_global_is_touched() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = texts(talker(), [1])
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert texts(talker(), [1]) == first


def test_samples_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    sound = sampling.denoise

    def counted(*given: Any, **options: Any) -> DenoisedSlots:
        nonlocal calls
        calls += 1
        return sound(*given, **options)

    monkeypatch.setattr(sampling, "denoise", counted)
    samples = generate(talker(), seeds=[1, 2], options=Options(steps=2, max_bytes=20))
    next(samples)
    one = calls
    next(samples)
    assert 0 < one < calls


@pytest.mark.parametrize(("temperature", "same"), [(0.0, True), (1.0, False)])
def test_without_temperature_only_the_start_is_chance(
    monkeypatch: pytest.MonkeyPatch, temperature: float, same: bool
) -> None:
    level = talker(1).levels[0]
    slots = Slots(torch.zeros(6, level.channels), torch.zeros(6, dtype=torch.bool), True, 1.0)
    found = []
    for seed in (1, 2):
        draws = [normal(6, level.channels, seed=0, dtype=torch.float32)]
        draws += [normal(6, level.channels, seed=100 * seed + index, dtype=torch.float32) for index in range(8)]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *given, draws=draws, **options: draws.pop(0))
            found.append(denoise(level, slots, steps=8, temperature=temperature, generator=chance(0)).latents)
    assert torch.allclose(found[0], found[1], atol=1e-6) == same


# Levels, lengths, prompts


@pytest.mark.parametrize(
    ("levels", "level"), [(1, None), (1, 0), (2, None), (2, 0), (2, 1), (3, None), (3, 0), (3, 1), (3, 2)]
)
@pytest.mark.parametrize("prompt", [b"", b"It waited, and waited, na\xc3\xafve"])
@pytest.mark.parametrize("steps", [1, 5])
def test_every_level_of_every_model_generates(levels: int, level: int | None, prompt: bytes, steps: int) -> None:
    for limit in (1, 30, 90):
        (text,) = texts(talker(levels), [5], prompt, level=level, steps=steps, max_bytes=limit)
        assert text.startswith(prompt)
        assert len(text) <= max(limit, len(prompt))
        assert len(text) >= max(limit - 3, len(prompt)), "slots that exist make text"


def test_a_text_goes_on_from_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "GROUP_BYTES", 48)
    monkeypatch.setattr(sampling, "CONTEXT_BYTES", 40)
    seen: list[int] = []
    def watched(text: bytes, *, device: torch.device) -> PositionSequence:
        seen.append(len(text))
        return text_sequence(text, device=device)

    monkeypatch.setattr(sampling, "text_sequence", watched)
    (text,) = texts(talker(), [1], b"Begun.", max_bytes=1500)
    assert text.startswith(b"Begun.") and 1497 <= len(text) <= 1500
    assert seen[0] == 6 and len(seen) > 2 and set(seen[1:]) == {40}


@pytest.mark.parametrize("prompt", [b"word", b"long enough to be read as several segments, and then some more"])
def test_a_prompt_that_fills_the_text_comes_back(prompt: bytes) -> None:
    assert texts(talker(), [1, 2], prompt, max_bytes=3) == [prompt, prompt]


@pytest.mark.parametrize("level", [None, 0])
@pytest.mark.parametrize("prompt", [b"", b"Short.", b"The heron stood in the shallows, and it flew away. " * 3])
def test_slots_that_do_not_exist_end_a_text(level: int | None, prompt: bytes) -> None:
    for levels in (1, 2, 3):
        assert texts(talker(levels, existence=-9.0), [1], prompt, level=level, max_bytes=400) == [prompt]


@pytest.mark.parametrize("quiet", [1, 2])
def test_an_upper_level_may_end_a_text(quiet: int) -> None:
    """Where an upper level opens nothing, the levels below have nothing to refine."""
    model = small_model(3, seed=1)
    for index, level in enumerate(model.levels):
        torch.nn.init.constant_(level.trunk.existence_out.bias, -9.0 if index == quiet else 4.0)
    assert texts(model, [1, 2]) == [b"", b""]
    assert all(texts(model, [1, 2], level=quiet - 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"max_bytes": 0}, {"temperature": -0.1}, {"temperature": 11.0}, {"temperature": float("nan")},
        {"level": 2}, {"level": -1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "-")) as caught:
        texts(talker(), [1], **wrong)
    assert "\n" not in str(caught.value)


# The parts


@pytest.mark.parametrize("noise_level", [1.0, 0.4])
def test_known_slots_stay_as_they_are(noise_level: float) -> None:
    level = talker(1).levels[0]
    latents = to_sphere(normal(9, level.channels, seed=1, dtype=torch.float32))
    known = torch.tensor([True, False, False, True, True, False, True, False, True])
    slots = Slots(latents, known, False, noise_level)
    result = denoise(level, slots, steps=3, temperature=1.0, generator=chance(1))
    assert torch.equal(result.latents[known], latents[known])
    assert (result.existence[known] == 1).all() and (result.existence[~known] < 1).all()
    assert not torch.isclose(result.latents[~known], latents[~known]).all(-1).any()
    assert result.latents.isfinite().all()


def test_pure_noise_owes_nothing_to_what_stood_there() -> None:
    level = talker(1).levels[0]
    known = torch.tensor([True, False, True])
    found = []
    for seed in (1, 2):
        latents = normal(3, level.channels, seed=0, dtype=torch.float32)
        latents[1] = normal(level.channels, seed=seed, dtype=torch.float32)
        slots = Slots(latents, known, True, 1.0)
        found.append(denoise(level, slots, steps=2, temperature=1.0, generator=chance(1)).latents)
    torch.testing.assert_close(found[0], found[1])


@law
@given(st.lists(st.sampled_from([0.01, 0.5, 0.51, 0.99]), max_size=12))
def test_a_run_of_empty_slots_ends_a_text(existence: list[float]) -> None:
    slots = DenoisedSlots(torch.arange(len(existence)).float().unsqueeze(1), torch.tensor(existence))
    kept, ended = _until_end(slots)
    empty = "".join("." if each <= 0.5 else "x" for each in existence)
    place = empty.find("." * END_RUN)
    assert ended == (place >= 0)
    assert len(kept.latents) == len(kept.existence) == (place if ended else len(existence))
    assert torch.equal(kept.latents, slots.latents[: len(kept.latents)])


@law
@given(st.text(st.sampled_from("aé日🦓"), max_size=12), st.integers(1, 20), st.integers(0, 20))
def test_texts_are_shortened_between_code_points(text: str, limit: int, kept: int) -> None:
    data = text.encode()
    kept = len(text[:kept].encode())
    short = _trim(data, limit, kept=kept)
    short.decode()
    assert data.startswith(short)
    assert min(kept, len(data)) <= len(short) <= max(limit, kept)
    assert len(short) > limit - 4 or short == data


@law
@given(st.binary(max_size=12), st.integers(1, 12), st.integers(0, 12))
def test_any_bytes_are_shortened_but_never_what_was_given(data: bytes, limit: int, kept: int) -> None:
    kept = min(kept, len(data))
    short = _trim(data, limit, kept=kept)
    assert data.startswith(short) and kept <= len(short) <= max(limit, kept)
    assert len(short) > limit - 4 or short == data


def test_slots_are_unfolded_in_order_and_empty_ones_left_out() -> None:
    level = talker(1).levels[0]
    latents = to_sphere(normal(5, level.channels, seed=3, dtype=torch.float32))
    everything = read_bytes(level, DenoisedSlots(latents, torch.ones(5)))
    existence = torch.tensor([1.0, 0.2, 1.0, 0.5, 1.0])
    assert read_bytes(level, DenoisedSlots(latents, existence)) == read_bytes(
        level, DenoisedSlots(latents[::2], torch.ones(3))
    )
    assert len(everything) > 5
    assert read_bytes(level, DenoisedSlots(latents, torch.zeros(5))) == b""
    assert read_bytes(level, DenoisedSlots(latents[:0], torch.ones(0))) == b""
    stitched = unfold(level, DenoisedSlots(latents, existence))
    assert stitched.kept.tolist() == [0, 2, 4] and stitched.starts.tolist() == sorted(stitched.starts.tolist())
