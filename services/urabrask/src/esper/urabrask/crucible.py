"""Judges one kernel: runs every check on it, measures it, and returns the report.

The worker hands in the library's record and the verified bytes; a report that passed is what it signs.
"""

import torch

from esper.contracts import (
    BackendUnavailableError,
    CheckResult,
    CompiledKernelArtifact,
    KernelRejectedError,
    ValidationReport,
)
from esper.kasmina.kernels import count_parameters
from esper.kasmina.operators import missing_operators
from esper.kasmina.packing import UnpackedKernel, read_header, unpack_kernel
from esper.urabrask.checks import CHECKS, Specimen, make_specimen, within
from esper.urabrask.meters import median_latency_us, state_bytes

LATENCY_LIMIT_US = 10e6
"""Ten seconds for a few rows: only what could never be used fails, on the slowest machine too."""

_CRASHES = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
"""What running somebody else's block can raise; anything else is a bug of the crucible."""


def judge(kernel: CompiledKernelArtifact, blob: bytes, *, validator_id: str) -> ValidationReport:
    """Run and measure the kernel in `blob`; a kernel that does not unpack or crashes is rejected.

    Everything in the report but the latency is the same each time, and the latency decides nothing
    short of `LATENCY_LIMIT_US`.

    Raises:
        BackendUnavailableError: if the kernel is for a device that this machine does not have, or
            uses an operator that is not registered here, so nothing can be said about it.

    """
    if kernel.signature.device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"kernel {kernel.kernel_id[:12]} is for cuda, which this machine does not have; "
            "run the crucible on a machine with a CUDA device"
        )
    try:
        _check_operators(kernel, blob)
        unpacked = unpack_kernel(blob)
    except KernelRejectedError as error:
        return _report_without_run(kernel, validator_id, [_failure("unpacks", error)])
    record = _check_record(kernel, unpacked)
    try:
        specimen = make_specimen(unpacked.block, unpacked.signature)
    except _CRASHES as error:
        return _report_without_run(kernel, validator_id, [record, _failure("runs", error)])
    return _report(kernel, validator_id, specimen, record)


def _check_operators(kernel: CompiledKernelArtifact, blob: bytes) -> None:
    if missing := missing_operators(read_header(blob).ir):
        raise BackendUnavailableError(
            f"kernel {kernel.kernel_id[:12]} uses {', '.join(missing)}, which is not registered in "
            "this crucible; install the package that registers it (entry point esper.operators)"
        )


def tags_of(kernel: CompiledKernelArtifact) -> tuple[str, ...]:
    """Return what the library can be searched by: kind, type, and weight relative to `D` squared.

    `light` has at most D² parameters, `medium` at most 4·D², `heavy` more; for a widening it is D·I.
    """
    square = kernel.signature.features * kernel.signature.width_read
    ratio = kernel.num_parameters / square
    weight = "light" if ratio <= 1 else "medium" if ratio <= 4 else "heavy"
    return (kernel.signature.kind.value, kernel.signature.dtype, weight)


def _report(
    kernel: CompiledKernelArtifact, validator_id: str, specimen: Specimen, record: CheckResult
) -> ValidationReport:
    checks = [record, *(_apply(name, specimen) for name in CHECKS)]
    latency_us = median_latency_us(specimen.block, specimen.x)
    checks.append(
        within("latency_bounded", latency_us, LATENCY_LIMIT_US, f"median {latency_us:.0f} µs")
    )
    return ValidationReport(
        kernel_id=kernel.kernel_id,
        validator_id=validator_id,
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        probe_shape=tuple(specimen.x.shape),
        latency_us=latency_us,
        memory_bytes=state_bytes(specimen.block) + specimen.cost.peak_bytes,
        num_parameters=count_parameters(specimen.block),
        flops=specimen.cost.flops,
        tags=tags_of(kernel),
    )


def _report_without_run(
    kernel: CompiledKernelArtifact, validator_id: str, checks: list[CheckResult]
) -> ValidationReport:
    """Report a kernel that could not be run at all: nothing was measured, so the numbers are 0."""
    return ValidationReport(
        kernel_id=kernel.kernel_id,
        validator_id=validator_id,
        passed=False,
        checks=tuple(checks),
        probe_shape=(),
        latency_us=0,
        memory_bytes=0,
        num_parameters=0,
        flops=0,
    )


def _apply(name: str, specimen: Specimen) -> CheckResult:
    try:
        return CHECKS[name](specimen)
    except _CRASHES as error:
        return _failure(name, error)


def _failure(name: str, error: Exception) -> CheckResult:
    reason = (str(error).splitlines() or [""])[0]
    return within(name, 1, 0, f"{type(error).__name__}: {reason}")


def _check_record(kernel: CompiledKernelArtifact, unpacked: UnpackedKernel) -> CheckResult:
    """Compare bytes and record: the endorsement is about what the record says."""
    differences = [
        f"{name} is {found}, the record says {expected}"
        for name, found, expected in (
            ("blueprint", unpacked.ir.content_hash(), kernel.blueprint_id),
            ("signature", unpacked.signature.key, kernel.signature.key),
            ("parameters", count_parameters(unpacked.block), kernel.num_parameters),
        )
        if found != expected
    ]
    detail = "; ".join(differences) or "design, signature and parameter count"
    return within("matches_record", len(differences), 0, detail)
