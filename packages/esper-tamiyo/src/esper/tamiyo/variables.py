"""Options of a run from environment variables: `ESPER_TRAIN_EPOCHS=5` and so on.

Read by the command line, whose own options win; checked together with them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from esper.contracts import ConfigError
from esper.contracts.words import nearest
from esper.tamiyo.config import RunConfig

PREFIX = "ESPER_TRAIN_"

LISTS = ("track", "blueprints")
"""Options that can be given several times; in a variable, commas are between them."""


def variable_of(field: str) -> str:
    """Return the name of the variable for an option."""
    return f"{PREFIX}{field.upper()}"


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the options that variables give, by name; an empty variable gives none.

    Raises:
        ConfigError: for a variable of this prefix that is no option's.

    """
    fields = {variable_of(field): field for field in RunConfig.model_fields}
    for name in environment:
        if name.startswith(PREFIX) and name not in fields:
            near = nearest(name.removeprefix(PREFIX).lower(), fields.values())
            hint = (
                f"did you mean {variable_of(near)}?" if near else f"there are {', '.join(fields)}"
            )
            raise ConfigError(f"{name} in the environment is no option of a run; {hint}")
    given = {field: environment[name] for name, field in fields.items() if environment.get(name)}
    return {
        field: [item.strip() for item in text.split(",") if item.strip()]
        if field in LISTS
        else text
        for field, text in given.items()
    }


def blamed(message: str, fields: Iterable[str]) -> str:
    """Return an addition to a message, if it is about options that came from variables: those of `fields`."""
    named = sorted(variable_of(field) for field in fields if re.search(rf"\b{field}\b", message))
    return f" (from the environment: {', '.join(named)})" if named else ""
