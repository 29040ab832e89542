"""The kernels that a bed may run: admitted only after every check, and checked again before use.

The bed hands in what Tamiyo found in the library, and takes blocks out for its seeds.
"""

from collections.abc import Mapping

from esper.contracts import CompiledKernelArtifact, KernelRejectedError, NotFoundError, sha256_hex
from esper.kasmina.endorsements import key_id_of, verify_endorsement
from esper.kasmina.kernels import Block, count_parameters, unpack_kernel


class Admission:
    """Trusted keys, and the kernels that passed with their bytes."""

    def __init__(self) -> None:
        self._trusted: dict[str, bytes] = {}
        self._admitted: dict[str, tuple[CompiledKernelArtifact, bytes]] = {}

    def trust(self, public_key: bytes) -> None:
        """Accept endorsements made with this raw Ed25519 public key (32 bytes)."""
        self._trusted[key_id_of(public_key)] = public_key

    def admit(self, kernel: CompiledKernelArtifact, blob: bytes) -> None:
        """Verify a kernel and keep it.

        Raises:
            KernelRejectedError: naming the check that failed.

        """
        self._verify(kernel, blob, device="cpu")
        self._admitted[kernel.kernel_id] = (kernel, blob)

    def record(self, kernel_id: str) -> CompiledKernelArtifact:
        """Return the record of an admitted kernel.

        Raises:
            NotFoundError: if it was not admitted.

        """
        if kernel_id not in self._admitted:
            raise NotFoundError(
                f"kernel {kernel_id[:12]} is not admitted here ({len(self._admitted)} are); "
                "admit() it first"
            )
        return self._admitted[kernel_id][0]

    def load(self, kernel_id: str, device: str) -> Block:
        """Verify an admitted kernel once more and return its block on `device`.

        Raises:
            KernelRejectedError: naming the check that failed.

        """
        kernel, blob = self._admitted[kernel_id]
        return self._verify(kernel, blob, device=device)

    def _verify(self, kernel: CompiledKernelArtifact, blob: bytes, *, device: str) -> Block:
        """Return the kernel's block if everything about it holds."""
        verify_endorsement(kernel, self._trusted)
        name = f"kernel {kernel.kernel_id[:12]}"
        if (digest := sha256_hex(blob)) != kernel.kernel_id:
            raise KernelRejectedError(
                f"{name}: its bytes have the sha256 {digest[:12]}; they are damaged or not its own"
            )
        unpacked = unpack_kernel(blob, device=device)
        found: Mapping[str, object] = {
            "blueprint_id": unpacked.ir.content_hash(),
            "signature": unpacked.signature,
            "num_parameters": count_parameters(unpacked.block),
            "size_bytes": len(blob),
        }
        for field, value in found.items():
            if (claimed := getattr(kernel, field)) != value:
                raise KernelRejectedError(
                    f"{name}: its record says {field} {claimed}, its bytes say {value}"
                )
        return unpacked.block
