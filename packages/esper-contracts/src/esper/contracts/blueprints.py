"""Blueprints: declarative, shape-generic designs of blocks that may be grafted.

A user or the built-in library writes a `BlueprintIR` (JSON); Urza files it as a `Blueprint` under the
hash of its content; Tezzeret builds kernels from it. Nothing here imports torch.
"""

from collections.abc import Mapping
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
from esper.contracts.kernels import KernelSignature
from esper.contracts.operators import OPERATORS, Parameter, is_custom
from esper.contracts.sizes import SYMBOLS, evaluate_size

INPUT = "input"
"""The name by which nodes refer to the features at the site."""


class OperatorNode(Contract):
    """One step of a blueprint: an operator applied to earlier values.

    An operator `name@version` that is not registered in this process is taken as it stands: only
    where it is registered can its parameters be checked, and only there can the design be built.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    op: str
    inputs: tuple[str, ...]
    params: dict[str, Parameter] = Field(default_factory=dict)
    like: str | None = Field(default=None, exclude_if=lambda like: like is None)
    """An earlier node of the same operator and parameters whose weights it is born with: a branch that is
    subtracted from its like is the identity at birth, and every weight has a gradient from the first step
    on, as none before a layer of zeros has (Chizat et al. 2019, "On Lazy Training in Differentiable
    Programming"). Left out of JSON where there is none."""

    @model_validator(mode="after")
    def _check_operator(self) -> Self:
        spec = OPERATORS.get(self.op)
        if spec is None:
            if is_custom(self.op):
                return self  # a library may carry what it cannot run; building it is refused
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
    """A block `f` whose output has the shape of the features at a site of its kind, as a small graph.

    Nodes are in order of evaluation; the last one is the output. The graft adds it to the host's
    features as `h + alpha * f(h)`, that of a widening as `h + alpha * f(x)`. A block is the identity at
    birth when its last layer has `init="zeros"`, or when it is the difference of two branches that are born
    alike (`OperatorNode.like`); the crucible measures that and rejects others.
    """

    ir_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    description: str = Field(default="", max_length=500)
    kind: SiteKind
    widens: bool = Field(default=False, exclude_if=lambda widens: not widens)
    """Whether it reads what an earlier layer gets, `x` with `I` features, instead of the features `h` at its
    site: new units beside those of that layer. Left out of JSON where it does not."""
    nodes: tuple[OperatorNode, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _check_graph(self) -> Self:
        seen = {INPUT}
        earlier: dict[str, OperatorNode] = {}
        for node in self.nodes:
            if node.name in seen:
                raise ValueError(
                    f"node {node.name!r}: two values are called {node.name!r}; names must be unique"
                )
            if missing := [name for name in node.inputs if name not in seen]:
                raise ValueError(
                    f"node {node.name!r} reads {missing}; it may read {sorted(seen)} "
                    "(values of earlier nodes)"
                )
            spec = OPERATORS.get(node.op)
            if spec is not None and self.kind not in spec.kinds:
                allowed = [op for op, spec in OPERATORS.items() if self.kind in spec.kinds]
                raise ValueError(
                    f"node {node.name!r}: {node.op} does not work on {self.kind.value} sites; "
                    f"allowed there: {', '.join(allowed)}"
                )
            if node.like is not None:
                _check_like(node, earlier)
            seen.add(node.name)
            earlier[node.name] = node
        return self

    def fits(self, site: KernelSignature) -> bool:
        """Tell whether blocks of this design are for sites of the signature `site`."""
        return self.kind in site.kind.takes and self.widens == (site.inputs is not None)

    @property
    def num_hidden(self) -> int:
        """Layers of hidden units on the longest way from input to output: layers with a size but the last."""
        layers = {INPUT: 0}
        for node in self.nodes:
            spec = OPERATORS.get(node.op)
            is_sized = spec is not None and bool(spec.sizes)
            layers[node.name] = max(layers[name] for name in node.inputs) + is_sized
        return max(0, layers[self.nodes[-1].name] - 1)

    @property
    def unknown_operators(self) -> tuple[str, ...]:
        """Operators of this design that are not registered in this process, in order of use."""
        return tuple(dict.fromkeys(node.op for node in self.nodes if node.op not in OPERATORS))

    def content_hash(self) -> str:
        """Return the sha256 of the canonical JSON: the blueprint's id.

        It covers the names of operators, those of registered ones with their versions, and not the
        code behind them: whoever registers another implementation must give it another version.
        """
        return sha256_hex(canonical_json(self))


def _check_like(node: OperatorNode, earlier: Mapping[str, OperatorNode]) -> None:
    other = earlier.get(node.like or "")
    if other is None:
        raise ValueError(
            f"node {node.name!r} is to be born like {node.like!r}; expected an earlier node, one of "
            f"{sorted(earlier)}"
        )
    if (other.op, other.params) != (node.op, node.params):
        raise ValueError(
            f"node {node.name!r} is to be born like {node.like!r}, which is another layer: "
            f"{other.op} {other.params}, not {node.op} {node.params}"
        )


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
