"""What an earlier layer is given in a forward pass, handed on to the seeds that widen it.

A widening reads where layer A reads and adds where layer B, which A alone feeds, writes. The hook of B's
site asks a `Source`, which is a forward pre-hook on A, in place only while B's hook needs it.

Between two layers of one type new units read at each row or position what A is given there. Where A is a
convolution and B a linear layer, which sees all positions at once, so do they.

Shapes: `x` what A is given, `(…, I)` or `(B, I, …)`; `h` the features that B gives, `(…, D)` or `(B, D, …)`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from esper.contracts import HostError, SiteKind
from esper.contracts.words import type_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Source:
    """Remembers what `layer` was given until it is taken, once in each forward pass."""

    def __init__(self, layer: nn.Module, kind: SiteKind, num_read: int) -> None:
        self._layer = layer
        self._kind = kind
        self._num_read = num_read
        self._given: Tensor | None = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG002
        """Be the forward pre-hook."""
        self._given = args[0] if args and isinstance(args[0], Tensor) else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_given": None}

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
        """Return what new units read of `given` at the positions of `h`; see `fitted_width`.

        Of all positions, where they read these at once; see `flattened_width`.

        Raises:
            HostError: if nothing was given.

        """
        if given is None:
            raise HostError(
                f"{type_of(self._layer)} that was widened did not run before the layer "
                "that the new units add to; run the model as a whole, with positional arguments"
            )
        if isinstance(self._layer, CONVOLUTIONS) and not self._kind.is_channels:
            num_axes = self._layer.weight.dim() - 2
            return _flattened(given, num_axes, self._num_read).to(h.dtype)
        num_axes = self._kind.num_dims - 2
        if not self._kind.is_channels or given.shape[-num_axes:] == h.shape[-num_axes:]:
            return given
        positions = list(h.shape[-num_axes:])
        factor = self._num_read // given.shape[-num_axes - 1]
        if factor == 1:
            return _POOLS[num_axes](given, positions)
        return _side_by_side(given, positions, round(factor ** (1 / num_axes)))


MOST_SIDE_BY_SIDE = 4
"""Positions along an axis that new channels read side by side; of more they read the average."""


def fitted_width(given: Sequence[int], h: Sequence[int]) -> int:
    """Return how many features new channels read of `given` `(B, I, …)` at each position of `h` `(B, D, …)`.

    Where a stride or a pooling comes between, so that along each axis the same number of positions become
    one, all of them are read side by side, as more channels; otherwise the average around each position is.
    """
    ratios = {round(n / m) for n, m in zip(given[2:], h[2:], strict=True)}
    if len(ratios) != 1:
        return given[1]
    (ratio,) = ratios
    return given[1] * ratio ** len(given[2:]) if 1 < ratio <= MOST_SIDE_BY_SIDE else given[1]


MOST_FLATTENED = 256
"""Numbers of a sample that new units read of channels at all positions."""


def flattened_width(given: Sequence[int]) -> int:
    """Return how many numbers new units of a linear layer read of channels `given` `(B, I, …)`.

    That is each channel at as many positions along each axis as `MOST_FLATTENED` allows: at all of them, or
    else averages; 0 where there are too many channels for a single one.
    """
    channels, positions = given[1], given[2:]
    along = next(
        n for n in range(min(positions), -1, -1) if channels * n ** len(positions) <= MOST_FLATTENED
    )
    return channels * along ** len(positions)


def _flattened(given: Tensor, num_axes: int, num_read: int) -> Tensor:
    """Return `given` `(…, I, n, …)` as `(…, num_read)`, averaged to as many positions as that is."""
    along = round((num_read // given.shape[-num_axes - 1]) ** (1 / num_axes))
    # Where there are so many, each is its own average: no question here that an export would have to settle.
    return _POOLS[num_axes](given, [along] * num_axes).flatten(-num_axes - 1)


def _side_by_side(given: Tensor, positions: Sequence[int], ratio: int) -> Tensor:
    """Return `given` `(…, I, n, …)` as `(…, I * ratio * …, m, …)` for `m` positions, cut or padded to fit."""
    num_axes = len(positions)
    first = given.dim() - num_axes
    padding: list[int] = []
    for n, m in zip(given.shape[first:], positions, strict=True):
        padding = [0, m * ratio - n, *padding]  # of the last axis first
    split: Tensor = functional.pad(given, padding)
    for axis, m in enumerate(positions):
        shape = list(split.shape)
        at = first + 2 * axis
        split = split.reshape(*shape[:at], m, ratio, *shape[at + 1 :])  # (…, I, m, ratio, …)
    before = list(range(first))
    order = [*before, *range(first + 1, split.dim(), 2), *range(first, split.dim(), 2)]
    return split.permute(order).flatten(first - 1, first - 1 + num_axes)


_POOLS: Mapping[int, Callable[[Tensor, Any], Tensor]] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}
"""By number of axes of positions."""
