"""The JSON Schemas: one file per contract, written by one command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from esper import contracts
from esper.contracts.schemas import contract_models, export_schemas


def test_every_contract_has_a_schema(tmp_path: Path) -> None:
    files = export_schemas(tmp_path / "schemas")
    assert {path.name for path in files} == {
        f"{model.__name__}.schema.json" for model in contract_models()
    }
    assert len(files) > 20
    for path in files:
        schema = json.loads(path.read_text())
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["title"] == path.name.removesuffix(".schema.json")
        assert schema["additionalProperties"] is False
        assert schema["type"] == "object"
        assert unresolved_references(schema, schema) == []


def unresolved_references(part: Any, schema: dict[str, Any]) -> list[str]:
    """Return the `$ref`s that point to nothing in the same file."""
    if isinstance(part, list):
        return [
            ref for item in cast("list[Any]", part) for ref in unresolved_references(item, schema)
        ]
    if not isinstance(part, dict):
        return []
    missing: list[str] = []
    for key, value in cast("dict[str, Any]", part).items():
        if key == "$ref" and value.removeprefix("#/$defs/") not in schema.get("$defs", {}):
            missing.append(value)
        missing += unresolved_references(value, schema)
    return missing


def test_the_bounds_are_in_the_schema(tmp_path: Path) -> None:
    export_schemas(tmp_path)
    health = json.loads((tmp_path / "HealthSignal.schema.json").read_text())
    ratio = health["properties"]["dead_neuron_ratio"]
    assert (ratio["minimum"], ratio["maximum"]) == (0.0, 1.0)
    assert "is_ready_for_transition" not in health["required"]


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in export_schemas(tmp_path / "a")]
    second = [path.read_bytes() for path in export_schemas(tmp_path / "b")]
    assert first == second


def run_command(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from esper.contracts.schemas import main; main()"
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_writes_the_schemas(tmp_path: Path) -> None:
    done = run_command(tmp_path / "schemas")
    assert done.returncode == 0, done.stderr
    assert f"wrote {len(contract_models())} schemas to" in done.stdout
    assert len(list((tmp_path / "schemas").iterdir())) == len(contract_models())


def test_the_command_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_command(tmp_path / "file")
    assert "cannot write to" in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_everything_public_is_listed_once_and_exists() -> None:
    assert len(set(contracts.__all__)) == len(contracts.__all__)
    for name in contracts.__all__:
        assert hasattr(contracts, name)


@pytest.mark.parametrize("heavy", ["torch", "redis", "sqlalchemy", "numpy"])
def test_the_contracts_load_nothing_heavy(heavy: str) -> None:
    code = f"import sys, esper.contracts; sys.exit('{heavy}' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0
