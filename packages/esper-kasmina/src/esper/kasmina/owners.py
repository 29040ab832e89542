"""Gives grafted parameters an owner: one new group in the host's optimizer, known to its scheduler.

The bed calls `join` when a seed is grafted; `undo.Snapshot` takes the group out again. Every trained
parameter is in exactly one group, and nobody else's state changes.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.contracts import HostError
from esper.kasmina.graft import is_graft_name

PER_GROUP_LISTS = (
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
    "min_lrs",
    "max_lrs",
    "base_momentums",
    "max_momentums",
    "base_values",
    "warmup_steps",
)
"""What the schedulers of `torch.optim.lr_scheduler` keep per parameter group; the last two: timm's."""

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
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
        reason = (
            "has one fixed list of parameters"
            if isinstance(optimizer, torch.optim.LBFGS)
            else "takes sparse gradients only, which no block has,"
        )
        raise HostError(
            f"{type(optimizer).__name__} {reason} and cannot follow a host that grows; "
            "use for example AdamW or SGD"
        )
    for inner in vars(optimizer).values():
        if isinstance(inner, torch.optim.Optimizer) and inner.state is not optimizer.state:
            raise HostError(
                f"{type(optimizer).__name__} keeps its state in the {type(inner).__name__} inside it, so "
                "that an undo could not restore it; pass that one"
            )
    counts = Counter(id(p) for group in groups_of(optimizer) for p in group["params"])
    if not any(id(p) in counts for p in host.parameters()):
        raise HostError(
            f"the {type(optimizer).__name__} holds none of the host's parameters; "
            "pass the optimizer that trains this model"
        )
    if twice := [name for name, p in host.named_parameters() if counts[id(p)] > 1]:
        raise HostError(
            f"the {type(optimizer).__name__} holds {', '.join(twice[:8])} more than once and would "
            "move it several times per step; keep each parameter in one group"
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


def like_indices(groups: Sequence[Sequence[str]]) -> list[int | None]:
    """Return, for each group's parameter names, which earlier group it was modelled on by `join`.

    None for a group that is not a graft's.
    """
    likes: list[int | None] = []
    for index, names in enumerate(groups):
        if not names or not all(is_graft_name(name) for name in names):
            likes.append(None)
            continue
        prefix = _layer_prefix(names[0])
        earlier = (i for i in range(index) if any(n.startswith(prefix) for n in groups[i]))
        likes.append(next(earlier, 0))
    return likes


def join(
    optimizer: torch.optim.Optimizer,
    scheduler: object | None,
    like: int,
    parameters: Iterable[tuple[str, nn.Parameter]],
) -> Group | None:
    """Add named `parameters` as one new group with the settings of group number `like`.

    Returns the group, or None if there is nothing to add.

    Raises:
        HostError: if the optimizer cannot train them; then nothing was changed.

    """
    named = list(parameters)
    if not named:
        return None
    _check_join(optimizer, named)
    groups = groups_of(optimizer)
    settings = copy_settings(groups[like])
    # An optimizer made from named parameters keeps their names and takes only named ones.
    has_names = settings.pop("param_names", None) is not None
    num_groups = len(groups)
    optimizer.add_param_group(settings | {"params": named if has_names else [p for _, p in named]})
    if isinstance(optimizer, torch.optim.Adagrad):
        _start_adagrad(optimizer, [p for _, p in named])
    for part in schedulers_in(scheduler):
        for values in per_group_lists(part).values():
            if len(values) == num_groups:
                values.append(values[like])
    return groups_of(optimizer)[-1]


def _check_join(
    optimizer: torch.optim.Optimizer, parameters: Sequence[tuple[str, nn.Parameter]]
) -> None:
    # By name, since older versions of torch have none and others bring their own.
    if type(optimizer).__name__ != "Muon":
        return
    for name, parameter in parameters:
        if parameter.dim() != 2:
            raise HostError(
                f"Muon trains matrices only and cannot take {name}, which has {parameter.dim()} "
                "dimensions; choose a blueprint without biases, or attach() an optimizer that takes it"
            )


def _layer_prefix(name: str) -> str:
    """Return `encoder.fc1.` for `encoder.fc1.esper_seed.block.node_up.weight`."""
    parts = name.split(".")
    depth = next(i for i, part in enumerate(parts) if is_graft_name(part))
    return "".join(f"{part}." for part in parts[:depth])


def _start_adagrad(optimizer: torch.optim.Adagrad, parameters: list[nn.Parameter]) -> None:
    """Give `parameters` the state that Adagrad makes only in its constructor."""
    fresh = torch.optim.Adagrad(parameters, **optimizer.defaults)
    cast("dict[Any, Any]", optimizer.state).update(fresh.state)


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
