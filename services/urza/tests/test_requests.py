"""What requests have in common: problems, entity tags, idempotency, uploads, operation."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from esper.contracts import BackendUnavailableError, KernelQuery, sha256_hex
from esper.urza.library import SqlLibrary
from esper.urza.tokens import Role
from esper.urza.wire import KernelSearch
from esper.urza_api import artifacts, limits
from esper.urza_api.examples import EXAMPLES, value_of

type Send = Callable[..., httpx2.Response]

_BLOB = b"the bytes of a kernel"
_JSON = {"Content-Type": "application/json"}


@pytest.fixture
def admin(as_role: Callable[..., Send]) -> Send:
    return as_role(Role.ADMIN)


@pytest.fixture
def kernel_id(admin: Send) -> str:
    """A kernel on file."""
    admin("POST", "/blueprints", json=value_of("design"))
    admin("PUT", f"/artifacts/{sha256_hex(_BLOB)}", content=_BLOB)
    (kernel,) = admin("POST", "/kernels", json=value_of("kernels")).json()["kernels"]
    return kernel["kernel_id"]


def _problem(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    return problem


def test_everything_that_goes_wrong_is_a_problem(admin: Send, kernel_id: str) -> None:
    path = f"/kernels/{'1' * 64}"
    assert _problem(admin("GET", path), 404)["type"] == "urn:esper:problem:NotFoundError"
    assert "/docs shows" in _problem(admin("GET", "/elephants"), 404)["detail"]
    assert "does not take DELETE" in _problem(admin("DELETE", "/kernels"), 405)["detail"]
    wrong = _problem(admin("POST", "/blueprints", json={"name": "x"}), 422)
    assert wrong["type"] == "urn:esper:problem:invalid-request"
    assert {"in": "body.nodes", "problem": "Field required"} in wrong["errors"]
    magic = value_of("design")
    magic["nodes"][0]["op"] = "magic"
    assert "allowed: linear" in _problem(admin("POST", "/blueprints", json=magic), 422)["detail"]
    assert (
        "JSON" in _problem(admin("POST", "/blueprints", content=b"{", headers=_JSON), 422)["detail"]
    )
    half = _problem(admin("GET", "/kernels", params={"kind": "features"}), 422)
    assert "belong together" in half["detail"]
    blueprint_id = value_of("blueprint")["blueprint_id"]
    admin("POST", f"/blueprints/{blueprint_id}/archive")
    archived = _problem(admin("POST", "/kernels", json=value_of("kernels")), 409)
    assert archived["type"] == "urn:esper:problem:IllegalTransitionError"
    assert archived["instance"] == "/api/v1/kernels"


def test_a_body_that_is_too_large_is_refused(admin: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 100)
    monkeypatch.setattr(artifacts, "MAX_ARTIFACT_BYTES", 10)
    assert (
        "at most 100 bytes"
        in _problem(admin("POST", "/blueprints", json=value_of("design")), 413)["detail"]
    )
    path = f"/artifacts/{sha256_hex(_BLOB)}"
    assert "at most 10 bytes" in _problem(admin("PUT", path, content=_BLOB), 413)["detail"]


def test_who_has_a_record_is_not_sent_it_again(admin: Send, kernel_id: str) -> None:
    for path in (f"/kernels/{kernel_id}", "/kernels", f"/kernels/{kernel_id}/artifact"):
        tag = admin("GET", path).headers["etag"]
        again = admin("GET", path, headers={"If-None-Match": f'"other", {tag}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    before = admin("GET", f"/kernels/{kernel_id}").headers["etag"]
    admin("POST", f"/kernels/{kernel_id}/archive")
    changed = admin("GET", f"/kernels/{kernel_id}", headers={"If-None-Match": before})
    assert changed.status_code == 200
    head = admin("HEAD", f"/kernels/{kernel_id}/artifact")
    assert (head.headers["content-length"], head.content) == (str(len(_BLOB)), b"")


def test_a_key_gets_its_first_answer_again(admin: Send, kernel_id: str) -> None:
    claim = {"holder": "forge", "lease_seconds": 60}
    admin("POST", "/blueprints", json=value_of("design") | {"name": "other"})
    key = {"Idempotency-Key": "claim-1"}
    first = admin("POST", "/blueprints/claims", json=claim, headers=key)
    assert first.status_code == 200
    assert admin("POST", "/blueprints/claims", json=claim).status_code == 204
    again = admin("POST", "/blueprints/claims", json=claim, headers=key)
    assert (again.content, again.headers["etag"]) == (first.content, first.headers["etag"])
    assert again.headers["idempotent-replayed"] == "true"
    other = admin("POST", "/blueprints/claims", json=claim | {"holder": "x"}, headers=key)
    assert "another request" in _problem(other, 422)["detail"]
    _problem(admin("POST", "/blueprints/claims", json=claim, headers={"Idempotency-Key": ""}), 400)
    empty = {"Idempotency-Key": "claim-2"}
    for _ in range(2):
        nothing = admin("POST", "/blueprints/claims", json=claim, headers=empty)
        assert (nothing.status_code, nothing.content) == (204, b"")


def test_of_many_requests_with_one_key_at_once_one_is_carried_out(
    library: SqlLibrary, admin: Send
) -> None:
    for number in range(8):
        admin("POST", "/blueprints", json=value_of("design") | {"name": f"design_{number}"})
    barrier = threading.Barrier(8)

    def claim(_: int) -> tuple[int, bytes]:
        barrier.wait()
        done = admin(
            "POST",
            "/blueprints/claims",
            json={"holder": "forge", "lease_seconds": 60},
            headers={"Idempotency-Key": "once"},
        )
        return done.status_code, done.content

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(claim, range(8)))
    carried_out = {content for status, content in answers if status == 200}
    assert len(carried_out) == 1
    assert {status for status, _ in answers} <= {200, 409}
    left = 0
    while library.claim_blueprint("others", lease_seconds=60) is not None:
        left += 1
    assert left == 7


def test_a_request_that_failed_may_be_tried_again_with_its_key(
    library: SqlLibrary, admin: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin("POST", "/blueprints", json=value_of("design"))
    claim = {"json": {"holder": "f", "lease_seconds": 60}, "headers": {"Idempotency-Key": "k"}}
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise BackendUnavailableError("the database is away; try again")

        patch.setattr(library, "claim_blueprint", fail)
        failed = admin("POST", "/blueprints/claims", **claim)
        assert _problem(failed, 503)["type"] == "urn:esper:problem:BackendUnavailableError"
        assert failed.headers["retry-after"] == "1"
    assert admin("POST", "/blueprints/claims", **claim).status_code == 200


def test_bytes_that_do_not_match_leave_nothing(library: SqlLibrary, admin: Send) -> None:
    refused = admin("PUT", f"/artifacts/{'1' * 64}", content=_BLOB)
    assert _problem(refused, 422)["type"] == "urn:esper:problem:ArtifactIntegrityError"
    assert list(library.artifacts.list()) == list(library.artifacts.drafts()) == []


def test_large_bytes_are_streamed_both_ways(
    library: SqlLibrary, admin: Send, kernel_id: str
) -> None:
    part = bytes(range(256)) * 256
    blob = part * 64

    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield part

    stored = admin("PUT", f"/artifacts/{sha256_hex(blob)}", content=chunks())
    assert stored.json()["size_bytes"] == len(blob)
    kernel = value_of("kernel") | {"kernel_id": sha256_hex(blob), "size_bytes": len(blob)}
    assert admin("POST", "/kernels", json={"kernels": [kernel]}).status_code == 201
    read = admin("GET", f"/kernels/{sha256_hex(blob)}/artifact")
    assert read.content == blob


def test_bytes_that_were_changed_never_arrive_whole(
    admin: Send, kernel_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = [each for each in (tmp_path / "artifacts").rglob("*") if each.is_file()]
    path.write_bytes(_BLOB[:-1] + b"?")
    told = _problem(admin("GET", f"/kernels/{kernel_id}/artifact"), 422)
    assert told["type"] == "urn:esper:problem:ArtifactIntegrityError"
    monkeypatch.setattr(artifacts, "_SMALL_BYTES", 0)  # as if they were too many to look at first
    with pytest.raises(ConnectionAbortedError):
        admin("GET", f"/kernels/{kernel_id}/artifact")


def test_an_operator_sees_whether_it_works(
    app: FastAPI, library: SqlLibrary, admin: Send, kernel_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = TestClient(app)
    assert outside.get("/healthz").text == "ok"
    assert outside.get("/readyz").json() == {"status": "ready"}
    outside.get("/api/v1/nothing")
    text = outside.get("/metrics").text
    assert 'route="/kernels",status="201"} 1.0' in text
    assert "urza_request_seconds_bucket" in text
    assert kernel_id not in text

    def away(*_: object) -> None:
        raise BackendUnavailableError("the database is away")

    monkeypatch.setattr(library, "chains", away)
    assert "the database is away" in _problem(outside.get("/readyz"), 503)["detail"]


def test_a_query_survives_the_way_through_a_url(admin: Send) -> None:
    query = KernelQuery(
        required_tags=frozenset({"a b", "ü&="}),
        status=None,
        max_latency_us=1.5,
        text="x y",
        limit=7,
    )
    assert KernelSearch.of(query).query() == query
    params = KernelSearch.of(query).model_dump(mode="json", exclude_none=True)
    assert admin("GET", "/kernels", params=params).json() == {"items": [], "next": None}


def test_every_example_is_a_record_of_its_kind(app: FastAPI) -> None:
    described = app.openapi()
    assert len(EXAMPLES) > 10
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/api/"):
                assert operation["description"], (method, path)
                assert "401" in operation["responses"], (method, path)
