"""Garbage collection and uploads of the same bytes to S3 at one time, without a lock.

S3 cannot delete an object on the condition that nobody wrote it again. So whoever deletes an object
because it is old first *condemns* it with a marker, then looks at its age, then deletes it, then takes the
marker away. Whoever uploads it first writes the object, then waits until no marker is there, then looks
whether the object is. In whatever order these steps meet (S3 is consistent):

- the marker came after the writer looked for it: then the deleter looks at the age after the writer wrote,
  finds the object renewed, and keeps it;
- the marker was gone before the writer looked for it: then the deletion is over, and the writer sees
  whether the object is still there, and writes it again if not;
- the writer sees the marker: it waits until the deletion is over, and does the same.

A deletion whose answer never came may still arrive, for as long as the server takes its signature (15
minutes), so its marker stays; after `_HOLDS` it is ignored, and garbage collection removes it as a draft.
"""

import io
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

from esper.contracts import BackendUnavailableError, Draft, new_id, utc_now
from esper.urza.s3_connection import S3Connection
from esper.urza.s3_uploads import objects

_MARKERS = ".condemned/"
_HOLDS = timedelta(minutes=45)
"""Longer than a signature lives (15 minutes) and the server's clock may differ from ours (15 more)."""
_WAIT_SECONDS = 20.0
"""A deletion takes milliseconds; after that long, its process is dead or stands still."""
_PAUSE_SECONDS = 0.05


@contextmanager
def condemned(connection: S3Connection, sha256: str) -> Generator[None]:
    """Mark an artifact for as long as the context takes; what fails inside leaves the marker."""
    marker = f"{_MARKERS}{sha256}/{new_id()}"  # one for each deleter
    with connection.translated():
        connection.client.put_object(connection.bucket, marker, io.BytesIO(), 0)
    yield
    with connection.translated():
        connection.client.remove_object(connection.bucket, marker)


def wait_for_pardon(connection: S3Connection, sha256: str) -> None:
    """Return when nobody is about to delete the artifact.

    Raises:
        BackendUnavailableError: if somebody is about to for too long.

    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while markers := [
        found.key
        for found in objects(connection, f"{_MARKERS}{sha256}/")
        if utc_now() - found.modified_at < _HOLDS
    ]:
        if time.monotonic() > deadline:
            raise BackendUnavailableError(
                f"artifact {sha256} in {connection.url} is about to be deleted as garbage since over "
                f"{_WAIT_SECONDS:.0f} s, so it cannot be stored for certain; if no garbage collection "
                f"runs, one was killed: delete the object {markers[0]}, or try again in "
                f"{_HOLDS // timedelta(minutes=1)} minutes"
            )
        time.sleep(_PAUSE_SECONDS)


def drafts(connection: S3Connection) -> Generator[Draft]:
    """Give the markers; one that is old was left by a deletion that did not end."""
    for found in objects(connection, _MARKERS):
        yield Draft(name=found.key, size_bytes=found.size_bytes, modified_at=found.modified_at)


def is_draft(name: str) -> bool:
    """Tell whether a draft's name is a marker's."""
    return name.startswith(_MARKERS)
