"""Whether bytes are those of the kernel that is registered with them."""

from esper.contracts import ArtifactIntegrityError, CompiledKernelArtifact, sha256_hex


def check_blob(kernel: CompiledKernelArtifact, blob: bytes) -> None:
    """Raise `ArtifactIntegrityError` unless they are."""
    actual = sha256_hex(blob)
    if actual != kernel.kernel_id:
        raise ArtifactIntegrityError(
            f"kernel_id {kernel.kernel_id} is not the sha256 of the bytes given with it, "
            f"{actual}; register a kernel under the hash of its bytes"
        )
    if len(blob) != kernel.size_bytes:
        raise ArtifactIntegrityError(
            f"kernel {kernel.kernel_id} says size_bytes={kernel.size_bytes}, but the bytes given "
            f"with it are {len(blob)}"
        )
