"""Factories for the crucible's tests: a real library on SQLite, and kernels good and bad."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.contracts import (
    BlueprintIR,
    CompiledKernelArtifact,
    KernelSignature,
    Library,
    Settings,
    sha256_hex,
)
from esper.contracts.registry import artifact_store_factory, library_factory
from esper.kasmina import (
    build_block,
    builtin_blueprints,
    count_parameters,
    initialise_block,
    pack_kernel,
)

type Forged = tuple[CompiledKernelArtifact, bytes]
type Forge = Callable[..., Forged]
type MakeIR = Callable[..., BlueprintIR]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep tiny operations on one thread: on a busy machine, OpenMP's barriers cost seconds."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


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
    """Make a design for features from rows of `(name, op, inputs, params)`."""

    def make(*rows: tuple[str, str, str, dict[str, Any]]) -> BlueprintIR:
        nodes = [
            {"name": name, "op": op, "inputs": inputs.split(), "params": params}
            for name, op, inputs, params in rows
        ]
        return BlueprintIR.model_validate({"name": "block", "kind": "features", "nodes": nodes})

    return make


@pytest.fixture
def forge() -> Forge:
    """Make a kernel of a design (default: the built-in `residual_mlp`), initialised with seed 0."""

    def make(ir: BlueprintIR | None = None, features: int = 16, **changes: str) -> Forged:
        ir = ir or next(ir for ir in builtin_blueprints() if ir.name == "residual_mlp")
        signature = KernelSignature.model_validate(
            {"kind": ir.kind, "features": features}
            | ({"inputs": features} if ir.widens else {})
            | changes
        )
        block = build_block(ir, signature, device="cpu")
        initialise_block(block, torch.Generator().manual_seed(0))
        blob = pack_kernel(ir, signature, block)
        kernel = CompiledKernelArtifact(
            kernel_id=sha256_hex(blob),
            blueprint_id=ir.content_hash(),
            blueprint_name=ir.name,
            signature=signature,
            size_bytes=len(blob),
            num_parameters=count_parameters(block),
        )
        return kernel, blob

    return make


@pytest.fixture
def not_identity(make_ir: MakeIR) -> BlueprintIR:
    """Return a design that changes the host's features at birth: its last layer is not zero."""
    return make_ir(("out", "linear", "input", {"out": "D"}))


@pytest.fixture
def overflowing(make_ir: MakeIR) -> BlueprintIR:
    """Return a design that gives 0 · Inf = NaN on large inputs: the input to the power of 32."""
    powers: list[tuple[str, str, str, dict[str, Any]]] = [
        (f"p{2 * n}", "multiply", f"{source} {source}", {})
        for n, source in ((1, "input"), (2, "p2"), (4, "p4"), (8, "p8"), (16, "p16"))
    ]
    return make_ir(*powers, ("out", "linear", "p32", {"out": "D", "init": "zeros"}))


@pytest.fixture
def stuck(make_ir: MakeIR) -> BlueprintIR:
    """Return a design that never learns: the product of two zeros has no gradient at birth."""
    zeros = {"out": "D", "init": "zeros"}
    return make_ir(
        ("a", "linear", "input", zeros),
        ("b", "linear", "input", zeros),
        ("out", "multiply", "a b", {}),
    )


@pytest.fixture
def with_dead_branch(make_ir: MakeIR) -> BlueprintIR:
    """Return a design with weights that nothing reads."""
    return make_ir(
        ("unused", "linear", "input", {"out": "D"}),
        ("out", "linear", "input", {"out": "D", "init": "zeros"}),
    )
