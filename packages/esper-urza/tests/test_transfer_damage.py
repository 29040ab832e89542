"""An exported file that was cut, changed, reordered or forged is refused, and leaves a library empty."""

import io
import json
import random
import tarfile
import tracemalloc
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from esper.contracts import (
    ArtifactIntegrityError,
    BlueprintIR,
    ChainedEvent,
    ChainError,
    CompiledKernelArtifact,
    ConfigError,
    Endorsement,
    EsperError,
    FieldReport,
    KernelSignature,
    ManifestError,
    SiteKind,
    ValidationReport,
    canonical_json,
    sha256_hex,
)
from esper.urza import keyring, open_file_store, open_library
from esper.urza.bundle import BundleWriter
from esper.urza.exporting import export_library
from esper.urza.importing import check_file, import_library
from esper.urza.library import SqlLibrary
from esper.urza.manifests import LibraryManifest, Member, parse, sign
from esper.urza.schema import metadata
from esper.urza.signing import SigningKey
from esper.urza.verify import verify

pytestmark = pytest.mark.long

KEY = SigningKey(private=Ed25519PrivateKey.from_private_bytes(b"1" * 32))

type Lines = list[bytes]


def _open(folder: Path, name: str) -> SqlLibrary:
    artifacts = open_file_store((folder / name).as_uri())
    library = open_library(f"sqlite:///{folder}/{name}.db", artifacts)
    library.open()
    return library


@dataclass(frozen=True, kw_only=True)
class Case:
    """The bytes of an exported file, where to write others, and an empty library."""

    content: bytes
    path: Path
    target: SqlLibrary

    def refuse(
        self, content: bytes, kind: type[EsperError] = EsperError, match: str | None = None
    ) -> None:
        """Expect that the library stays empty."""
        self.path.write_bytes(content)
        with pytest.raises(kind, match=match):
            import_library(self.target, self.path)
        _expect_empty(self.target)

    def refuse_to_check(self, content: bytes) -> None:
        """Expect that the file alone is found out."""
        self.path.write_bytes(content)
        with pytest.raises(EsperError):
            check_file(self.path)


def _expect_empty(library: SqlLibrary) -> None:
    with library.snapshot() as connection:
        for table in metadata.sorted_tables:
            if table.name in {"blueprints", "kernels", "events", "field_reports", "validator_keys"}:
                assert connection.execute(table.select()).first() is None, table.name


@pytest.fixture
def case(
    tmp_path: Path,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
    make_report: Callable[..., ValidationReport],
    make_endorsement: Callable[..., Endorsement],
    make_outcome: Callable[..., FieldReport],
    enroll: Callable[[SqlLibrary], None],
) -> Generator[Case]:
    source = _open(tmp_path, "source")
    enroll(source)
    keyring.enroll_key(source, KEY.public_key, name="the library")
    source.submit_blueprint(make_ir())
    for number in range(3):
        kernel, blob = make_kernel(make_ir(), number)
        source.register_kernel(kernel, blob)
        if number:
            source.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))
    for run in ("run-1", "run-2"):
        source.record_field_report(make_outcome(run_id=run))
    export_library(source, tmp_path / "whole.tar", key=KEY)
    assert list(verify(source)) == []
    source.close()
    content = (tmp_path / "whole.tar").read_bytes()
    target = _open(tmp_path, "target")
    yield Case(content=content, path=tmp_path / "changed.tar", target=target)
    # What was refused before does not stand in the way of the whole file.
    if not target.chains():
        import_library(target, tmp_path / "whole.tar", trusted=[KEY.public_key])
    assert list(verify(target)) == []
    target.close()


def test_any_changed_byte_of_the_file_is_refused(case: Case) -> None:
    chance = random.Random(5)
    # Headers, padding and the end are sparse; so they are chosen on purpose as well.
    ends = [at for at in range(0, len(case.content), 512)]
    places = {*chance.sample(range(len(case.content)), 300), *chance.sample(ends, 20)}
    for place in sorted({*places, len(case.content) - 1}):
        changed = bytearray(case.content)
        changed[place] ^= 1 << chance.randrange(8)
        case.refuse(bytes(changed))


