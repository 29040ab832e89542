"""The code behind the operators of blueprints, and the door through which users add their own.

`kernels` asks `make_layer` for the module of each node, on the meta device, and `initialise_layer` to
set its weights; operators without weights or options are plain functions in `FUNCTIONS`.

Shapes: `B` batch, `T` tokens, `D` features, `W` the width of a node's input (features at its axis).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, cast, override

import torch
from torch import Tensor, nn

from esper.contracts import (
    OPERATORS,
    BlueprintError,
    BlueprintIR,
    KernelSignature,
    OperatorNode,
    OperatorSpec,
    Parameter,
    SiteKind,
    add_operator,
    evaluate_size,
    remove_operator,
)
from esper.contracts.words import type_of

FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "add": torch.add,
    "multiply": torch.mul,
    "subtract": torch.sub,
}
"""Operators without weights; the others are modules made by `make_layer`."""

_CONVOLUTIONS: Mapping[str, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}


@dataclass(frozen=True, kw_only=True)
class LayerContext:
    """What a factory needs to know to make the layer of one node."""

    op: str
    kind: SiteKind
    """The kind of the design: `is_channels` tells which axis holds the features, 1 or the last."""
    width: int
    """`W`: features of the node's first input."""
    sizes: Mapping[str, int]
    """The node's sizes, evaluated for the site's `D` and `I`."""
    options: Mapping[str, Parameter]
    """The node's options, defaults filled in."""
    dtype: torch.dtype


type Factory = Callable[[LayerContext], nn.Module]
"""Makes the layer of one node; called on the meta device, where nothing is allocated or drawn."""

type Initialiser = Callable[[nn.Module, torch.Generator, LayerContext], None]
"""Sets every parameter and buffer of a layer in place, drawing from the generator only."""


def register_operator(
    op: str,
    *,
    arity: int = 1,
    kinds: frozenset[SiteKind] | set[SiteKind],
    factory: Factory,
    sizes: frozenset[str] | set[str] = frozenset(),
    options: Mapping[str, tuple[Parameter, ...]] | None = None,
    initialise: Initialiser | None = None,
) -> None:
    """Let the blueprints of this process use the operator `op`, named `name@version`.

    `factory` returns a module that takes `arity` tensors and returns one. It must work for any batch
    and any number of positions, let no row of a batch see another, draw no random numbers, treat
    tokens alone in designs for `FEATURES`, and not look ahead in those for `CAUSAL_SEQUENCE`; the
    crucible measures all of this. It is called under `torch.device("meta")`, so constants belong
    into `forward` or into buffers that `initialise` sets. `sizes` are parameters like `out` that a
    node must give as symbolic sizes; `options` are optional ones with their legal values, the first
    being the default. Without `initialise`, linear layers, convolutions and norms in the module are
    initialised as built-in ones are; with an option `init="zeros"` the last of them is set to zero.

    Bytes of kernels and hashes of blueprints name an operator and its version, never its code. Give
    another implementation another version: then designs and kernels made with the old one are told
    apart from it, and are refused by name where only the new one is registered. Each process that
    builds, judges or runs such kernels has to register the operator itself; an installed package
    does so in all of them by an entry point in the group `esper.operators` that names a function
    without arguments, which is called when an operator is missing.

    Raises:
        BlueprintError: if the name is malformed or taken, or the description makes no sense.

    """
    spec = OperatorSpec(
        arity=arity, kinds=frozenset(kinds), sizes=frozenset(sizes), options=dict(options or {})
    )
    add_operator(op, spec)
    _CUSTOM[op] = (factory, initialise or _initialise_known_layers)


def unregister_operator(op: str) -> None:
    """Take a registered operator away again; blocks that were built with it go on working.

    Raises:
        BlueprintError: if there is none of that name.

    """
    remove_operator(op)
    del _CUSTOM[op]


_CUSTOM: dict[str, tuple[Factory, Initialiser]] = {}

ENTRY_POINTS = "esper.operators"


def missing_operators(ir: BlueprintIR) -> tuple[str, ...]:
    """Return the operators of `ir` that neither this process nor an installed package registers.

    Raises:
        BlueprintError: if an installed package fails to register its operators.

    """
    if ir.unknown_operators:
        _register_installed()
    return ir.unknown_operators


@cache
def _register_installed() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise BlueprintError(
                f"the installed operators {entry.name!r} ({entry.value}) cannot be registered: "
                f"{error}; repair or uninstall that package"
            ) from error


def implementation_of(op: str) -> object:
    """Return what stands behind `op` now: a cache is stale once this is another object."""
    return _CUSTOM.get(op)


def context_of(
    node: OperatorNode, signature: KernelSignature, width: int, dtype: torch.dtype
) -> LayerContext:
    """Return what the factory of `node` is told, at a site of this signature.

    Raises:
        BlueprintError: if a size is out of bounds.

    """
    spec = OPERATORS[node.op]
    symbols = {"D": signature.features, "I": signature.width_read}
    sizes = {
        name: evaluate_size(cast("int | str", node.params[name]), symbols) for name in spec.sizes
    }
    options = {name: node.params.get(name, legal[0]) for name, legal in spec.options.items()}
    return LayerContext(
        op=node.op, kind=signature.kind, width=width, sizes=sizes, options=options, dtype=dtype
    )


def make_layer(context: LayerContext) -> nn.Module:
    """Return the layer of one node on the meta device."""
    with torch.device("meta"):
        custom = _CUSTOM.get(context.op)
        if custom is None:
            return _make_builtin(context)
        layer = cast("object", custom[0](context))
    if not isinstance(layer, nn.Module):
        raise BlueprintError(
            f"the factory of {context.op} returned {type_of(layer)}; expected an nn.Module"
        )
    return layer.to(context.dtype)


