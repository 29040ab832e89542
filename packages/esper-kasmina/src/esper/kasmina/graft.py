"""Puts blocks into a host and takes them out: the only file that changes a host's modules.

The bed gives each site one `SiteHook`, in place only while something is to be done there, and hangs
`Graft`s under the site's layer. A child module plus a forward hook keeps the host's own names, types
and checkpoints valid.

Shapes: `h` the features at a site, `(…, D)` or `(B, D, …)`.
"""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.contracts import Site, SiteKind
from esper.contracts.words import type_of
from esper.kasmina.adapters import Adapter, adapter_of
from esper.kasmina.kernels import Block
from esper.kasmina.restating import restated
from esper.kasmina.source import Source
from esper.kasmina.tap import Tap
from esper.kasmina.watching import in_function_transform, unnoticed

CHILD = "esper_seed"
"""The name of a graft under its layer: `fc1.esper_seed.block.node_up.weight` in a state dict."""

WIDER = f"{CHILD}_wider"
"""The name under the layer that new units of an earlier layer add to."""

PATH = f"{CHILD}_path"
"""The name under the layer that a path past several layers adds to."""

_IN_GRAFT = re.compile(rf"(^|\.)({WIDER}|{PATH}|{CHILD})(_\d+)?(\.|$)")
_ALPHA = re.compile(rf"(^|.*\.)({WIDER}|{PATH}|{CHILD})(_\d+)?\.alpha")

_WATCHED: WeakSet[nn.Module] = WeakSet()
"""Every layer that belongs to a bed; copies of one do not."""


def child_name(seed_idx: int, site: Site) -> str:
    """Return the name of a seed's graft under its layer; several seeds are numbered."""
    name = CHILD if site.widens is None else WIDER if site.spans == 1 else PATH
    return name if site.num_places == 1 else f"{name}_{seed_idx}"


def is_graft_name(name: str) -> bool:
    """Tell whether a qualified name is that of a graft or of something in it."""
    return _IN_GRAFT.search(name) is not None


class Span:
    """The part of a layer's features that one seed sees, and its turn among those that see the same."""

    __slots__ = ("kind", "length", "num_read", "slot", "start", "whole", "widens")

    def __init__(self, site: Site, seed_idx: int) -> None:
        self.kind: SiteKind = site.signature.kind
        self.length: int = site.signature.features
        self.slot, chunk = divmod(seed_idx, site.num_seeds)
        self.start = chunk * self.length
        self.whole = site.num_seeds == 1
        self.num_read: int = site.signature.width_read
        self.widens = site.widens
        """The layer beside which it has new units; None: its block reads the features themselves."""

    def of(self, h: Tensor) -> Tensor:
        """Return the seed's part of `h`, a view."""
        return h if self.whole else h.narrow(self._axis(h), self.start, self.length)

    def put(self, h: Tensor, part: Tensor) -> Tensor:
        """Return `h` with the seed's part replaced."""
        if self.whole:
            return part
        axis, end = self._axis(h), self.start + self.length
        after = h.narrow(axis, end, h.shape[axis] - end)
        return torch.cat([h.narrow(axis, 0, self.start), part, after], dim=axis)

    def _axis(self, h: Tensor) -> int:
        # One dimension less where the host runs without a batch.
        return h.dim() - self.kind.num_dims + 1 if self.kind.is_channels else h.dim() - 1


