"""Blueprints: declarative, shape-generic designs of blocks that may be grafted.

A user or the built-in library writes a `BlueprintIR` (JSON); Urza files it as a `Blueprint` under the
hash of its content; Tezzeret builds kernels from it. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from esper.contracts.base import (
    Contract,
    Sha256,
    UtcDatetime,
    canonical_json,
    sha256_hex,
    utc_now,
)
from esper.contracts.enums import BlueprintStatus, SiteKind
from esper.contracts.sizes import SYMBOLS, evaluate_size

INPUT = "input"
"""The name by which nodes refer to the features at the site."""

type Parameter = int | str | bool
"""A node's parameter: a number, a symbolic size, a flag, or the name of an initialisation."""


@dataclass(frozen=True, kw_only=True)
class OperatorSpec:
    """What an allow-listed operator takes."""

    arity: int
    kinds: frozenset[SiteKind]
    sizes: frozenset[str] = frozenset()
    """Parameters that are symbolic sizes and must be given."""
    options: Mapping[str, tuple[Parameter, ...]] = MappingProxyType({})
    """Optional parameters and their legal values; the first is the default."""


_BOTH = frozenset(SiteKind)
_FEATURES = frozenset({SiteKind.FEATURES})
_CHANNELS = frozenset({SiteKind.CHANNELS_2D})
_INIT: tuple[Parameter, ...] = ("kaiming", "zeros")
_BIAS: tuple[Parameter, ...] = (True, False)

OPERATORS: Mapping[str, OperatorSpec] = MappingProxyType(
    {
        "linear": OperatorSpec(
            arity=1,
            kinds=_FEATURES,
            sizes=frozenset({"out"}),
            options={"init": _INIT, "bias": _BIAS},
        ),
        "conv2d": OperatorSpec(
            arity=1,
            kinds=_CHANNELS,
            sizes=frozenset({"out"}),
            options={
                "init": _INIT,
                "bias": _BIAS,
                "kernel_size": (3, 1, 5, 7),
                "dilation": (1, 2, 3, 4),
                "depthwise": (False, True),
            },
        ),
        "layer_norm": OperatorSpec(arity=1, kinds=_FEATURES),
        "channel_norm": OperatorSpec(arity=1, kinds=_CHANNELS),
        "relu": OperatorSpec(arity=1, kinds=_BOTH),
        "gelu": OperatorSpec(arity=1, kinds=_BOTH),
        "silu": OperatorSpec(arity=1, kinds=_BOTH),
        "sigmoid": OperatorSpec(arity=1, kinds=_BOTH),
        "tanh": OperatorSpec(arity=1, kinds=_BOTH),
        "add": OperatorSpec(arity=2, kinds=_BOTH),
        "multiply": OperatorSpec(arity=2, kinds=_BOTH),
    }
)
"""The operators that a blueprint may use. `conv2d` pads to keep height and width; `channel_norm` is a
group norm with one group."""


class OperatorNode(Contract):
    """One step of a blueprint: an operator applied to earlier values."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    op: str
    inputs: tuple[str, ...]
    params: dict[str, Parameter] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_operator(self) -> Self:
        spec = OPERATORS.get(self.op)
        if spec is None:
            raise ValueError(
                f"node {self.name!r} uses operator {self.op!r}; allowed: {', '.join(OPERATORS)}"
            )
        if len(self.inputs) != spec.arity:
            raise ValueError(
                f"node {self.name!r}: {self.op} takes {spec.arity} inputs, got {len(self.inputs)}"
            )
        known = spec.sizes | spec.options.keys()
        if unknown := self.params.keys() - known:
            raise ValueError(
                f"node {self.name!r}: {self.op} has no parameter {sorted(unknown)}; "
                f"it has {sorted(known)}"
            )
        for size in sorted(spec.sizes):
            value = self.params.get(size)
            if value is None or isinstance(value, bool):
                raise ValueError(f"node {self.name!r}: {self.op} needs the size {size!r}")
            evaluate_size(value, dict.fromkeys(SYMBOLS, 64))
        for option, legal in spec.options.items():
            value = self.params.get(option, legal[0])
            if not any(value == choice and type(value) is type(choice) for choice in legal):
                raise ValueError(
                    f"node {self.name!r}: {option}={value!r}; expected one of {list(legal)}"
                )
        return self


class BlueprintIR(Contract):
    """A block `f` with `f: (B, …, D) → (B, …, D)` or `(B, D, H, W) → (B, D, H, W)`, as a small graph.

    Nodes are in order of evaluation; the last one is the output. The graft adds it to the host's
    features as `h + alpha * f(h)`. A block is the identity at birth when its last layer has
    `init="zeros"`; the crucible measures that and rejects others.
    """

    ir_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    description: str = Field(default="", max_length=500)
    kind: SiteKind
    nodes: tuple[OperatorNode, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _check_graph(self) -> Self:
        seen = {INPUT}
        for node in self.nodes:
            if node.name in seen:
                raise ValueError(f"two values are called {node.name!r}; names must be unique")
            if missing := [name for name in node.inputs if name not in seen]:
                raise ValueError(
                    f"node {node.name!r} reads {missing}; it may read {sorted(seen)} "
                    "(values of earlier nodes)"
                )
            if self.kind not in OPERATORS[node.op].kinds:
                raise ValueError(
                    f"node {node.name!r}: {node.op} does not work on {self.kind.value} sites"
                )
            seen.add(node.name)
        return self

    def content_hash(self) -> str:
        """Return the sha256 of the canonical JSON: the blueprint's id."""
        return sha256_hex(canonical_json(self))


class Blueprint(Contract):
    """A blueprint as the library files it; equal designs have equal ids."""

    blueprint_id: Sha256
    ir: BlueprintIR
    status: BlueprintStatus = BlueprintStatus.SUBMITTED
    created_at: UtcDatetime = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _check_id(self) -> Self:
        if self.blueprint_id != self.ir.content_hash():
            raise ValueError("blueprint_id is not the hash of the IR; use Blueprint.from_ir")
        return self

    @classmethod
    def from_ir(cls, ir: BlueprintIR) -> Self:
        """File `ir` under the hash of its content."""
        return cls(blueprint_id=ir.content_hash(), ir=ir)
