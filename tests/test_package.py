"""The package as it is installed, and what holds for every file of the project."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("zonkey_core", "zonkey_cli")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MARKED_BLOCK = re.compile(r"^<!-- (install|test) -->\n```sh\n(.+?)\n```$", re.MULTILINE | re.DOTALL)


def tracked_files() -> list[Path]:
    """The files of the project: those of git, or every file where the tree is not a checkout."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return [path for path in ROOT.rglob("*") if path.is_file()]
    return [path for name in listing.split(b"\0") if name and (path := ROOT / os.fsdecode(name)).is_file()]


def console_script() -> Path:
    """The `zonkey` command that was installed beside this interpreter."""
    return Path(sys.executable).with_name("zonkey")


def readme_blocks() -> dict[str, str]:
    """README's marked command blocks by name."""
    found = MARKED_BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    assert sorted(name for name, _ in found) == ["install", "test"]
    return dict(found)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_console_script_answers_on_stdout(option: str, tmp_path: Path) -> None:
    done = subprocess.run([console_script(), option], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "zonkey" in done.stdout
    if option == "--version":
        assert PROJECT["version"] in done.stdout
    else:
        for verb in ("train", "segment", "generate", "infill", "eval", "info"):
            assert re.search(rf"\b{verb}\b", done.stdout)


def test_the_metadata_is_the_project_files() -> None:
    installed = metadata.metadata("zonkey")
    assert installed["Version"] == PROJECT["version"]
    assert installed["License-Expression"] == "Apache-2.0"
    assert installed["Requires-Python"] == PROJECT["requires-python"]
    scripts = {entry.name: entry.value for entry in metadata.distribution("zonkey").entry_points}
    assert scripts == {"zonkey": "zonkey_cli.app:main"}


def test_the_citation_has_the_version_of_the_package() -> None:
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_type_hints_are_announced(package: str) -> None:
    assert resources.files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize("folder", ["presets", "pretrained", "data"])
def test_every_data_file_of_the_core_is_installed(folder: str) -> None:
    source = [path for path in (ROOT / "zonkey_core" / folder).rglob("*") if path.suffix not in {".py", ".pyc"}]
    names = [path.relative_to(ROOT / "zonkey_core").as_posix() for path in source if path.is_file()]
    assert names
    installed = resources.files("zonkey_core")
    for name in names:
        assert installed.joinpath(name).read_bytes() == (ROOT / "zonkey_core" / name).read_bytes(), name


def test_the_manual_pages_are_installed() -> None:
    pages = {path.name for path in (ROOT / "man").glob("*.1")}
    assert "zonkey.1" in pages
    installed = {Path(file).name for file in metadata.files("zonkey") or () if "share/man/man1/" in file.as_posix()}
    assert installed == pages


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert docstring
    assert len(docstring.split()) >= 3


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_functions_stay_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_the_core_neither_prints_nor_reads_the_environment() -> None:
    calls = set()
    for path in (ROOT / "zonkey_core").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        forked = {
            id(inner)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and any("fork_rng" in ast.unparse(item) for item in block.items)
            for inner in ast.walk(block)
        }
        for node in ast.walk(tree):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name == "torch.manual_seed" and id(node) in forked:
                continue
            if name in {"print", "input", "os.getenv", "torch.manual_seed", "random.seed", "np.random.seed"}:
                calls.add(f"{path.name}: {name}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ":
                calls.add(f"{path.name}: os.environ")
    assert calls == set()


def test_nothing_is_left_to_do() -> None:
    marker = re.compile(rb"\b(TO" rb"DO|FIX" rb"ME|XX" rb"X)\b")
    text_files = [path for path in tracked_files() if path.suffix in {".py", ".md", ".toml", ".1", ".cff", ".sh", ""}]
    assert ROOT / "pyproject.toml" in text_files
    assert [path.name for path in text_files if marker.search(path.read_bytes())] == []


def test_readme_holds_the_two_commands() -> None:
    blocks = readme_blocks()
    assert blocks["install"].startswith("pip install .")
    assert "zonkey generate" in blocks["install"]
    assert "pytest" in blocks["test"]


def test_ci_runs_the_commands_of_readme(tmp_path: Path) -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    function = re.search(r"^readme_command\(\) \{\n.*?^\}$", script, re.MULTILINE | re.DOTALL)
    assert function
    for name, command in readme_blocks().items():
        assert re.search(rf"^run_readme {name} \d+$", script, re.MULTILINE)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{function[0]}\nreadme_command {name}"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )
        assert done.stdout == command + "\n"
    (tmp_path / "README.md").write_text("<!-- install -->\nno block\n", "utf-8")
    missing = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{function[0]}\nreadme_command install"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )
    assert missing.returncode == 1
    assert "install" in missing.stderr


def test_ci_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