class Graft(nn.Module):
    """A block blended into the host: `h + alpha * f(h)` on the seed's part of the features.

    New units of an earlier layer, which was given `x`, add `alpha * f(x)`.
    """

    alpha: Tensor

    def __init__(self, block: Block, span: Span, device: torch.device) -> None:
        super().__init__()
        self.block = block
        self.span = span
        self.enabled = True
        # A tensor, so that ramping it needs no new graph under torch.compile.
        self.register_buffer("alpha", torch.zeros((), device=device))
        self.register_load_state_dict_post_hook(_forgive_absent_grafts)  # pyright: ignore[reportUnknownMemberType]

    def forward(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the features with the block's contribution, in the shape and type of `h`."""
        part = self.span.of(h)
        read = part if x is None else x
        kind = self.span.kind
        unbatched = kind is not SiteKind.FEATURES and part.dim() == kind.num_dims - 1
        f = self.block(read.unsqueeze(0)).squeeze(0) if unbatched else self.block(read)
        # Under autocast some blocks answer in float32; the host's type is kept.
        return self.span.put(h, part + (self.alpha * f).to(part.dtype))


@contextmanager
def absent(
    graft: Graft | None, host: nn.Module, settle: Callable[[], object] | None
) -> Generator[None]:
    """Within the context, a graft does nothing; see `restating` for `settle`."""
    if graft is None:
        with restated(host, settle):
            yield
        return
    was_enabled, graft.enabled = graft.enabled, False
    try:
        with restated(host, settle):
            yield
    finally:
        graft.enabled = was_enabled


class Watcher(Protocol):
    """A seed as its site's hook knows it."""

    @property
    def span(self) -> Span:
        """The part of the features that it sees."""
        ...

    def look(self, h: Tensor, inputs: Tensor | None, x: Tensor | None) -> None:
        """See the site's features, and what its layer made them from, on a sampled forward.

        `x` is what new units of an earlier layer would read; None for a seed that is not for such.
        """
        ...


class SiteHook:
    """The forward hook of one layer with all its seeds.

    Copies and pickles of a host carry a hook that keeps applying its own copies of the grafts and is
    watched by nobody: a copy never reports to, nor is changed by, the bed of the original.
    """

    def __init__(
        self,
        layer: nn.Module,
        watchers: Sequence[Watcher] = (),
        sources: Mapping[str, Source] | None = None,
    ) -> None:
        self._layer_type = type(layer)
        self.sources: dict[str, Source] = dict(sources or {})
        """Where new units read, by the name of the layer that they are beside."""
        self.adapter: Adapter = adapter_of(self._layer_type)
        self.grafts: tuple[Graft, ...] = ()
        self.taps: tuple[Tap, ...] = ()
        self._parts: tuple[Tap | Graft, ...] = ()
        self.sampling = False
        self._watchers = tuple(watchers)
        self._handle: RemovableHandle | None = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Show the features to whoever asked, apply the grafts; None leaves the output as it is."""
        given = {name: source.take() for name, source in self.sources.items()}
        # In this order: a compiled graph must not depend on which steps are sampled.
        compiling = torch.compiler.is_compiling()
        sampling = not compiling and self.sampling
        learning = layer.training and torch.is_grad_enabled()
        if not self.grafts and not (learning and (self.taps or sampling)):
            return None
        if not compiling and learning and in_function_transform():
            learning = False
        h = self._features(layer, output, careful=not (compiling or self.grafts))
        if h is None:
            return None
        if h.is_nested and h.layout is torch.strided:
            return self.adapter.put(layer, output, self._with_grafts_by_sample(h, given))
        h = self._with_parts(h, given, learning=learning)
        if sampling and learning:
            # Once per sampled step, however often the layer is called in it.
            self.sampling = False
            inputs = args[0] if args and isinstance(args[0], Tensor) else None
            for watcher in self._watchers:
                with unnoticed(self._layer_type.__name__):
                    beside = watcher.span.widens
                    read = None if beside is None else self._read(beside, given, h)
                    watcher.look(h, inputs, read)
        # Also when nothing changed: who watches the gradient watches this very tensor.
        return self.adapter.put(layer, output, h)

    def _with_parts(
        self, h: Tensor, given: Mapping[str, Tensor | None], *, learning: bool
    ) -> Tensor:
        for part in self._parts:
            if part.enabled if isinstance(part, Graft) else learning:
                beside = part.span.widens
                h = part(h) if beside is None else part(h, self._read(beside, given, h))
        return h

    def _with_grafts_by_sample(self, h: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        """Apply the grafts to nested features: torch's encoder evaluates padded batches as such."""
        samples: list[Tensor] = []
        for number, sample in enumerate(h.unbind()):
            of_it = {n: None if x is None else x[number].unsqueeze(0) for n, x in given.items()}
            if len(sample):
                sample = self._with_parts(sample.unsqueeze(0), of_it, learning=False).squeeze(0)
            samples.append(sample)
        return torch.nested.as_nested_tensor(samples)  # pyright: ignore[reportUnknownMemberType]

    def _read(self, beside: str, given: Mapping[str, Tensor | None], h: Tensor) -> Tensor:
        """Return what new units of an earlier layer read."""
        return self.sources[beside].fitted(given[beside], h)

    def _features(self, layer: nn.Module, output: Any, *, careful: bool) -> Tensor | None:
        """Return what seeds see; None if they only watch, and there is nothing that they can see."""
        if not careful:
            return self.adapter.take(layer, output)
        h: object = None
        with unnoticed(self._layer_type.__name__):
            h = self.adapter.take(layer, output)
            if not isinstance(h, Tensor) or h.is_nested:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"its features are {type_of(h)}, not one plain tensor")
            return h
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {"_layer_type": self._layer_type, "grafts": self.grafts, "sources": self.sources}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, taps=(), sampling=False, _watchers=(), _handle=None)
        self.adapter = adapter_of(self._layer_type)
        self._arrange()

    @property
    def is_needed(self) -> bool:
        """Whether it has anything to do."""
        return bool(self.grafts or self.taps or self.sampling)

    def found_on(self, layer: nn.Module, key: int) -> Self:
        """Take hold of the place that a copied hook already has on `layer`."""
        if self._handle is None:
            self._handle = RemovableHandle(layer.__dict__["_forward_hooks"])
            self._handle.id = key
        return self

    def settle(self, layer: nn.Module) -> None:
        """Be on `layer` exactly while needed: what is dormant costs nothing at all."""
        self._arrange()
        if self.is_needed and self._handle is None:
            self._handle = layer.register_forward_hook(self)
        elif not self.is_needed and self._handle is not None:
            self._handle.remove()
            self._handle = None
        beside = {part.span.widens for part in self._parts}
        if self.sampling:
            beside |= {watcher.span.widens for watcher in self._watchers}
        for name, source in self.sources.items():
            source.settle(needed=name in beside)

    def _arrange(self) -> None:
        """Let new units add to the layer's own first, then higher slots act before lower ones.

        A tap sees what a graft in its place would.
        """
        taps_first = (*self.taps, *self.grafts)
        order = sorted(taps_first, key=lambda part: (part.span.widens is None, -part.span.slot))
        self._parts = tuple(order)


