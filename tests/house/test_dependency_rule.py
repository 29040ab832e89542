"""The dependency rule: packages meet through the contracts, never through each other.

Held against what is built (the wheels' metadata), what is written (the imports) and what happens
(an environment made for one package alone).
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

type Projects = dict[str, tuple[Path, dict[str, Any]]]

PACKAGES = ("esper-kasmina", "esper-oona", "esper-tamiyo", "esper-urza")
MAY_REQUIRE = {
    "esper-contracts": set[str](),
    "esper-testkit": set[str](),
    **{name: {"esper-contracts"} for name in PACKAGES},
    "esper-tezzeret": {"esper-contracts", "esper-kasmina"},
    "esper-urabrask": {"esper-contracts", "esper-kasmina"},
    "esper-urza-api": {"esper-contracts", "esper-urza"},
}
"""Each member's siblings; a new member needs a line here, an old one no longer one."""

HEAVY = {"torch", "numpy", "redis", "sqlalchemy", "alembic", "psycopg", "minio"}
"""What nobody gets who only speaks the contracts."""


def _uv() -> str:
    """Return the uv that runs the tests, or the one on PATH."""
    found = os.environ.get("UV") or shutil.which("uv")
    assert found is not None, "uv is not on PATH; install it with pip"
    return found


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Requirement]]:
    """Every member's requirements as its wheel states them."""
    out = tmp_path_factory.mktemp("wheels")
    command = [_uv(), "build", "--wheel", "--all-packages", "--quiet", "--out-dir", str(out)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    found: dict[str, list[Requirement]] = {}
    for wheel in out.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [item for item in archive.namelist() if item.endswith(".dist-info/METADATA")]
            metadata = Parser().parsestr(archive.read(name).decode())
        lines = metadata.get_all("Requires-Dist") or []
        found[str(metadata["Name"])] = [Requirement(line) for line in lines]
    return found


def test_built_metadata_names_only_the_siblings_that_it_may(
    built: dict[str, list[Requirement]], projects: Projects
) -> None:
    assert set(built) == set(projects) == set(MAY_REQUIRE)
    siblings = {
        name: {item.name for item in requirements if item.name in projects}
        for name, requirements in built.items()
    }
    assert siblings == MAY_REQUIRE


def test_no_member_imports_a_sibling_that_it_does_not_require(projects: Projects) -> None:
    for name, (folder, _) in projects.items():
        own = _module(name)
        allowed = {own} | {_module(sibling) for sibling in MAY_REQUIRE[name]}
        modules = list((folder / "src").rglob("*.py"))
        assert modules
        foreign = {
            f"{path.relative_to(folder)}: esper.{part}"
            for path in modules
            for part in _parts_of_esper_imported(path)
            if part not in allowed
        }
        assert foreign == set(), name


def _module(name: str) -> str:
    """Return the `x` of `esper.x` that a member consists of."""
    return name.removeprefix("esper-").replace("-", "_")


def _parts_of_esper_imported(path: Path) -> set[str]:
    """Return each `x` of `esper.x` that the file imports, wherever in it and in whatever way."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names += [ast.unparse(item).strip("'") for item in node.args]
    matches = (re.match(r"esper\.(\w+)", name) for name in names)
    return {match[1] for match in matches if match}


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("import esper.oona.broker as broker", "oona"),
        ("from esper.oona import open_memory_bus", "oona"),
        ("from esper import oona", "oona"),
        ("def late():\n    from esper.oona.memory import x", "oona"),
        ("import importlib\nimportlib.import_module('esper.oona')", "oona"),
    ],
)
def test_no_way_of_importing_a_sibling_is_overlooked(tmp_path: Path, line: str, part: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(line)
    assert _parts_of_esper_imported(path) == {part}


def test_the_contracts_bring_no_torch_redis_or_sql() -> None:
    closure = _closure("esper-contracts")
    assert {"pydantic", "pyyaml", "structlog"} < closure
    assert closure & HEAVY == set()


def _closure(name: str) -> set[str]:
    """Return everything that installing `name` brings along on this platform."""
    found: set[str] = set()
    waiting = [Requirement(name)]
    while waiting:
        requirement = waiting.pop()
        key = f"{canonicalize_name(requirement.name)}[{','.join(sorted(requirement.extras))}]"
        if key in found:
            continue
        found.add(key)
        extras = requirement.extras or {""}
        try:
            lines = requires(requirement.name) or []
        except PackageNotFoundError:  # not needed on this platform
            continue
        for item in map(Requirement, lines):
            if item.marker is None or any(item.marker.evaluate({"extra": x}) for x in extras):
                waiting.append(item)
    return {key.partition("[")[0] for key in found}


def test_importing_the_contracts_loads_nothing_heavy() -> None:
    program = (
        "import importlib, pkgutil, sys, esper.contracts as c\n"
        "for m in pkgutil.walk_packages(c.__path__, 'esper.contracts.'):\n"
        "    importlib.import_module(m.name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "pydantic" in loaded
    assert loaded & HEAVY == set()


def test_the_bus_cannot_be_imported_where_only_the_seed_layer_is_installed(root: Path) -> None:
    """In an environment that holds everything a forbidden import passes; in this one it fails."""
    program = (
        "import esper.kasmina\n"
        "try:\n    import esper.oona\n"
        "except ModuleNotFoundError as error:\n    print(error.name)"
    )
    only_kasmina = ["--isolated", "--frozen", "--no-dev", "--package", "esper-kasmina"]
    done = subprocess.run(
        [_uv(), "run", *only_kasmina, "python", "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "esper.oona"), done.stderr
