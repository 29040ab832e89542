"""Tensors within tuples, lists and dicts, as modules are given and return them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor


def map_tensors(
    value: Any, change: Callable[[Tensor], Any], *, other: Callable[[Any], Any] = copy.copy
) -> Any:
    """Return `value` with the tensors in it (in tuples, lists, dicts) replaced; the rest by `other`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        parts = {key: map_tensors(part, change, other=other) for key, part in items}
        return parts if type(cast("object", value)) is dict else type(value)(parts)  # pyright: ignore
    if isinstance(value, tuple | list):
        parts = [map_tensors(p, change, other=other) for p in cast("Sequence[Any]", value)]
        if isinstance(value, list):
            return parts
        # A named tuple takes its fields one by one.
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)  # pyright: ignore
    return other(value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value: a tensor, or tuples, lists and dicts of such."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in cast("Mapping[Any, Any]", value).values():
            yield from tensors_in(part)
    elif isinstance(value, tuple | list):
        for part in cast("Sequence[Any]", value):
            yield from tensors_in(part)
