"""Backends are found by URL scheme among the installed entry points."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from esper.contracts import ConfigError, UnknownSchemeError, registry

type Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make exactly these entry points (`group`, `name`) installed, each standing for `len`."""

    def only(*points: tuple[str, str]) -> None:
        def entry_points(group: str) -> EntryPoints:
            return EntryPoints(
                EntryPoint(name=name, value="builtins:len", group=owner)
                for owner, name in points
                if owner == group
            )

        monkeypatch.setattr(registry, "entry_points", entry_points)

    return only


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("memory://", "memory"),
        ("redis://localhost:6379/0", "redis"),
        ("postgresql+psycopg://user@host/db", "postgresql"),
        ("SQLite:///file.db", "sqlite"),
        ("file:folder", "file"),
        ("no-scheme", ""),
    ],
)
def test_the_scheme_selects_the_backend(url: str, scheme: str) -> None:
    assert registry.scheme_of(url) == scheme


def test_a_factory_is_found_by_scheme_or_name(install: Install) -> None:
    install(
        (registry.BUSES, "redis"),
        (registry.LIBRARIES, "postgresql"),
        (registry.ARTIFACTS, "s3"),
        (registry.SEEDBEDS, "kasmina"),
        (registry.WORKERS, "tezzeret"),
    )
    found = [
        registry.bus_factory("redis://localhost"),
        registry.library_factory("postgresql+psycopg://localhost/db"),
        registry.artifact_store_factory("s3://bucket"),
        registry.seed_bed_factory(),
        registry.worker_factory("tezzeret"),
    ]
    assert all(factory is len for factory in found)


def test_an_unknown_scheme_lists_what_is_installed(install: Install) -> None:
    install((registry.BUSES, "redis"), (registry.BUSES, "memory"), (registry.WORKERS, "urza"))
    with pytest.raises(
        UnknownSchemeError, match=r"unknown bus scheme 'kafka'; installed: memory, redis$"
    ):
        registry.bus_factory("kafka://localhost")
    with pytest.raises(UnknownSchemeError, match=r"unknown worker 'bolas'; installed: urza$"):
        registry.worker_factory("bolas")


def test_a_url_without_a_scheme_is_shown_whole(install: Install) -> None:
    install((registry.LIBRARIES, "sqlite"))
    with pytest.raises(
        UnknownSchemeError, match=r"library URL 'library\.db' \(no scheme\); installed: sqlite"
    ):
        registry.library_factory("library.db")


def test_an_empty_installation_says_what_to_do(install: Install) -> None:
    install()
    with pytest.raises(UnknownSchemeError, match=r"installed: none \(run `uv sync`"):
        registry.artifact_store_factory("s3://bucket")


def test_an_unknown_scheme_never_shows_the_password(install: Install) -> None:
    install((registry.BUSES, "redis"))
    with pytest.raises(UnknownSchemeError) as caught:
        registry.bus_factory("rabbit://user:hunter2@localhost")
    assert "hunter2" not in str(caught.value)


def test_a_malformed_url_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match=r"malformed; expected scheme://host/path") as told:
        registry.bus_factory("redis://:hunter2@[::1")
    assert "hunter2" not in str(told.value)
