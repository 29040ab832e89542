"""A library with a token for each role, and a client of its API in this process."""

from collections.abc import Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from esper.urza import open_file_store, open_library, tokens
from esper.urza.library import SqlLibrary
from esper.urza.tokens import Role
from esper.urza_api import make_app


@pytest.fixture
def library(tmp_path: Path) -> Generator[SqlLibrary]:
    store = open_file_store((tmp_path / "artifacts").as_uri())
    made = open_library(f"sqlite:///{tmp_path}/library.db", store)
    made.open()
    yield made
    made.close()


@pytest.fixture
def secret_of(library: SqlLibrary) -> Callable[..., str]:
    """Makes tokens; returns their secrets."""

    def make(*roles: Role, lifetime: timedelta | None = None) -> str:
        with library.transaction() as connection:
            name = "+".join(roles)
            return tokens.create(connection, name=name, roles=set(roles), lifetime=lifetime)[1]

    return make


@pytest.fixture
def app(library: SqlLibrary) -> FastAPI:
    return make_app(library)


@pytest.fixture
def client(app: FastAPI) -> Generator[TestClient]:
    """A client without a token."""
    with TestClient(app, base_url="http://urza/api/v1") as made:
        yield made


@pytest.fixture
def as_role(
    client: TestClient, secret_of: Callable[..., str]
) -> Callable[..., Callable[..., httpx2.Response]]:
    """Gives a function that sends requests as somebody with these roles."""

    def login(*roles: Role) -> Callable[..., httpx2.Response]:
        authorization = {"Authorization": f"Bearer {secret_of(*roles)}"}

        def send(method: str, path: str, **arguments: Any) -> httpx2.Response:
            headers = authorization | arguments.pop("headers", {})
            return client.request(method, path, headers=headers, **arguments)

        return send

    return login
