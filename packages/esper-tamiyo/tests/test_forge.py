"""What is forged for a bed: each design for every site that takes its kind, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from esper.contracts import (
    Blueprint,
    BlueprintIR,
    BlueprintSubmitted,
    KernelSignature,
    OperatorNode,
    SeedBed,
    Site,
    SiteKind,
)
from esper.tamiyo.forge import forge_kernels
from esper.tamiyo.runtime import Runtime


def design(kind: SiteKind) -> BlueprintIR:
    node = OperatorNode(name="act", op="gelu", inputs=("input",))
    return BlueprintIR(name=kind.value, kind=kind, nodes=(node,))


@dataclass
class Bed:
    """As much of a bed as the forge looks at."""

    sites: Sequence[Site]
    blueprints: Sequence[BlueprintIR] = tuple(design(kind) for kind in SiteKind)

    def trust(self, public_key: bytes) -> None:
        assert public_key == b"key"


@dataclass
class Recorder:
    """A runtime whose workers never answer, because nothing is waited for."""

    public_key: bytes = b"key"
    submitted: list[BlueprintIR] = field(default_factory=list[BlueprintIR])
    published: list[BlueprintSubmitted] = field(default_factory=list[BlueprintSubmitted])
    expected: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    @property
    def library(self) -> "Recorder":
        return self

    def submit_blueprint(self, ir: BlueprintIR) -> Blueprint:
        self.submitted.append(ir)
        return Blueprint.from_ir(ir)

    def publish(self, payload: BlueprintSubmitted) -> None:
        self.published.append(payload)

    def wait_for_kernels(self, expected: set[tuple[str, str]], *_: object) -> dict[Any, Any]:
        self.expected = expected
        return {}


def forged_for(*signatures: KernelSignature) -> dict[str, list[str]]:
    """Return the signatures' keys that each design was ordered for."""
    sites = [
        Site(layer_id=index, name=str(index), module_type="Layer", signature=signature)
        for index, signature in enumerate(signatures)
    ]
    recorder = Recorder()
    assert forge_kernels(cast("SeedBed", Bed(sites)), cast("Runtime", recorder)) == []
    ids = {Blueprint.from_ir(ir).blueprint_id: ir.name for ir in recorder.submitted}
    ordered = {
        ids[message.blueprint_id]: [signature.key for signature in message.signatures]
        for message in recorder.published
    }
    pairs = {
        (message.blueprint_id, signature.key)
        for message in recorder.published
        for signature in message.signatures
    }
    assert recorder.expected == pairs
    return ordered


def signature(kind: SiteKind, features: int = 8) -> KernelSignature:
    return KernelSignature(kind=kind, features=features)


@pytest.mark.parametrize("kind", SiteKind)
def test_each_design_is_built_for_its_own_kind_where_a_site_takes_it(kind: SiteKind) -> None:
    expected = {taken.value: [f"{taken.value}-8-float32-cpu"] for taken in kind.takes}
    assert forged_for(signature(kind)) == expected


def test_sites_that_call_for_the_same_kernel_share_it() -> None:
    ordered = forged_for(
        signature(SiteKind.FEATURES),
        signature(SiteKind.SEQUENCE),
        signature(SiteKind.CAUSAL_SEQUENCE),
        signature(SiteKind.FEATURES, 16),
    )
    assert ordered == {
        "features": ["features-16-float32-cpu", "features-8-float32-cpu"],
        "causal_sequence": ["causal_sequence-8-float32-cpu"],
        "sequence": ["sequence-8-float32-cpu"],
    }
