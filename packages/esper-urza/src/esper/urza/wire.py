"""What requests to a library's service carry that is no record of its own.

The service (`esper.urza_api`) and its client (`http_library`) share these.
"""

from typing import Literal

from pydantic import Field

from esper.contracts import (
    ChainedEvent,
    CompiledKernelArtifact,
    ConfigError,
    Contract,
    Endorsement,
    KernelQuery,
    KernelSignature,
    KernelStatus,
    SiteKind,
    ValidationReport,
)

MAX_LEASE_SECONDS = 86_400.0 * 365
MAX_KERNELS = 1000
"""That one request registers."""


class Claim(Contract):
    """Who wants to work on something, and for how long nobody else may."""

    holder: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")
    lease_seconds: float = Field(gt=0, le=MAX_LEASE_SECONDS)


class Holder(Contract):
    """Who holds a claim."""

    holder: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")


class Held(Contract):
    """Whether a claim was still held."""

    held: bool


class KernelsGiven(Contract):
    """Kernels whose bytes were uploaded before."""

    kernels: tuple[CompiledKernelArtifact, ...] = Field(min_length=1, max_length=MAX_KERNELS)


class KernelsFiled(Contract):
    """The records on file, in the order in which they were given."""

    kernels: tuple[CompiledKernelArtifact, ...]


class Verdict(Contract):
    """A report, with an endorsement exactly if it passed."""

    report: ValidationReport
    endorsement: Endorsement | None = None


class PublicKey(Contract):
    """A validator's key."""

    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The raw 32 bytes of an Ed25519 public key, in hexadecimal."""
    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")


class KernelSearch(Contract):
    """A `KernelQuery` as parameters of a URL: its signature is spread out."""

    kind: SiteKind | None = None
    """With `features`: what the kernel is built for."""
    features: int | None = Field(default=None, ge=1, le=2**53)
    inputs: int | None = Field(default=None, ge=1, le=2**53)
    """With both: what a widening reads."""
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    status: KernelStatus | Literal["any"] = KernelStatus.VALIDATED
    blueprint_id: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    required_tags: list[str] = Field(default_factory=list[str], max_length=100)
    excluded_tags: list[str] = Field(default_factory=list[str], max_length=100)
    preferred_tags: list[str] = Field(default_factory=list[str], max_length=100)
    text: str = Field(default="", max_length=200)
    max_latency_us: float | None = Field(default=None, gt=0)
    max_memory_bytes: int | None = Field(default=None, gt=0)
    max_parameters: int | None = Field(default=None, gt=0)
    order_by: Literal[
        "kernel_id", "num_parameters", "latency_us", "memory_bytes", "flops", "created_at"
    ] = "kernel_id"
    descending: bool = False
    limit: int = Field(default=100, ge=1, le=1000)
    after: str | None = Field(default=None, max_length=500)

    def query(self) -> KernelQuery:
        """Return what is asked for. Raises `ConfigError` for half a signature."""
        fields = self.model_dump(
            exclude={"kind", "features", "inputs", "dtype", "device", "status"}
        )
        if (self.kind is None) != (self.features is None):
            raise ConfigError("kind and features belong together: a kernel is built for both")
        if self.inputs is not None and self.kind is None:
            raise ConfigError("inputs goes with kind and features: they say what a widening reads")
        signature = None
        if self.kind is not None and self.features is not None:
            signature = KernelSignature(
                kind=self.kind,
                features=self.features,
                inputs=self.inputs,
                dtype=self.dtype,
                device=self.device,
            )
        status = None if self.status == "any" else self.status
        return KernelQuery.model_validate(fields | {"signature": signature, "status": status})

    @classmethod
    def of(cls, query: KernelQuery) -> "KernelSearch":
        """Return the parameters of a query."""
        fields = query.model_dump(exclude={"signature", "status"})
        for name in ("required_tags", "excluded_tags", "preferred_tags"):
            fields[name] = sorted(fields[name])
        if query.signature is not None:
            fields |= query.signature.model_dump()
        return cls.model_validate(fields | {"status": query.status or "any"})


class EventPage(Contract):
    """Some events of a chain."""

    items: tuple[ChainedEvent, ...]
    next: int | None
    """What to ask for as `since`; None at the end."""
