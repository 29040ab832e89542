"""Factories for the forge's tests: a real library on SQLite, and designs to build."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from esper.contracts import BlueprintIR, KernelSignature, Library, Settings, SiteKind
from esper.contracts.registry import artifact_store_factory, library_factory

type MakeIR = Callable[..., BlueprintIR]
type MakeSignature = Callable[..., KernelSignature]


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's environment and `.env` out of the tests."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def urls(tmp_path: Path) -> dict[str, str]:
    return {
        "library": f"sqlite:///{tmp_path}/library.db",
        "artifacts": f"file:{tmp_path}/artifacts",
    }


@pytest.fixture
def library(urls: dict[str, str]) -> Iterator[Library]:
    artifacts = artifact_store_factory(urls["artifacts"])(urls["artifacts"])
    library = library_factory(urls["library"])(urls["library"], artifacts)
    with ExitStack() as stack:
        library.open()
        stack.callback(library.close)
        yield library


@pytest.fixture
def make_ir() -> MakeIR:
    def make(inner: str = "4*D", name: str = "block") -> BlueprintIR:
        up = {"name": "up", "op": "linear", "inputs": ["input"], "params": {"out": inner}}
        act = {"name": "act", "op": "gelu", "inputs": ["up"]}
        down = {
            "name": "down",
            "op": "linear",
            "inputs": ["act"],
            "params": {"out": "D", "init": "zeros"},
        }
        return BlueprintIR.model_validate(
            {"name": name, "kind": "features", "nodes": [up, act, down]}
        )

    return make


@pytest.fixture
def make_signature() -> MakeSignature:
    def make(features: int = 8, **changes: str) -> KernelSignature:
        fields = {"kind": SiteKind.FEATURES, "features": features}
        return KernelSignature.model_validate(fields | changes)

    return make
