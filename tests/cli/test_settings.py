"""Flag, environment, ./zonkey.toml, the user's zonkey.toml, default: in that order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Zonkey


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def model_in_use(zonkey: Zonkey, *arguments: str, **environment: str) -> str:
    """The model that `info` looks for, from its complaint that there is none."""
    done = zonkey.run("info", *arguments, environment=environment)
    assert done.returncode == 2
    return done.stderr.decode().split("'")[1]


def test_precedence(zonkey: Zonkey) -> None:
    write(zonkey.folder / ".config/zonkey/zonkey.toml", 'model = "from-user"\n')
    assert model_in_use(zonkey) == "from-user"
    write(zonkey.folder / "zonkey.toml", 'model = "from-folder"\n')
    assert model_in_use(zonkey) == "from-folder"
    assert model_in_use(zonkey, ZONKEY_MODEL="from-environment") == "from-environment"
    assert model_in_use(zonkey, "from-flag", ZONKEY_MODEL="from-environment") == "from-flag"


def test_a_table_of_a_verb_comes_before_the_top_of_the_file(zonkey: Zonkey) -> None:
    write(zonkey.folder / "zonkey.toml", 'model = "for-all"\n[info]\nmodel = "for-info"\n')
    assert model_in_use(zonkey) == "for-info"


def test_the_configuration_directory_can_be_moved(zonkey: Zonkey) -> None:
    write(zonkey.folder / "elsewhere/zonkey/zonkey.toml", 'model = "moved"\n')
    assert model_in_use(zonkey, XDG_CONFIG_HOME=str(zonkey.folder / "elsewhere")) == "moved"


def test_environment_variables_of_a_verb(zonkey: Zonkey) -> None:
    done = zonkey.run("generate", environment={"ZONKEY_GENERATE_MAX_BYTES": "none"})
    assert done.returncode == 2
    assert b"'--max-bytes': 'none' is not a valid integer" in done.stderr


def test_a_flag_overrules_an_alternative_from_a_settings_file(zonkey: Zonkey) -> None:
    write(zonkey.folder / "zonkey.toml", "[train]\npreset = \"small\"\n")
    done = zonkey.run("train", "--config", "missing.toml")
    assert done.returncode == 2
    assert done.stderr.startswith(b"zonkey: missing.toml: cannot read")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[segment]\nlevle = 1\n", "unknown key 'segment.levle'; the nearest known key is 'segment.level'"),
        ('modle = "x"\n', "unknown key 'modle'; the nearest known key is 'model'"),
        ("[segmnt]\nlevel = 1\n", "unknown key 'segmnt'; the nearest known key is 'segment'"),
        ('[generate]\nmax_bytes = "many"\n', "bad value for 'generate.max_bytes': 'many' is not a valid integer"),
        ("[generate]\nmax_bytes = inf\n", "bad value for 'generate.max_bytes': inf is no whole number"),
        ("model = \n", "cannot read these settings"),
        ('segment = "x"\n', "'segment' is a table"),
    ],
)
def test_a_bad_file_is_named_with_the_key(zonkey: Zonkey, text: str, message: str) -> None:
    write(zonkey.folder / "zonkey.toml", text)
    done = zonkey.run("segment")
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"zonkey: zonkey.toml: {message}")
