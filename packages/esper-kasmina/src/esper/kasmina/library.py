"""The built-in blueprints that ship with the seed layer, as JSON files beside this module.

A composition root submits them to Urza; `Bed.blueprints` is the part of them that fits a host.
"""

from functools import cache
from importlib import resources

from esper.contracts import BlueprintIR


@cache
def builtin_blueprints() -> tuple[BlueprintIR, ...]:
    """Return the built-in designs in order of their names; each is the identity at birth."""
    folder = resources.files("esper.kasmina") / "blueprints"
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".json")),
        key=lambda file: file.name,
    )
    return tuple(BlueprintIR.model_validate_json(file.read_bytes()) for file in files)
