"""The library behind the service passes the suites of the port, and tells what goes wrong on the way.

The suites and their fixtures are those of `packages/esper-urza`: only what makes the library differs.
"""

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn

from esper.contracts import (
    AccessRefusedError,
    ArtifactIntegrityError,
    BackendUnavailableError,
    ConfigError,
    IllegalTransitionError,
    NotFoundError,
)
from esper.contracts.registry import library_factory
from esper.urza import open_file_store, open_http_library, open_library, tokens
from esper.urza.http_library import HttpLibrary
from esper.urza.library import SqlLibrary
from esper.urza.tokens import Role
from esper.urza_api import make_app

_SUITES = Path(__file__).resolve().parents[3] / "packages" / "esper-urza" / "tests"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"port_{name}", _SUITES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _parts(module: ModuleType) -> dict[str, Any]:
    """Return a suite's tests and fixtures."""
    return {
        name: part
        for name, part in vars(module).items()
        if name.startswith("test_") or type(part).__name__ == "FixtureFunctionDefinition"
    }


for _name in ("conftest", "test_library", "test_claims"):
    globals().update(_parts(_load(_name)))


@pytest.fixture
def library_url(tmp_path: Path) -> str:
    """The database behind the service."""
    return f"sqlite:///{tmp_path}/library.db"


@pytest.fixture
def artifacts_url(tmp_path: Path) -> str:
    """The store behind the service."""
    return (tmp_path / "artifacts").as_uri()


@pytest.fixture
def behind(library_url: str, artifacts_url: str) -> SqlLibrary:
    """The library that the service serves, which opens and closes it."""
    return open_library(library_url, open_file_store(artifacts_url))


@pytest.fixture
def service(behind: SqlLibrary) -> Generator[str]:
    """The URL of a running service."""
    config = uvicorn.Config(make_app(behind), port=0, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def with_token(
    behind: SqlLibrary, service: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Makes a token and puts it where clients look for it; returns its secret."""

    def make(*roles: Role) -> str:
        with behind.transaction() as connection:
            _, secret = tokens.create(connection, name="tests", roles=set(roles))
        monkeypatch.setenv("URZA_TOKEN", secret)
        return secret

    return make


@pytest.fixture
def make_library(service: str, with_token: Callable[..., str]) -> Callable[[], HttpLibrary]:
    """Makes libraries behind one service, not yet open, for somebody with every role."""
    with_token(*Role)
    nowhere: Any = None
    return lambda: open_http_library(service, nowhere)


def test_a_url_finds_the_backend_and_holds_no_secret() -> None:
    nowhere: Any = None
    assert library_factory("https://library.example") is open_http_library
    for url, said in {
        "http://me:secret@host": "holds credentials; put the token into URZA_TOKEN",
        "http://": "is malformed",
        "http://host?token=secret": "is malformed",
    }.items():
        with pytest.raises(ConfigError, match=said) as caught:
            open_http_library(url, nowhere)
        assert "secret" not in str(caught.value)


def test_who_may_not_is_told_which_token_and_role(
    service: str, with_token: Callable[..., str], monkeypatch: pytest.MonkeyPatch, make_ir: Any
) -> None:
    nowhere: Any = None
    secret = with_token(Role.READER)
    library = open_http_library(service, nowhere)
    library.open()
    with pytest.raises(AccessRefusedError, match=r"role architect or admin.*URZA_TOKEN"):
        library.submit_blueprint(make_ir())
    library.close()
    monkeypatch.setenv("URZA_TOKEN", "urza_another")
    library = open_http_library(service, nowhere)
    with pytest.raises(AccessRefusedError, match="there is no such token") as caught:
        library.open()
    library.close()
    assert secret not in str(caught.value)
    assert "urza_another" not in str(caught.value)


def test_a_service_that_is_away_is_told_with_its_address() -> None:
    nowhere: Any = None
    library = open_http_library("http://127.0.0.1:1", nowhere)
    with pytest.raises(BackendUnavailableError, match=r"http://127.0.0.1:1 does not answer"):
        library.open()
    library.close()


def test_an_error_is_the_very_same_as_beside_the_database(
    library: HttpLibrary,
    make_ir: Any,
    make_kernel: Any,
    tamper: Callable[[str, bytes | None], None],
) -> None:
    for ask in (library.get_kernel, library.get_blueprint, library.archive_kernel):
        for unknown in ("1" * 64, "short"):
            with pytest.raises(NotFoundError, match=unknown):
                ask(unknown)
    blueprint = library.submit_blueprint(make_ir())
    kernel, blob = make_kernel(make_ir())
    library.register_kernel(kernel, blob)
    tamper(kernel.kernel_id, b"other bytes")
    with pytest.raises(ArtifactIntegrityError):
        library.read_artifact(kernel.kernel_id)
    library.archive_blueprint(blueprint.blueprint_id)
    with pytest.raises(IllegalTransitionError, match="is ARCHIVED"):
        library.register_kernel(*make_kernel(make_ir(), 1))
    with pytest.raises(ConfigError, match="a service registers 1,000 at a time"):
        library.register_kernels([(kernel, blob)] * 1001)


def test_events_come_page_by_page(library: HttpLibrary, behind: SqlLibrary, make_ir: Any) -> None:
    for number in range(3):
        library.submit_blueprint(make_ir(f"design_{number}"))
    assert list(library.events()) == list(behind.events())
    assert list(library.events(since=2)) == list(behind.events(since=2))
    assert list(library.events("run:none")) == []
    assert library.chains() == behind.chains()
