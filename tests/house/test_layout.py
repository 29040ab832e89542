"""House rules about where things are: the namespace, the members, the map in the README."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

type Projects = dict[str, tuple[Path, dict[str, Any]]]

MAX_LINES = 500


def test_there_is_no_esper_init_file_anywhere(files: list[Path]) -> None:
    """One would hide every other member's part of the namespace."""
    assert [path for path in files if path.match("esper/__init__.py")] == []


def test_every_folder_of_the_workspace_is_a_whole_member(root: Path, projects: Projects) -> None:
    folders = {path.parent for path in root.glob("*/*/src")}
    assert folders == {folder for folder, _ in projects.values()}
    for name, (folder, project) in projects.items():
        module = folder / "src" / "esper" / name.removeprefix("esper-").replace("-", "_")
        assert (module / "__init__.py").is_file(), name
        assert (module / "py.typed").is_file(), name
        where = folder.relative_to(root)
        command = rf"uv run .*--package {name} .*python -m pytest {where}"
        assert re.search(command, (folder / "README.md").read_text()), name
        assert list(folder.glob("tests/test_*.py")), name
        assert Version(project["project"]["version"]) >= Version("0.1.0"), name
        assert project["tool"]["uv"]["build-backend"]["module-name"] == f"esper.{module.name}"


def test_the_root_installs_every_member(root: Path, projects: Projects) -> None:
    """Plain `uv sync` and `uv run pytest` see all of them; testkit is for development only."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    dev = {item for item in project["dependency-groups"]["dev"] if item in projects}
    assert set(project["project"]["dependencies"]) | dev == set(projects)
    assert dev == {"esper-testkit"}


def test_the_map_in_the_readme_is_true(root: Path, projects: Projects) -> None:
    section = (root / "README.md").read_text().split("\n## Map\n")[1]
    block = section.split("```")[1].removeprefix("\n")
    mapped = {line.split()[0] for line in block.splitlines() if line.strip()}
    assert [path for path in sorted(mapped) if not (root / path).exists()] == []
    members = {str(folder.relative_to(root)) for folder, _ in projects.values()}
    assert members - {path.rstrip("/") for path in mapped} == set()


def test_no_python_file_is_longer_than_the_limit(files: list[Path]) -> None:
    lengths = {str(path): path.read_text().count("\n") for path in files if path.suffix == ".py"}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_says_what_it_is_for(files: list[Path]) -> None:
    modules = [path for path in files if path.suffix == ".py"]
    assert len(modules) > 100
    silent = [
        str(path.name) for path in modules if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize("word", ["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"])
def test_nothing_is_left_for_later(files: list[Path], word: str) -> None:
    pattern = re.compile(rf"\b{word}\b")
    found = [
        str(path) for path in files if path.suffix == ".py" and pattern.search(path.read_text())
    ]
    assert found == []
