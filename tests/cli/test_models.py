"""Which folder a model's name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

import zonkey_core
from zonkey_cli.exit_codes import BadValueError
from zonkey_cli.models import known_models, resolve_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`ZONKEY_HOME` with the models `one` and `two` and a folder that is no model."""
    for name in ("one", "two"):
        (tmp_path / "home/models" / name).mkdir(parents=True)
        (tmp_path / "home/models" / name / "config.json").touch()
    (tmp_path / "home/models/empty").mkdir()
    monkeypatch.setenv("ZONKEY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_bundled_is_the_default(home: Path) -> None:
    expected = Path(zonkey_core.__path__[0]) / "pretrained"
    assert resolve_model(None) == resolve_model("bundled") == expected


def test_names_and_folders(home: Path) -> None:
    assert known_models() == ["bundled", "one", "two"]
    assert resolve_model("two") == home / "models/two"
    assert resolve_model("home/models/one") == Path("home/models/one")
    assert resolve_model(str(home / "models/one")) == home / "models/one"


def test_models_are_in_the_data_directory_without_zonkey_home(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZONKEY_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    model = tmp_path / "data/zonkey/models/third"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    assert resolve_model("third") == model


def test_mistakes(home: Path) -> None:
    with pytest.raises(BadValueError, match=r"unknown model 'x'; .* one of: bundled, one, two"):
        resolve_model("x")
    with pytest.raises(BadValueError, match=r"home: not a model folder"):
        resolve_model("home")
    with pytest.raises(BadValueError, match=r"unknown model '\.\./models/one'"):
        resolve_model("../models/one")