def test_a_file_that_was_cut_off_is_refused_and_says_where(case: Case) -> None:
    chance = random.Random(6)
    case.refuse(b"", ArtifactIntegrityError, "was cut off: it ends within manifest.json")
    case.refuse(case.content[:-1], ArtifactIntegrityError, "was cut off: it ends within the end")
    for end in chance.sample(range(len(case.content)), 30):
        case.refuse(case.content[:end])
    for more in (b"\0", b"x", bytes(1024)):
        case.refuse(case.content + more, ArtifactIntegrityError, "has more in it than its manifest")


def test_a_file_is_checked_without_any_library(case: Case) -> None:
    case.path.write_bytes(case.content)
    assert check_file(case.path, trusted=[KEY.public_key]).path == (KEY.key_id,)
    chance = random.Random(7)
    for place in chance.sample(range(len(case.content)), 20):
        changed = bytearray(case.content)
        changed[place] ^= 1
        case.refuse_to_check(bytes(changed))
    blob = _members(case.content).popitem()[1]
    case.refuse_to_check(case.content.replace(blob, blob[:-1] + b"?"))


def _members(content: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def _bundle(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    writer = BundleWriter(out, Path("forged.tar"))
    for name, content in members:
        writer.add(name, len(content), [content])
    writer.finish()
    return out.getvalue()


def test_members_in_another_order_twice_or_under_other_names_are_refused(case: Case) -> None:
    members = list(_members(case.content).items())
    assert _bundle(members) == case.content
    swapped = [*members[:-2], members[-1], members[-2]]
    case.refuse(_bundle(swapped), ArtifactIntegrityError, "another order: expected artifacts/")
    case.refuse(_bundle([*members, members[-1]]), ArtifactIntegrityError, "has more in it")
    case.refuse(_bundle(members[:-1]), ArtifactIntegrityError, "expected artifacts/|cut off")
    case.refuse(_bundle(members[1:]), EsperError, "is no manifest|expected manifest.json")
    for name in ("../outside", "/etc/outside", "artifacts/../../outside"):
        renamed = [*members[:-1], (name, members[-1][1])]
        case.refuse(_bundle(renamed), ArtifactIntegrityError, "another order: expected artifacts/")
    blob = members[-1][1]
    other = [*members[:-1], (members[-1][0], blob[:-1] + b"?")]
    case.refuse(
        _bundle(other),
        ArtifactIntegrityError,
        "was changed or damaged: the bytes in it of artifact",
    )
    with tarfile.open(case.path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("manifest.json"), io.BytesIO(b""))
    case.refuse(case.path.read_bytes(), ArtifactIntegrityError, "expected manifest.json|cut off")


def _forged(content: bytes, **edits: Callable[[Lines], Lines]) -> bytes:
    """Change lists, and let an unsigned manifest agree with the change."""
    members = _members(content)
    for name, edit in edits.items():
        lines = members[f"{name}.jsonl"].splitlines(keepends=True)
        members[f"{name}.jsonl"] = b"".join(edit(lines))
    manifest = parse(members["manifest.json"], where="m").manifest
    assert isinstance(manifest, LibraryManifest)
    lists = tuple(
        Member(
            name=each.name,
            sha256=sha256_hex(members[each.name]),
            size_bytes=len(members[each.name]),
            num_records=members[each.name].count(b"\n"),
        )
        for each in manifest.members
    )
    signed = sign(manifest.model_copy(update={"members": lists}), None)
    members["manifest.json"] = signed.file()
    return _bundle(list(members.items()))


def _replace(old: bytes, new: bytes) -> Callable[[Lines], Lines]:
    def edit(lines: Lines) -> Lines:
        changed = [line.replace(old, new, 1) for line in lines]
        assert changed != lines
        return changed

    return edit


def _drop(number: int) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:number], *lines[number:][1:]]


def _repeat(lines: Lines) -> Lines:
    return [*lines, lines[0]]


def _reverse(lines: Lines) -> Lines:
    return lines[::-1]


