"""Kernels that widen a layer: what they read is part of what they are built for."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from esper.contracts import (
    BlueprintIR,
    CompiledKernelArtifact,
    KernelQuery,
    KernelSignature,
    OperatorNode,
    SiteKind,
    sha256_hex,
)
from esper.urza.engine import make_engine, parse_url
from esper.urza.library import SqlLibrary
from esper.urza.migrate import exclusive, make_config
from esper.urza.verify import verify

DESIGN = BlueprintIR(
    name="wider",
    kind=SiteKind.FEATURES,
    widens=True,
    nodes=(OperatorNode(name="out", op="linear", inputs=("input",), params={"out": "D"}),),
)


def signature(inputs: int | None) -> KernelSignature:
    return KernelSignature(kind=SiteKind.FEATURES, features=8, inputs=inputs)


def filed(library: SqlLibrary, inputs: int | None, ir: BlueprintIR) -> CompiledKernelArtifact:
    """Register a kernel that reads so many features and return it."""
    blob = f"{ir.name} {inputs}".encode()
    kernel = CompiledKernelArtifact(
        kernel_id=sha256_hex(blob),
        blueprint_id=library.submit_blueprint(ir).blueprint_id,
        blueprint_name=ir.name,
        signature=signature(inputs),
        size_bytes=len(blob),
        num_parameters=8,
    )
    library.register_kernel(kernel, blob)
    return kernel


def found(library: SqlLibrary, inputs: int | None) -> list[str]:
    query = KernelQuery(signature=signature(inputs), status=None)
    return [kernel.kernel_id for kernel in library.find_kernels(query).items]


def test_kernels_are_found_by_what_they_read(
    library: SqlLibrary, make_ir: Callable[..., BlueprintIR]
) -> None:
    kernels = {
        5: filed(library, 5, DESIGN),
        6: filed(library, 6, DESIGN),
        None: filed(library, None, make_ir()),
    }
    for inputs, kernel in kernels.items():
        assert found(library, inputs) == [kernel.kernel_id]
        assert library.get_kernel(kernel.kernel_id).signature == kernel.signature
    assert not list(verify(library))


def test_what_a_kernel_reads_is_never_changed(library: SqlLibrary, library_url: str) -> None:
    filed(library, 5, DESIGN)
    engine = make_engine(parse_url(library_url))
    with pytest.raises(DBAPIError, match="never changed"), engine.begin() as connection:
        connection.execute(sa.text("UPDATE kernels SET inputs = 6"))
    with pytest.raises(DBAPIError, match="never changed"), engine.begin() as connection:
        connection.execute(sa.text("UPDATE kernels SET inputs = NULL"))
    engine.dispose()
    assert found(library, 5)


def test_a_schema_that_could_not_say_what_they_read_is_refused(
    library: SqlLibrary, library_url: str
) -> None:
    filed(library, 5, DESIGN)
    library.close()
    engine, config = make_engine(parse_url(library_url)), make_config()
    with exclusive(engine) as connection:
        config.attributes["connection"] = connection
        with pytest.raises(CommandError, match="export the library"):
            command.downgrade(config, "0004")
    engine.dispose()
    library.open()
    assert found(library, 5)


def test_ordinary_kernels_have_the_bytes_and_the_fingerprint_that_they_always_had() -> None:
    """So that endorsements, manifests and the record of earlier versions still verify."""
    assert signature(None).model_dump(mode="json") == {
        "kind": "features",
        "features": 8,
        "dtype": "float32",
        "device": "cpu",
    }
    assert signature(5).model_dump(mode="json")["inputs"] == 5
