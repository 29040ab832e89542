"""Validation functions that several contracts share; plain Python, so that pydantic may call them.

Each raises `ValueError` only: pydantic turns that into a validation error, while a `TypeError` would
escape to the caller.
"""

from typing import cast

from esper.contracts.words import type_of


def validate_seed_id(value: object) -> tuple[int, int]:
    """Return `value` as a seed id `(layer_id, seed_idx)`.

    A list of two is accepted too, because JSON has no tuples.

    Raises:
        ValueError: if it is not a pair of non-negative integers.

    """
    hint = "expected (layer_id, seed_idx), two non-negative integers such as (0, 0)"
    if not isinstance(value, tuple | list):
        raise ValueError(f"seed id {value!r} is {type_of(value)}; {hint}")
    parts = cast("tuple[object, ...]", tuple(value))  # pyright: ignore[reportUnknownArgumentType]
    if len(parts) != 2:
        raise ValueError(f"seed id {value!r} has {len(parts)} elements; {hint}")
    layer_id, seed_idx = parts
    if type(layer_id) is not int or type(seed_idx) is not int:
        raise ValueError(f"seed id {value!r} has an element that is not an integer; {hint}")
    if layer_id < 0 or seed_idx < 0:
        raise ValueError(f"seed id {value!r} has a negative element; {hint}")
    return layer_id, seed_idx
