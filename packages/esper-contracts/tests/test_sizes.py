"""Symbolic sizes: small arithmetic, bounded, and never code."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esper.contracts import MAX_SIZE, BlueprintError, evaluate_size

D = {"D": 16}


@pytest.mark.parametrize(
    ("size", "value"),
    [
        (7, 7),
        ("7", 7),
        ("D", 16),
        ("4*D", 64),
        ("D//4 + 1", 5),
        ("max(1, D//32)", 1),
        ("min(D, 8, 12)", 8),
        ("(D - 2) * 3", 42),
    ],
)
def test_sizes_are_evaluated(size: int | str, value: int) -> None:
    assert evaluate_size(size, D) == value


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ("D//32", r"size 'D//32' is 0 for \{'D': 16\}; expected 1 to 1048576; bound it"),
        (-3, r"size -3 is -3"),
        ("D*D*D*D*D*D", r"is 16777216"),
        ("W", r"'W' is not allowed"),
        ("D/2", r"'D / 2' is not allowed"),
        ("D**9", r"'D \*\* 9' is not allowed"),
        ("2.5", r"'2.5' is not allowed"),
        ("True", r"'True' is not allowed"),
        ("-D", r"'-D' is not allowed"),
        ("D//0", r"'D//0' cannot be evaluated \(integer division"),
        ("max(D)", r"'max\(D\)' is not allowed"),
        ("print(D, D)", r"'print\(D, D\)' is not allowed"),
        ("max(*[1, 2], 3)", r"is not allowed"),
        ("D +", r"cannot be evaluated"),
        ("", r"cannot be evaluated"),
        ("D" * 65, r"expression of 65 characters; expected at most 64"),
    ],
)
def test_a_bad_size_is_refused_with_its_reason(size: int | str, problem: str) -> None:
    with pytest.raises(BlueprintError, match=problem):
        evaluate_size(size, D)


HOSTILE = st.sampled_from(
    [
        "__import__('os').system('false')",
        "(lambda: D)()",
        "[D for D in (1,)][0]",
        "D.__class__",
        "(D := 3)",
        "exec('x')",
        "f'{D}'",
        "9" * 64,
        "*".join("9" * 32),
        "(" * 64,
        "\x00",
        "max" * 2,
    ]
)
GRAMMAR = st.text(alphabet="D0123456789+-*/(), maxin", max_size=70)


@given(HOSTILE | GRAMMAR | st.text(max_size=70))
@example("max(D,\n D)")
@example("\ud800")
def test_any_text_is_a_bounded_size_or_a_blueprint_error(text: str) -> None:
    try:
        value = evaluate_size(text, D)
    except BlueprintError:
        return
    assert type(value) is int
    assert 1 <= value <= MAX_SIZE


@given(st.integers(1, 1024), st.integers(1, 1024))
def test_the_grammar_computes_what_python_computes(features: int, number: int) -> None:
    text = f"max(1, min(D*{number}, D//{number} + {number}))"
    expected = max(1, min(features * number, features // number + number))
    assert evaluate_size(text, {"D": features}) == expected
