"""The state of what trains a host, by name: optimizer, schedulers and gradient scaler.

`undo.Snapshot` takes it and puts it back in place; `checkpoint` writes it. Parameters are named as in
the host, so that it can be put back into another optimizer of the same class, however that was grouped.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from esper.contracts import HostError
from esper.contracts.words import type_of, with_article
from esper.kasmina import modulestate
from esper.kasmina.modulestate import State, copied, refill
from esper.kasmina.owners import (
    Group,
    copy_settings,
    groups_of,
    like_indices,
    per_group_lists,
    schedulers_in,
)

FOREIGN = "+"
"""Marks the name of a parameter that the optimizer trains and the host does not have: `+0`, `+1`, …"""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which groups, parameters and functions there were; only memory can keep that."""

    groups: list[Group]
    foreign: dict[str, nn.Parameter]
    lists: list[tuple[object, str, list[Any]]]

    @classmethod
    def take(
        cls, optimizer: torch.optim.Optimizer, scheduler: object | None, model: nn.Module
    ) -> Self:
        """Note them; copies nothing but lists."""
        parts = schedulers_in(scheduler)
        return cls(
            groups=list(groups_of(optimizer)),
            foreign=_foreign(optimizer, model),
            lists=[
                (part, name, list(values))
                for part in parts
                for name, values in per_group_lists(part).items()
            ],
        )


def capture_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> State:
    """Copy groups, settings and state; changes nothing."""
    foreign = _foreign(optimizer, model)
    names = {id(p): name for name, p in (*model.named_parameters(), *foreign.items())}
    state = cast("Mapping[Any, Any]", optimizer.state)
    members = [[names[id(p)] for p in group["params"]] for group in groups_of(optimizer)]
    return {
        "class": type(optimizer).__name__,
        "attributes": _attributes(optimizer),
        "groups": [
            {"params": named, "settings": copy_settings(group), "like": like}
            for group, named, like in zip(
                groups_of(optimizer), members, like_indices(members), strict=True
            )
        ],
        "state": {names[id(k)]: copied(v) for k, v in state.items() if id(k) in names},
        "shared": {k: copied(v) for k, v in state.items() if not isinstance(k, Tensor)},
        "foreign": {name: modulestate.capture_parameter(p) for name, p in foreign.items()},
    }


