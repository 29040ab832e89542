"""Finds backends by URL scheme among the installed entry points, and loads them lazily.

A third party adds a backend by declaring an entry point in one of the groups below; nothing in this
repository has to change. `postgresql+psycopg://…` is looked up under `postgresql`.
"""

from contextlib import suppress
from importlib.metadata import entry_points
from typing import cast
from urllib.parse import urlsplit

from esper.contracts.errors import ConfigError, UnknownSchemeError
from esper.contracts.ports import (
    ArtifactStoreFactory,
    BusFactory,
    LibraryFactory,
    SavedBeds,
    SeedBedFactory,
    WorkerFactory,
)

BUSES = "esper.buses"
LIBRARIES = "esper.libraries"
ARTIFACTS = "esper.artifacts"
SEEDBEDS = "esper.seedbeds"
SAVEDBEDS = "esper.savedbeds"
WORKERS = "esper.workers"


def installed(group: str) -> list[str]:
    """Return the sorted names registered in an entry-point group."""
    return sorted({entry.name for entry in entry_points(group=group)})


def scheme_of(url: str) -> str:
    """Return the part of `url` that selects a backend: the scheme, without `+driver`.

    Raises:
        ConfigError: if it is no URL at all; does not quote it, for it may hold a password.

    """
    with suppress(ValueError):  # its text quotes the URL, and so a password
        return urlsplit(url).scheme.partition("+")[0].lower()
    raise ConfigError("a bus, library or artifact URL is malformed; expected scheme://host/path")


def _load(group: str, name: str, described: str) -> object:
    for entry in entry_points(group=group):
        if entry.name == name:
            return entry.load()
    options = ", ".join(installed(group)) or "none (run `uv sync` in the workspace)"
    raise UnknownSchemeError(f"unknown {described}; installed: {options}")


def _described(role: str, url: str) -> str:
    scheme = scheme_of(url)
    shown = url.rpartition("@")[2]  # what is before it may be a password
    named = f"scheme {scheme!r}" if scheme else f"URL {shown!r} (no scheme)"
    return f"{role} {named}"


def bus_factory(url: str) -> BusFactory:
    """Return the factory for a bus URL. Raises `UnknownSchemeError`."""
    return cast("BusFactory", _load(BUSES, scheme_of(url), _described("bus", url)))


def library_factory(url: str) -> LibraryFactory:
    """Return the factory for a library URL. Raises `UnknownSchemeError`."""
    return cast("LibraryFactory", _load(LIBRARIES, scheme_of(url), _described("library", url)))


def artifact_store_factory(url: str) -> ArtifactStoreFactory:
    """Return the factory for an artifact store URL. Raises `UnknownSchemeError`."""
    found = _load(ARTIFACTS, scheme_of(url), _described("artifact store", url))
    return cast("ArtifactStoreFactory", found)


def seed_bed_factory(name: str = "kasmina") -> SeedBedFactory:
    """Return the factory of a seed layer by name. Raises `UnknownSchemeError`."""
    return cast("SeedBedFactory", _load(SEEDBEDS, name, f"seed layer {name!r}"))


def saved_beds(name: str = "kasmina") -> SavedBeds:
    """Return what reads the models and checkpoints of a seed layer. Raises `UnknownSchemeError`."""
    return cast("SavedBeds", _load(SAVEDBEDS, name, f"seed layer {name!r}"))


def worker_factory(name: str) -> WorkerFactory:
    """Return the factory of a worker by name. Raises `UnknownSchemeError`."""
    return cast("WorkerFactory", _load(WORKERS, name, f"worker {name!r}"))
