"""How artifacts are named, the same in every store: `ab/cdef…`, from the sha256 of their bytes.

`file_store` and `s3_store` file bytes under `key_of`, and know what is theirs by `sha256_of`.
"""

import re

from esper.contracts import ArtifactIntegrityError, NotFoundError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})")
_EXPECTED = "expected a sha256 in 64 lower-case hexadecimal digits"


def key_of(sha256: str) -> str:
    """Return the name within a store, `ab/cdef…`: two levels keep folders small.

    Raises:
        NotFoundError: if `sha256` is no digest, so nothing can be filed under it.

    """
    if not _SHA256.fullmatch(sha256):
        raise NotFoundError(f"there is no artifact {sha256!r}; {_EXPECTED}")
    return f"{sha256[:2]}/{sha256[2:]}"


def sha256_of(key: str) -> str | None:
    """Return the sha256 of the artifact filed under `key`; None if that is no artifact's name."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1] + found[2]


def check_expected(sha256: str | None) -> None:
    """Pass silently if `sha256` can be what somebody expects of bytes that are still to come.

    Raises:
        ArtifactIntegrityError: if it is no digest, which no bytes can match.

    """
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ArtifactIntegrityError(f"no bytes hash to {sha256!r}; {_EXPECTED}")
