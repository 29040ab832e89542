"""The state of a module by name: what training may change in it, copied and put back in place.

`undo.Snapshot` takes it of the host and of its copies; `checkpoint` writes it. Parameters and buffers
stay the same objects, so that optimizers, captured graphs and users keep what they hold.
"""

import copy
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from esper.contracts import HostError

type State = dict[str, Any]
"""Named data of plain types and tensors, as `statetree` can write it."""

PLAIN = (bool, int, float, type(None))
"""Attributes that training may count with; text is left out, as it names devices and folders."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which objects a module holds under which names; only memory can keep that."""

    _held: list[tuple[nn.Module, dict[str, Any], dict[str, Any], frozenset[str]]]

    @classmethod
    def take(cls, module: nn.Module) -> Self:
        """Note the parameters and buffers of `module` and of every module in it."""
        return cls(
            _held=[
                (part, dict(_parameters(part)), dict(_buffers(part)), frozenset(vars(part)))
                for part in module.modules()
            ]
        )

    def restore(self) -> None:
        """Put the very parameters and buffers back, whatever took their place since.

        Numbers that a module has begun to keep since are forgotten.
        """
        for part, parameters, buffers, names in self._held:
            for live, held in ((_parameters(part), parameters), (_buffers(part), buffers)):
                live.clear()
                live.update(held)
            attributes = vars(part)
            for name in [n for n, v in attributes.items() if n not in names and is_plain(v)]:
                del attributes[name]


_is_lent: ContextVar[bool] = ContextVar("is_lent", default=False)


@contextmanager
def lending() -> Generator[None]:
    """Have states hold the live tensors instead of copies, for who writes them before anything changes."""
    token = _is_lent.set(True)
    try:
        yield
    finally:
        _is_lent.reset(token)


def capture(module: nn.Module) -> State:
    """Copy values, gradients, buffers, flags and counters of `module`; changes nothing.

    Of each module in it: buffers (persistent or not), `training` and other attributes that are
    numbers, None or tensors, and what `get_extra_state()` gives.
    """
    return {
        "parameters": {name: capture_parameter(p) for name, p in module.named_parameters()},
        "modules": {name: _capture_part(part) for name, part in _modules(module).items()},
    }


def capture_parameter(parameter: nn.Parameter) -> State:
    """Copy value, gradient and whether it is trained."""
    gradient = parameter.grad
    return {
        "value": copied(parameter),
        "gradient": copied(gradient),
        "is_trained": parameter.requires_grad,
    }


def check(module: nn.Module, state: State, *, what: str) -> None:
    """Pass silently if everything in `state` has its place in `module`.

    Raises:
        HostError: listing what is missing or of another shape; `what` names the module.

    """
    parameters = dict(module.named_parameters())
    modules = _modules(module)
    problems = [
        f"{name}: it has {None if name not in parameters else tuple(parameters[name].shape)}, "
        f"the state has {tuple(saved['value'].shape)}"
        for name, saved in state["parameters"].items()
        if name not in parameters or parameters[name].shape != saved["value"].shape
    ]
    problems += [
        f"the module {name!r} is missing" for name in state["modules"] if name not in modules
    ]
    if problems:
        rest = f"\n- and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise HostError(
            f"{what} is not what this state was taken from:\n- " + "\n- ".join(problems[:8]) + rest
        )


def apply(module: nn.Module, state: State) -> None:
    """Put `state` back into `module`, in place; `check` it first. What it does not name stays."""
    parameters = dict(module.named_parameters())
    for name, saved in state["parameters"].items():
        apply_parameter(parameters[name], saved)
    modules = _modules(module)
    for name, saved in state["modules"].items():
        _apply_part(modules[name], saved)


def apply_parameter(parameter: nn.Parameter, state: State) -> None:
    """Put value, gradient and `requires_grad` back into `parameter`."""
    live, saved = parameter.grad, state["gradient"]
    # Removed first: a gradient must have the type and shape of its parameter at every moment.
    parameter.grad = None
    put(parameter, state["value"])
    parameter.requires_grad_(state["is_trained"])
    parameter.grad = (
        None if saved is None else cast("Tensor", refill(live, saved, parameter.device))
    )


