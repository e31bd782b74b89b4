"""Configuration: presets, files, overrides, and the messages for what is wrong in them."""

import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zonkey_core.config import (
    PRESETS,
    Config,
    LevelConfig,
    StageShares,
    TrainingConfig,
    load_config,
    load_preset,
    override_keys,
    parse_config,
)
from zonkey_core.errors import ConfigError

ONE_LEVEL = "[[model.levels]]\n"


def message_of(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message for a configuration file of this text, which must be refused in one line that names its origin."""
    file = tmp_path / "run.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "run.toml" in message or "override" in message or "unknown key" in message
    return message


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_state_their_memory(name: str) -> None:
    config = load_preset(name)
    assert len(config.model.levels) >= 2
    assert "to train" in config.memory
    assert "to use" in config.memory


def test_presets_grow() -> None:
    sizes = [sum(level.denoiser_layers * level.denoiser_width**2 for level in load_preset(name).model.levels)
             for name in PRESETS]
    assert all(later > 3 * earlier for earlier, later in itertools.pairwise(sizes))


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'medium'; choose one of tiny, small, base, large"):
        load_preset("medium")


def test_an_override_changes_its_key_and_nothing_else() -> None:
    plain = load_preset("tiny")
    changed = load_preset("tiny", ["level.1.heads=8", "training.learning_rate = 1e-3"])
    assert changed.model.levels[0] == plain.model.levels[0]
    assert changed.model.levels[1] == msgspec.structs.replace(plain.model.levels[1], heads=8)
    assert changed.training == msgspec.structs.replace(plain.training, learning_rate=1e-3)
    assert changed.memory == plain.memory


def test_the_last_override_of_a_key_wins() -> None:
    assert load_preset("tiny", ["level.0.window=30", "level.0.window=20"]).model.levels[0].window == 20


def test_overrides_reach_the_shares_of_the_stages() -> None:
    shares = load_preset("tiny", ["training.shares.splitter=[2, 0.5]", "training.shares.joint=3"]).training.shares
    assert shares == StageShares(splitter=(2.0, 0.5), joint=3.0)


def test_every_listed_key_can_be_overridden_with_its_own_value() -> None:
    config = load_preset("tiny")
    tree = msgspec.to_builtins(config)
    tree["level"] = {str(index): level for index, level in enumerate(tree["model"]["levels"])}
    keys = override_keys(len(config.model.levels))
    assert len(keys) == len(set(keys)) == (
        2 * len(LevelConfig.__struct_fields__) + len(TrainingConfig.__struct_fields__) - 1
        + len(StageShares.__struct_fields__)
    )
    overrides = []
    for key in keys:
        value = tree
        for name in key.split("."):
            value = value[name]
        overrides.append(f"{key}={list(value) if isinstance(value, tuple) else value}")
    assert load_preset("tiny", overrides) == config


@given(
    rates=st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=4),
    learning_rate=st.floats(min_value=0, exclude_min=True, max_value=1e9),
    heads=st.integers(1, 16),
    per_head=st.integers(1, 64),
    level=st.integers(0, 1),
)
def test_overrides_round_trip(
    rates: list[float], learning_rate: float, heads: int, per_head: int, level: int
) -> None:
    width = 2 * heads * per_head
    config = load_preset("tiny", [
        f"level.{level}.heads={heads}", f"level.{level}.width={width}", f"level.{level}.splitter_width={width}",
        f"training.learning_rate={learning_rate!r}", f"training.shares.denoiser={rates!r}",
    ])
    assert config.training.learning_rate == learning_rate
    assert config.training.shares.denoiser == tuple(rates)
    assert (config.model.levels[level].heads, config.model.levels[level].width) == (heads, width)
    again = parse_config(msgspec.json.decode(msgspec.json.encode(config)), origin="a stored configuration")
    assert again == config


@given(override=st.text(max_size=40)
       | st.builds("{}={}".format, st.sampled_from(override_keys()), st.text(max_size=20)))
@example(override="level.0.heads=0\n")
@example(override="training.shares.splitter=[1,\n-2]")
def test_any_override_is_taken_or_refused_in_one_line(override: str) -> None:
    try:
        config = load_preset("tiny", [override])
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(config, Config)


@pytest.mark.parametrize(("override", "nearest"), [
    ("level.1.haeds=8", "level.1.heads"),
    ("level.2.heads=8", "level.1.heads"),
    ("training.learning_rat=1", "training.learning_rate"),
    ("training.shares.joints=1", "training.shares.joint"),
])
def test_an_unknown_override_names_itself_and_the_nearest_key(override: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_preset("tiny", [override])
    assert str(caught.value) == f"unknown key {override.partition('=')[0]!r}; the nearest is {nearest!r}"


@pytest.mark.parametrize("override", ["level.1.heads", "level.1.heads=", "level.1.heads=many", "level.1.heads=8\nx=1"])
def test_a_malformed_override_shows_itself(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_preset("tiny", [override])
    assert repr(override) in str(caught.value)


@pytest.mark.parametrize(("text", "key", "nearest"), [
    (ONE_LEVEL + "widht = 3", "widht", "width"),
    (ONE_LEVEL + "[training]\nbatch_row = 3", "batch_row", "batch_rows"),
    (ONE_LEVEL + "[training.shares]\njoin = 3", "join", "joint"),
    (ONE_LEVEL + "[trainin]\nbatch_rows = 3", "trainin", "training"),
    ("[model]\nlevel = []", "level", "levels"),
])
def test_an_unknown_key_of_a_file_names_itself_and_the_nearest_key(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    message = message_of(tmp_path, text)
    assert f"`{key}`" in message
    assert message.endswith(f"nearest known key is {nearest!r}")


@pytest.mark.parametrize(("text", "place", "expected", "got"), [
    (ONE_LEVEL + "heads = 'four'", "level.0.heads", "int", "str"),
    (ONE_LEVEL + "heads = true", "level.0.heads", "int", "bool"),
    (ONE_LEVEL + ONE_LEVEL + "heads = 4.5", "level.1.heads", "int", "float"),
    (ONE_LEVEL + "[training]\nshares = [1]", "training.shares", "object", "array"),
    ("model = 3", "model", "object", "int"),
    ("[model]\nlevels = 3", "model.levels", "array", "int"),
    ("[model]\nlevels = [3]", "level.0", "object", "int"),
])
def test_a_wrong_type_names_the_key(tmp_path: Path, text: str, place: str, expected: str, got: str) -> None:
    message = message_of(tmp_path, text)
    assert f"{place}: " in message
    assert f"`{expected}`" in message
    assert f"`{got}`" in message


@pytest.mark.parametrize("text", ["model = 3", "[model]\nlevels = 3", "training = 3\n" + ONE_LEVEL])
def test_an_override_of_a_file_of_the_wrong_shape_is_refused(tmp_path: Path, text: str) -> None:
    assert "got `int`" in message_of(tmp_path, text, "training.batch_rows=2")


@pytest.mark.parametrize(("override", "key"), [
    ("level.0.heads=0", "level.0.heads"),
    ("level.1.decoder_layers=-1", "level.1.decoder_layers"),
    ("level.0.noise_scale=inf", "level.0.noise_scale"),
    ("level.0.noise_scale=nan", "level.0.noise_scale"),
    ("level.0.width=60", "level.0.width"),
    ("level.0.denoiser_width=100", "level.0.denoiser_width"),
    ("level.0.splitter_width=100", "level.0.splitter_width"),
    ("level.0.splitter_kernel=4", "level.0.splitter_kernel"),
    ("level.0.segment_length=24.0", "level.0.segment_length"),
    ("level.0.segment_length=1", "level.0.segment_length"),
    ("level.0.mask_rate=1", "level.0.mask_rate"),
    ("level.0.splitter_ngrams=0", "level.0.splitter_ngrams"),
    ("level.0.reader_units=-1", "level.0.reader_units"),
    ("level.0.reader_contexts=0", "level.0.reader_contexts"),
    ("level.1.reader_units=0", "level.1.reader_units"),
    ("level.0.vocabulary=255", "level.0.vocabulary"),
    ("level.1.vocabulary=0", "level.1.vocabulary"),
    ("training.batch_rows=0", "training.batch_rows"),
    ("training.learning_rate=nan", "training.learning_rate"),
    ("training.learning_rate=-1", "training.learning_rate"),
    ("training.guide_bytes=0", "training.guide_bytes"),
    ("training.weight_decay=-0.1", "training.weight_decay"),
    ("training.warmup=1.5", "training.warmup"),
    ("training.average_decay=1", "training.average_decay"),
    ("training.shares.splitter=[]", "training.shares.splitter"),
    ("training.shares.joint=-1", "training.shares.joint"),
])
def test_a_value_out_of_range_names_the_key_and_the_override(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_preset("tiny", [override])
    assert str(caught.value).startswith(f"preset tiny with {override}: {key} must ")


def test_only_the_lowest_levels_vocabulary_holds_bytes() -> None:
    levels = load_preset("tiny", ["level.0.vocabulary=256", "level.1.vocabulary=1"]).model.levels
    assert [level.vocabulary for level in levels] == [256, 1]


def test_a_curriculum_without_stages_is_refused() -> None:
    nothing = [f"training.shares.{name}=[0]" for name in ("splitter", "autoencoder", "denoiser", "plan")]
    with pytest.raises(ConfigError, match="at least one stage above 0"):
        load_preset("tiny", [*nothing, "training.shares.joint=0"])
    assert load_preset("tiny", nothing).training.shares.splitter == (0.0,)


def test_a_model_needs_a_level(tmp_path: Path) -> None:
    assert "at least one level" in message_of(tmp_path, "[model]\nlevels = []")
    assert "`model`" in message_of(tmp_path, "")


def test_broken_toml_names_the_file_and_the_place(tmp_path: Path) -> None:
    message = message_of(tmp_path, "[[model.levels]]\nheads = = 4")
    assert "not valid TOML" in message
    assert "line 2" in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot read"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.toml: cannot read"):
        load_config(latin)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_number_of_levels_is_configuration_alone(tmp_path: Path, count: int) -> None:
    file = tmp_path / "deep.toml"
    file.write_text("".join(f"{ONE_LEVEL}latents = {index + 1}\n" for index in range(count)), "utf-8")
    config = load_config(file, [f"level.{count - 1}.window=32"])
    assert [level.latents for level in config.model.levels] == list(range(1, count + 1))
    assert config.model.levels[-1].window == 32
    assert override_keys(count)[len(LevelConfig.__struct_fields__) * count - 1].startswith(f"level.{count - 1}.")


def test_a_configuration_cannot_be_changed_in_place() -> None:
    config = load_preset("tiny")
    with pytest.raises(AttributeError):
        config.memory = "none"  # type: ignore[misc]
