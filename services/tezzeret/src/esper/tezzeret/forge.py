"""Builds one kernel from a blueprint and a signature: a pure function from content to content.

The worker takes blueprints from the library, and files there what this returns; the crucible judges it.
"""

import torch

from esper.contracts import (
    Blueprint,
    BlueprintError,
    CompiledKernelArtifact,
    KernelSignature,
    sha256_hex,
)
from esper.kasmina.kernels import build_block, count_parameters, initialise_block
from esper.kasmina.packing import pack_kernel


def forge_kernel(
    blueprint: Blueprint, signature: KernelSignature
) -> tuple[CompiledKernelArtifact, bytes]:
    """Return a kernel's record and bytes; equal input gives equal bytes on any machine.

    No file, server or shared random stream is touched. A kernel for an accelerator is built on the CPU,
    since only its weights are kept.

    Raises:
        BlueprintError: if the design cannot be built for `signature`; says why.

    """
    try:
        block = build_block(blueprint.ir, signature, device="cpu")
    except BlueprintError as error:
        raise BlueprintError(
            f"blueprint {blueprint.ir.name!r} ({blueprint.blueprint_id[:12]}) cannot be built for "
            f"{signature.key}: {error}"
        ) from error
    initialise_block(block, torch.Generator().manual_seed(seed_of(blueprint, signature)))
    blob = pack_kernel(blueprint.ir, signature, block)
    kernel = CompiledKernelArtifact(
        kernel_id=sha256_hex(blob),
        blueprint_id=blueprint.blueprint_id,
        blueprint_name=blueprint.ir.name,
        signature=signature,
        size_bytes=len(blob),
        num_parameters=count_parameters(block),
    )
    return kernel, blob


def seed_of(blueprint: Blueprint, signature: KernelSignature) -> int:
    """Return the seed of a kernel's initial weights: 63 bits of a hash of what it is built from."""
    digest = sha256_hex(f"{blueprint.blueprint_id} {signature.key}".encode())
    return int(digest[:16], 16) >> 1
