"""Libraries with any history come back from a file as they were, and verify."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from esper.contracts import (
    BlueprintIR,
    CompiledKernelArtifact,
    Endorsement,
    EsperError,
    FieldReport,
    ValidationReport,
)
from esper.urza import keyring, open_file_store, open_library
from esper.urza.exporting import export_library
from esper.urza.importing import import_library
from esper.urza.library import SqlLibrary
from esper.urza.signing import SigningKey
from esper.urza.verify import verify

pytestmark = pytest.mark.long

type Make[Record] = Callable[..., Record]


def _open(folder: Path, name: str) -> SqlLibrary:
    store = open_file_store((folder / name).as_uri())
    library = open_library(f"sqlite:///{folder}/{name}.db", store)
    library.open()
    return library


class _History:
    """Does one thing after another to a library; what it refuses has not happened."""

    def __init__(
        self,
        library: SqlLibrary,
        chance: random.Random,
        make_ir: Make[BlueprintIR],
        make_kernel: Make[tuple[CompiledKernelArtifact, bytes]],
        make_report: Make[ValidationReport],
        make_endorsement: Make[Endorsement],
        make_outcome: Make[FieldReport],
    ) -> None:
        self._library = library
        self._chance = chance
        self._make_report = make_report
        self._make_endorsement = make_endorsement
        self._make_outcome = make_outcome
        self._designs = [make_ir(f"design_{number}") for number in range(3)]
        self._kernels = [make_kernel(ir, number) for ir in self._designs for number in range(4)]
        self._signing = [
            SigningKey(private=Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))
            for number in range(4)
        ]

    def go_on(self) -> None:
        chance, library = self._chance, self._library
        kernel, blob = chance.choice(self._kernels)
        old, new = chance.sample(self._signing, 2)
        tags = tuple(chance.sample(["fast", "small", "ä"], 2))
        passed = self._make_report(kernel.kernel_id, tags=tags)
        failed = self._make_report(kernel.kernel_id, tags=tags, passed=False)
        endorsement = self._make_endorsement(kernel, chance.choice("ab"))
        run = chance.choice(["one", "two"])
        steps: list[tuple[int, Callable[[], object]]] = [
            (9, lambda: library.submit_blueprint(chance.choice(self._designs))),
            (30, lambda: library.register_kernel(kernel, blob)),
            (30, lambda: library.record_validation(passed, endorsement)),
            (9, lambda: library.record_validation(failed, None)),
            (3, lambda: library.archive_kernel(kernel.kernel_id)),
            (1, lambda: library.archive_blueprint(kernel.blueprint_id)),
            (1, lambda: library.revoke_validator(endorsement.key_id)),
            (9, lambda: library.record_field_report(self._make_outcome(run_id=run))),
            (5, lambda: library.claim_kernel("somebody", lease_seconds=60)),
            (3, lambda: keyring.enroll_key(library, old.public_key, name="key")),
            (3, lambda: keyring.rotate_key(library, old, new, name="next")),
            (1, lambda: keyring.revoke_key(library, old.key_id, by=new, reason="lost")),
        ]
        weights = [weight for weight, _ in steps]
        ((_, step),) = chance.choices(steps, weights)
        with suppress(EsperError):
            step()


@pytest.mark.parametrize("seed", range(6))
def test_any_history_comes_back_from_a_file(
    seed: int,
    tmp_path: Path,
    make_ir: Make[BlueprintIR],
    make_kernel: Make[tuple[CompiledKernelArtifact, bytes]],
    make_report: Make[ValidationReport],
    make_endorsement: Make[Endorsement],
    make_outcome: Make[FieldReport],
    enroll: Callable[[SqlLibrary], None],
) -> None:
    source, target = _open(tmp_path, "source"), _open(tmp_path, "target")
    enroll(source)
    history = _History(
        source,
        random.Random(seed),
        make_ir,
        make_kernel,
        make_report,
        make_endorsement,
        make_outcome,
    )
    for _ in range(250):
        history.go_on()
    assert len(list(source.events())) > 30
    export_library(source, tmp_path / "one.tar")
    import_library(target, tmp_path / "one.tar")
    assert list(verify(target)) == []
    export_library(target, tmp_path / "two.tar")
    assert (tmp_path / "two.tar").read_bytes() == (tmp_path / "one.tar").read_bytes()
    source.close()
    target.close()
