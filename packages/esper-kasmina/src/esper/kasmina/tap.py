"""Lets a seed in TRAINING see the features at its site and the task's gradient there, for reading only.

The site's hook passes the features through a `Tap`; what comes out is the same, bit for bit. In eager
mode that is the very tensor. Inside a compiled graph it is a copy made by an operator of its own,
because compiled code runs no Python between its kernels.

Shapes: `h` the features at a site, `g` the loss's gradient there, alike.
"""

import itertools
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from esper.contracts import SiteKind
from esper.kasmina.learning import Learner, select
from esper.kasmina.watching import unnoticed

_keys = itertools.count()
_taps: "WeakValueDictionary[int, Tap]" = WeakValueDictionary()
"""Compiled graphs know a tap by a number only; one whose seed has moved on is simply gone."""


class Part(Protocol):
    """The part of a layer's features that one seed sees."""

    @property
    def kind(self) -> SiteKind:
        """What flows there."""
        ...

    @property
    def slot(self) -> int:
        """Its turn among those that see the same part: higher ones act first."""
        ...

    @property
    def widens(self) -> str | None:
        """The layer beside which it has new units, which read what that layer is given."""
        ...

    def of(self, h: Tensor) -> Tensor:
        """Return the part of `h`, a view."""
        ...


class Tap:
    """Hands pairs of features and gradient to a learner."""

    def __init__(self, learner: Learner, part: Part) -> None:
        self._learner = learner
        self.span = part
        self._key = next(_keys)
        self._waiting: list[Tensor] = []
        _taps[self._key] = self

    def __call__(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        """Return `h`, or under `torch.compile` its copy; its gradient will be seen too.

        `x` is what the block reads, if that is not `h`.
        """
        read = h if x is None else x
        if torch.compiler.is_compiling():
            return torch.ops.esper.tap(h, read.detach(), self._key)
        if h.requires_grad:
            with unnoticed("TRAINING"):
                self._await(self._rows(read), h)
        return h

    def keep(self, read: Tensor) -> None:
        """Remember what the block reads until the gradient comes."""
        with unnoticed("TRAINING"):
            self._waiting.append(self._rows(read))

    def complete(self, g: Tensor) -> None:
        """Pair a gradient with the latest features that still wait: backward runs in reverse."""
        with unnoticed("TRAINING"):
            if self._waiting:
                self._learner.observe(self._waiting.pop(), self._rows(g))

    def clear(self) -> None:
        """Forget features whose gradient never came."""
        self._waiting.clear()

    def _await(self, rows: Tensor, h: Tensor) -> None:
        def complete(g: Tensor) -> None:
            with unnoticed("TRAINING"):
                self._learner.observe(rows, self._rows(g))

        h.register_hook(complete)  # pyright: ignore[reportUnknownMemberType]

    def _rows(self, values: Tensor) -> Tensor:
        # A clone: an in-place operation after the layer may overwrite it.
        return select(self.span.of(values.detach()), self.span.kind).clone()


def _tap(h: Tensor, read: Tensor, key: int) -> Tensor:
    """Copy `h` and show what the block reads to the tap `key`."""
    if (tap := _taps.get(key)) is not None:
        tap.keep(read)
    return h.clone()


def _tap_gradient(g: Tensor, key: int) -> Tensor:
    """Copy `g` and show it to the tap `key`."""
    if (tap := _taps.get(key)) is not None:
        tap.complete(g)
    return g.clone()


def _like(value: Tensor, *_: object) -> Tensor:
    return torch.empty_like(value)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:  # noqa: ARG001
    ctx.key = inputs[2]


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.esper.tap_gradient(g, ctx.key), None, None


def _define(name: str, function: Callable[..., Tensor]) -> Any:
    """Register an operator that `torch.compile` leaves whole, and its shapes."""
    operator: Any = torch.library.custom_op(f"esper::{name}", function, mutates_args=())
    operator.register_fake(_like)
    return operator


_define("tap", _tap).register_autograd(_backward, setup_context=_remember)
_define("tap_gradient", _tap_gradient)
