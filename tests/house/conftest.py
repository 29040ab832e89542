"""What the house rules are held against: the repository's root, its members and its files."""

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def projects() -> dict[str, tuple[Path, dict[str, Any]]]:
    """Each member's name, with its folder and its parsed `pyproject.toml`."""
    files = [*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")]
    parsed = [(path.parent, tomllib.loads(path.read_text())) for path in sorted(files)]
    return {project["project"]["name"]: (folder, project) for folder, project in parsed}


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """All files that are committed or would be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]
