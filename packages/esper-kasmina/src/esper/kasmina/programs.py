"""Reads off a `torch.export` program what goes in, what comes out, and what may vary."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterable, Iterator
from typing import Any, cast

from torch import Tensor, fx
from torch.export import ExportedProgram

from esper.kasmina.exported import AxisRecord, TensorRecord

_OWN_NAMESPACES = frozenset({"aten", "prims", "prim", "higher_order", "_c10d_functional"})
"""Operators that every torch has."""

_PLAIN = ("builtins.", "collections.")


def nodes_of(program: ExportedProgram) -> Iterator[fx.Node]:
    """Yield every node, those of graphs within the graph too."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def inputs_of(program: ExportedProgram) -> list[TensorRecord]:
    """Return the tensors that the program takes, in order."""
    return _records(program, program.graph_signature.user_inputs)


def outputs_of(program: ExportedProgram) -> list[TensorRecord]:
    """Return the tensors that the program returns, in order."""
    return _records(program, program.graph_signature.user_outputs)


def axes_of(program: ExportedProgram, example: Iterable[Tensor]) -> list[AxisRecord]:
    """Return the axes that may vary, each by itself; the example's extents count as tried."""
    own: dict[str, int] = {}
    for record, value in zip(inputs_of(program), example, strict=True):
        own |= {name: n for name, n in zip(record.shape, value.shape, strict=True) if name != n}  # pyright: ignore
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    return [
        AxisRecord(
            name=name,
            least=int(cast("Any", ranges[name].lower)),
            most=_finite(ranges[name].upper),
            tried=(extent,),
        )
        for name, extent in own.items()
        if name in ranges  # formulas of other axes are not
    ]


def requirements_of(program: ExportedProgram) -> list[str]:
    """Return what must be imported beside torch: namespaces of operators, types of containers."""
    targets = (node.target for node in nodes_of(program) if node.op == "call_function")
    namespaces = {str(getattr(target, "namespace", "aten")) for target in targets}
    spec = program.call_spec
    types = {*_types_in(spec.in_spec), *_types_in(spec.out_spec)}
    return sorted(namespaces - _OWN_NAMESPACES) + sorted(types)


def _records(program: ExportedProgram, names: Iterable[object]) -> list[TensorRecord]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    found = [(str(name), values.get(str(name))) for name in names]
    return [
        TensorRecord(
            name=name,
            dtype=str(value.dtype).removeprefix("torch."),
            shape=tuple(_extent(n) for n in value.shape),
        )
        for name, value in found
        if isinstance(value, Tensor)
    ]


def _extent(extent: object) -> int | str:
    # An extent that may vary is a torch.SymInt, which prints as the name of a symbol or a formula.
    return extent if isinstance(extent, int) else str(extent)


def _finite(bound: object) -> int | None:
    text = str(bound)
    return int(text) if text.isdecimal() else None


def _types_in(spec: Any) -> Iterator[str]:
    if spec is None or spec.is_leaf():
        return
    name = f"{spec.type.__module__}.{spec.type.__qualname__}"
    if not name.startswith(_PLAIN):
        yield name
    for child in spec.children():
        yield from _types_in(child)
