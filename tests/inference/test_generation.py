"""Sampling: what a sample depends on, what is kept, how texts end, and levels by configuration."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.inference.model_helpers import entries_of, expect, strings_of, talker
from tests.model_helpers import TEXT, chance, few, law
from zonkey_core.errors import ConfigError
from zonkey_core.inference import generation, planning
from zonkey_core.inference.block_generation import OpenText, Written
from zonkey_core.inference.generation import (
    OTHER_DRAWS,
    Forming,
    Sample,
    _trim,
    generate,
    unfold_entries,
)
from zonkey_core.inference.generation import SamplingOptions as Options
from zonkey_core.inference.scoring import Question, log_likelihoods
from zonkey_core.inference.text_reading import TextReader
from zonkey_core.model.denoiser import DenoisedSlots, Denoiser
from zonkey_core.model.kv_cache import KVCache
from zonkey_core.model.length_model import EDGES
from zonkey_core.model.model import Zonkey
from zonkey_core.slots import SlotBatch

DATA = TEXT.encode()


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


@pytest.mark.parametrize("level", [0, None])
@pytest.mark.parametrize("prompt", [b"", b"The heron "])
@pytest.mark.parametrize("together", [2, 16])
def test_a_sample_depends_on_its_own_seed_alone(
    level: int | None, prompt: bytes, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "TOGETHER", together)
    model = talker()
    first, second = texts(model, [3, 4], prompt, level=level)
    assert texts(model, [4], prompt, level=level) == [second]
    assert texts(model, [4, 7, 3], prompt, level=level)[::2] == [second, first]
    assert first != second


@pytest.mark.parametrize(("levels", "steps"), [(1, 2), (1, 16), (2, 2), (2, 8), (3, 3)])
def test_a_long_sample_depends_on_its_own_seed_alone(
    levels: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where some stretches have fewer slots than there are steps, and others more."""
    monkeypatch.setattr(generation, "GROUP_BYTES", 40)
    model = talker(levels)
    seeds = list(range(4))
    together = texts(model, seeds, max_bytes=170, steps=steps)
    assert together == [text for seed in seeds for text in texts(model, [seed], max_bytes=170, steps=steps)]
    assert len(set(together)) > 3 and max(map(len, together)) > 160


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
    first = texts(model, [1], best_of=2)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert texts(model, [1], best_of=2) == first


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


# Levels, lengths, prompts


@pytest.mark.parametrize(("levels", "level"), [(1, None), (2, 0), (2, None), (3, 0), (3, 1), (3, None)])
@pytest.mark.parametrize("prompt", [b"", b"It waited, and waited, na\xc3\xafve"])
@pytest.mark.parametrize(("steps", "fitted"), [(1, True), (5, True), (5, False)])
def test_every_level_of_every_model_generates(
    levels: int, level: int | None, prompt: bytes, steps: int, fitted: bool
) -> None:
    for limit in (1, 30, 90):
        (text,) = texts(talker(levels, fitted=fitted), [5], prompt, level=level, steps=steps, max_bytes=limit)
        assert text.startswith(prompt)
        assert len(text) <= max(limit, len(prompt))
        assert len(text) >= max(limit - 3, len(prompt)), "slots make text"


@pytest.mark.parametrize("steps", [1, 2, 3, 11, 32, 64, 128])
@pytest.mark.parametrize("levels", [1, 2])
def test_every_number_of_evaluations_gives_text(levels: int, steps: int) -> None:
    for text in texts(talker(levels), [1, 2], b"The heron ", steps=steps, max_bytes=200):
        assert text.startswith(b"The heron ") and 197 <= len(text) <= 200


def test_all_levels_form_the_text_by_default() -> None:
    model = talker(3)
    everything = texts(model, [1, 2])
    assert Options().level is None and everything == texts(model, [1, 2], level=2)
    assert everything != texts(model, [1, 2], level=1) != texts(model, [1, 2], level=0)