def check_class(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Pass silently if `state` is that of an optimizer of this class.

    Raises:
        HostError: naming both classes.

    """
    if type(optimizer).__name__ != state["class"]:
        raise HostError(
            f"the optimizer is {type_of(optimizer)}, the state is that of "
            f"{with_article(str(state['class']))}; make one of that class"
        )


def check_optimizer_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    state: State,
    *,
    gone: Collection[nn.Parameter],
    is_whole: bool,
) -> None:
    """Pass silently if every parameter in `state` is here, by names alone.

    `is_whole`: the optimizer trains nothing else, but for what is `gone`.

    Raises:
        HostError: naming what is missing or too much.

    """
    here = _named(optimizer, model, None, gone)
    owned = {id(p) for group in groups_of(optimizer) for p in group["params"]}
    live = {name for name, p in here.items() if id(p) in owned}
    saved = {name for group in state["groups"] for name in group["params"]}
    if missing := sorted(saved - here.keys()):
        raise HostError(
            f"the state trains {', '.join(missing[:8])}, which this host and optimizer do not have; "
            "give the optimizer the same parameters as before"
        )
    if is_whole and (extra := sorted(live - saved)):
        raise HostError(
            f"the optimizer trains {', '.join(extra[:8])}, of which the state says nothing; give it "
            "the same parameters as before"
        )


def apply_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    state: State,
    *,
    known: Identity | None = None,
    gone: Collection[nn.Parameter] = (),
) -> list[int]:
    """Put `state` back into `optimizer`, in place; check it first.

    Groups that came later stay behind the others, but for parameters that are `gone`. Returns the
    positions that these groups had before.
    """
    here = _named(optimizer, model, known, gone)
    for name, saved in state["foreign"].items():
        modulestate.apply_parameter(here[name], saved)
    groups = groups_of(optimizer)
    first = list(known.groups) if known else groups[: len(state["groups"])]
    first += [{} for _ in state["groups"][len(first) :]]
    owned = {id(here[name]) for group in state["groups"] for name in group["params"]}
    leaving = owned | {id(p) for p in gone}
    late: list[int] = []
    for position, group in enumerate(groups):
        if not any(group is other for other in first):
            group["params"][:] = [p for p in group["params"] if id(p) not in leaving]
            late += [position] if group["params"] else []
    groups[:] = [*first, *(groups[position] for position in late)]
    for group, saved in zip(first, state["groups"], strict=True):
        _apply_group(group, saved, here)
    _apply_state(optimizer, state, here, leaving)
    _apply_attributes(optimizer, state["attributes"])
    return late


def capture_scheduler(scheduler: Any | None) -> State | None:
    """Copy the scheduler's own `state_dict`, which holds that of schedulers inside it."""
    if scheduler is None:
        return None
    return {"class": _class_of(scheduler), "state": copied(scheduler.state_dict())}


def check_scheduler_state(
    scheduler: Any | None, state: State | None, *, likes: Sequence[int | None]
) -> None:
    """Pass silently if `state` has its place in `scheduler`; `likes` as for `apply_scheduler`.

    Raises:
        HostError: if it is of another class, missing, or lacks functions for some groups.

    """
    found = None if scheduler is None else _class_of(scheduler)
    expected = None if state is None else state["class"]
    if found != expected:
        raise HostError(
            f"the scheduler is {found}, the state is that of {expected}; attach() one like it"
        )
    for part in schedulers_in(scheduler):
        functions = per_group_lists(part).get("lr_lambdas", [None] * len(likes))
        if None in likes[len(functions) :]:
            raise HostError(
                f"the {type(part).__name__} has functions for {len(functions)} groups, the state is "
                f"that of {len(likes)}, of which {likes.count(None)} were not grafted; group the "
                "parameters as before"
            )


def apply_scheduler(
    scheduler: Any | None,
    state: State | None,
    *,
    likes: Sequence[int | None],
    known: Identity | None = None,
    late: Sequence[int] = (),
) -> None:
    """Put `state` back into `scheduler`, in place; check it first.

    Args:
        scheduler: the live one.
        state: what `capture_scheduler` gave.
        likes: for each group of the optimizer, the one after which it was made.
        known: what memory keeps besides.
        late: positions of groups that came later; their entries stay behind the others.

    """
    if scheduler is None or state is None:
        return
    parts = schedulers_in(scheduler)
    kept = [
        (part, name, [values[i] for i in late if i < len(values)])
        for part in parts
        for name, values in per_group_lists(part).items()
    ]
    if known is not None:
        for part, name, values in known.lists:
            setattr(part, name, list(values))
    else:
        for part in parts:
            for values in per_group_lists(part).values():
                _extend(values, likes)
    scheduler.load_state_dict(copied(state["state"]))
    for part, name, values in kept:
        if len(per_group_lists(part).get(name, ())) == len(likes):
            getattr(part, name).extend(values)


def capture_scaler(scaler: Any | None, optimizer: torch.optim.Optimizer | None) -> State | None:
    """Copy scale, growth tracker and what was found since the last update; changes nothing."""
    if scaler is None:
        return None
    live = _vars(scaler)
    attributes = {name: copied(v) for name, v in live.items() if name not in _NOT_COUNTED}
    pending = cast("Mapping[int, Any]", live.get(_PER_OPTIMIZER, {}))
    own = pending.get(id(optimizer))
    return {
        "attributes": attributes,
        "others": {k: _found(v) for k, v in pending.items() if k != id(optimizer)},
        "own": None if own is None else _found(own),
    }


def apply_scaler(
    scaler: Any | None, optimizer: torch.optim.Optimizer | None, state: State | None
) -> None:
    """Put `state` back into `scaler`, in place."""
    if scaler is None or state is None:
        return
    live = _vars(scaler)
    if _PER_OPTIMIZER not in live:
        return  # one that is switched off holds nothing
    for name, saved in state["attributes"].items():
        live[name] = refill(live.get(name), saved)
    pending = cast("defaultdict[int, Any]", live[_PER_OPTIMIZER])
    pending.clear()
    own = {} if state["own"] is None else {id(optimizer): state["own"]}
    for key, found in (state["others"] | own).items():
        stage = type(pending[key]["stage"])(found["stage"])
        by_device = {torch.device(d): copied(v) for d, v in found["found_inf"].items()}
        pending[key].update(stage=stage, found_inf_per_device=by_device)


_PER_OPTIMIZER = "_per_optimizer_states"
"""What a `GradScaler` learned since its last `update()`, by the `id` of the optimizer."""

_NOT_COUNTED = (_PER_OPTIMIZER, "_device", "_enabled")
"""The last two say what machine it is for, which another run may answer differently."""


def _vars(thing: object) -> dict[str, Any]:
    return vars(thing)


def _found(pending: Mapping[str, Any]) -> State:
    by_device = cast("Mapping[torch.device, Tensor]", pending["found_inf_per_device"])
    return {
        "stage": pending["stage"].value,
        "found_inf": {str(device): copied(value) for device, value in by_device.items()},
    }


def _foreign(
    optimizer: torch.optim.Optimizer, model: nn.Module, gone: Collection[nn.Parameter] = ()
) -> dict[str, nn.Parameter]:
    """Name the parameters that are not the host's, in the optimizer's order."""
    known = {id(p) for p in (*model.parameters(), *gone)}
    found = {id(p): p for g in groups_of(optimizer) for p in g["params"] if id(p) not in known}
    return {f"{FOREIGN}{i}": p for i, p in enumerate(found.values())}


def _named(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    known: Identity | None,
    gone: Collection[nn.Parameter],
) -> dict[str, nn.Parameter]:
    foreign = _foreign(optimizer, model, gone) if known is None else known.foreign
    return dict(model.named_parameters()) | foreign


def _apply_group(group: Group, saved: State, here: Mapping[str, nn.Parameter]) -> None:
    members = cast("list[nn.Parameter]", group.get("params", []))
    members[:] = [here[name] for name in saved["params"]]
    settings = {name: refill(group.get(name), v) for name, v in saved["settings"].items()}
    group.clear()
    group.update(params=members, **settings)


def _apply_state(
    optimizer: torch.optim.Optimizer,
    state: State,
    here: Mapping[str, nn.Parameter],
    leaving: Collection[int],
) -> None:
    live = cast("dict[Any, Any]", optimizer.state)
    before = dict(live)
    live.clear()
    for name, saved in state["state"].items():
        if (parameter := here.get(name)) is not None:
            live[parameter] = refill(before.get(parameter), saved, parameter.device)
    for key, saved in state["shared"].items():
        live[key] = refill(before.get(key), saved)
    # What later groups have learned stays with them.
    in_groups = {id(p) for group in groups_of(optimizer) for p in group["params"]} - set(leaving)
    live.update({k: v for k, v in before.items() if id(k) in in_groups and k not in live})


def _attributes(optimizer: torch.optim.Optimizer) -> State:
    return {n: copied(v) for n, v in vars(optimizer).items() if modulestate.is_plain(v)}


def _apply_attributes(optimizer: torch.optim.Optimizer, saved: State) -> None:
    live = vars(optimizer)
    for name, value in saved.items():
        live[name] = refill(live.get(name), value)


def _class_of(scheduler: object) -> str:
    return " of ".join(type(part).__name__ for part in reversed(schedulers_in(scheduler)))


def _extend(values: list[Any], likes: Sequence[int | None]) -> None:
    """Give a list with an entry per group the length of `likes`, as `owners.join` did then."""
    del values[len(likes) :]
    for like in likes[len(values) :]:
        if like is None:
            return
        values.append(values[like])
