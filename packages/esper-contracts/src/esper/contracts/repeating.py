"""Deeper designs from a design: several of its blocks in a row, as residual networks have them."""

from esper.contracts.blueprints import INPUT, BlueprintIR, OperatorNode
from esper.contracts.errors import BlueprintError

MAX_NODES = 64
"""Of one design."""


def repeat(ir: BlueprintIR, times: int) -> BlueprintIR:
    """Return the design of `times` blocks of `ir` in a row, each with weights of its own.

    With `h_0 = input` and `h_i = h_{i-1} + f_i(h_{i-1})` it computes `h_times - input`, summed from the
    parts: what is the identity at birth stays it. `times=1` returns `ir` itself.

    Raises:
        BlueprintError: if `times` is below 1, the design would be too large, or it widens a layer and
            `times` is above 1.

    """
    if times < 1:
        raise BlueprintError(f"times={times}; expected at least 1")
    if times == 1:
        return ir
    if ir.widens:
        raise BlueprintError(
            f"{ir.name!r} widens a layer, and what is wide cannot be put in a row; use a larger design, or "
            "several seeds in a row (depth)"
        )
    num_nodes = times * len(ir.nodes) + 2 * (times - 1)
    if num_nodes > MAX_NODES:
        raise BlueprintError(
            f"{times} times {ir.name!r} has {num_nodes} nodes; a design has at most {MAX_NODES}"
        )
    nodes: list[OperatorNode] = []
    before, total = INPUT, ""
    for number in range(times):
        prefix = f"b{number}_"
        nodes += [_renamed(node, prefix, before) for node in ir.nodes]
        part = nodes[-1].name
        if number == 0:
            total = part
        else:
            nodes.append(OperatorNode(name=f"sum{number}", op="add", inputs=(total, part)))
            total = f"sum{number}"
        if number < times - 1:
            nodes.append(OperatorNode(name=f"h{number}", op="add", inputs=(INPUT, total)))
            before = f"h{number}"
    return BlueprintIR(
        name=f"{ir.name}_x{times}",
        description=f"{times} in a row: {ir.description}"[:500],
        kind=ir.kind,
        nodes=tuple(nodes),
    )


def _renamed(node: OperatorNode, prefix: str, before: str) -> OperatorNode:
    """Return the node for one of the blocks, whose input is the value `before`."""
    inputs = tuple(before if name == INPUT else prefix + name for name in node.inputs)
    like = None if node.like is None else prefix + node.like
    return OperatorNode(
        name=prefix + node.name, op=node.op, inputs=inputs, params=node.params, like=like
    )
