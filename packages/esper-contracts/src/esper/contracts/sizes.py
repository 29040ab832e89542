"""Symbolic sizes in blueprints: `D`, `4*D`, `D//4`, `max(1, D//4)`.

A blueprint is shape-generic; the forge evaluates its sizes against the numbers of a concrete signature.
Parsed with Python's own grammar, restricted to integers, the symbols, `+ - * //`, `min`, `max`.
"""

import ast
from collections.abc import Callable, Mapping

from esper.contracts.errors import BlueprintError

SYMBOLS: frozenset[str] = frozenset({"D", "I"})
"""`D`: the number of features or channels at the site. `I`: of those that the block reads, which are others
than `D` only for a widening."""

MAX_SIZE = 1 << 20
"""Upper bound of an evaluated size: a typo such as `D*D*D` must not allocate the machine away."""

_BINARY: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: int.__add__,
    ast.Sub: int.__sub__,
    ast.Mult: int.__mul__,
    ast.FloorDiv: int.__floordiv__,
}
_FUNCTIONS: Mapping[str, Callable[..., int]] = {"min": min, "max": max}


def evaluate_size(size: int | str, symbols: Mapping[str, int]) -> int:
    """Evaluate a size expression to a positive integer.

    Raises:
        BlueprintError: if it does not parse, uses anything but the allowed grammar, or is not
            between 1 and `MAX_SIZE`.

    """
    value = size if isinstance(size, int) else _evaluate_text(size, symbols)
    if not 1 <= value <= MAX_SIZE:
        raise BlueprintError(
            f"size {size!r} is {value} for {dict(symbols)}; expected 1 to {MAX_SIZE}; "
            "bound it, for example max(1, D//4)"
        )
    return value


def _evaluate_text(text: str, symbols: Mapping[str, int]) -> int:
    if len(text) > 64:
        raise BlueprintError(f"size expression of {len(text)} characters; expected at most 64")
    try:
        return _evaluate(ast.parse(text, mode="eval").body, symbols)
    except (SyntaxError, UnicodeError, ArithmeticError, _UnsupportedError) as error:
        raise BlueprintError(
            f"size {text!r} cannot be evaluated ({error}); expected integers, D, I, + - * //, "
            "min(…) and max(…), for example max(1, D//4)"
        ) from error


class _UnsupportedError(Exception):
    """The expression leaves the allowed grammar."""


def _evaluate(node: ast.expr, symbols: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name) if name in symbols:
            return symbols[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_evaluate(left, symbols), _evaluate(right, symbols))
        case ast.Call(func=ast.Name(id=name), args=[_, _, *_] as args, keywords=[]) if (
            name in _FUNCTIONS
        ):
            return _FUNCTIONS[name](*(_evaluate(arg, symbols) for arg in args))
        case _:
            raise _UnsupportedError(f"{ast.unparse(node)!r} is not allowed")
