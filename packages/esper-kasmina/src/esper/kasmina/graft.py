"""Puts blocks into a host and takes them out: the only file that changes a host's modules.

The bed installs one `SeedHook` per site and, on its orders, hangs a `Graft` under the site's layer.
A child module plus a forward hook keeps the host's own names, types and checkpoints valid.

Shapes: `h` the features at a site, `(B, …, D)` or `(B, D, H, W)`.
"""

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.contracts import SiteKind
from esper.kasmina.kernels import Block

CHILD = "esper_seed"
"""The name of a graft under its layer: `fc1.esper_seed.block.node_up.weight` in a state dict."""

type Watcher = Callable[[Tensor], None]
"""Is shown the site's features in training; must not change them."""


class Graft(nn.Module):
    """A block blended into the host: `h + alpha * f(h)`."""

    alpha: Tensor

    def __init__(self, block: Block, device: torch.device) -> None:
        super().__init__()
        self.block = block
        self.enabled = True
        # A tensor, so that ramping it needs no new graph under torch.compile.
        self.register_buffer("alpha", torch.zeros((), device=device))
        self.register_load_state_dict_post_hook(_forgive_absent_grafts)  # pyright: ignore[reportUnknownMemberType]

    def forward(self, h: Tensor) -> Tensor:
        """Return the features with the block's contribution, in the shape and type of `h`."""
        unbatched = h.dim() == 3 and self.block.signature.kind is SiteKind.CHANNELS_2D
        f = self.block(h.unsqueeze(0)).squeeze(0) if unbatched else self.block(h)
        # Under autocast some blocks answer in float32; the host's type is kept.
        return h + (self.alpha * f).to(h.dtype)


class SeedHook:
    """The forward hook of one site.

    Copies and pickles of a host carry a hook that keeps applying its own copy of the graft and is
    watched by nobody: a copy never reports to, nor is changed by, the bed of the original.
    """

    def __init__(self, watch: Watcher | None = None) -> None:
        self.watch = watch
        self.graft: Graft | None = None

    def __call__(self, layer: nn.Module, _args: object, output: Tensor) -> Tensor | None:
        """Apply the graft, if there is one; None leaves the layer's output as it is."""
        graft = self.graft
        if graft is None or not graft.enabled:
            if self.watch is not None and layer.training:
                self.watch(output)
            return None
        result = cast("Tensor", graft(output))
        if self.watch is not None and layer.training:
            self.watch(result)
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {"watch": None, "graft": self.graft}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def install(self, layer: nn.Module) -> Self:
        """Place the hook on `layer`, instead of a hook that a copied host may still carry."""
        self.uninstall(layer, everyone=True)
        layer.register_forward_hook(self)
        return self

    def uninstall(self, layer: nn.Module, *, everyone: bool = False) -> None:
        """Unhook `layer`; `everyone` removes any seed's hook."""
        hooks = _forward_hooks(layer)
        for key, hook in list(hooks.items()):
            if hook is self or (everyone and isinstance(hook, SeedHook)):
                handle = RemovableHandle(hooks)
                handle.id = key
                handle.remove()


def is_watched(module: nn.Module) -> bool:
    """Tell whether a bed is watching this very module."""
    hooks = _forward_hooks(module).values()
    return any(isinstance(hook, SeedHook) and hook.watch is not None for hook in hooks)


def insert(layer: nn.Module, hook: SeedHook, graft: Graft) -> None:
    """Make `graft` a child of `layer` and part of its output."""
    graft.train(layer.training)
    layer.add_module(CHILD, graft)
    hook.graft = graft


def remove(layer: nn.Module, hook: SeedHook) -> None:
    """Take the graft out of `layer` again, leaving no trace of it."""
    delattr(layer, CHILD)
    hook.graft = None


def _forward_hooks(module: nn.Module) -> dict[int, object]:
    return cast("dict[int, object]", module.__dict__["_forward_hooks"])


def _forgive_absent_grafts(_module: nn.Module, incompatible: Any) -> None:
    """Let a checkpoint of the bare host load strictly; a graft that is there in part stays an error."""
    missing = cast("list[str]", incompatible.missing_keys)
    marker = f"{CHILD}.alpha"
    for key in [key for key in missing if key == marker or key.endswith(f".{marker}")]:
        prefix = key.removesuffix("alpha")
        graft = _module
        expected = {prefix + name for name in graft.state_dict()}
        if expected <= set(missing):
            missing[:] = [name for name in missing if name not in expected]
