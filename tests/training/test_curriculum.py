"""The curriculum: which stages there are, what each moves, at which rates, and the averages that it leaves."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.model_helpers import byte_rows, chance, level_config, small_model
from tests.training_helpers import Run, assert_same_tensors, small_config
from zonkey_core.config import ModelConfig, StageShares, TrainingConfig
from zonkey_core.errors import CheckpointError, ConfigError
from zonkey_core.training import StageEvent
from zonkey_core.training.curriculum import LAST, Stage, plan_stages
from zonkey_core.training.optimizers import (
    build_optimizers,
    learning_rate_factor,
    optimizer_tensors,
    restore_optimizers,
    set_learning_rates,
)
from zonkey_core.training.stages import (
    CERTAIN_FROM,
    STABLE_FROM,
    stage_losses,
    stage_parameters,
)

CURRICULUM = [
    ("splitter", 0), ("autoencoder", 0), ("denoiser", 0), ("splitter", 1), ("autoencoder", 1), ("denoiser", 1),
    ("joint", None), ("plan", 0),
]


def level_of(name: str) -> int:
    """The level that a parameter of this name belongs to."""
    return name.split(".").count("above")


def part_of(name: str) -> str:
    """The part of its level."""
    return next(part for part in name.split(".")[1:] if part != "above")


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_levels_learn_upwards_then_jointly_then_to_be_planned_downwards(levels: int) -> None:
    model = ModelConfig(levels=tuple(level_config() for _ in range(levels)))
    shares = StageShares(splitter=(1.0, 0.5), autoencoder=(2.0,), denoiser=(3.0, 2.0, 1.0), plan=(5.0, 4.0), joint=4.0)
    stages = plan_stages(model, shares)
    names = [(name, level) for level in range(levels) for name in ("splitter", "autoencoder", "denoiser")]
    asked = [1.0, 2.0, 3.0, 0.5, 2.0, 2.0, 0.5, 2.0, 1.0][: 3 * levels]
    names.append(("joint", None))
    asked.append(4.0)
    if levels > 1:  # the top level's denoiser learns half of its time after what it forms has settled
        names.append(("denoiser", levels - 1))
        asked.append(asked[3 * levels - 1] * LAST)
        asked[3 * levels - 1] *= 1 - LAST
    names += [("plan", level) for level in reversed(range(levels - 1))]
    asked += [5.0, 4.0][: levels - 1][::-1]
    assert [(stage.name, stage.level) for stage in stages] == names
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    assert [stage.share for stage in stages] == pytest.approx([share / sum(asked) for share in asked])


@pytest.mark.parametrize("name", ["splitter", "autoencoder", "denoiser", "joint", "plan"])
def test_one_stage_may_be_trained_alone(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(), steps=4, stage=name, stop_at=1)
    assert {event.stage for event in run.events if isinstance(event, StageEvent)} == {name}
    stages = plan_stages(small_config().model, StageShares(), only=name)
    assert [stage.level for stage in stages] == {"joint": [None], "plan": [0]}.get(name, [0, 1])
    assert sum(stage.share for stage in stages) == pytest.approx(1)


def test_one_level_alone_has_all_the_time_of_a_stage() -> None:
    model = small_config().model
    assert plan_stages(model, StageShares(), "splitter", 1) == [Stage("splitter", 1, 1.0)]
    assert {stage.level for stage in plan_stages(model, StageShares(), only_level=0)} == {0}
    with pytest.raises(ConfigError, match="joint stage trains all levels"):
        plan_stages(model, StageShares(), "joint", 0)
    with pytest.raises(ConfigError, match="level 2 is not one of this model's, 0 to 1"):
        plan_stages(model, StageShares(), "splitter", 2)


def test_cuts_are_made_certain_only_late_in_the_stage_that_finds_them() -> None:
    model = small_model()
    rows = byte_rows(b"the sea is deep, and the sky is wide.")

    def uncertainty(stage: Stage, fraction: float) -> float:
        return float(stage_losses(model, stage, rows, chance(0), fraction)["0/uncertainty"].detach())

    alone, together = Stage("splitter", 0, 1.0), Stage("joint", None, 1.0)
    assert uncertainty(alone, 0.0) == uncertainty(alone, CERTAIN_FROM - 0.01) == 0
    assert uncertainty(alone, CERTAIN_FROM) > 0 and uncertainty(together, 0.0) > 0


def test_cuts_are_held_stable_from_the_middle_of_the_stage_that_finds_them() -> None:
    model = small_model()
    rows = byte_rows(b"the sea is deep, and the sky is wide.")

    def has_stability(stage: Stage, fraction: float) -> bool:
        return f"{stage.level or 0}/stability" in stage_losses(model, stage, rows, chance(0), fraction)

    alone, above, together = Stage("splitter", 0, 1.0), Stage("splitter", 1, 1.0), Stage("joint", None, 1.0)
    assert not has_stability(alone, 0.0) and not has_stability(alone, STABLE_FROM - 0.01)
    assert has_stability(alone, STABLE_FROM) and has_stability(alone, 1.0) and has_stability(together, 0.0)
    assert not has_stability(above, 1.0), "what noise is, is known of bytes alone"


def test_splitters_above_bytes_follow_guides_in_the_stages_that_train_them() -> None:
    model = small_model(3)
    rows = byte_rows(b"the sea is deep, and the sky is wide.")

    def losses(name: str, level: int | None, fraction: float) -> set[str]:
        return set(stage_losses(model, Stage(name, level, 1.0), rows, chance(0), fraction))

    for level in (1, 2):
        assert losses("splitter", level, 0.0) == losses("splitter", level, 1.0) == {f"{level}/following"}
        for other in ("autoencoder", "denoiser"):
            assert f"{level}/following" not in losses(other, level, 1.0)
    assert "0/following" not in losses("splitter", 0, 1.0), "bytes have no guide"
    together = losses("joint", None, 0.0)
    assert {name for name in together if name.endswith("/following")} == {"1/following", "2/following"}


def test_stages_without_a_share_are_left_out() -> None:
    model = small_config().model
    shares = StageShares(splitter=(1.0, 0.0), autoencoder=(0.0, 1.0), denoiser=(0.0,), plan=(0.0,), joint=0.0)
    assert plan_stages(model, shares) == [Stage("splitter", 0, 0.5), Stage("autoencoder", 1, 0.5)]
    with pytest.raises(ConfigError, match="no stage"):
        plan_stages(model, shares, only="joint")


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown stage 'encoder'.*autoencoder"):
        Run(tmp_path / "model").train(small_config(), steps=4, stage="encoder")


@pytest.mark.parametrize("index", range(len(CURRICULUM)))
def test_a_stage_moves_its_own_parameters_alone(index: int) -> None:
    model = small_model(2)
    name, level = CURRICULUM[index]
    chosen = {id(parameter) for parameter in stage_parameters(model, Stage(name, level, 1.0))}
    moved = {key for key, parameter in model.named_parameters() if id(parameter) in chosen}
    parts = {
        "splitter": ("splitter", "reader", "estimator"),
        "autoencoder": ("embedding", "compressor", "decoder", "readout"),
        "denoiser": ("denoiser", "vocabulary", "decoder", "readout"),
        "plan": ("denoiser",),
    }
    expected = {
        key for key, _ in model.named_parameters()
        if name == "joint" or (level_of(key) == level and part_of(key) in parts[name])
    }
    assert moved == expected and moved


def test_a_stage_leaves_all_else_as_it_was(tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(), steps=8, stage="splitter", stop_at=1)
    before = run.tensors()
    run.resume(stop_at=3)
    after = run.tensors()
    changed = {name for name in before if name[:5] == "live." and not before[name].equal(after[name])}
    assert {part_of(name.removeprefix("live.")) for name in changed} == {"splitter", "reader", "estimator"}
    assert {level_of(name) for name in changed} == {0}


# Learning rates, averages, optimisers


def test_the_learning_rate_rises_and_then_falls_straight() -> None:
    config = TrainingConfig(warmup=0.1, final_rate=0.2)
    factors = [learning_rate_factor(step / 1000, step, config) for step in range(1001)]
    top = factors.index(max(factors))
    assert 90 <= top <= 110 and 0.85 < factors[top] <= 1
    assert factors[0] < 0.1 and all(a < b + 1e-3 for a, b in itertools.pairwise(factors[:top]))
    slopes = [b - a for a, b in itertools.pairwise(factors[110:])]
    assert max(slopes) < 0 and max(slopes) - min(slopes) < 1e-9
    assert factors[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("warmup", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("length", [1, 2, 10, 500])
def test_the_learning_rate_is_always_a_useful_one(warmup: float, length: int) -> None:
    config = TrainingConfig(warmup=warmup, final_rate=0.05)
    factors = [learning_rate_factor(step / length, step, config) for step in range(length)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[0] == pytest.approx(0.05), "short stages start gently too"


def test_no_warmup_trains(tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    assert run.train(small_config(1, warmup=0.0), steps=6, stage="splitter").steps == 6


def test_rates_are_scaled_from_their_peaks() -> None:
    model = small_model(2)
    config = TrainingConfig(learning_rate=0.5, matrix_learning_rate=0.25, table_learning_rate=2.0)
    optimizers = build_optimizers(model.parameters(), config)
    for factor in (0.5, 0.1):
        set_learning_rates(optimizers, factor)
        rates = [group["lr"] for each in optimizers for group in each.param_groups]
        assert rates == pytest.approx([0.25 * factor, 0.5 * factor, 2.0 * factor])
    owned = [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]
    assert sorted(map(id, owned)) == sorted(map(id, model.parameters()))


def test_tables_of_strings_have_a_rate_of_their_own() -> None:
    model = small_model(2)
    names = {parameter: name for name, parameter in model.named_parameters()}
    config = TrainingConfig(learning_rate=0.5, table_learning_rate=2.0)
    groups = [group for each in build_optimizers(model.parameters(), config) for group in each.param_groups]
    (of_tables,) = [group for group in groups if group["lr"] == 2.0]
    assert {names[parameter] for parameter in of_tables["params"]} == {
        "bottom.splitter.ngrams.table", "bottom.reader.units.table", "bottom.reader.contexts",
        "bottom.estimator.units.table",
        "bottom.estimator.ngrams.table", "bottom.vocabulary.table",
    }
    above = stage_parameters(model, Stage("splitter", 1, 1.0))
    of_latents = [group for each in build_optimizers(above, config) for group in each.param_groups]
    assert len(of_latents) == 2 and all(group["lr"] != 2.0 for group in of_latents), "above bytes there are no strings"


def test_a_row_of_a_table_moves_at_the_rate_of_tables() -> None:
    model = small_model(1)
    table = dict(model.named_parameters())["bottom.splitter.ngrams.table"]
    before = table.detach().clone()
    config = TrainingConfig(weight_decay=0.0, learning_rate=0.1, table_learning_rate=0.4)
    optimizers = build_optimizers([table], config)
    set_learning_rates(optimizers, 0.5)
    table.grad = torch.zeros_like(table)
    table.grad[0, 3] = 1.0
    for optimizer in optimizers:
        optimizer.step()
    assert (table != before).any(-1).nonzero().tolist() == [[0, 3]]
    torch.testing.assert_close(table[0, 3], before[0, 3] - 0.5 * 0.4)


def test_the_state_of_the_optimizers_comes_back() -> None:
    models = small_model(2), small_model(2)
    first, second = (build_optimizers(each.parameters(), TrainingConfig()) for each in models)

    def update(which: int, seed: int) -> None:
        generator = chance(seed)
        for parameter in models[which].parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in (first, second)[which]:
            optimizer.step()

    update(0, 1)
    assert {name.split(".")[0] for name in optimizer_tensors(first)} == {"0", "1"}
    models[1].load_state_dict(models[0].state_dict())
    restore_optimizers(second, {name: tensor.clone() for name, tensor in optimizer_tensors(first).items()})
    for which in (0, 1):
        update(which, 2)
    assert_same_tensors(dict(models[0].state_dict()), dict(models[1].state_dict()))
    assert_same_tensors(optimizer_tensors(first), optimizer_tensors(second))
    with pytest.raises(CheckpointError, match="optimizer state"):
        restore_optimizers(first, {"step": torch.zeros(())})


def test_averages_follow_the_weights(tmp_path: Path) -> None:
    run = Run(tmp_path / "model")
    config = small_config(1, average_decay=0.9)
    expected: dict[str, Tensor] = {}
    run.train(config, steps=30, stage="splitter", stop_at=1)
    for step in range(1, 4):
        if step > 1:
            run.resume(stop_at=step)
        tensors = run.tensors()
        decay = min(0.9, (1 + step) / (10 + step))
        for name in (name for name in tensors if name.startswith("average.")):
            live = tensors["live." + name.removeprefix("average.")]
            if not live.is_floating_point():
                assert torch.equal(tensors[name], live)
            elif step > 1:
                torch.testing.assert_close(tensors[name], decay * expected[name] + (1 - decay) * live)
            expected[name] = tensors[name]
    assert any(not expected[name].equal(tensors["live." + name.removeprefix("average.")]) for name in expected)
