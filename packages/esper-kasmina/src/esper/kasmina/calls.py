"""One call of a model: its arguments, the tensors among them, and how far two outcomes lie apart.

`tracing` describes to torch which axes of a call may vary, and tries other extents of them.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from esper.contracts import HostError
from esper.contracts.words import type_of
from esper.kasmina.nested import map_tensors, tensors_in
from esper.kasmina.probe import Example


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of one forward pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example: Example) -> Self:
        """Return the call that the example stands for, with tensors of its own."""
        if isinstance(example, Tensor):
            args, kwargs = (example,), {}
        elif isinstance(example, Mapping):
            args, kwargs = (), dict(example)
        else:
            args, kwargs = tuple(example), {}
        return cls(args=args, kwargs=kwargs).map(lambda value: value.detach().clone())

    def map(self, change: Callable[[Tensor], Any]) -> Self:
        """Return a call with every tensor replaced by what `change` makes of it."""
        args, kwargs = map_tensors((self.args, self.kwargs), change)
        return type(self)(args=args, kwargs=kwargs)

    def tensors(self) -> list[Tensor]:
        """Return its tensors in order."""
        return list(tensors_in((self.args, self.kwargs)))

    def run(self, model: Callable[..., object]) -> list[Tensor]:
        """Call `model` with copies of the arguments and return the tensors that come out.

        Raises:
            HostError: if something comes out that no traced program can return.

        """
        own = self.map(Tensor.clone)
        return [value.detach() for value in tensors_in(plain(model(*own.args, **own.kwargs)))]

    def by_name(self, model: nn.Module, describe: Callable[[Tensor], object]) -> dict[str, Any]:
        """Return a description of every argument under its name in `model.forward`.

        Raises:
            HostError: if `forward` does not take these arguments.

        """
        try:
            bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs).arguments
        except TypeError as error:
            raise HostError(f"the example does not fit the model's forward: {error}") from error
        return cast("dict[str, Any]", map_tensors(bound, describe, other=_nothing))


def _nothing(_value: object) -> None:
    return None


def plain(value: Any) -> Any:
    """Return `value` with every mapping and dataclass as a dict, every kind of tuple as a tuple.

    Raises:
        HostError: naming what is neither these, nor a list, a tensor, a number, a text or None.

    """
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple | list):
        parts = [plain(part) for part in cast("Sequence[Any]", value)]
        return parts if isinstance(value, list) else tuple(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if value is None or isinstance(value, Tensor | int | float | str):
        return value
    raise HostError(
        f"the model returns {type_of(value)}, which no traced program can; have forward return "
        "tensors in tuples, lists or dicts, or switch it off by an argument in the example "
        "(use_cache=False, for example)"
    )


def resized(value: Tensor, axis: int, extent: int) -> Tensor:
    """Return `value` with another extent along `axis`: its entries again from the first, or fewer."""
    index = torch.arange(extent, device=value.device) % value.shape[axis]
    return value.index_select(axis, index)


def deviation(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest wanted value (at least 1).

    Infinite where number, shape or type of the tensors differ, or where integers do. Equal infinities
    and NaNs in equal places do not differ.
    """
    if len(wanted) != len(found):
        return float("inf")
    return max((_apart(a, b) for a, b in zip(wanted, found, strict=True)), default=0.0)


def _apart(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return float("inf")
    if wanted.numel() == 0:
        return 0.0
    if not (wanted.is_floating_point() or wanted.is_complex()):
        return 0.0 if torch.equal(wanted.cpu(), found.cpu()) else float("inf")
    a, b = _wide(wanted), _wide(found)
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a - b).abs()).max().nan_to_num(nan=float("inf"))
    scale = a[a.isfinite()].abs().max() if a.isfinite().any() else torch.ones(())
    return float(apart / scale.clamp(min=1.0))


def _wide(value: Tensor) -> Tensor:
    plain = torch.view_as_real(value) if value.is_complex() else value
    return plain.detach().cpu().to(torch.float64)
