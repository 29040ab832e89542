"""How artifacts are named and verified, the same in every store.

`file_store` and `s3_store` file bytes under `key_of` and check what they read with `check_bytes`.
"""

import re

from esper.contracts import ArtifactIntegrityError, NotFoundError, sha256_hex

_SHA256 = re.compile(r"[0-9a-f]{64}")


def key_of(sha256: str) -> str:
    """Return the name within a store, `ab/cdef…`: two levels keep folders small.

    Raises:
        NotFoundError: if `sha256` is no digest, so nothing can be filed under it.

    """
    if not _SHA256.fullmatch(sha256):
        raise NotFoundError(
            f"there is no artifact {sha256!r}; expected a sha256 in 64 lower-case hexadecimal digits"
        )
    return f"{sha256[:2]}/{sha256[2:]}"


def check_bytes(blob: bytes, sha256: str, *, place: str) -> None:
    """Pass silently if `blob` is what belongs under `sha256`.

    Raises:
        ArtifactIntegrityError: naming the place, both hashes, and what to do.

    """
    actual = sha256_hex(blob)
    if actual != sha256:
        raise ArtifactIntegrityError(
            f"{place} was changed or damaged: expected sha256 {sha256}, found {actual}; "
            "delete it, and the kernel will be forged again"
        )
