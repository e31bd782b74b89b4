"""Sampling: what a sample depends on, what is kept, how texts end, and levels by configuration."""

from __future__ import annotations

import bisect
import functools
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.model_helpers import TEXT, chance, few, fit_dictionary, law, normal, small_model
from zonkey_core.errors import ConfigError
from zonkey_core.inference import generation, latent_sampler
from zonkey_core.inference.block_generation import OpenText, Written
from zonkey_core.inference.generation import (
    OTHER_DRAWS,
    Forming,
    Sample,
    _trim,
    generate,
    open_end,
    read_entries,
)
from zonkey_core.inference.generation import SamplingOptions as Options
from zonkey_core.inference.latent_sampler import END_RUN, DenoisedSlots, Slots, _until_end, denoise, read_bytes, unfold
from zonkey_core.inference.scoring import Question, log_likelihoods
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.latents import to_sphere
from zonkey_core.model.length_model import EDGES
from zonkey_core.model.model import Zonkey
from zonkey_core.model.writer import OrderedSlots, Told, Writer

DATA = TEXT.encode()
SURE = 30.0
"""Logit of what is certain."""
NEVER = EDGES[-1]
"""Remaining slots of what is sure not to end."""


@functools.lru_cache(maxsize=16)
def talker(
    levels: int = 2, *, remaining: int | None = NEVER, existence: float = SURE, fitted: bool = True
) -> Zonkey:
    """An untrained model that writes so many slots where it is asked; without a number, it may end anywhere.

    Slots of levels above exist, or do not, and windows hold a few positions.
    """
    model = small_model(levels, seed=levels)
    if fitted:
        nn.init.normal_(fit_dictionary(model).table)
    for level in model.levels:
        if level.trunk is not None:
            nn.init.constant_(level.trunk.existence_out.bias, existence)
        nn.init.constant_(level.decoder.starts.bias, -1.5)
    writer = model.levels[0].writer
    assert writer is not None
    nn.init.zeros_(writer.ending_out.weight)
    nn.init.constant_(writer.ending_out.bias, -2.0 if remaining is None else -SURE)
    model.eval().requires_grad_(False)
    if remaining is not None and remaining < NEVER:
        writer.ending_out.bias[bisect.bisect_right(EDGES, remaining)] = SURE
    return model


def samples_of(model: Zonkey, seeds: list[int], prompt: bytes = b"", **options: Any) -> list[Sample]:
    """The samples of some seeds."""
    settings = Options(**{"steps": 4, "max_bytes": 60, **options})
    samples = list(generate(model, seeds=seeds, options=settings, prompt=prompt))
    assert [sample.seed for sample in samples] == seeds
    return samples


def texts(model: Zonkey, seeds: list[int], prompt: bytes = b"", **options: Any) -> list[bytes]:
    """The texts of some seeds."""
    return [sample.text for sample in samples_of(model, seeds, prompt, **options)]


def watched(model: Zonkey, seeds: list[int], prompt: bytes = b"", **options: Any) -> tuple[list[bytes], list[Forming]]:
    """The texts of some seeds, and what was shown of them."""
    shown: list[Forming] = []
    settings = Options(**{"steps": 4, "max_bytes": 60, **options})
    samples = generate(model, seeds=seeds, options=settings, prompt=prompt, watch=shown.append)
    return [sample.text for sample in samples], shown


def standing(forming: Forming) -> bytes:
    """All text that stands."""
    return forming.before + b"".join(piece or b"" for piece in forming.pieces)


# What a sample depends on


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("prompt", [b"", b"The heron "])
@pytest.mark.parametrize("together", [2, 16])
def test_a_sample_depends_on_its_own_seed_alone(
    level: int, prompt: bytes, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_sampler, "REBUILD_RATIO", 0.0)  # an untrained compressor makes all windows alike
    monkeypatch.setattr(generation, "TOGETHER", together)
    model = talker()
    first, second = texts(model, [3, 4], prompt, level=level)
    assert texts(model, [4], prompt, level=level) == [second]
    assert texts(model, [4, 7, 3], prompt, level=level)[::2] == [second, first]
    assert first != second


