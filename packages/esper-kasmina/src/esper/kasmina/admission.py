"""The kernels that a bed may run: admitted only after every check, and kept ready in a cache.

The bed hands in what Tamiyo found in the library, and takes blocks out for its seeds. Bytes are
verified every time that a block is made from them. A block that comes from the cache was verified
when it was put there and has been out of reach since, so it is not verified again.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import cast

import torch

from esper.contracts import (
    CompiledKernelArtifact,
    KernelRejectedError,
    NotFoundError,
    Site,
    sha256_hex,
)
from esper.kasmina.cache import DEFAULT_CACHE_BYTES, CacheStatus, KernelCache
from esper.kasmina.endorsements import key_id_of, verify_endorsement
from esper.kasmina.kernels import Block
from esper.kasmina.packing import UnpackedKernel, unpack_kernel


class Admission:
    """Trusted keys, and the kernels that passed: their bytes, and within a budget their blocks."""

    def __init__(self, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._trusted: dict[str, bytes] = {}
        self._admitted: dict[str, tuple[CompiledKernelArtifact, bytes]] = {}
        self._cache = KernelCache(cache_bytes)

    @property
    def cache(self) -> CacheStatus:
        """How the cache of ready blocks has done so far."""
        return self._cache.status

    @property
    def admitted(self) -> Mapping[str, tuple[CompiledKernelArtifact, bytes]]:
        """The records and bytes of the admitted kernels, by id."""
        return self._admitted

    def trust(self, public_key: bytes) -> None:
        """Accept endorsements made with this raw Ed25519 public key (32 bytes)."""
        self._trusted[key_id_of(public_key)] = public_key

    def admit(self, kernel: CompiledKernelArtifact, blob: bytes) -> None:
        """Verify a kernel and keep it, with a block ready on the device that it was built for.

        Raises:
            KernelRejectedError: naming the check that failed.

        """
        device = torch.device(kernel.signature.device)
        is_here = device.type == "cpu" or torch.cuda.is_available()
        place = _place(device if is_here else "cpu")
        block = self._verified(kernel, blob, place)
        self._admitted[kernel.kernel_id] = (kernel, blob)
        if is_here:
            self._cache.put((kernel.kernel_id, place), block)

    def record(self, kernel_id: str) -> CompiledKernelArtifact:
        """Return the record of an admitted kernel.

        Raises:
            NotFoundError: if it was not admitted.

        """
        return self._find(kernel_id)[0]

    def fitting(self, kernel_id: str, site: Site) -> CompiledKernelArtifact:
        """Return the record of an admitted kernel for `site`.

        Raises:
            NotFoundError: if it was not admitted.
            KernelRejectedError: if it does not fit there.

        """
        kernel = self.record(kernel_id)
        if not kernel.signature.fits(site.signature):
            raise KernelRejectedError(
                f"kernel {kernel_id[:12]} is built for {kernel.signature.key}, the site {site.name!r} is "
                f"{site.signature.key}; choose a kernel that fits it"
            )
        return kernel

    def load(self, kernel_id: str, device: torch.device | str) -> Block:
        """Return a block of an admitted kernel on `device`, with fresh weights, for good.

        Raises:
            NotFoundError: if it was not admitted.
            KernelRejectedError: if its bytes no longer verify; naming the check that failed.

        """
        kernel, blob = self._find(kernel_id)
        place = _place(device)
        ready = self._cache.take((kernel_id, place))
        return self._verified(kernel, blob, place) if ready is None else ready

    def refill(self) -> None:
        """Make blocks ready again in place of those that were loaded; call it when there is time.

        A kernel that no longer verifies is left out: loading it will say what is wrong.
        """
        for kernel_id, place in self._cache.spent:
            kernel, blob = self._find(kernel_id)
            try:
                block = self._verified(kernel, blob, place)
            except KernelRejectedError:
                continue
            self._cache.put((kernel_id, place), block)

    def _find(self, kernel_id: str) -> tuple[CompiledKernelArtifact, bytes]:
        found = self._admitted.get(kernel_id)
        if found is None:
            raise NotFoundError(
                f"kernel {kernel_id[:12]} is not admitted here ({len(self._admitted)} are); "
                "admit() it first"
            )
        return found

    def _verified(self, kernel: CompiledKernelArtifact, blob: bytes, device: torch.device) -> Block:
        """Return a block of the kernel if everything about it holds."""
        verify_endorsement(kernel, self._trusted)
        name = f"kernel {kernel.kernel_id[:12]}"
        if (digest := sha256_hex(blob)) != kernel.kernel_id:
            raise KernelRejectedError(
                f"{name}: its bytes have the sha256 {digest[:12]}; they are damaged or not its own"
            )
        unpacked = unpack_kernel(blob, device=str(device))
        _check_record(kernel, unpacked, len(blob))
        return unpacked.block


def _check_record(kernel: CompiledKernelArtifact, unpacked: UnpackedKernel, num_bytes: int) -> None:
    """Compare what the record says with what the bytes are."""
    for field, claimed, found in (
        ("blueprint_id", kernel.blueprint_id, unpacked.blueprint_id),
        ("signature", kernel.signature, unpacked.signature),
        ("num_parameters", kernel.num_parameters, unpacked.num_parameters),
        ("size_bytes", kernel.size_bytes, num_bytes),
    ):
        if claimed != found:
            raise KernelRejectedError(
                f"kernel {kernel.kernel_id[:12]}: its record says {field} {claimed}, its bytes say "
                f"{found}"
            )


@lru_cache(maxsize=64)
def _parse(device: torch.device | str) -> tuple[torch.device, bool]:
    """Return `device`, and whether it leaves open which of several it is."""
    place = torch.device(device)
    return place, place.type == "cuda" and cast("int | None", place.index) is None


def _place(device: torch.device | str) -> torch.device:
    """Return `device` with its index, so that `cuda` and `cuda:0` are one."""
    place, is_open = _parse(device)
    return torch.device("cuda", torch.cuda.current_device()) if is_open else place
