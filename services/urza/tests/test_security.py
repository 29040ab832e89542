"""Who may do what: every operation with every role, tokens that are not valid, and guessing."""

from collections.abc import Callable
from datetime import timedelta

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from esper.contracts import NotFoundError, get_logger
from esper.urza import tokens
from esper.urza.library import SqlLibrary
from esper.urza.schema import api_tokens
from esper.urza.tokens import Role
from esper.urza_api import security

type Send = Callable[..., httpx2.Response]

_ID = "1" * 64
EVERYBODY = set(Role)
MAY: dict[tuple[str, str], set[Role]] = {
    ("GET", "/blueprints"): EVERYBODY,
    ("POST", "/blueprints"): {Role.ARCHITECT, Role.ADMIN},
    ("POST", "/blueprints/claims"): {Role.FORGE, Role.ADMIN},
    ("GET", "/blueprints/{blueprint_id}"): EVERYBODY,
    ("POST", "/blueprints/{blueprint_id}/archive"): {Role.ARCHITECT, Role.ADMIN},
    ("GET", "/kernels"): EVERYBODY,
    ("POST", "/kernels"): {Role.FORGE, Role.ADMIN},
    ("POST", "/kernels/claims"): {Role.VALIDATOR},
    ("GET", "/kernels/{kernel_id}"): EVERYBODY,
    ("POST", "/kernels/{kernel_id}/archive"): {Role.CONTROLLER, Role.VALIDATOR, Role.ADMIN},
    ("POST", "/kernels/{kernel_id}/validations"): {Role.VALIDATOR},
    ("PUT", "/artifacts/{sha256}"): {Role.FORGE, Role.ADMIN},
    ("GET", "/kernels/{kernel_id}/artifact"): EVERYBODY,
    ("POST", "/claims/{subject_id}/renew"): {Role.FORGE, Role.VALIDATOR, Role.ADMIN},
    ("POST", "/claims/{subject_id}/release"): {Role.FORGE, Role.VALIDATOR, Role.ADMIN},
    ("GET", "/validators"): EVERYBODY,
    ("POST", "/validators"): {Role.VALIDATOR, Role.ADMIN},
    ("POST", "/validators/{key_id}/revoke"): {Role.ADMIN},
    ("POST", "/outcomes"): {Role.CONTROLLER, Role.ADMIN},
    ("GET", "/runs/{run_id}/outcomes"): EVERYBODY,
    ("GET", "/chains"): EVERYBODY,
    ("GET", "/chains/{chain}/events"): EVERYBODY,
}


def test_the_table_has_every_operation(app: FastAPI) -> None:
    described = app.openapi()["paths"]
    operations = {
        (method.upper(), path.removeprefix("/api/v1"))
        for path, methods in described.items()
        for method in methods
        if path.startswith("/api/")
    }
    assert operations == set(MAY)


@pytest.mark.parametrize("role", Role)
def test_each_role_may_do_what_it_is_for(
    role: Role, client: TestClient, as_role: Callable[..., Send]
) -> None:
    send = as_role(role)
    for (method, path), roles in MAY.items():
        filled = path.replace("{run_id}", "r").replace("{chain}", "library")
        for name in ("blueprint_id", "kernel_id", "sha256", "subject_id", "key_id"):
            filled = filled.replace(f"{{{name}}}", _ID)
        answer = send(method, filled)
        refused = answer.status_code == 403
        assert refused == (role not in roles), (method, path, answer.text)
        if refused:
            assert answer.headers["content-type"] == "application/problem+json"
            assert "this needs a token with the role" in answer.json()["detail"]
        anonymous = client.request(method, filled)
        assert anonymous.status_code in (401, 429)
        assert answer.status_code < 500


def test_a_token_that_is_unknown_expired_or_revoked_is_told_so(
    library: SqlLibrary,
    client: TestClient,
    secret_of: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(security, "_KNOWN_SECONDS", 0.0)

    def ask(secret: str) -> httpx2.Response:
        return client.get("/chains", headers={"Authorization": f"Bearer {secret}"})

    missing = client.get("/chains")
    assert missing.status_code == 401
    assert missing.headers["www-authenticate"] == "Bearer"
    assert "there is no such token" in ask("urza_guess").json()["detail"]
    short = secret_of(Role.READER, lifetime=timedelta(microseconds=1))
    assert "expired on" in ask(short).json()["detail"]
    secret = secret_of(Role.READER)
    assert ask(secret).status_code == 200
    with library.transaction() as connection:
        found = tokens.find(connection, secret)
        assert found is not None
        tokens.revoke(connection, found.token_id)
        tokens.revoke(connection, found.token_id)
        with pytest.raises(NotFoundError, match="no token"):
            tokens.revoke(connection, "0" * 16)
    assert "was revoked on" in ask(secret).json()["detail"]
    kinds = [event.kind for event in library.events()]
    assert kinds == ["token_created", "token_created", "token_revoked"]


def test_a_secret_is_nowhere_but_with_its_owner(
    library: SqlLibrary, as_role: Callable[..., Send], capsys: pytest.CaptureFixture[str]
) -> None:
    get_logger("tests").warning("the log is on")
    send = as_role(Role.ADMIN)
    assert send("GET", "/chains").status_code == 200
    with library.snapshot() as connection:
        (row,) = connection.execute(api_tokens.select())
        (event,) = library.events()
    said = f"{row} {event} {capsys.readouterr()}"
    assert tokens.PREFIX not in said.replace("urza_api", "")


def test_who_guesses_is_slowed_down_and_others_are_not(
    client: TestClient, secret_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work = {"Authorization": f"Bearer {secret_of(Role.READER)}"}
    assert client.get("/chains", headers=at_work).status_code == 200
    guess = {"Authorization": "Bearer urza_guess"}
    for _ in range(security.MAX_FAILURES):
        assert client.get("/chains", headers=guess).status_code == 401
    slowed = client.get("/chains", headers=guess)
    assert slowed.status_code == 429
    assert 0 < int(slowed.headers["retry-after"]) <= 61
    assert "too-many-failures" in slowed.json()["type"]
    valid = {"Authorization": f"Bearer {secret_of(Role.READER)}"}
    assert client.get("/chains", headers=valid).status_code == 429
    assert client.get("/chains", headers=at_work).status_code == 200
    other = TestClient(client.app, base_url="http://urza/api/v1", client=("10.0.0.2", 1))
    assert other.get("/chains", headers=valid).status_code == 200
    monkeypatch.setattr(security, "_WINDOW_SECONDS", 0.0)
    assert client.get("/chains", headers=valid).status_code == 200