def test_a_long_sample_depends_on_its_own_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where some stretches have fewer slots than there are steps, and others more."""
    monkeypatch.setattr(generation, "GROUP_BYTES", 24)
    model = talker(1)
    seeds = list(range(8))
    for steps in (2, 16):
        together = texts(model, seeds, max_bytes=100, steps=steps)
        assert together == [text for seed in seeds for text in texts(model, [seed], max_bytes=100, steps=steps)]
        assert len(set(together)) > 4 and max(map(len, together)) > 90


def test_the_best_of_some_is_the_likeliest_of_their_texts() -> None:
    model, prompt = talker(1, remaining=None), b"The heron "
    best = samples_of(model, [5, 6, 7], prompt, best_of=6)
    for sample in best:
        drawn = texts(model, [sample.seed + OTHER_DRAWS * which for which in range(6)], prompt)
        found = log_likelihoods(model, [Question(text, [(len(prompt), len(text))]) for text in drawn])
        each = [score.total / max(1, len(text) - len(prompt)) for score, text in zip(found, drawn, strict=True)]
        assert sample.text == drawn[each.index(max(each))]
        assert sample.score == pytest.approx(max(each), rel=1e-4)
    assert samples_of(model, [6], prompt, best_of=6)[0].text == best[1].text
    assert any(sample.text != text for sample, text in zip(best, texts(model, [5, 6, 7], prompt), strict=True))
    assert [sample.score for sample in samples_of(model, [5], prompt)] == [None]


def test_any_text_is_better_than_none() -> None:
    """Where nothing stands, something is written, however surely the text ends there."""
    assert all(text for text in texts(talker(1, remaining=0), [1, 2, 3, 4]))


def test_nothing_global_is_touched() -> None:
    model = talker()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = texts(model, [1], level=1, best_of=2)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert texts(model, [1], level=1, best_of=2) == first


def test_samples_come_as_soon_as_their_group_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    sound = generation.write_texts

    def counted(level: Any, opened: Any, *given: Any, **options: Any) -> list[Written]:
        groups.append(len(opened))
        return sound(level, opened, *given, **options)

    monkeypatch.setattr(generation, "write_texts", counted)
    monkeypatch.setattr(generation, "TOGETHER", 2)
    samples = generate(talker(), seeds=[1, 2, 3], options=Options(steps=2, max_bytes=20))
    next(samples)
    next(samples)
    first = len(groups)
    assert first > 0 and set(groups) <= {1, 2} and groups[0] == 2
    next(samples)
    assert len(groups) > first and groups[first:] == [1] * (len(groups) - first)


@pytest.mark.parametrize(("temperature", "same"), [(0.0, True), (1.0, False)])
def test_without_temperature_only_the_start_is_chance(
    monkeypatch: pytest.MonkeyPatch, temperature: float, same: bool
) -> None:
    level = talker(2).levels[1]
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


@pytest.mark.parametrize(("levels", "level"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
@pytest.mark.parametrize("prompt", [b"", b"It waited, and waited, na\xc3\xafve"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("fitted", [False, True])
def test_every_level_of_every_model_generates(
    levels: int, level: int, prompt: bytes, steps: int, fitted: bool
) -> None:
    for limit in (1, 30, 90):
        (text,) = texts(talker(levels, fitted=fitted), [5], prompt, level=level, steps=steps, max_bytes=limit)
        assert text.startswith(prompt)
        assert len(text) <= max(limit, len(prompt))
        assert len(text) >= max(limit - 3, len(prompt)), "slots that exist make text"


@pytest.mark.parametrize("prompt", [b"", b"The heron ", b"The heron stood in the"])
def test_a_draft_decides_what_level_0_writes(prompt: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, and behind the prompt, whose last string is open."""
    model = talker()
    monkeypatch.setattr(generation, "draft_text", lambda *given, **options: DATA[:60])
    monkeypatch.setattr(generation, "DRAFT_RATIO", 0.01)
    limit = len(prompt) + 60
    (text,) = texts(model, [1], prompt, level=1, max_bytes=limit)
    assert text == prompt + DATA[:60]
    assert texts(model, [1], prompt, level=0, max_bytes=limit) != [text]


