"""Gives grafted parameters an owner: one new group in the host's optimizer, known to its scheduler.

The bed calls `join` when a seed is grafted; `undo.Snapshot` takes the group out again.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.contracts import HostError

PER_GROUP_LISTS = (
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
    "min_lrs",
    "max_lrs",
    "base_momentums",
    "max_momentums",
)
"""What the schedulers of `torch.optim.lr_scheduler` keep per parameter group."""

type Group = dict[str, Any]


def check_optimizer(optimizer: object, host: nn.Module) -> torch.optim.Optimizer:
    """Return `optimizer` if it can follow a growing `host`.

    Raises:
        HostError: if it is none, cannot take a new group, or trains other parameters.

    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise HostError(
            f"{type(optimizer).__name__} is not a torch.optim.Optimizer; pass the host's"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise HostError(
            "LBFGS has one fixed list of parameters and cannot follow a host that grows; "
            "use for example AdamW or SGD"
        )
    owned = {id(p) for group in groups_of(optimizer) for p in group["params"]}
    if not any(id(p) in owned for p in host.parameters()):
        raise HostError(
            f"the {type(optimizer).__name__} holds none of the host's parameters; "
            "pass the optimizer that trains this model"
        )
    return optimizer


def check_scheduler(scheduler: object) -> None:
    """Pass silently if `scheduler` can be restored on an undo.

    Raises:
        HostError: if it has no `state_dict` and `load_state_dict`.

    """
    if not (hasattr(scheduler, "state_dict") and hasattr(scheduler, "load_state_dict")):
        raise HostError(
            f"{type(scheduler).__name__} has no state_dict and load_state_dict, so that an undo "
            "could not restore it; pass a scheduler of torch.optim.lr_scheduler"
        )


def groups_of(optimizer: torch.optim.Optimizer) -> list[Group]:
    """Return the optimizer's own list of parameter groups."""
    return optimizer.param_groups


def owner_index(optimizer: torch.optim.Optimizer, layer: nn.Module) -> int:
    """Return the index of the group that owns `layer`; 0 for a layer that is not trained."""
    ids = {id(p) for p in layer.parameters()}
    groups = groups_of(optimizer)
    owners = (i for i, g in enumerate(groups) if any(id(p) in ids for p in g["params"]))
    return next(owners, 0)


def join(
    optimizer: torch.optim.Optimizer,
    scheduler: object | None,
    like: int,
    parameters: Iterable[tuple[str, nn.Parameter]],
) -> Group | None:
    """Add named `parameters` as one new group with the settings of group number `like`.

    Returns the group, or None if there is nothing to add.
    """
    named = list(parameters)
    if not named:
        return None
    groups = groups_of(optimizer)
    settings = copy_settings(groups[like])
    # An optimizer made from named parameters keeps their names and takes only named ones.
    has_names = settings.pop("param_names", None) is not None
    num_groups = len(groups)
    optimizer.add_param_group(settings | {"params": named if has_names else [p for _, p in named]})
    for part in schedulers_in(scheduler):
        for values in per_group_lists(part).values():
            if len(values) == num_groups:
                values.append(values[like])
    return groups_of(optimizer)[-1]


def copy_settings(group: Mapping[str, Any]) -> Group:
    """Return a copy of everything in `group` but its parameters."""
    return {key: copy_value(value) for key, value in group.items() if key != "params"}


def copy_value(value: Any) -> Any:
    """Copy a setting or a piece of state; tensors keep type, device and bits."""
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def schedulers_in(scheduler: object | None) -> list[object]:
    """Return `scheduler` and, for a chained or sequential one, those inside it."""
    if scheduler is None:
        return []
    inner = cast("Sequence[object]", vars(scheduler).get("_schedulers", ()))
    return [scheduler, *(part for child in inner for part in schedulers_in(child))]


def per_group_lists(scheduler: object) -> dict[str, list[Any]]:
    """Return the lists of one scheduler that have an element per parameter group."""
    found = {name: vars(scheduler).get(name) for name in PER_GROUP_LISTS}
    return {name: cast("list[Any]", v) for name, v in found.items() if isinstance(v, list)}