def test_without_temperature_nothing_is_chance_but_how_long_blocks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance fixed, what is formed at temperature 0 is the same; at 1 it is not."""
    model = talker()
    sound = torch.rand

    def fixed(*given: Any, **options: Any) -> Tensor:
        return sound(*given, **(options | {"generator": chance(0)}))

    monkeypatch.setattr(torch, "rand", fixed)
    cold, warm = (texts(model, [1, 2], temperature=temperature) for temperature in (0.0, 1.0))
    assert cold[0] == cold[1] and warm[0] != warm[1]


def test_a_text_goes_on_from_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "GROUP_BYTES", 48)
    monkeypatch.setattr(generation, "CONTEXT_BYTES", 40)
    seen: list[bytes] = []
    sound = TextReader.read

    def noted(reader: TextReader, contexts: list[bytes]) -> Any:
        seen.extend(contexts)
        return sound(reader, contexts)

    monkeypatch.setattr(TextReader, "read", noted)
    (text,) = texts(talker(), [1], b"Begun.", max_bytes=1500)
    assert text.startswith(b"Begun.") and 1497 <= len(text) <= 1500
    assert seen[0] == b"Begun." and len(seen) > 2 and {len(each) for each in seen[1:]} == {40}
    ends = [text.find(each) + 40 for each in seen[1:]]
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
    found = opened_by(monkeypatch)
    made = texts(model, list(range(20)), prompt, max_bytes=40, temperature=10.0)
    assert all(text.startswith(prompt) for text in made)
    entries = entries_of(model, prompt).tolist()
    for text in found[:16]:
        assert text.known.tolist() == entries[:-1] and text.begins
        assert text.prefix == strings_of(model.bottom).detokenize(entries[-1:])
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
@pytest.mark.parametrize("levels", [1, 3])
def test_a_text_takes_no_more_evaluations_than_are_given(
    levels: int, steps: int, prompt: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each stretch, with one that asks how long the text becomes, of the lowest level where it stands alone, or of
    the top one. The former takes two at least: one that reads what stands, and one that reads what it has told."""
    model, read = copy.deepcopy(talker(levels)), [0] * levels
    for index, each in enumerate(model.levels):
        each.denoiser.register_buffer("which", torch.tensor(index), persistent=False)
    forward = Denoiser.forward

    def counted(denoiser: Denoiser, slots: SlotBatch, cache: KVCache | None = None) -> DenoisedSlots:
        read[int(denoiser.get_buffer("which"))] += 1
        return forward(denoiser, slots, cache)

    monkeypatch.setattr(Denoiser, "forward", counted)
    stretches = opened_by(monkeypatch)
    assert len(*texts(model, [1], prompt, max_bytes=200, steps=steps)) > 190
    if levels == 1:
        assert 1 + max(2, steps - 2) <= read[0] <= len(stretches) * (1 + max(2, steps))
        return
    assert len(stretches) <= read[0] <= len(stretches) * steps
    above = min(steps, planning.MOST_STEPS)
    assert read[1] == len(stretches) * above and read[2] == len(stretches) * (above + 1)


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
        for text in texts(talker(levels, remaining=0), [1, 2], prompt, max_bytes=2000):
            longest = 7 if levels == 1 else 8**levels
            assert text.startswith(prompt) and len(text) <= len(prompt) + longest, "but for the rest of what is open"
    assert len(found) == 6, "each is asked once"


@pytest.mark.parametrize("count", [1, 7, 50])
def test_a_text_ends_where_it_says(count: int) -> None:
    bins = [range(begin, end) for begin, end in itertools.pairwise((0, *EDGES))]
    (possible,) = [held for held in bins if count in held]
    for text in texts(talker(1, remaining=count, fitted=False), [1, 2, 3], max_bytes=100):
        assert len(text) in possible, "of single bytes"


def test_the_top_level_says_how_many_blocks_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_top(3)
    found = opened_by(monkeypatch)
    for text in texts(model, [1, 2, 3], max_bytes=2000):
        assert 3 <= len(text) <= 3 * 8 * 8
    for each in found:
        assert each.plan is not None and each.plan.ends and len(each.plan.lengths) == 3
    assert len(found) == 3


def small_top(blocks: int) -> Zonkey:
    """A model of two levels whose upper one expects so many blocks, and whose lowest one expects no end."""
    model = copy.deepcopy(talker(2))
    expect(model.levels[1], blocks)
    return model


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


@pytest.mark.parametrize("level", [0, None])
@pytest.mark.parametrize("prompt", [b"", b"Begun."])
@pytest.mark.parametrize("steps", [1, 6])
def test_the_first_text_is_shown_as_it_forms(
    level: int | None, prompt: bytes, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "GROUP_BYTES", 48)
    model = talker(2)
    made, shown = watched(model, [3, 4], prompt, level=level, max_bytes=150, steps=steps)
    assert made == texts(model, [3, 4], prompt, level=level, max_bytes=150, steps=steps)
    done = [forming for forming in shown if None not in forming.pieces]
    assert len({forming.before for forming in done}) > 1, "one stretch after the other"
    last = strings_of(model.bottom).detokenize(entries_of(model, prompt)[-1:].tolist())
    assert shown[0].before == prompt.removesuffix(last)
    assert any(forming.level for forming in shown) == (level is None)
    for before, after in itertools.pairwise(shown):
        if after.before != before.before:
            assert len(after.before) > len(before.before) and None not in before.pieces
            continue
        assert after.level <= before.level, "plans come first"
        if after.level == before.level:
            pairs = list(zip(before.pieces, after.pieces, strict=True))
            assert all(late == early for early, late in pairs if early is not None)
            assert before.pieces.count(None) > after.pieces.count(None) or None not in before.pieces


def test_the_first_text_of_every_group_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "TOGETHER", 2)
    made, shown = watched(talker(1), [3, 4, 5, 6], max_bytes=20)
    first, second = watched(talker(1), [3], max_bytes=20), watched(talker(1), [5], max_bytes=20)
    assert made[::2] == first[0] + second[0] and shown == first[1] + second[1]


# The parts


@few
@given(st.one_of(st.binary(max_size=40), st.integers(0, len(DATA)).map(lambda start: DATA[start:])))
def test_entries_spell_what_was_read(text: bytes) -> None:
    entries = entries_of(talker(), text)
    assert strings_of(talker().bottom).detokenize(entries.tolist()) == text
    assert len(entries) <= len(text)


@few
@given(st.lists(st.lists(st.integers(0, 299), max_size=9), max_size=3))
def test_slots_are_unfolded_to_as_many_bytes_as_their_strings_have(rows: list[list[int]]) -> None:
    level = talker().bottom
    rows = [[entry for entry in row if strings_of(level).lengths[entry] > 0] for row in rows]
    if not rows:
        return
    found = unfold_entries(level, [torch.tensor(row, dtype=torch.long) for row in rows])
    for row, text in zip(rows, found, strict=True):
        assert len(text) == len(strings_of(level).detokenize(row))
        assert [text] == unfold_entries(level, [torch.tensor(row, dtype=torch.long)]), "whatever stands beside"


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
