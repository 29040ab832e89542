"""What an earlier layer is given in a forward pass, handed on to the seeds that widen it.

A widening reads where layer A reads and adds where layer B, the only reader of A, writes. The hook of B's
site asks a `Source`, which is a forward pre-hook on A, in place only while B's hook needs it.

Shapes: `x` what A is given, `(…, I)` or `(B, I, …)`; `h` the features that B gives, `(…, D)` or `(B, D, …)`.
"""

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from esper.contracts import HostError, SiteKind


class Source:
    """Remembers what `layer` was given until it is taken, once in each forward pass."""

    def __init__(self, layer: nn.Module, kind: SiteKind) -> None:
        self._layer = layer
        self._kind = kind
        self._given: Tensor | None = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG002
        """Be the forward pre-hook."""
        self._given = args[0] if args and isinstance(args[0], Tensor) else None

    def __getstate__(self) -> dict[str, Any]:
        return {"_layer": self._layer, "_kind": self._kind, "_given": None}

    def settle(self, *, needed: bool) -> None:
        """Be on the layer exactly while needed."""
        hooks = cast("dict[int, object]", self._layer.__dict__["_forward_pre_hooks"])
        present = [key for key, hook in hooks.items() if hook is self]
        if needed and not present:
            self._layer.register_forward_pre_hook(self)
        elif not needed:
            for key in present:
                del hooks[key]
            self._given = None

    def take(self) -> Tensor | None:
        """Return what the layer was given last, and forget it; None if it was not called since."""
        given, self._given = self._given, None
        return given

    def fitted(self, given: Tensor | None, h: Tensor) -> Tensor:
        """Return `given` at the positions of `h`: where those are fewer, averaged over the ones around.

        Raises:
            HostError: if nothing was given, or what was given does not belong to `h`.

        """
        if given is None:
            raise HostError(
                f"a {type(self._layer).__name__} that was widened did not run before the layer that the new "
                "units add to; run the model as a whole, with positional arguments"
            )
        num_axes = self._kind.num_dims - 2
        if not self._kind.is_channels or given.shape[-num_axes:] == h.shape[-num_axes:]:
            return given
        return _POOLS[num_axes](given, list(h.shape[-num_axes:]))


_POOLS = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}
"""By number of axes of positions."""
