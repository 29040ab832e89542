"""A seed bed has one controller at a time: who claims it, and what is no bed or no optimizer."""

from collections.abc import Callable

from esper.contracts import ConfigError
from esper.contracts.words import type_of

_controlled: set[int] = set()
"""Ids of the beds that have a controller now, each kept alive by it."""


def check_arguments(bed: object, optimizer: object) -> None:
    """Pass silently if `bed` is a seed bed without a controller, and `optimizer` an optimizer.

    Raises:
        ConfigError: saying what was expected.

    """
    if not hasattr(bed, "execute"):
        raise ConfigError(
            f"Tamiyo got {type_of(bed)}; expected a seed bed: Tamiyo(wrap(model), optimizer)"
        )
    if not hasattr(optimizer, "param_groups"):
        raise ConfigError(
            f"Tamiyo got {type_of(optimizer)} as optimizer; expected a torch.optim.Optimizer"
        )
    if id(bed) in _controlled:
        raise ConfigError(
            "this seed bed has a controller already, and two would undo each other's work; close the "
            "first, for example by using it in a with statement"
        )


def claim(bed: object) -> Callable[[], None]:
    """Note that `bed` has a controller; return what ends that."""
    _controlled.add(id(bed))
    return lambda: _controlled.discard(id(bed))