def copied(value: Any) -> Any:
    """Copy nested state; tensors keep type, device and bits, without gradient history."""
    if isinstance(value, Tensor):
        return value.detach() if _is_lent.get() else value.detach().clone()
    if type(value) is dict:
        return {key: copied(part) for key, part in cast("dict[Any, Any]", value).items()}
    if type(value) in (list, tuple):
        parts = cast("list[Any]", value)
        return type(parts)(copied(part) for part in parts)
    return copy.deepcopy(value)


def refill(live: object, saved: Any, device: torch.device | None = None) -> Any:
    """Return what `saved` was copied from, in the tensors and dicts of `live` where they fit.

    `device` is where tensors other than scalars belong: a checkpoint may be read on another machine,
    and optimizers count steps in scalars on the CPU.
    """
    if isinstance(saved, Tensor):
        if device is not None and saved.dim() > 0:
            saved = saved.to(device)
        if _fits(live, saved):
            put(cast("Tensor", live), saved)
            return live
        return saved.detach().clone()
    if type(saved) is dict:
        was = cast("dict[Any, Any]", live if type(live) is dict else {})
        entries = cast("dict[Any, Any]", saved)
        parts = {key: refill(was.get(key), part, device) for key, part in entries.items()}
        was.clear()
        was.update(parts)
        return was
    if type(saved) in (list, tuple):
        items = cast("list[Any]", saved)
        return type(items)(refill(None, part, device) for part in items)
    return copy.deepcopy(saved)


@torch.no_grad()
def put(live: Tensor, value: Tensor) -> None:
    """Write `value` into `live`, whose type and shape may have changed since."""
    if live.shape != value.shape or live.dtype != value.dtype:
        live.data = value.to(live.device, copy=True)
        return
    for dim, (size, stride) in enumerate(zip(live.shape, live.stride(), strict=True)):
        if size > 1 and stride == 0:
            # It only repeats itself there (`expand`), which cannot be written at once.
            live, value = live.narrow(dim, 0, 1), value.narrow(dim, 0, 1)
    live.copy_(value)


def _capture_part(module: nn.Module) -> State:
    state: State = {
        "buffers": {name: copied(buffer) for name, buffer in _buffers(module).items()},
        "attributes": {
            name: copied(value) for name, value in vars(module).items() if is_plain(value)
        },
    }
    if _has_extra_state(module):
        state["extra"] = copied(module.get_extra_state())
    return state


def _apply_part(module: nn.Module, state: State) -> None:
    buffers = _buffers(module)
    for name, saved in state["buffers"].items():
        device = _device_of(buffers.get(name))
        buffers[name] = refill(buffers.get(name), saved, device)
    live = vars(module)
    for name, saved in state["attributes"].items():
        # An attribute that is something else by now is not a number that was counted on.
        if is_plain(live.get(name)):
            live[name] = refill(live.get(name), saved, _device_of(live.get(name)))
    if "extra" in state:
        module.set_extra_state(copied(state["extra"]))


def is_plain(value: object) -> bool:
    """Tell whether an attribute is a number, None or a tensor: what may be counted with."""
    return type(value) in PLAIN or type(value) is Tensor


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _device_of(value: object) -> torch.device | None:
    return value.device if isinstance(value, Tensor) else None


def _fits(live: object, saved: Tensor) -> bool:
    return (
        isinstance(live, Tensor)
        and live.is_leaf
        and live.layout is torch.strided
        and live.shape == saved.shape
        and live.dtype == saved.dtype
        and live.device == saved.device
    )


def _modules(module: nn.Module) -> dict[str, nn.Module]:
    return dict(cast("Iterable[tuple[str, nn.Module]]", module.named_modules()))


def _parameters(module: nn.Module) -> dict[str, Any]:
    return cast("dict[str, Any]", vars(module)["_parameters"])


def _buffers(module: nn.Module) -> dict[str, Any]:
    return cast("dict[str, Any]", vars(module)["_buffers"])
