"""A stream of unknown length and hash, kept until both are known: in memory if short, else on disk.

`s3_store` needs both before it may begin: the hash names the object.
"""

import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from esper.urza.file_errors import translated
from esper.urza.verifying import RunningHash, check_upload, merged

_IN_MEMORY_BYTES = 8 * 2**20
"""Most kernels are smaller."""


@dataclass(frozen=True, kw_only=True)
class Spool:
    """What came, to be read from `file`."""

    file: IO[bytes]
    sha256: str
    size_bytes: int


@contextmanager
def spooled(chunks: Iterable[bytes], sha256: str | None) -> Generator[Spool]:
    """Give what `chunks` bring, with its hash; it is gone afterwards, also when the process is killed.

    Raises:
        ArtifactIntegrityError: if the bytes hash to something else than `sha256`.
        ServerFullError: if the folder for temporary files is full (TMPDIR chooses another).

    """
    folder = Path(tempfile.gettempdir())
    # The file has no name, so the system removes it with the process.
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file, RunningHash() as running:
        for chunk in merged(chunks):
            running.update(chunk)
            with translated(folder, "written"):
                file.write(chunk)
        actual = running.hexdigest()
        check_upload(actual, sha256)
        with translated(folder, "written"):
            file.flush()
        yield Spool(file=file, sha256=actual, size_bytes=running.size_bytes)
