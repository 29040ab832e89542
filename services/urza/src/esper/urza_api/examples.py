"""Examples for the description of the API: real records, so that they cannot be out of date."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from esper.contracts import (
    Blueprint,
    BlueprintIR,
    BlueprintPage,
    CheckResult,
    CompiledKernelArtifact,
    Endorsement,
    FieldReport,
    KernelPage,
    KernelSignature,
    OperatorNode,
    SeedState,
    SiteKind,
    ValidationReport,
    ValidatorKey,
    sha256_hex,
)
from esper.urza.wire import Claim, Held, Holder, KernelsFiled, KernelsGiven, PublicKey, Verdict

_MOMENT = datetime(2026, 11, 23, 12, tzinfo=UTC)
_DESIGN = BlueprintIR(
    name="shift",
    description="adds a learned shift, zero at first",
    kind=SiteKind.FEATURES,
    nodes=(
        OperatorNode(
            name="out", op="linear", inputs=("input",), params={"out": "D", "init": "zeros"}
        ),
    ),
)
_BLUEPRINT = Blueprint.from_ir(_DESIGN).model_copy(update={"created_at": _MOMENT})
_KERNEL = CompiledKernelArtifact(
    kernel_id=sha256_hex(b"the bytes of a kernel"),
    blueprint_id=_BLUEPRINT.blueprint_id,
    blueprint_name=_DESIGN.name,
    signature=KernelSignature(kind=SiteKind.FEATURES, features=64),
    size_bytes=len(b"the bytes of a kernel"),
    num_parameters=4160,
    tags=("zero_init",),
    created_at=_MOMENT,
)
_REPORT = ValidationReport(
    report_id="6a1f1c1e6a0b4f0c9c39a8a0c2f1d7e5",
    kernel_id=_KERNEL.kernel_id,
    validator_id="urabrask",
    passed=True,
    checks=(
        CheckResult(
            name="identity_at_birth", passed=True, value=0.0, limit=1e-6, detail="largest change: 0"
        ),
    ),
    probe_shape=(32, 64),
    latency_us=12.5,
    memory_bytes=33_280,
    num_parameters=4160,
    flops=262_144,
    measured_at=_MOMENT,
)
_PUBLIC_KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""Of test 1 in section 7.1 of RFC 8032."""
_KEY = ValidatorKey(
    key_id=sha256_hex(bytes.fromhex(_PUBLIC_KEY)),
    public_key=_PUBLIC_KEY,
    name="crucible 1",
    enrolled_at=_MOMENT,
)
_ENDORSEMENT = Endorsement(key_id=_KEY.key_id, signature="0" * 128)
_OUTCOME = FieldReport(
    report_id="f5c0d2a4b6e84d52a9a1f0a3ac6cfb13",
    run_id="run-20261123-1",
    seed_id=(0, 0),
    site="layers.2",
    kernel_id=_KERNEL.kernel_id,
    blueprint_id=_KERNEL.blueprint_id,
    blueprint_name=_KERNEL.blueprint_name,
    outcome=SeedState.FOSSILIZED,
    reason="its contribution is beyond noise",
    epoch_started=3,
    epoch_ended=7,
    parameters_added=4160,
    loss_before=0.52,
    loss_with=0.43,
    loss_without=0.5,
    at=_MOMENT,
)

EXAMPLES: Mapping[str, BaseModel | list[BaseModel]] = {
    "design": _DESIGN,
    "blueprint": _BLUEPRINT,
    "page of blueprints": BlueprintPage(items=(_BLUEPRINT,), next=None),
    "kernel": _KERNEL,
    "kernels": KernelsGiven(kernels=(_KERNEL,)),
    "kernels filed": KernelsFiled(kernels=(_KERNEL,)),
    "page of kernels": KernelPage(items=(_KERNEL,), next=None),
    "claim": Claim(holder="forge-1", lease_seconds=600),
    "holder": Holder(holder="forge-1"),
    "held": Held(held=True),
    "verdict": Verdict(report=_REPORT, endorsement=_ENDORSEMENT),
    "public key": PublicKey(public_key=_PUBLIC_KEY, name="crucible 1"),
    "validator": _KEY,
    "validators": [_KEY],
    "outcome": _OUTCOME,
    "outcomes": [_OUTCOME],
}


def value_of(name: str) -> Any:
    """Return an example as JSON has it."""
    example = EXAMPLES[name]
    if isinstance(example, list):
        return [each.model_dump(mode="json") for each in example]
    return example.model_dump(mode="json")


def named(name: str) -> Any:
    """Return an example of a body, as FastAPI's `openapi_examples` takes it."""
    return {name: {"value": value_of(name)}}


def of(name: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return an example of an answer, as FastAPI's `responses` takes it."""
    return {status: {"content": {"application/json": {"example": value_of(name)}}}}