def _with_statuses(status: bytes) -> Callable[[Lines], Lines]:
    """Give every kernel a status at its end, where the export says what became of it."""
    return lambda lines: [
        line.replace(line[line.rindex(b'"status":') :], b'"status":"' + status + b'"}\n')
        for line in lines
    ]


_FORGERIES: tuple[tuple[str, Callable[[Lines], Lines], str], ...] = (
    ("blueprints", _drop(0), "is of a blueprint that is not in the file"),
    ("blueprints", _repeat, "line 2 is there twice, or out of order"),
    ("kernels", _reverse, "line 2 is there twice, or out of order"),
    ("kernels", _drop(0), "is about a kernel that is not in the file|artifacts of"),
    ("kernels", _replace(b'"num_parameters":10', b'"num_parameters":11'), "was changed after"),
    ("kernels", _replace(b'"tags":[]', b'"tags":["fast"]'), "was changed after"),
    ("kernels", _replace(b',"report_id"', b' ,"report_id"'), "not written as a library writes"),
    ("kernels", _with_statuses(b"VALIDATED"), "verdict, but no report"),
    ("kernels", _with_statuses(b"REJECTED"), "verdict, but no report|contradicts"),
    ("kernels", _with_statuses(b"ARCHIVED"), "is ARCHIVED; by the record it is"),
    ("kernels", _with_statuses(b"BROKEN"), "is no KernelOnFile that this version knows"),
    ("validation_reports", _drop(0), "has a report that is not in the file"),
    ("validation_reports", _replace(b'"flops":4096', b'"flops":4095'), "was changed after"),
    ("field_reports", _drop(0), "is on the record, but its row is missing"),
    ("field_reports", _replace(b'"helped"', b'"harmed"'), "was changed after"),
    ("validator_keys", _replace(b"crucible a", b"crucible z"), "is not as the record says"),
    ("validator_keys", _drop(0), "with a key that is not in the file or was revoked"),
    ("library", _drop(3), "does not follow the line before it"),
    ("library", _drop(-1), "names other chains, or other ends"),
    ("library", _replace(b"crucible a", b"crucible z"), "was changed: its content"),
    ("runs", _reverse, "is out of order"),
    ("runs", _drop(0), "names other chains"),
    ("runs", _replace(b'"run:run-1"', b'"library"'), "is out of order"),
    ("runs", _replace(b'"run:run-1"', b'"run:run-0"'), "names other chains"),
)


def test_records_that_contradict_each_other_are_refused_by_name(case: Case) -> None:
    for name, edit, told in _FORGERIES:
        case.refuse(_forged(case.content, **{name: edit}), EsperError, told)


def _rechained(lines: Lines, change: Callable[[dict[str, Any]], None]) -> Lines:
    """Write a chain anew with changed events, every hash as it should be."""
    previous, out = "0" * 64, list[bytes]()
    for line in lines:
        fields = json.loads(line)
        change(fields)
        fields["previous"] = previous
        event = ChainedEvent.model_validate(fields)
        event = event.model_copy(update={"hash": event.expected_hash()})
        previous = event.hash
        out.append(event.line())
    return out


def test_a_forged_endorsement_is_refused_though_the_chain_was_forged_with_it(case: Case) -> None:
    members = _members(case.content)
    kernels = [json.loads(line) for line in members["kernels.jsonl"].splitlines()]
    true = next(each["endorsement"]["signature"] for each in kernels if each["endorsement"])
    forged = true[:-2] + ("00" if true[-2:] != "00" else "11")

    def change(fields: dict[str, Any]) -> None:
        endorsement = fields["data"].get("endorsement")
        if endorsement is not None and endorsement["signature"] == true:
            endorsement["signature"] = forged

    content = _forged(
        case.content,
        kernels=_replace(true.encode(), forged.encode()),
        library=lambda lines: _rechained(lines, change),
    )
    heads = parse(_members(content)["manifest.json"], where="m").manifest
    assert isinstance(heads, LibraryManifest)
    last = ChainedEvent.model_validate_json(_members(content)["library.jsonl"].splitlines()[-1])
    chains = (heads.chains[0].model_copy(update={"head": last.hash}), *heads.chains[1:])
    members = _members(content)
    members["manifest.json"] = sign(heads.model_copy(update={"chains": chains}), None).file()
    case.refuse(_bundle(list(members.items())), ArtifactIntegrityError, "does not verify")


