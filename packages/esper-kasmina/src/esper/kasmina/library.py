"""The built-in blueprints that ship with the seed layer as JSON files, rows of them, and users' own.

A composition root submits them to Urza; `Bed.blueprints` is the part of them that fits a host.
"""

from functools import cache
from importlib import resources
from pathlib import Path

from esper.contracts import BlueprintError, BlueprintIR, read_blueprint, repeat
from esper.kasmina.operators import missing_operators

ROWS = {
    "normalised_mlp": (2, 4),
    "residual_conv": (2, 4),
    "residual_conv1d": (2, 4),
    "transformer_block": (3,),
}
"""Designs that also come as so many blocks in a row, because fewer and larger growths do better than many
small ones (docs/experiments/0006)."""


@cache
def builtin_blueprints() -> tuple[BlueprintIR, ...]:
    """Return the built-in designs in order of their names; each is the identity at birth."""
    folder = resources.files("esper.kasmina") / "blueprints"
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".json")),
        key=lambda file: file.name,
    )
    single = [BlueprintIR.model_validate_json(file.read_bytes()) for file in files]
    rows = [repeat(ir, times) for ir in single for times in ROWS.get(ir.name, ())]
    return tuple(sorted([*single, *rows], key=lambda ir: ir.name))


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
