"""Where a grown model comes from: the graph from a run to what it tried, and to whose work that was.

A run has outcomes (one for each adaptation); each used a kernel, which was built from a blueprint, judged in
a report and endorsed with a key. Made from the port alone, so that any library will do.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from esper.contracts import (
    CompiledKernelArtifact,
    Contract,
    FieldReport,
    Library,
    NotFoundError,
    SeedState,
    ValidatorKey,
)

type Kind = Literal["run", "outcome", "kernel", "blueprint", "report", "key", "missing"]


class Node(Contract):
    """A record, or one that should be there."""

    node_id: str
    """Its kind and its id; unique in the graph."""
    kind: Kind
    label: str
    """For people: a few words."""
    facts: Mapping[str, str | int | float | None]
    """What it says, by name."""


class Edge(Contract):
    """How one record refers to another."""

    source: str
    target: str
    relation: Literal["tried", "used", "built from", "judged in", "endorsed with"]


class Lineage(Contract):
    """A graph without cycles; whatever a node refers to comes after it."""

    root: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def children(self, node_id: str) -> list[tuple[str, Node]]:
        """Return what a node refers to, with the relations, in order."""
        by_id = {node.node_id: node for node in self.nodes}
        return [
            (edge.relation, by_id[edge.target]) for edge in self.edges if edge.source == node_id
        ]


def of_run(library: Library, run_id: str) -> Lineage:
    """Return the lineage of what a run has grown. Raises `NotFoundError` if it left no outcome."""
    outcomes = library.field_reports(run_id)
    if not outcomes:
        raise NotFoundError(
            f"run {run_id!r} has no outcome in the library: nothing was tried, or not here"
        )
    builder = _Builder(library)
    kept = [each for each in outcomes if each.outcome is SeedState.FOSSILIZED]
    facts = {
        "outcomes": len(outcomes),
        "kept": len(kept),
        "parameters_added": sum(each.parameters_added for each in kept),
    }
    root = builder.add("run", run_id, f"run {run_id}", facts)
    for outcome in outcomes:
        builder.link(root, builder.add_outcome(outcome), "tried")
    return builder.lineage(root)


def of_kernel(library: Library, kernel_id: str) -> Lineage:
    """Return the lineage of a kernel. Raises `NotFoundError`."""
    library.get_kernel(kernel_id)
    builder = _Builder(library)
    return builder.lineage(builder.add_kernel(kernel_id))


def of_blueprint(library: Library, blueprint_id: str) -> Lineage:
    """Return a blueprint as a graph of one node. Raises `NotFoundError`."""
    library.get_blueprint(blueprint_id)
    builder = _Builder(library)
    return builder.lineage(builder.add_blueprint(blueprint_id))


class _Builder:
    def __init__(self, library: Library) -> None:
        self._library = library
        self._keys: Sequence[ValidatorKey] | None = None
        self._nodes: dict[str, Node] = {}
        self._edges: dict[Edge, None] = {}

    def lineage(self, root: str) -> Lineage:
        return Lineage(root=root, nodes=tuple(self._nodes.values()), edges=tuple(self._edges))

    def add(
        self, kind: Kind, record_id: str, label: str, facts: Mapping[str, str | int | float | None]
    ) -> str:
        node_id = f"{kind} {record_id}"
        self._nodes[node_id] = Node(node_id=node_id, kind=kind, label=label, facts=facts)
        return node_id

    def link(
        self,
        source: str,
        target: str,
        relation: Literal["tried", "used", "built from", "judged in", "endorsed with"],
    ) -> None:
        self._edges[Edge(source=source, target=target, relation=relation)] = None

    def add_outcome(self, outcome: FieldReport) -> str:
        facts = {
            "outcome": outcome.outcome.value,
            "site": outcome.site,
            "seed": f"{outcome.seed_id[0]},{outcome.seed_id[1]}",
            "epochs": f"{outcome.epoch_started}-{outcome.epoch_ended}",
            "parameters_added": outcome.parameters_added,
            "loss_with": _finite(outcome.loss_with),
            "loss_without": _finite(outcome.loss_without),
            "reason": outcome.reason,
        }
        label = f"{outcome.blueprint_name} at {outcome.site}"
        node = self.add("outcome", outcome.report_id, label, facts)
        self.link(node, self.add_kernel(outcome.kernel_id, outcome.blueprint_name), "used")
        return node

    def add_kernel(self, kernel_id: str, name: str = "") -> str:
        if (node := f"kernel {kernel_id}") in self._nodes:
            return node
        try:
            kernel = self._library.get_kernel(kernel_id)
        except NotFoundError:
            label = f"{name or 'kernel'}, of another library"
            return self.add("missing", kernel_id, label, {"kernel_id": kernel_id})
        facts = {
            "kernel_id": kernel_id,
            "built_for": kernel.signature.key,
            "status": kernel.status.value,
            "parameters": kernel.num_parameters,
        }
        self.add("kernel", kernel_id, kernel.blueprint_name, facts)
        self.link(node, self.add_blueprint(kernel.blueprint_id), "built from")
        self._add_verdict(node, kernel)
        return node

    def _add_verdict(self, node: str, kernel: CompiledKernelArtifact) -> None:
        if kernel.report is not None:
            report = kernel.report
            facts = {
                "validator": report.validator_id,
                "measured_at": report.measured_at.isoformat(),
                "latency_us": report.latency_us,
                "flops": report.flops,
            }
            said = "passed" if report.passed else "did not pass"
            label = f"{said}, {report.latency_us:,.0f} µs"
            self.link(node, self.add("report", report.report_id, label, facts), "judged in")
        if kernel.endorsement is not None:
            key = self._add_key(kernel.endorsement.key_id)
            self.link(node, key, "endorsed with")

    def add_blueprint(self, blueprint_id: str) -> str:
        if (node := f"blueprint {blueprint_id}") in self._nodes:
            return node
        blueprint = self._library.get_blueprint(blueprint_id)
        facts = {
            "blueprint_id": blueprint_id,
            "status": blueprint.status.value,
            "description": blueprint.ir.description,
            "operators": ", ".join(each.op for each in blueprint.ir.nodes),
        }
        return self.add("blueprint", blueprint_id, blueprint.ir.name, facts)

    def _add_key(self, key_id: str) -> str:
        if self._keys is None:
            self._keys = self._library.validator_keys()
        found = next((key for key in self._keys if key.key_id == key_id), None)
        if found is None:
            return self.add("missing", key_id, "a key that is not on file", {"key_id": key_id})
        revoked = "" if found.revoked_at is None else ", revoked"
        facts = {"key_id": key_id, "enrolled_at": found.enrolled_at.isoformat()}
        return self.add("key", key_id, f"{found.name}{revoked}", facts)


def _finite(number: float | None) -> float | None:
    """Return what JSON can hold."""
    return number if number is not None and math.isfinite(number) else None
