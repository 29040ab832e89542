"""Has the kernels that a bed's sites call for forged and judged, before the first training step.

Submits the bed's blueprints to the library, asks for kernels on the bus, waits for the crucible's
verdicts, and hands the kernels that passed to the bed, which verifies them again for itself.
"""

from collections.abc import Callable

from esper.contracts import (
    BlueprintIR,
    BlueprintSubmitted,
    CompiledKernelArtifact,
    KernelCharacterized,
    KernelSignature,
    SeedBed,
)
from esper.tamiyo.runtime import Runtime

FORGE_TIMEOUT_SECONDS = 30.0
"""Without any kernel coming forward; one takes some 0.1 s, several seconds on a very busy machine."""

WIDE = 512
"""Features from which on it may take longer; with their square, as a kernel's parameters do. With 1024 the
largest takes some 5 s, with 4096 over a minute."""

type OnForged = Callable[[int, int], None]
"""Told how many kernels are done, and how many there will be."""


def forge_kernels(
    bed: SeedBed, runtime: Runtime, on_forged: OnForged | None = None
) -> list[CompiledKernelArtifact]:
    """Return the VALIDATED kernels that `bed` now has at hand, ordered by id.

    Raises:
        EsperError: if a worker failed, a stored kernel was tampered with, or time ran out.

    """
    bed.trust(runtime.public_key)
    expected: set[tuple[str, str]] = set()
    for ir in bed.blueprints:
        signatures = _signatures(bed, ir)
        if not signatures:
            continue
        blueprint = runtime.library.submit_blueprint(ir)
        ordered = tuple(signatures[key] for key in sorted(signatures))
        runtime.publish(BlueprintSubmitted(blueprint_id=blueprint.blueprint_id, signatures=ordered))
        expected |= {(blueprint.blueprint_id, key) for key in signatures}
    widest = max((site.signature.features for site in bed.sites), default=1)
    timeout_seconds = FORGE_TIMEOUT_SECONDS * max(1.0, widest / WIDE) ** 2
    judged = runtime.wait_for_kernels(expected, timeout_seconds, on_forged)
    passed = [_admit(bed, runtime, item) for item in judged.values() if item.report.passed]
    return sorted(passed, key=lambda kernel: kernel.kernel_id)


def _signatures(bed: SeedBed, ir: BlueprintIR) -> dict[str, KernelSignature]:
    """Return, by key, what kernels of `ir` are built for: every site that they suit."""
    found = (
        site.signature.model_copy(update={"kind": ir.kind}) for site in bed.sites if site.suits(ir)
    )
    return {signature.key: signature for signature in found}


def _admit(bed: SeedBed, runtime: Runtime, judged: KernelCharacterized) -> CompiledKernelArtifact:
    stored = runtime.library.get_kernel(judged.report.kernel_id)
    # The library keeps the latest endorsement, which in a shared one may be another crucible's.
    updates = {"report": judged.report, "endorsement": judged.endorsement}
    kernel = stored.model_copy(update=updates)
    bed.admit(kernel, runtime.library.read_artifact(kernel.kernel_id))
    return kernel
