"""What a kernel costs before it runs: taking it from the cache, from memory, from a local file.

    uv run python tests/benchmarks/kernel_cost.py

Times are medians of single calls in microseconds, with the caches of the processor cold: between two
calls other blocks are made. "ready" takes a block that the cache kept; "from memory" verifies and
builds the admitted bytes again; "from file" also reads and admits them; "new design" does that for a
design that this process has never built, whose shapes have to be checked on the meta device first.
Takes about ten seconds.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from esper.contracts import (
    Blueprint,
    CheckResult,
    CompiledKernelArtifact,
    Endorsement,
    KernelSignature,
    KernelStatus,
    ValidationReport,
)
from esper.kasmina import builtin_blueprints, kernels, key_id_of
from esper.kasmina.admission import Admission
from esper.tezzeret import forge_kernel

KERNELS = (
    ("residual_mlp", 45),
    ("normalised_mlp", 64),
    ("residual_conv", 30),
    ("residual_conv1d", 52),
    ("self_attention", 64),
)
"""Designs, and the widths at which they make kernels of about 64 KiB."""

REPEATS = 200


def endorsed(
    name: str, features: int, key: Ed25519PrivateKey
) -> tuple[CompiledKernelArtifact, bytes]:
    """Forge a kernel and endorse it without judging it."""
    ir = next(ir for ir in builtin_blueprints() if ir.name == name)
    signature = KernelSignature(kind=ir.kind, features=features)
    kernel, blob = forge_kernel(Blueprint.from_ir(ir), signature)
    check = CheckResult(name="runs", passed=True, value=0.0, limit=1.0, detail="not measured")
    report = ValidationReport(
        kernel_id=kernel.kernel_id,
        validator_id="benchmark",
        passed=True,
        checks=(check,),
        probe_shape=(1,),
        latency_us=0,
        memory_bytes=0,
        num_parameters=kernel.num_parameters,
        flops=0,
    )
    endorsement = Endorsement(
        key_id=key_id_of(key.public_key().public_bytes_raw()),
        signature=key.sign(kernel.statement()).hex(),
    )
    update = {"status": KernelStatus.VALIDATED, "report": report, "endorsement": endorsement}
    return kernel.model_copy(update=update), blob


def median_us(call: Callable[[], object], prepare: Callable[[], object]) -> float:
    """Return the median time of `call`, each time after `prepare`."""
    times: list[float] = []
    for _ in range(REPEATS):
        prepare()
        begin = time.perf_counter()
        kept = call()  # kept, because freeing it is not part of the call
        times.append(time.perf_counter() - begin)
        del kept
    return statistics.median(times) * 1e6


def measure(admission: Admission, kernel: CompiledKernelArtifact, path: Path) -> list[float]:
    """Return the times of the four ways to get a block, in microseconds."""

    def load() -> object:
        return admission.load(kernel.kernel_id, "cpu")

    def from_file() -> object:
        admission.admit(kernel, path.read_bytes())
        return load()

    def make_ready() -> None:
        load()
        admission.refill()

    def forget_designs() -> None:
        vars(kernels)["_template"].cache_clear()

    return [
        median_us(load, make_ready),
        median_us(load, load),
        median_us(from_file, load),
        median_us(from_file, forget_designs),
    ]


def main() -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    console = Console()
    table = Table(
        title=f"Microseconds, median of {REPEATS}; torch {torch.__version__}, {platform.machine()}"
    )
    for column in ("kernel", "bytes", "ready", "from memory", "from file", "new design"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    key = Ed25519PrivateKey.generate()
    admission = Admission()
    admission.trust(key.public_key().public_bytes_raw())
    with tempfile.TemporaryDirectory() as folder:
        for name, features in KERNELS:
            kernel, blob = endorsed(name, features, key)
            path = Path(folder) / kernel.kernel_id
            path.write_bytes(blob)
            admission.admit(kernel, blob)
            times = measure(admission, kernel, path)
            row = (f"{name}, D={features}", f"{len(blob):,}")
            table.add_row(*row, *(f"{each:,.1f}" for each in times))
    table.add_section()
    table.add_row("at most", "", "10", "", "1,000", "")
    console.print(table)


if __name__ == "__main__":
    main()
