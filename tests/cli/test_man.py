"""The committed manual is the one that the commands give, and groff finds nothing wrong with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, Zonkey
from zonkey_cli.app import VERBS
from zonkey_cli.man import pages

SECTIONS = (
    "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO",
)
NAMES = ("zonkey.1", *(f"zonkey-{verb}.1" for verb in VERBS))


def test_committed_pages_are_up_to_date(zonkey: Zonkey) -> None:
    subprocess.run(
        [zonkey.command()[0], "-m", "zonkey_cli.man", "man"], cwd=zonkey.folder, check=True,
        env=zonkey.environment(ZONKEY_MODEL="other", COLUMNS="200"),
    )
    made = {path.name: path.read_text("utf-8") for path in (zonkey.folder / "man").iterdir()}
    kept = {path.name: path.read_text("utf-8") for path in (ROOT / "man").iterdir()}
    assert made == kept, "run: python -m zonkey_cli.man man/"
    assert sorted(made) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_page_has_every_section_in_order(name: str) -> None:
    headings = [line.removeprefix(".SH ") for line in pages()[name].splitlines() if line.startswith(".SH ")]
    assert [heading for heading in headings if heading in SECTIONS] == list(SECTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_the_help_is_in_the_page(name: str, zonkey: Zonkey) -> None:
    verb = name.removesuffix(".1").split("-")[1:]
    words = zonkey.run(*verb, "--help").stdout.decode().replace(",", " ").split()
    options = {word for word in words if word.startswith("--") and word.strip("-")}
    page = pages()[name].replace("\\-", "-")
    assert "--help" in options
    assert [option for option in sorted(options) if option.rstrip(".;") not in page] == []


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_groff_has_no_complaint(name: str) -> None:
    done = subprocess.run(["groff", "-man", "-ww", "-z", ROOT / "man" / name], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_pages_are_the_same_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pages()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zonkey.toml").write_text('model = "other"\n')
    monkeypatch.setenv("ZONKEY_DEVICE", "cpu")
    assert pages() == before
