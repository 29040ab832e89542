"""Copies of a growing host, such as moving averages and teachers, that grow and shrink with it.

Averages pair parameters by position (`torch.optim.swa_utils.AveragedModel`, or a loop over two
`parameters()`), so a block that only the host has would shift every later pair without a word. The
bed calls `align` after each change of structure and `sync_alpha` after each step.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from esper.contracts import HostError
from esper.contracts.words import type_of
from esper.kasmina import graft as grafts
from esper.kasmina.graft import Graft, hook_on, is_graft_name, is_watched
from esper.kasmina.source import Source

INSIDE = ("module", "_orig_mod")
"""Under these names `AveragedModel`, parallel wrappers and `torch.compile` hold the model itself."""


class Copies:
    """The copies of one host, and which of their blocks follows which of the host's."""

    def __init__(self, host: nn.Module, copies: Sequence[nn.Module]) -> None:
        """Find the host's layers in every copy; changes nothing.

        Raises:
            HostError: if a copy has not the host's parameters, or a bed of its own.

        """
        self._host = host
        self._roots = [_root(host, module, index) for index, module in enumerate(copies)]
        self._pairs: list[tuple[Graft, Graft]] = []
        # A block that comes back to the host, as in a rollback, comes back to the copies as it was.
        self._known: list[WeakKeyDictionary[Graft, Graft]] = [WeakKeyDictionary() for _ in copies]

    def align(self) -> None:
        """Give every copy the blocks that the host has, in the same order, and no others.

        A new block starts as it is in the host at that moment and is averaged from there on.
        """
        self._pairs = []
        if not self._roots:
            return
        layers = {name: _grafts_of(layer) for name, layer in _layers(self._host)}
        for root, known in zip(self._roots, self._known, strict=True):
            trains = _is_trained(root)
            for name, layer in _layers(root):
                ours = _align(root, layer, layers.get(name, {}), known, trains=trains)
                known.update(ours)
                self._pairs += ours.items()
        self.sync_alpha()

    def sync_alpha(self) -> None:
        """Blend every block of a copy in as much as that of the host: a ramp is no average."""
        if not self._pairs:
            return  # entering no_grad would cost ten times what the rest of a step's bookkeeping does
        with torch.no_grad():
            for theirs, ours in self._pairs:
                ours.alpha.copy_(theirs.alpha)


def _align(
    root: nn.Module,
    layer: nn.Module,
    wanted: Mapping[str, Graft],
    known: Mapping[Graft, Graft],
    *,
    trains: bool,
) -> dict[Graft, Graft]:
    """Give one copied layer the `wanted` blocks; return which of its own follows which."""
    found = _grafts_of(layer)
    ours: dict[str, Graft] = {}
    for name, theirs in wanted.items():
        own = known.get(theirs)
        if own is None:
            own = found[name] if _is_like(found.get(name), theirs) else None
        ours[name] = _copy(theirs, layer, trains) if own is None else own
    if list(found.items()) != list(ours.items()):
        hook = hook_on(layer)
        for span in (graft.span for graft in wanted.values()):
            if span.widens is not None and span.widens not in hook.sources:
                beside = root.get_submodule(span.widens)
                hook.sources[span.widens] = Source(beside, span.kind, span.num_read)
        for name, graft in found.items():
            grafts.remove(layer, hook, name, graft)
        for name, graft in ours.items():
            grafts.insert(layer, hook, name, graft)
    return {theirs: ours[name] for name, theirs in wanted.items()}


def _root(host: nn.Module, module: nn.Module, index: int) -> nn.Module:
    """Return the module inside `module` that has the host's parameters under the host's names."""
    expected = {name: p.shape for name, p in host.named_parameters() if not is_graft_name(name)}
    root: nn.Module | None = module
    while root is not None:
        found = {name: p.shape for name, p in root.named_parameters() if not is_graft_name(name)}
        if found == expected:
            break
        inner = (getattr(root, name, None) for name in INSIDE)
        root = next((part for part in inner if isinstance(part, nn.Module)), None)
    if root is None:
        raise HostError(
            f"copy {index} of the host, {type_of(module)}, has not the host's parameters; make "
            "it with copy.deepcopy(model) or torch.optim.swa_utils.AveragedModel(model)"
        )
    if any(is_watched(part) for part in cast("Iterable[nn.Module]", root.modules())):
        raise HostError(
            f"copy {index} of the host, {type_of(module)}, has a bed of its own; unwrap() it first"
        )
    return root


def _is_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    named = cast("Iterable[tuple[str, nn.Module]]", module.named_modules())
    return [(name, layer) for name, layer in named if not is_graft_name(name)]


def _grafts_of(layer: nn.Module) -> dict[str, Graft]:
    return {name: child for name, child in layer.named_children() if isinstance(child, Graft)}


def _is_like(ours: Graft | None, theirs: Graft) -> bool:
    return (
        ours is not None
        and ours.block.ir == theirs.block.ir
        and ours.block.signature == theirs.block.signature
    )


def _copy(theirs: Graft, layer: nn.Module, trains: bool) -> Graft:
    """Return a copy of a block, of the type and on the device of the copied `layer`."""
    ours = copy.deepcopy(theirs)
    ours.zero_grad(set_to_none=True)
    ours.requires_grad_(trains)
    ours.enabled = True
    like = next(layer.parameters(), None)
    if like is not None:
        ours.to(like.device)
        ours.block.to(like.dtype)
    return ours