def test_a_draft_that_is_done_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a draft of nothing ends a text."""
    drafts = [b"one, ", b"two, ", b"three.", b"", b"more"]
    monkeypatch.setattr(generation, "draft_text", lambda *given, **options: drafts.pop(0))
    monkeypatch.setattr(generation, "DRAFT_RATIO", 0.01)
    assert texts(talker(), [1], b"Zero, ", level=1, max_bytes=300) == [b"Zero, one, two, three."]
    assert drafts == [b"more"]


def test_levels_without_a_draft_leave_it_to_those_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they expect may stand already, as the beginning of a segment that goes on."""
    prompt, sound = b"It waited, and waited, ", latent_sampler._read_context

    def much_is_written(*given: Any) -> list[Any]:
        return [each._replace(written=10_000) for each in sound(*given)]

    monkeypatch.setattr(latent_sampler, "_read_context", much_is_written)
    for level in (1, 2):
        (text,) = texts(talker(3), [1], prompt, level=level, max_bytes=50)
        assert text.startswith(prompt) and len(text) > 46


def test_a_text_goes_on_from_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "GROUP_BYTES", 48)
    monkeypatch.setattr(generation, "CONTEXT_BYTES", 40)
    seen: list[tuple[bytes, bytes]] = []
    sound = generation.open_end

    def noted(level: Any, text: bytes) -> Any:
        end = sound(level, text)
        seen.append((text, end.prefix))
        return end

    monkeypatch.setattr(generation, "open_end", noted)
    (text,) = texts(talker(), [1], b"Begun.", max_bytes=1500)
    assert text.startswith(b"Begun.") and 1497 <= len(text) <= 1500
    contexts = [context for context, _ in seen]
    assert contexts[0] == b"Begun." and len(contexts) > 2 and {len(each) for each in contexts[1:]} == {40}
    ends = [text.find(each) + 40 for each in contexts[1:]]
    assert ends == sorted(set(ends)) and ends[0] > 40, "every one is the end of the text so far"


def opened_by(patch: pytest.MonkeyPatch) -> list[OpenText]:
    """A list that takes up every text that is opened from now on."""
    found: list[OpenText] = []
    sound = generation.write_texts

    def noted(level: Any, opened: list[OpenText], *given: Any, **options: Any) -> list[Written]:
        found.extend(opened)
        return sound(level, opened, *given, **options)

    patch.setattr(generation, "write_texts", noted)
    return found