def initialise_layer(layer: nn.Module, generator: torch.Generator, context: LayerContext) -> None:
    """Set every weight of `layer` in place."""
    custom = _CUSTOM.get(context.op)
    (custom[1] if custom is not None else _initialise_known_layers)(layer, generator, context)


class ChannelNorm(nn.GroupNorm):
    """A group norm that takes a single value too: one row of one channel at one position."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Return `input` `(B, D, …)` normalised over each row."""
        # nn.functional.group_norm raises for a single value, which it would only make zero.
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class GlobalMean(nn.Module):
    """Averages over positions and keeps their axes: `(B, D, H, W) → (B, D, 1, 1)`, for example."""

    def __init__(self, kind: SiteKind) -> None:
        super().__init__()
        self._axes = tuple(range(2, kind.num_dims)) if kind.is_channels else (1,)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return the mean, with every position axis of extent 1."""
        return x.mean(dim=self._axes, keepdim=True)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention over tokens (Vaswani et al. 2017), without dropout.

    `causal` hides later tokens from earlier ones.
    """

    def __init__(self, context: LayerContext, *, causal: bool) -> None:
        super().__init__()
        width, bias = context.width, bool(context.options["bias"])
        wanted = cast("int", context.options["heads"])
        self._num_heads = next(n for n in range(min(wanted, width), 0, -1) if width % n == 0)
        self._causal = causal
        self.qkv = nn.Linear(width, 3 * width, bias=bias, dtype=context.dtype)
        self.out = nn.Linear(width, context.sizes["out"], bias=bias, dtype=context.dtype)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of `x` `(B, T, W)` into `(B, T, out)`."""
        split = self.qkv(x).unflatten(-1, (3, self._num_heads, -1))  # (B, T, 3, heads, W / heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, W / heads)
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=self._causal
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class TokenConv(nn.Module):
    """A depthwise convolution over tokens: each feature mixes its own values near a token.

    `causal` pads on the left only, so that a token sees itself and earlier ones.
    """

    def __init__(self, context: LayerContext, *, causal: bool) -> None:
        super().__init__()
        kernel_size = cast("int", context.options["kernel_size"])
        dilation = cast("int", context.options["dilation"])
        reach = dilation * (kernel_size - 1)
        self._past = reach if causal else 0
        self.conv = nn.Conv1d(
            context.width,
            context.width,
            kernel_size,
            padding=0 if causal else reach // 2,
            dilation=dilation,
            groups=context.width,
            bias=bool(context.options["bias"]),
            dtype=context.dtype,
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of `x` `(B, T, W)` into `(B, T, W)`."""
        rows = x.transpose(1, 2)  # (B, W, T)
        if self._past:
            rows = nn.functional.pad(rows, (self._past, 0))
        return self.conv(rows).transpose(1, 2)


def _make_builtin(context: LayerContext) -> nn.Module:
    width, options = context.width, context.options
    match context.op:
        case "layer_norm":
            return nn.LayerNorm(width, dtype=context.dtype)
        case "channel_norm":
            return ChannelNorm(1, width, dtype=context.dtype)
        case "global_mean":
            return GlobalMean(context.kind)
        case "self_attention" | "causal_attention":
            return SelfAttention(context, causal=context.op == "causal_attention")
        case "token_conv" | "causal_token_conv":
            return TokenConv(context, causal=context.op == "causal_token_conv")
        case "linear":
            bias = bool(options["bias"])
            return nn.Linear(width, context.sizes["out"], bias=bias, dtype=context.dtype)
        case _:
            return _make_convolution(context)


def _make_convolution(context: LayerContext) -> nn.Module:
    options = cast("Mapping[str, Any]", context.options)
    dilation, kernel_size = options["dilation"], options["kernel_size"]
    return _CONVOLUTIONS[context.op](
        context.width,
        context.sizes["out"],
        kernel_size,
        padding=dilation * (kernel_size - 1) // 2,
        dilation=dilation,
        groups=context.width if options["depthwise"] else 1,
        bias=options["bias"],
        dtype=context.dtype,
    )


_Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_Norm = nn.LayerNorm | nn.GroupNorm


def _initialise_known_layers(
    layer: nn.Module, generator: torch.Generator, context: LayerContext
) -> None:
    """Set norms to 1 and 0, draw linear layers and convolutions, or zero the last where asked."""
    parts = list(cast("Iterable[tuple[str, nn.Module]]", layer.named_modules()))
    weighted = [part for _, part in parts if isinstance(part, _Weighted)]
    for name, part in parts:
        if isinstance(part, _Norm):
            for kind, parameter in part.named_parameters():
                parameter.fill_(1 if kind == "weight" else 0)
        elif isinstance(part, _Weighted):
            if context.options.get("init") == "zeros" and part is weighted[-1]:
                for parameter in part.parameters():
                    parameter.zero_()
            else:
                _draw(part, generator)
        elif own := [
            *part.named_parameters(recurse=False),
            *part.named_buffers(recurse=False),
        ]:
            where = f"{name}.{own[0][0]}" if name else own[0][0]
            raise BlueprintError(
                f"nothing is known about how {where} of {context.op} ({type(part).__name__}) is to be "
                "initialised; give register_operator an initialise function"
            )


def _draw(layer: _Weighted, generator: torch.Generator) -> None:
    fan_in = layer.weight[0].numel()
    bounds = {"weight": math.sqrt(3.0 / fan_in), "bias": 1.0 / math.sqrt(fan_in)}
    for name, parameter in layer.named_parameters():
        drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        parameter.copy_(drawn.uniform_(-bounds[name], bounds[name], generator=generator))
