"""What goes wrong with a folder, as typed errors: which folder, why, and what to do about it.

`file_store` wraps what it asks of the system in `translated`.
"""

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from esper.contracts import (
    AccessRefusedError,
    BackendUnavailableError,
    ReadOnlyServerError,
    ServerFullError,
)

_KINDS = {
    errno.ENOSPC: (ServerFullError, "make room on its disk"),
    errno.EDQUOT: (ServerFullError, "make room within the quota"),
    errno.EFBIG: (ServerFullError, "raise the limit on the size of files"),
    errno.EROFS: (ReadOnlyServerError, "mount it for writing, or choose another"),
    errno.EACCES: (AccessRefusedError, "check its mode and owner, or choose another"),
    errno.EPERM: (AccessRefusedError, "check its mode and owner, or choose another"),
}
_OTHER = (BackendUnavailableError, "check its mode, owner and free space, or choose another")


@contextmanager
def translated(folder: Path, verb: str, *, what: str = "artifact folder") -> Generator[None]:
    """Turn the system's errors into ours; `verb` is what could not be done to `folder`.

    Raises:
        ServerFullError: if the disk or the quota is full.
        ReadOnlyServerError: if the file system takes no writes.
        AccessRefusedError: if it is not for us.
        BackendUnavailableError: for everything else.

    """
    try:
        yield
    except BackendUnavailableError:  # also an OSError
        raise
    except OSError as error:
        kind, advice = _KINDS.get(error.errno or 0, _OTHER)
        raise kind(f"the {what} {folder} cannot be {verb}: {error.strerror}; {advice}") from error