def claim(layer: nn.Module) -> None:
    """Mark `layer` as belonging to a bed, and clear what a copied host still carries of another."""
    _WATCHED.add(layer)
    hooks = cast("dict[int, object]", layer.__dict__["_forward_hooks"])
    for key, hook in list(hooks.items()):
        if isinstance(hook, SiteHook) and not hook.grafts:
            handle = RemovableHandle(hooks)
            handle.id = key
            handle.remove()
            for source in hook.sources.values():
                source.settle(needed=False)


def hook_on(layer: nn.Module) -> SiteHook:
    """Return the hook that a copied layer carries, or a new one that is not in place yet."""
    hooks = cast("dict[int, object]", layer.__dict__["_forward_hooks"])
    for key, hook in hooks.items():
        if isinstance(hook, SiteHook):
            return hook.found_on(layer, key)
    return SiteHook(layer)


def release(layer: nn.Module) -> None:
    """Undo `claim`."""
    _WATCHED.discard(layer)


def is_watched(module: nn.Module) -> bool:
    """Tell whether a bed is watching this very module."""
    return module in _WATCHED


def carries_graft(layer: nn.Module) -> bool:
    """Tell whether a block is part of `layer`."""
    return any(isinstance(child, Graft) for child in layer.children())


def insert(layer: nn.Module, hook: SiteHook, name: str, graft: Graft) -> None:
    """Make `graft` a child of `layer` and part of its output."""
    graft.train(layer.training)
    layer.add_module(name, graft)
    hook.grafts = (*hook.grafts, graft)
    hook.settle(layer)


def remove(layer: nn.Module, hook: SiteHook, name: str, graft: Graft) -> None:
    """Take the graft out of `layer` again, leaving no trace of it."""
    delattr(layer, name)
    hook.grafts = tuple(other for other in hook.grafts if other is not graft)
    hook.settle(layer)


def _forgive_absent_grafts(_module: nn.Module, incompatible: Any) -> None:
    """Let a checkpoint of the bare host load strictly; a graft that is there in part stays an error."""
    missing = cast("list[str]", incompatible.missing_keys)
    for key in [key for key in missing if _ALPHA.fullmatch(key)]:
        prefix = key.removesuffix("alpha")
        expected = {prefix + name for name in _module.state_dict()}
        if expected <= set(missing):
            missing[:] = [name for name in missing if name not in expected]