def test_the_last_string_of_a_prompt_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told anew, as one that begins like it; all before it is known."""
    model, prompt = talker(1), b"It waited, and wai"
    dictionary = model.levels[0].dictionary
    assert dictionary is not None
    found = opened_by(monkeypatch)
    made = texts(model, list(range(20)), prompt, max_bytes=40, temperature=10.0)
    assert all(text.startswith(prompt) for text in made)
    entries = read_entries(model.levels[0], prompt).tolist()
    for text in found[:16]:
        assert text.known.tolist() == entries[:-1] and text.begins
        assert text.prefix == dictionary.detokenize(entries[-1:])
    follow = {text[len(prompt) :] for text in made}
    assert len(follow) > 10


def test_a_text_is_known_to_begin_where_all_of_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "GROUP_BYTES", 24)
    monkeypatch.setattr(generation, "CONTEXT_BYTES", 40)
    found = opened_by(monkeypatch)
    texts(talker(1), [1], b"Begun.", max_bytes=120)
    assert found[0].begins and not found[-1].begins
    assert [each.begins for each in found] == sorted((each.begins for each in found), reverse=True)


@pytest.mark.parametrize("prompt", [b"word", b"long enough to be read as several segments, and then some more"])
def test_a_prompt_that_fills_the_text_comes_back(prompt: bytes) -> None:
    assert texts(talker(), [1, 2], prompt, max_bytes=3) == [prompt, prompt]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 32])
@pytest.mark.parametrize("prompt", [b"", b"The heron "])
def test_a_text_takes_no_more_evaluations_than_are_given(
    steps: int, prompt: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each stretch, but for two at least: one that reads what stands, and one that reads what it has told."""
    read: list[int] = []
    forward = Writer.forward

    def counted(writer: Writer, slots: OrderedSlots, cache: KVCache | None = None) -> Told:
        read.append(len(slots.latents))
        return forward(writer, slots, cache)

    monkeypatch.setattr(Writer, "forward", counted)
    stretches = opened_by(monkeypatch)
    assert len(*texts(talker(1), [1], prompt, max_bytes=200, steps=steps)) > 190
    assert max(2, steps - 2) <= len(read) <= len(stretches) * max(2, steps)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("spare", range(1, 6))
def test_a_text_never_stands_still(spare: int, temperature: float) -> None:
    """Also where it could do nothing but tell its last string again."""
    for prompt in (b"The heron ", b"It waited"):
        (text,) = texts(talker(1), [1], prompt, max_bytes=len(prompt) + spare, temperature=temperature)
        assert len(prompt) + spare - 3 <= len(text) <= len(prompt) + spare


@pytest.mark.parametrize("prompt", [b"Short.", b"The heron stood in the shallows, and it flew away. " * 3])
def test_a_text_that_has_ended_is_not_gone_on_with(prompt: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened_by(monkeypatch)
    for levels in range(1, 4):
        for text in texts(talker(levels, remaining=0), [1, 2], prompt, max_bytes=400):
            assert text.startswith(prompt) and len(text) <= len(prompt) + 7, "but for the rest of its last string"
    assert len(found) == 6, "each is asked once"


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("prompt", [b"", b"Short.", b"The heron stood in the shallows, and it flew away. " * 3])
def test_slots_that_do_not_exist_end_a_text(level: int, prompt: bytes) -> None:
    for levels in range(level + 1, 4):
        found = texts(talker(levels, existence=-SURE), [1, 2], prompt, level=level, max_bytes=400)
        assert found == [prompt, prompt]


@pytest.mark.parametrize("count", [1, 7, 50])
def test_a_text_ends_where_it_says(count: int) -> None:
    bins = [range(begin, end) for begin, end in itertools.pairwise((0, *EDGES))]
    (possible,) = [held for held in bins if count in held]
    for text in texts(talker(1, remaining=count, fitted=False), [1, 2, 3], max_bytes=100):
        assert len(text) in possible, "of single bytes"


@pytest.mark.parametrize("quiet", [1, 2])
@pytest.mark.parametrize("prompt", [b"", b"Begun."])
def test_an_upper_level_may_end_a_text(quiet: int, prompt: bytes) -> None:
    """Where an upper level opens nothing, the levels below have nothing to refine."""
    model = small_model(3, seed=1)
    for index, level in enumerate(model.levels):
        if level.trunk is not None:
            nn.init.constant_(level.trunk.existence_out.bias, -SURE if index == quiet else SURE)
        else:
            assert level.writer is not None
            nn.init.constant_(level.writer.ending_out.bias, -SURE)
    for start in range(quiet, 3):
        assert texts(model, [1, 2], prompt, level=start) == [prompt, prompt]
    assert all(len(text) > 50 for text in texts(model, [1, 2], prompt, level=quiet - 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"max_bytes": 0}, {"temperature": -0.1}, {"temperature": 11.0}, {"temperature": float("nan")},
        {"level": 2}, {"level": -1}, {"best_of": 0},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "-")) as caught:
        texts(talker(), [1], **wrong)
    assert "\n" not in str(caught.value)