def test_an_event_that_no_library_writes_is_refused_by_name(case: Case) -> None:
    def change(fields: dict[str, Any]) -> None:
        if fields["kind"] == "kernels_registered":
            fields["data"] = {}

    content = _forged(case.content, library=lambda lines: _rechained(lines, change))
    case.refuse(content, ArtifactIntegrityError, "no library writes a kernels_registered like that")


def test_a_manifest_that_was_changed_is_refused(case: Case) -> None:
    members = _members(case.content)
    manifest = members["manifest.json"]
    for old, new, told in (
        (b'"num_artifacts":3', b'"num_artifacts":4', "was changed or forged"),
        (b'"version":1', b'"version":2', "is no manifest that this version knows"),
    ):
        changed = members | {"manifest.json": manifest.replace(old, new)}
        case.refuse(_bundle(list(changed.items())), ManifestError, told)
    for update in ({"num_artifacts": 4}, {"members": ()}, {"chains": ()}):
        signed = parse(manifest, where="m")
        assert isinstance(signed.manifest, LibraryManifest)
        forged = sign(signed.manifest.model_copy(update=update), None)
        changed = members | {"manifest.json": forged.file()}
        told = "there are 4 artifacts|does not name|names other chains"
        case.refuse(_bundle(list(changed.items())), ArtifactIntegrityError, told)
    assert canonical_json(json.loads(manifest)) + b"\n" == manifest


def test_what_cannot_be_read_is_said(case: Case, tmp_path: Path) -> None:
    for path, told in ((tmp_path, "Is a directory"), (tmp_path / "missing", "No such file")):
        with pytest.raises(ConfigError, match=told):
            import_library(case.target, path)


class _InterruptedError(Exception):
    pass


def test_an_import_that_is_interrupted_at_any_step_leaves_no_record(case: Case) -> None:
    case.path.write_bytes(case.content)
    num_steps = 0
    stop_at = 0

    def count(_step: str, _done: int, _total: int | None) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == stop_at:
            raise _InterruptedError

    while not case.target.chains():
        num_steps, stop_at = 0, stop_at + 1
        with suppress(_InterruptedError):
            import_library(case.target, case.path, tell=count)
        if num_steps == stop_at:
            _expect_empty(case.target)
    assert stop_at > 15


def test_a_large_artifact_passes_in_little_memory(
    case: Case, tmp_path: Path, make_ir: Callable[..., BlueprintIR]
) -> None:
    source, target = _open(tmp_path, "large"), _open(tmp_path, "copy")
    blob = random.Random(1).randbytes(48 * 2**20)
    kernel = CompiledKernelArtifact(
        kernel_id=sha256_hex(blob),
        blueprint_id=make_ir().content_hash(),
        blueprint_name="residual",
        signature=KernelSignature(kind=SiteKind.FEATURES, features=8),
        size_bytes=len(blob),
        num_parameters=1,
    )
    source.submit_blueprint(make_ir())
    source.register_kernel(kernel, blob)
    del blob
    tracemalloc.start()
    export_library(source, tmp_path / "large.tar")
    import_library(target, tmp_path / "large.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sha256_hex(target.read_artifact(kernel.kernel_id)) == kernel.kernel_id
    assert peak < 16 * 2**20
    source.close()
    target.close()


def test_a_broken_chain_is_not_exported(
    tmp_path: Path, make_ir: Callable[..., BlueprintIR]
) -> None:
    source = _open(tmp_path, "broken")
    source.submit_blueprint(make_ir())
    with source.transaction() as connection:
        connection.exec_driver_sql("DROP TRIGGER events_keep")
        connection.exec_driver_sql("UPDATE events SET line = replace(line, 'residual', 'Residual')")
    with pytest.raises(ChainError, match="event 0 of chain 'library' was changed"):
        export_library(source, tmp_path / "broken.tar")
    assert not (tmp_path / "broken.tar").exists()
    source.close()
