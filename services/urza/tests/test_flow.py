"""From a design to an outcome, over HTTP, as the library itself would have it."""

from collections.abc import Callable

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from esper.contracts import (
    CompiledKernelArtifact,
    Endorsement,
    KernelStatus,
    sha256_hex,
)
from esper.urza.library import SqlLibrary
from esper.urza.tokens import Role
from esper.urza_api.examples import value_of

type Send = Callable[..., httpx2.Response]


def test_a_design_becomes_a_kernel_that_is_judged_run_and_archived(
    library: SqlLibrary, as_role: Callable[..., Send]
) -> None:
    architect, forge, validator = (
        as_role(Role.ARCHITECT),
        as_role(Role.FORGE),
        as_role(Role.VALIDATOR),
    )
    design = value_of("design")
    submitted = architect("POST", "/blueprints", json=design)
    assert submitted.status_code == 201
    where = submitted.headers["location"].removeprefix("/api/v1")
    assert forge("GET", where).json() == submitted.json()
    claimed = forge("POST", "/blueprints/claims", json={"holder": "f", "lease_seconds": 60})
    assert claimed.json() == submitted.json()
    assert (
        forge("POST", "/blueprints/claims", json={"holder": "g", "lease_seconds": 60}).status_code
        == 204
    )
    blob = b"the bytes of a kernel"
    kernel = value_of("kernel")
    unknown = forge("POST", "/kernels", json={"kernels": [kernel]})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:esper:problem:NotFoundError")
    stored = forge("PUT", f"/artifacts/{sha256_hex(blob)}", content=blob)
    assert stored.json() == {"sha256": sha256_hex(blob), "size_bytes": len(blob)}
    registered = forge("POST", "/kernels", json={"kernels": [kernel]})
    assert registered.status_code == 201, registered.json()
    assert forge("GET", f"/kernels/{kernel['kernel_id']}/artifact").content == blob

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    validator("POST", "/validators", json={"public_key": public.hex(), "name": "crucible"})
    to_judge = validator("POST", "/kernels/claims", json={"holder": "v", "lease_seconds": 60})
    judged = CompiledKernelArtifact.model_validate_json(to_judge.content)
    endorsement = Endorsement(
        key_id=sha256_hex(public), signature=key.sign(judged.statement()).hex()
    )
    report = value_of("verdict")["report"]
    verdict = {"report": report, "endorsement": endorsement.model_dump()}
    path = f"/kernels/{judged.kernel_id}"
    assert forge("POST", f"{path}/validations", json=verdict).status_code == 403
    assert validator("POST", f"{path}/validations", json=verdict).json()["status"] == "VALIDATED"
    assert library.get_kernel(judged.kernel_id).status is KernelStatus.VALIDATED

    controller = as_role(Role.CONTROLLER)
    found = controller("GET", "/kernels", params={"required_tags": ["zero_init"], "limit": 5})
    assert [each["kernel_id"] for each in found.json()["items"]] == [judged.kernel_id]
    outcome = value_of("outcome")
    assert controller("POST", "/outcomes", json=outcome).status_code == 201
    assert controller("GET", f"/runs/{outcome['run_id']}/outcomes").json() == [outcome]
    chains = controller("GET", "/chains").json()
    assert chains == ["library", f"run:{outcome['run_id']}"]
    events = controller("GET", "/chains/library/events", params={"limit": 1000}).json()
    assert [each["seq"] for each in events["items"]] == list(range(len(events["items"])))
    assert controller("POST", f"{path}/archive").json()["status"] == "ARCHIVED"
