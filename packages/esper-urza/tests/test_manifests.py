"""Signed manifests: what a library seals, anybody verifies from files alone, and no byte can be changed."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts import (
    GENESIS,
    LIBRARY_CHAIN,
    ArtifactIntegrityError,
    BlueprintIR,
    CheckResult,
    CompiledKernelArtifact,
    ConfigError,
    Endorsement,
    EsperError,
    KernelRejectedError,
    KernelSignature,
    KernelStatus,
    ManifestError,
    NotFoundError,
    SiteKind,
    UntrustedKeyError,
    ValidationReport,
    sha256_hex,
)
from esper.urza import keyring, records
from esper.urza.library import SqlLibrary
from esper.urza.manifests import (
    ChainHead,
    KernelManifest,
    LibraryManifest,
    SignedManifest,
    parse,
    sign,
)
from esper.urza.offline import check_kernel, verify_manifest
from esper.urza.sealing import seal_kernel
from esper.urza.signing import SigningKey
from esper.urza.statements import Rotation
from esper.urza.trust import check_trust

BLOB = b"the bytes of a kernel"


def make_key(digit: str) -> SigningKey:
    return SigningKey(private=Ed25519PrivateKey.from_private_bytes(bytes.fromhex(digit * 64)))


ROOT, NEXT, STRANGER = make_key("1"), make_key("2"), make_key("3")


def make_manifest(**fields: object) -> KernelManifest:
    """Make the manifest of a kernel that somebody judged, and that was rejected."""
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    check = CheckResult(name="finite", passed=False, value=float("nan"), limit=0.0, detail="é")
    report = ValidationReport(
        report_id="r",
        kernel_id=sha256_hex(BLOB),
        validator_id="urabrask",
        passed=False,
        checks=(check,),
        probe_shape=(2, 8),
        latency_us=12.25,
        memory_bytes=1,
        num_parameters=2,
        flops=3,
        tags=("measured",),
        measured_at=at,
    )
    registered = CompiledKernelArtifact(
        kernel_id=sha256_hex(BLOB),
        blueprint_id="2" * 64,
        blueprint_name="residual",
        signature=KernelSignature(kind=SiteKind.FEATURES, features=8),
        size_bytes=len(BLOB),
        num_parameters=2,
        tags=("own",),
        created_at=at,
    )
    judged = registered.model_copy(
        update={"status": KernelStatus.REJECTED, "tags": ("own", "measured"), "report": report}
    )
    made = KernelManifest(
        kernel=judged,
        own_tags=("own",),
        record=records.fingerprint_of(registered),
        report=records.fingerprint_of(report),
        validator=None,
        registered=None,
        judged=None,
        chain=ChainHead(chain=LIBRARY_CHAIN, num_events=0, head=GENESIS),
    )
    return made.model_copy(update=fields)


SIGNED = sign(make_manifest(), NEXT, (Rotation.make(ROOT, NEXT, name="next"),))


def _verify(content: bytes, trusted: SigningKey = ROOT) -> SignedManifest:
    signed = parse(content, where="m.json")
    check_trust(signed, [trusted.public_key])
    assert isinstance(signed.manifest, KernelManifest)
    check_kernel(signed.manifest)
    return signed


def test_a_manifest_comes_back_from_its_file_and_verifies() -> None:
    for trusted in (ROOT, NEXT):
        assert _verify(SIGNED.file(), trusted).file() == SIGNED.file()
    assert json.loads(SIGNED.file())["manifest"]["media_type"] == (
        "application/vnd.esper.kernel-manifest+json"
    )


def test_the_readme_tells_others_how_to_verify() -> None:
    document = json.loads(SIGNED.file())
    content = json.dumps(
        document["manifest"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    public_key = Ed25519PublicKey.from_public_bytes(
        bytes.fromhex(document["signature"]["public_key"])
    )
    signed = b"esper.urza.manifest.v1\0" + content.encode()
    public_key.verify(bytes.fromhex(document["signature"]["signature"]), signed)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(SIGNED.file()) - 1), flip=st.integers(1, 255))
def test_any_changed_byte_of_manifest_signature_or_rotation_is_refused(
    place: int, flip: int
) -> None:
    content = bytearray(SIGNED.file())
    content[place] ^= flip
    with pytest.raises(ManifestError):
        _verify(bytes(content))


@given(place=st.integers(0, len(SIGNED.file()) - 1), more=st.binary(min_size=1, max_size=8))
def test_a_manifest_that_is_cut_or_has_more_in_it_is_refused(place: int, more: bytes) -> None:
    content = SIGNED.file()
    with pytest.raises(ManifestError):
        _verify(content[:place])
    with pytest.raises(ManifestError):
        _verify(content[:place] + more + content[place:])


def test_another_spelling_of_the_same_content_is_refused() -> None:
    document = json.loads(SIGNED.file())
    for other in (
        json.dumps(document, sort_keys=True).encode() + b"\n",
        json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode(),
        SIGNED.file().replace(b'{"manifest":', b'{"manifest":{},"manifest":', 1),
    ):
        with pytest.raises(ManifestError, match=r"m\.json (was changed|is no manifest)"):
            parse(other, where="m.json")


def test_a_manifest_of_another_kind_or_version_is_refused_by_name() -> None:
    for old, new in (
        (b'"version":1}', b'"version":2}'),
        (b"vnd.esper.kernel-manifest", b"vnd.esper.kernel-manifesto"),
    ):
        changed = SIGNED.file().replace(old, new)
        assert changed != SIGNED.file()
        with pytest.raises(ManifestError, match="is no manifest that this version knows"):
            parse(changed, where="m.json")
    with pytest.raises(ManifestError, match="longer than"):
        parse(b" " * (64 * 2**20 + 1), where="m.json")


def test_a_signature_for_one_manifest_does_not_fit_another() -> None:
    other = make_manifest(own_tags=("own", "more"))
    swapped = SIGNED.model_copy(update={"manifest": other})
    with pytest.raises(ManifestError, match=r"the manifest m\.json was changed or forged"):
        parse(swapped.file(), where="m.json")


def test_who_is_not_trusted_signs_in_vain() -> None:
    unsigned = sign(make_manifest(), None)
    assert parse(unsigned.file(), where="m.json").signature is None
    with pytest.raises(UntrustedKeyError, match="nobody signed this manifest of kernel"):
        check_trust(unsigned, [ROOT.public_key])
    forged = sign(make_manifest(), STRANGER, SIGNED.rotations)
    with pytest.raises(UntrustedKeyError, match="no rotation leads from a trusted key"):
        check_trust(forged, [ROOT.public_key])
    with pytest.raises(UntrustedKeyError):
        check_trust(SIGNED, [STRANGER.public_key])
    with pytest.raises(UntrustedKeyError):
        check_trust(SIGNED, [])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"record": "0" * 64}, "another record than its fingerprint"),
        ({"report": "0" * 64}, "another report than its fingerprint"),
        ({"report": None}, "another report than its fingerprint"),
        ({"own_tags": ("own", "own too")}, "another record than its fingerprint"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_though_signed(
    fields: dict[str, object], told: str
) -> None:
    with pytest.raises(ManifestError, match=told):
        _verify(sign(make_manifest(**fields), ROOT).file())


@pytest.fixture
def sealed(
    library: SqlLibrary,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
    make_report: Callable[..., ValidationReport],
    make_endorsement: Callable[..., Endorsement],
) -> tuple[SignedManifest, bytes]:
    """The manifest of a VALIDATED kernel, signed by an enrolled key, and its bytes."""
    library.submit_blueprint(make_ir())
    kernel, blob = make_kernel(make_ir(), tags=("own",))
    library.register_kernels([(kernel, blob), make_kernel(make_ir(), 1)])
    library.record_validation(
        make_report(kernel.kernel_id, tags=("fast",)), make_endorsement(kernel)
    )
    keyring.enroll_key(library, ROOT.public_key, name="the library")
    return seal_kernel(library, kernel.kernel_id, ROOT), blob


def _record(library: SqlLibrary, path: Path) -> Path:
    path.write_bytes(b"".join(event.line() for event in library.events()))
    return path


def test_a_library_seals_a_kernel_and_files_alone_verify_it(
    library: SqlLibrary, sealed: tuple[SignedManifest, bytes], tmp_path: Path
) -> None:
    signed, blob = sealed
    manifest, artifact = tmp_path / "m.json", tmp_path / "kernel.bin"
    manifest.write_bytes(signed.file())
    artifact.write_bytes(blob)
    record = _record(library, tmp_path / "library.jsonl")
    trusted = [ROOT.public_key]
    verified = verify_manifest(manifest, trusted=trusted, artifact=artifact, record=record)
    assert verified.path == (ROOT.key_id,)
    assert (verified.artifact_checked, verified.record_checked) == (True, True)
    what = signed.manifest
    assert isinstance(what, KernelManifest)
    assert what.kernel == library.get_kernel(sha256_hex(blob))
    assert what.registered is not None
    assert what.judged is not None
    assert what.registered.seq < what.judged.seq < what.chain.num_events
    assert what.validator is not None
    assert not verify_manifest(manifest, trusted=trusted).record_checked
    artifact.write_bytes(blob[:-1] + b"?")
    with pytest.raises(ArtifactIntegrityError, match="is not the artifact of this manifest"):
        verify_manifest(manifest, trusted=trusted, artifact=artifact)
    with pytest.raises(ConfigError, match="cannot be read"):
        verify_manifest(manifest, trusted=trusted, artifact=tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot be read"):
        verify_manifest(tmp_path / "missing", trusted=trusted)
    with pytest.raises(ConfigError, match="cannot be read"):
        verify_manifest(manifest, trusted=trusted, record=tmp_path / "missing")


def test_a_record_that_is_not_the_librarys_is_refused(
    library: SqlLibrary, sealed: tuple[SignedManifest, bytes], tmp_path: Path
) -> None:
    manifest, record = tmp_path / "m.json", tmp_path / "library.jsonl"
    manifest.write_bytes(sealed[0].file())
    lines = _record(library, record).read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:-3]))
    with pytest.raises(ManifestError, match="of another library, or older than the manifest"):
        verify_manifest(manifest, trusted=[ROOT.public_key], record=record)
    record.write_bytes(b"".join(lines[1:]))
    with pytest.raises(EsperError, match="line 1 does not follow"):
        verify_manifest(manifest, trusted=[ROOT.public_key], record=record)


def test_an_endorsement_in_a_manifest_is_verified_too(
    sealed: tuple[SignedManifest, bytes],
) -> None:
    manifest = sealed[0].manifest
    assert isinstance(manifest, KernelManifest)
    check_kernel(manifest)
    with pytest.raises(KernelRejectedError, match="is not enrolled"):
        check_kernel(manifest.model_copy(update={"validator": None}))
    assert manifest.kernel.endorsement is not None
    forged = manifest.kernel.endorsement.model_copy(update={"signature": "0" * 128})
    kernel = manifest.kernel.model_copy(update={"endorsement": forged})
    with pytest.raises(KernelRejectedError, match="does not verify"):
        check_kernel(manifest.model_copy(update={"kernel": kernel}))


def test_only_a_key_on_the_record_seals(
    library: SqlLibrary, sealed: tuple[SignedManifest, bytes]
) -> None:
    manifest = sealed[0].manifest
    assert isinstance(manifest, KernelManifest)
    before = list(library.events())
    with pytest.raises(UntrustedKeyError, match="is not on the library's record"):
        seal_kernel(library, manifest.kernel.kernel_id, STRANGER)
    with pytest.raises(NotFoundError):
        seal_kernel(library, "0" * 64, ROOT)
    assert list(library.events()) == before
    unrecorded = seal_kernel(library, manifest.kernel.kernel_id, ROOT, is_recorded=False)
    assert list(library.events()) == before
    again = seal_kernel(library, manifest.kernel.kernel_id, ROOT)
    assert again == unrecorded
    assert [event.kind for event in library.events()][len(before) :] == ["manifest_signed"]


def test_a_library_manifest_has_no_artifact_of_its_own(tmp_path: Path) -> None:
    what = LibraryManifest(members=(), num_artifacts=0, artifact_bytes=0, chains=())
    path = tmp_path / "m.json"
    path.write_bytes(sign(what, ROOT).file())
    assert verify_manifest(path, trusted=[ROOT.public_key]).signed.manifest == what
    with pytest.raises(ConfigError, match="is about a whole library"):
        verify_manifest(path, trusted=[ROOT.public_key], artifact=path)
