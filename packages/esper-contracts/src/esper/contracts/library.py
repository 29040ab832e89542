"""What a library is asked and answers, and which statuses may follow one another in it.

The port itself is in `library_port`; blueprints and kernels have modules of their own.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

from pydantic import Field, model_validator

from esper.contracts.base import Contract, Sha256, UtcDatetime, sha256_hex
from esper.contracts.blueprints import Blueprint
from esper.contracts.enums import BlueprintStatus, KernelStatus, SiteKind
from esper.contracts.kernels import CompiledKernelArtifact

BLUEPRINT_MOVES: Mapping[BlueprintStatus, frozenset[BlueprintStatus]] = MappingProxyType(
    {
        BlueprintStatus.SUBMITTED: frozenset({BlueprintStatus.COMPILED, BlueprintStatus.ARCHIVED}),
        BlueprintStatus.COMPILED: frozenset({BlueprintStatus.ARCHIVED}),
        BlueprintStatus.ARCHIVED: frozenset[BlueprintStatus](),
    }
)
"""Which status may follow which; a new blueprint is SUBMITTED."""

KERNEL_MOVES: Mapping[KernelStatus, frozenset[KernelStatus]] = MappingProxyType(
    {
        KernelStatus.COMPILED: frozenset(
            {KernelStatus.VALIDATED, KernelStatus.REJECTED, KernelStatus.ARCHIVED}
        ),
        # Judged again; or back to COMPILED because the key of its endorsement was revoked.
        KernelStatus.VALIDATED: frozenset(
            {KernelStatus.COMPILED, KernelStatus.REJECTED, KernelStatus.ARCHIVED}
        ),
        KernelStatus.REJECTED: frozenset({KernelStatus.VALIDATED, KernelStatus.ARCHIVED}),
        KernelStatus.ARCHIVED: frozenset[KernelStatus](),
    }
)
"""Which status may follow which; a new kernel is COMPILED."""

MAX_CLAIMS = 5
"""How often a blueprint or kernel is handed out: what ends its workers is left alone after that."""


class BlueprintQuery(Contract):
    """A search for blueprints; every given condition must hold."""

    status: BlueprintStatus | None = None
    kind: SiteKind | None = None
    text: str = Field(default="", max_length=200)
    """Words that must all be parts of the name or the description, in any case."""
    limit: int = Field(default=100, ge=1, le=1000)
    after: str | None = Field(default=None, max_length=64)
    """Where the page before ended: its `next`."""


class BlueprintPage(Contract):
    """Some of what a query found."""

    items: tuple[Blueprint, ...]
    next: str | None
    """What to ask for as `after`; None at the end."""


class KernelPage(Contract):
    """Some of what a query found."""

    items: tuple[CompiledKernelArtifact, ...]
    next: str | None
    """What to ask for as `after`; None at the end."""


class ValidatorKey(Contract):
    """An Ed25519 key (RFC 8032) whose endorsements a library accepts, or accepted once."""

    key_id: Sha256
    """sha256 of the raw public key."""
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The raw 32 bytes in hexadecimal."""
    name: str = Field(min_length=1, max_length=200)
    enrolled_at: UtcDatetime
    revoked_at: UtcDatetime | None = None

    @model_validator(mode="after")
    def _check_id(self) -> Self:
        if self.key_id != sha256_hex(bytes.fromhex(self.public_key)):
            raise ValueError("key_id is not the sha256 of the public key")
        return self
