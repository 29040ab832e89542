"""Decides where seeds can live in a host: pure, touches nothing, lists every problem at once.

`wrap` carries out what a plan without problems says; anybody may look at a plan first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from esper.contracts import HostError, KernelSignature, Site, SiteKind
from esper.kasmina.graft import CHILD, Graft, is_watched
from esper.kasmina.kernels import DTYPES

type Target = str | type[nn.Module]
"""A qualified name (`encoder.fc1`), a glob over them (`encoder.*`), or a layer type."""

DEVICES = ("cpu", "cuda")
PARALLEL: tuple[type[nn.Module], ...] = (DataParallel, DistributedDataParallel)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where seeds would live, or why they cannot."""

    sites: tuple[Site, ...] = ()
    """Input side first: in order of registration."""
    problems: tuple[str, ...] = ()
    """What keeps the host from being wrapped; empty when it can be."""
    refused: tuple[str, ...] = ()
    """Layers that carry no seed, each with the reason."""

    def check(self) -> None:
        """Pass silently if there is no problem.

        Raises:
            HostError: listing every problem.

        """
        if self.problems:
            raise HostError(
                "this host cannot carry seeds as asked:\n- " + "\n- ".join(self.problems)
            )


def plan(model: nn.Module, targets: Sequence[Target] | None = None) -> Plan:
    """Find the sites of `model` for seeds.

    Without `targets`: every `nn.Linear` and `nn.Conv2d` but the last, which is the output head.
    """
    if any(is_watched(module) for module in model.modules()):
        return Plan(problems=("it is already wrapped; use its bed, or unwrap() it first",))
    if isinstance(model, PARALLEL):
        return Plan(
            problems=(
                f"{type(model).__name__} has fixed its parameters; wrap the module inside it before",
            )
        )
    layers = _layers(model)
    reasons = {name: _refusal(model, name, layer) for name, layer in layers.items()}
    if targets is None:
        if layers:
            head = list(layers)[-1]
            reasons[head] = reasons[head] or "is the output head; name it in targets to use it"
        chosen, problems = list(layers), list[str]()
    else:
        chosen, problems = _choose(model, layers, reasons, targets)
    refused = tuple(f"{name} {reason}" for name, reason in reasons.items() if reason)
    sites = [name for name in chosen if reasons[name] is None]
    if not sites and not problems:
        problems = [
            "it has no layer for a seed",
            *(refused or ("it has no Linear or Conv2d layer",)),
        ]
    return Plan(
        sites=tuple(_site(i, name, layers[name]) for i, name in enumerate(sites)),
        problems=tuple(problems),
        refused=refused,
    )


def signature_of(layer: nn.Module) -> KernelSignature:
    """Return the signature of kernels that fit after `layer`, a Linear or Conv2d."""
    weight = layer.get_parameter("weight")
    name = next(name for name, dtype in DTYPES.items() if dtype is weight.dtype)
    is_image = isinstance(layer, nn.Conv2d)
    return KernelSignature.model_validate(
        {
            "kind": SiteKind.CHANNELS_2D if is_image else SiteKind.FEATURES,
            "features": weight.shape[0],
            "dtype": name,
            "device": weight.device.type,
        }
    )


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the host's own Linear and Conv2d layers by first name; blocks in it are no hosts."""
    found: dict[nn.Module, str] = {}
    for name, module in _modules(model):
        if isinstance(module, nn.Linear | nn.Conv2d) and CHILD not in name.split("."):
            found.setdefault(module, name)
    return {name: module for module, name in found.items()}


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return every module under every name that it has."""
    named = cast("Iterable[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=False))
    return list(named)


def _choose(
    model: nn.Module,
    layers: dict[str, nn.Module],
    reasons: dict[str, str | None],
    targets: Sequence[Target],
) -> tuple[list[str], list[str]]:
    """Return the layers that `targets` select, in order of registration, and what is wrong."""
    names = {name for name, _ in _modules(model)}
    chosen: set[str] = set()
    problems: list[str] = []
    for target in targets:
        text = target if isinstance(target, str) else target.__name__
        matches = [name for name, layer in layers.items() if _matches(target, name, layer)]
        usable = [name for name in matches if reasons[name] is None]
        chosen.update(usable)
        if usable:
            continue
        if matches:
            problems.extend(f"target {text!r}: {name} {reasons[name]}" for name in matches)
        elif text in names:
            kind = type(model.get_submodule(text)).__name__
            problems.append(f"target {text!r} is a {kind}; only Linear and Conv2d carry seeds")
        else:
            problems.append(
                f"target {text!r} matches no layer; there are: {', '.join(layers) or 'none'}"
            )
    if not targets:
        problems.append("targets is empty; leave it out, or name layers")
    return [name for name in layers if name in chosen], problems


def _matches(target: Target, name: str, layer: nn.Module) -> bool:
    if isinstance(target, str):
        return fnmatchcase(name, target)
    return isinstance(layer, target)


def _refusal(model: nn.Module, name: str, layer: nn.Module) -> str | None:
    """Say why `layer` cannot carry a seed; None if it can."""
    aliases = [other for other, module in _modules(model) if module is layer]
    if len(aliases) > 1:
        return f"is shared under the names {', '.join(aliases)}: a seed there would act twice"
    if reason := _bypass(model, name):
        return reason
    if isinstance(getattr(layer, CHILD, None), Graft):
        return "already carries a block that became part of the model"
    weight = layer.get_parameter("weight")
    if isinstance(weight, UninitializedParameter):
        return "is lazy and has no shape yet; run one batch through the model first"
    if weight.device.type not in DEVICES:
        return f"is on device {weight.device.type!r}; expected {' or '.join(DEVICES)}"
    if weight.dtype not in DTYPES.values():
        return f"has weights of {weight.dtype}; expected one of {', '.join(DTYPES)}"
    return None


def _bypass(model: nn.Module, name: str) -> str | None:
    """Say which enclosing module computes with this layer's weights without calling it."""
    parts = name.split(".")
    for depth in range(len(parts)):
        parent = model.get_submodule(".".join(parts[:depth]))
        if isinstance(parent, nn.MultiheadAttention):
            return (
                "is used by nn.MultiheadAttention without being called: a seed there would not act"
            )
        if (
            isinstance(parent, nn.TransformerEncoderLayer)
            and torch.backends.mha.get_fastpath_enabled()
        ):
            return (
                "is bypassed by the fast path of nn.TransformerEncoderLayer in evaluation; turn that "
                "off first with torch.backends.mha.set_fastpath_enabled(False)"
            )
    return None


def _site(layer_id: int, name: str, layer: nn.Module) -> Site:
    return Site(
        layer_id=layer_id,
        name=name,
        module_type=type(layer).__name__,
        signature=signature_of(layer),
    )