# What is shown


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("prompt", [b"", b"Begun."])
@pytest.mark.parametrize("steps", [1, 6])
def test_the_first_text_is_shown_as_it_forms(
    level: int, prompt: bytes, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "GROUP_BYTES", 48)
    model = talker(3)
    made, shown = watched(model, [3, 4, 5], prompt, level=level, max_bytes=120, steps=steps)
    assert made == texts(model, [3, 4, 5], prompt, level=level, max_bytes=120, steps=steps)
    assert standing(shown[-1])[:120].startswith(made[0])
    assert {forming.level for forming in shown} == {0, level}
    done = [forming for forming in shown if forming.level == 0 and None not in forming.pieces]
    assert len({forming.before for forming in done}) > 1, "one stretch after the other"
    end = open_end(model.levels[0], prompt).prefix
    assert shown[0].before == (prompt if level else prompt.removesuffix(end))
    for before, after in itertools.pairwise(shown):
        if before.level == 0 and None not in before.pieces:
            assert after.level == level
            assert standing(before).startswith(after.before), "a stretch that is done stands, less its last string"
            assert level == 0 or after.before == standing(before)
        elif before.level == 0:
            assert after.before == before.before
            pairs = list(zip(before.pieces, after.pieces, strict=True))
            assert all(late == early for early, late in pairs if early is not None)
            assert before.pieces.count(None) > after.pieces.count(None)
        else:
            assert before.before.startswith(after.before) and after.level == 0
    for forming in shown:
        assert forming.level == 0 or all(forming.pieces), "a draft has no open slots"


def test_the_first_text_of_every_group_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "TOGETHER", 2)
    made, shown = watched(talker(1), [3, 4, 5, 6], max_bytes=20)
    ends = {standing(forming)[:20] for forming in shown if None not in forming.pieces}
    assert all(any(end.startswith(text) for end in ends) for text in made[::2])
    assert not any(end.startswith(text) for end in ends for text in made[1::2])


# The parts


@few
@given(st.one_of(st.binary(max_size=40), st.integers(0, len(DATA)).map(lambda start: DATA[start:])))
def test_entries_spell_what_was_read(text: bytes) -> None:
    level = talker().levels[0]
    assert level.dictionary is not None
    entries = read_entries(level, text)
    assert level.dictionary.detokenize(entries.tolist()) == text
    assert len(entries) <= len(text)
    end = open_end(level, text)
    assert torch.equal(torch.cat([end.known, end.last]), entries) and len(end.last) == min(1, len(entries))
    assert level.dictionary.detokenize(end.known.tolist()) + end.prefix == text


@pytest.mark.parametrize("noise_level", [1.0, 0.4])
def test_known_slots_stay_as_they_are(noise_level: float) -> None:
    level = talker(2, existence=4.0).levels[1]
    latents = to_sphere(normal(9, level.channels, seed=1, dtype=torch.float32))
    known = torch.tensor([True, False, False, True, True, False, True, False, True])
    slots = Slots(latents, known, False, noise_level)
    result = denoise(level, slots, steps=3, temperature=1.0, generator=chance(1))
    assert torch.equal(result.latents[known], latents[known])
    assert (result.existence[known] == 1).all() and (result.existence[~known] < 1).all()
    assert not torch.isclose(result.latents[~known], latents[~known]).all(-1).any()
    assert result.latents.isfinite().all()


def test_pure_noise_owes_nothing_to_what_stood_there() -> None:
    level = talker(2).levels[1]
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
    kept = _until_end(slots)
    empty = "".join("." if each <= 0.5 else "x" for each in existence)
    place = empty.find("." * END_RUN)
    assert len(kept.latents) == len(kept.existence) == (place if place >= 0 else len(existence))
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
