"""Manifests: JSON documents that say what a kernel, or a whole library, is, signed by the library's key.

`sealing` makes them from a library, `trust` and `offline` verify them without one. A file holds one
`SignedManifest` in canonical JSON and one line break, and nothing else: any other spelling is refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from esper.contracts import (
    CompiledKernelArtifact,
    Contract,
    ManifestError,
    Sha256,
    ValidatorKey,
    canonical_json,
    sha256_hex,
)
from esper.urza.signing import Signature, SigningKey
from esper.urza.statements import Rotation

MAX_BYTES = 64 * 2**20
"""Longer than the manifest of a library with 100,000 runs."""

_DOMAIN = b"esper.urza.manifest.v1"


class ChainPlace(Contract):
    """One event, by its number and hash: whoever has the chain can look it up."""

    seq: int = Field(ge=0)
    hash: Sha256


class ChainHead(Contract):
    """How far a chain went when the manifest was made."""

    chain: str
    num_events: int = Field(ge=0)
    head: Sha256
    """The hash of its last event; 64 zeros for a chain without any."""


class KernelManifest(Contract):
    """What one kernel is, who found it valid, and where that stands on the library's record."""

    media_type: Literal["application/vnd.esper.kernel-manifest+json"] = (
        "application/vnd.esper.kernel-manifest+json"
    )
    version: Literal[1] = 1
    kernel: CompiledKernelArtifact
    """The record. `kernel_id` is the sha256 of the artifact, `blueprint_id` the hash of the design."""
    own_tags: tuple[str, ...]
    """The tags that the kernel was registered with; its report may have added some."""
    record: Sha256
    """The fingerprint of what never changes in the record, as the library's chain has it."""
    report: Sha256 | None
    """The fingerprint of the latest report."""
    validator: ValidatorKey | None
    """The key that endorsed the kernel."""
    registered: ChainPlace | None
    """None for a kernel that is older than the record."""
    judged: ChainPlace | None
    """The event of the latest verdict."""
    chain: ChainHead

    @property
    def subject(self) -> str:
        """What it is about, in words."""
        return f"kernel {self.kernel.kernel_id}"


class Member(Contract):
    """One file of an exported library."""

    name: str
    sha256: Sha256
    size_bytes: int = Field(ge=0)
    num_records: int = Field(ge=0)


class LibraryManifest(Contract):
    """All that a library holds: each record and artifact through the hash of the file that lists it."""

    media_type: Literal["application/vnd.esper.library-manifest+json"] = (
        "application/vnd.esper.library-manifest+json"
    )
    version: Literal[1] = 1
    members: tuple[Member, ...]
    num_artifacts: int = Field(ge=0)
    artifact_bytes: int = Field(ge=0)
    chains: tuple[ChainHead, ...]

    @property
    def subject(self) -> str:
        """What it is about, in words."""
        return "library"


type Manifest = Annotated[KernelManifest | LibraryManifest, Field(discriminator="media_type")]


class SignedManifest(Contract):
    """A manifest, its signature, and how one gets from an older key to the one that signed."""

    manifest: Manifest
    signature: Signature | None
    """None for a manifest that nobody vouches for."""
    rotations: tuple[Rotation, ...] = Field(default=(), max_length=1000)

    @model_validator(mode="after")
    def _check_rotations(self) -> Self:
        if self.rotations and self.signature is None:
            raise ValueError("there are rotations, but no signature that they could lead to")
        return self

    @property
    def digest(self) -> str:
        """The sha256 of the manifest's canonical JSON, as the record of events names it."""
        return sha256_hex(canonical_json(self.manifest))

    def file(self) -> bytes:
        """Return the one form in which it stands in a file."""
        return canonical_json(self) + b"\n"


def sign(
    manifest: KernelManifest | LibraryManifest,
    key: SigningKey | None,
    rotations: tuple[Rotation, ...] = (),
) -> SignedManifest:
    """Sign a manifest; without a key, leave it plainly unsigned."""
    if key is None:
        return SignedManifest(manifest=manifest, signature=None)
    signature = key.sign(_DOMAIN, canonical_json(manifest))
    return SignedManifest(manifest=manifest, signature=signature, rotations=rotations)


def parse(content: bytes, *, where: str) -> SignedManifest:
    """Read a manifest and verify its signatures; whose they are is for `trust` to judge.

    Raises:
        ManifestError: if it is no manifest of this version, was changed, or is written otherwise than a
            library writes it.

    """
    if len(content) > MAX_BYTES:
        raise ManifestError(f"{where} is no manifest: it is longer than {MAX_BYTES:,} bytes")
    try:
        signed = SignedManifest.model_validate_json(content)
    except ValidationError as error:
        raise ManifestError(
            f"{where} is no manifest that this version knows: {_first(error)}"
        ) from (error)
    # Without this a repeated key or white space would pass, which others may read in another way.
    if signed.file() != content:
        raise ManifestError(f"{where} was changed: it is not written as a library writes manifests")
    if signed.signature is not None:
        content = canonical_json(signed.manifest)
        signed.signature.check(_DOMAIN, content, what=f"the manifest {where}")
    for rotation in signed.rotations:
        rotation.check()
    return signed


def _first(error: ValidationError) -> str:
    problem: dict[str, Any] = {**error.errors(include_input=False, include_url=False)[0]}
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])
