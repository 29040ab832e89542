"""Seed ids: pairs of non-negative integers, and a validation error for anything else."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from esper.contracts import Contract, SeedId, validate_seed_id


class Holder(Contract):
    seed_id: SeedId


COUNTS = st.integers(min_value=0)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.complex_numbers()
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=5,
)


def is_seed_id(value: object) -> bool:
    if not isinstance(value, tuple | list):
        return False
    parts = cast("Sequence[object]", value)
    return len(parts) == 2 and all(type(part) is int and part >= 0 for part in parts)


@given(st.tuples(COUNTS, COUNTS))
def test_a_pair_of_counts_is_returned_as_it_is(pair: tuple[int, int]) -> None:
    assert validate_seed_id(pair) == pair
    assert validate_seed_id(list(pair)) == pair


@given(ANYTHING)
def test_anything_else_is_a_validation_error_and_nothing_worse(value: object) -> None:
    if is_seed_id(value):
        assert list(Holder.model_validate({"seed_id": value}).seed_id) == list(cast("Any", value))
    else:
        with pytest.raises(ValidationError, match="expected \\(layer_id, seed_idx\\)"):
            Holder.model_validate({"seed_id": value})


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("00", r"'00' is a str"),
        ((1,), r"\(1,\) has 1 elements"),
        ((1, "2"), r"an element that is not an integer"),
        ((True, 0), r"an element that is not an integer"),
        ((0, -1), r"\(0, -1\) has a negative element"),
    ],
)
def test_the_message_names_the_value_and_the_problem(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        validate_seed_id(value)
