"""Kernels: a blueprint built for one concrete signature, measured, judged and endorsed.

Tezzeret registers a `CompiledKernelArtifact`; Urabrask adds a `ValidationReport` and an
`Endorsement`; Kasmina runs only what is endorsed. The bytes themselves (safetensors) are in an
artifact store under `kernel_id`, the sha256 of those bytes.
"""

from typing import Literal, Self

from pydantic import Field, field_serializer, model_validator

from esper.contracts.base import (
    Contract,
    Sha256,
    UtcDatetime,
    canonical_json,
    new_id,
    utc_now,
)
from esper.contracts.enums import KernelStatus, SiteKind

type DType = Literal["float64", "float32", "bfloat16", "float16"]
"""A floating-point type by its torch name."""


class KernelSignature(Contract):
    """What a kernel is built for, or what a site calls for; `fits` tells whether they go together.

    Batch, sequence and image sizes are not part of it: no allowed operator's weights depend on them.
    """

    kind: SiteKind
    features: int = Field(ge=1)
    """`D`: features or channels at the site."""
    inputs: int | None = Field(default=None, ge=1, exclude_if=lambda inputs: inputs is None)
    """`I`: features or channels that a widening reads where an earlier layer gets them, see `Site.widens`.
    None: the block reads the `D` features at its site. Then it is left out of JSON."""
    dtype: DType = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def key(self) -> str:
        """A readable, unique name such as `features-8-float32-cpu`, for a widening `features-64-to-8-…`."""
        read = "" if self.inputs is None else f"{self.inputs}-to-"
        return f"{self.kind.value}-{read}{self.features}-{self.dtype}-{self.device}"

    @property
    def width_read(self) -> int:
        """Features or channels of what a block reads."""
        return self.features if self.inputs is None else self.inputs

    def fits(self, site: "KernelSignature") -> bool:
        """Tell whether a kernel of this signature may run at a site of the signature `site`."""
        # Compared field by field: a policy asks this of every kernel at every site.
        return (
            self.kind in site.kind.takes
            and self.features == site.features
            and self.inputs == site.inputs
            and self.dtype == site.dtype
            and self.device == site.device
        )


class CheckResult(Contract):
    """One measurement of the crucible against its limit."""

    name: str
    passed: bool
    value: float
    limit: float
    detail: str
    """The measurement in words, with units."""


class ValidationReport(Contract):
    """What the crucible measured of one kernel; `passed` exactly when every check did."""

    report_id: str = Field(default_factory=new_id)
    kernel_id: Sha256
    validator_id: str
    passed: bool
    checks: tuple[CheckResult, ...] = Field(min_length=1)
    probe_shape: tuple[int, ...]
    """Shape of the input that latency and memory were measured with."""
    latency_us: float = Field(ge=0)
    """Median time of one forward pass, in microseconds."""
    memory_bytes: int = Field(ge=0)
    """Parameters, buffers and the largest set of values alive in one forward pass, in bytes."""
    num_parameters: int = Field(ge=0)
    flops: int = Field(ge=0)
    """Floating-point operations of one forward pass at `probe_shape` (multiply-add = 2)."""
    tags: tuple[str, ...] = ()
    measured_at: UtcDatetime = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _check_verdict(self) -> Self:
        if self.passed != all(check.passed for check in self.checks):
            raise ValueError("passed must be true exactly when every check passed")
        return self


class Endorsement(Contract):
    """An Ed25519 signature (RFC 8032) over `CompiledKernelArtifact.statement()`."""

    key_id: Sha256
    """sha256 of the raw 32-byte public key."""
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


class CompiledKernelArtifact(Contract):
    """The library's record of one kernel. `kernel_id` is the sha256 of its bytes."""

    kernel_id: Sha256
    blueprint_id: Sha256
    blueprint_name: str
    signature: KernelSignature
    size_bytes: int = Field(ge=1)
    num_parameters: int = Field(ge=0)
    status: KernelStatus = KernelStatus.COMPILED
    tags: tuple[str, ...] = ()
    report: ValidationReport | None = None
    endorsement: Endorsement | None = None
    created_at: UtcDatetime = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _check_status(self) -> Self:
        if self.status is KernelStatus.VALIDATED and (
            self.report is None or not self.report.passed or self.endorsement is None
        ):
            raise ValueError("a VALIDATED kernel needs a report that passed and an endorsement")
        if self.report is not None and self.report.kernel_id != self.kernel_id:
            raise ValueError("the report is about another kernel")
        return self

    def statement(self) -> bytes:
        """Return the bytes that an endorsement signs: what was found valid, and for what."""
        return canonical_json(
            {
                "blueprint_id": self.blueprint_id,
                "kernel_id": self.kernel_id,
                "signature": self.signature.model_dump(mode="json"),
                "verdict": KernelStatus.VALIDATED.value,
            }
        )


class KernelQuery(Contract):
    """A search for kernels; every given condition must hold."""

    signature: KernelSignature | None = None
    status: KernelStatus | None = KernelStatus.VALIDATED
    blueprint_id: Sha256 | None = None
    required_tags: frozenset[str] = frozenset()
    excluded_tags: frozenset[str] = frozenset()
    preferred_tags: frozenset[str] = frozenset()
    """Kernels that have more of these come first."""
    text: str = Field(default="", max_length=200)
    """Words that must all be parts of the blueprint's name or description or of a tag, in any case."""
    max_latency_us: float | None = Field(default=None, gt=0)
    max_memory_bytes: int | None = Field(default=None, gt=0)
    max_parameters: int | None = Field(default=None, gt=0)
    order_by: Literal[
        "kernel_id", "num_parameters", "latency_us", "memory_bytes", "flops", "created_at"
    ] = "kernel_id"
    """Ascending, what nobody measured last; ties by `kernel_id`, ascending."""
    descending: bool = False
    """Largest first; what nobody measured still comes last."""
    limit: int = Field(default=100, ge=1, le=1000)
    after: str | None = Field(default=None, max_length=500)
    """Where the page before ended: its `next`."""

    @field_serializer("required_tags", "excluded_tags", "preferred_tags", when_used="json")
    def _sort_tags(self, tags: frozenset[str]) -> list[str]:
        # The order of a set differs between processes; equal queries have one canonical form.
        return sorted(tags)
