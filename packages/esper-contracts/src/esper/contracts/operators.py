"""The operators that a blueprint may use: what each takes, and on which kinds of sites it works.

`blueprints` checks designs against this table; the seed layer has the code behind each name. Nothing
here imports torch, so a library or a bus can carry designs without being able to run them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from esper.contracts.enums import SiteKind
from esper.contracts.errors import BlueprintError

type Parameter = int | str | bool
"""A node's parameter: a number, a symbolic size, a flag, or the name of an initialisation."""


@dataclass(frozen=True, kw_only=True)
class OperatorSpec:
    """What an allow-listed operator takes."""

    arity: int
    kinds: frozenset[SiteKind]
    """The kinds of designs that may use it."""
    sizes: frozenset[str] = frozenset()
    """Parameters that are symbolic sizes and must be given."""
    options: Mapping[str, tuple[Parameter, ...]] = MappingProxyType({})
    """Optional parameters and their legal values; the first is the default."""


_ALL = frozenset(SiteKind)
_CHANNELS = frozenset(kind for kind in SiteKind if kind.is_channels)
_ROWS = _ALL - _CHANNELS
"""Kinds whose last axis holds the features: what works on each row alone works on tokens too."""
_TOKENS = frozenset({SiteKind.SEQUENCE})
_PAST_TOKENS = frozenset({SiteKind.SEQUENCE, SiteKind.CAUSAL_SEQUENCE})

_LAYER: dict[str, tuple[Parameter, ...]] = {"init": ("kaiming", "zeros"), "bias": (True, False)}
_CONVOLUTION: dict[str, tuple[Parameter, ...]] = _LAYER | {
    "kernel_size": (3, 1, 5, 7),
    "dilation": (1, 2, 3, 4),
    "depthwise": (False, True),
}
_ATTENTION: dict[str, tuple[Parameter, ...]] = _LAYER | {"heads": (4, 1, 2, 8, 16)}
_TOKEN_CONVOLUTION: dict[str, tuple[Parameter, ...]] = _LAYER | {
    "kernel_size": (7, 3, 5, 15),
    "dilation": (1, 2, 4),
}


def _layer(
    kinds: frozenset[SiteKind], options: Mapping[str, tuple[Parameter, ...]]
) -> OperatorSpec:
    return OperatorSpec(arity=1, kinds=kinds, sizes=frozenset({"out"}), options=options)


_SPECS: dict[str, OperatorSpec] = {
    "linear": _layer(_ROWS, _LAYER),
    "conv2d": _layer(frozenset({SiteKind.CHANNELS_2D}), _CONVOLUTION),
    "conv1d": _layer(frozenset({SiteKind.CHANNELS_1D}), _CONVOLUTION),
    "conv3d": _layer(frozenset({SiteKind.CHANNELS_3D}), _CONVOLUTION),
    "layer_norm": OperatorSpec(arity=1, kinds=_ROWS),
    "channel_norm": OperatorSpec(arity=1, kinds=_CHANNELS),
    "global_mean": OperatorSpec(arity=1, kinds=_CHANNELS | _TOKENS),
    "self_attention": _layer(_TOKENS, _ATTENTION),
    "causal_attention": _layer(_PAST_TOKENS, _ATTENTION),
    "token_conv": OperatorSpec(arity=1, kinds=_TOKENS, options=_TOKEN_CONVOLUTION),
    "causal_token_conv": OperatorSpec(arity=1, kinds=_PAST_TOKENS, options=_TOKEN_CONVOLUTION),
    "relu": OperatorSpec(arity=1, kinds=_ALL),
    "gelu": OperatorSpec(arity=1, kinds=_ALL),
    "silu": OperatorSpec(arity=1, kinds=_ALL),
    "sigmoid": OperatorSpec(arity=1, kinds=_ALL),
    "tanh": OperatorSpec(arity=1, kinds=_ALL),
    "add": OperatorSpec(arity=2, kinds=_ALL),
    "subtract": OperatorSpec(arity=2, kinds=_ALL),
    "multiply": OperatorSpec(arity=2, kinds=_ALL),
}

OPERATORS: Mapping[str, OperatorSpec] = MappingProxyType(_SPECS)
"""The operators that a blueprint may use in this process, registered ones included.

- `linear` mixes the features of each row. `conv1d/2d/3d` pad to keep every extent; `kernel_size` 1
  is pointwise mixing.
- `layer_norm` normalises each row; `channel_norm` is a group norm with one group.
- `global_mean` averages over all positions and keeps them as axes of extent 1, so that `multiply`
  and `add` broadcast: the squeeze of squeeze-and-excite.
- `self_attention` is scaled dot-product attention with projections of its own (Vaswani et al. 2017);
  `heads` is lowered to the largest divisor of the width. `token_conv` is a depthwise convolution over
  the tokens. The `causal_` ones see only the token itself and earlier ones, and no other operator
  that mixes tokens works on `CAUSAL_SEQUENCE`, so a design of that kind can only be causal. There are
  no masks: tokens that only pad a sequence are tokens like the others.
- `multiply`, `add` and `subtract` (the first less the second) take two values that broadcast against
  each other.

No operator draws random numbers, and none lets one row of a batch see another.
"""

CUSTOM_OPERATOR = re.compile(r"[a-z][a-z0-9_]{0,31}@[a-z0-9][a-z0-9._-]{0,15}")
"""Names of registered operators: `name@version`. Built-in ones have no version."""


def is_custom(op: str) -> bool:
    """Tell whether `op` is the name of an operator that somebody registered, here or elsewhere."""
    return CUSTOM_OPERATOR.fullmatch(op) is not None


def add_operator(op: str, spec: OperatorSpec) -> None:
    """Allow `op` (`name@version`) in the blueprints of this process.

    Raises:
        BlueprintError: if the name is malformed or taken, or the specification makes no sense.

    """
    if not is_custom(op):
        raise BlueprintError(
            f"operator {op!r}: expected name@version, for example 'fourier_mix@1' (lower-case letters, "
            "digits and underscores; the version may also have dots and dashes)"
        )
    if op in _SPECS:
        raise BlueprintError(
            f"operator {op!r} is already registered; give another implementation another version, "
            "or unregister the old one first"
        )
    if spec.arity < 1 or not spec.kinds:
        raise BlueprintError(
            f"operator {op!r} has arity {spec.arity} and works on {len(spec.kinds)} kinds of sites; "
            "expected at least one of each"
        )
    if clash := spec.sizes & spec.options.keys():
        raise BlueprintError(f"operator {op!r}: {sorted(clash)} is both a size and an option")
    if empty := [name for name, legal in spec.options.items() if not legal]:
        raise BlueprintError(
            f"operator {op!r}: {empty} has no legal value; list them, the default first"
        )
    _SPECS[op] = spec


def remove_operator(op: str) -> None:
    """Take a registered operator away again.

    Raises:
        BlueprintError: if there is none of that name, or it is a built-in one.

    """
    if not is_custom(op) or op not in _SPECS:
        registered = ", ".join(name for name in _SPECS if is_custom(name)) or "none"
        raise BlueprintError(f"operator {op!r} is not registered here; registered: {registered}")
    del _SPECS[op]
