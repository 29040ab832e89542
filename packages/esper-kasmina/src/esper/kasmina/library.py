"""The built-in blueprints that ship with the seed layer as JSON files, and users' own from theirs.

A composition root submits them to Urza; `Bed.blueprints` is the part of them that fits a host.
"""

from functools import cache
from importlib import resources
from pathlib import Path

from esper.contracts import BlueprintError, BlueprintIR, read_blueprint
from esper.kasmina.operators import missing_operators


@cache
def builtin_blueprints() -> tuple[BlueprintIR, ...]:
    """Return the built-in designs in order of their names; each is the identity at birth."""
    folder = resources.files("esper.kasmina") / "blueprints"
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".json")),
        key=lambda file: file.name,
    )
    return tuple(BlueprintIR.model_validate_json(file.read_bytes()) for file in files)


def load_blueprint(path: Path | str) -> BlueprintIR:
    """Read a design of the user's from a JSON (`.json`) or YAML (`.yaml`, `.yml`) file.

    Operators of the user's own have to be registered before (`register_operator`).

    Raises:
        BlueprintError: listing every problem with file, line and node, and what is allowed.

    """
    ir = read_blueprint(path)
    if not ir.unknown_operators:
        return ir
    if missing := missing_operators(ir):
        raise BlueprintError(
            f"{path}: {', '.join(missing)} is not registered in this process; call "
            "register_operator() with it before"
        )
    return read_blueprint(path)  # now its nodes can be checked
