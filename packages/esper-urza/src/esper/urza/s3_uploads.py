"""What is in a bucket, and how it gets there: objects, uploads in parts, what those leave behind.

An upload in parts that ends before its completion is no object; its parts stay, listed apart, until
somebody aborts it. `s3_store` uploads, lists and aborts through here.
"""

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, cast

from minio.error import S3Error

from esper.contracts import Draft
from esper.urza.keys import sha256_of
from esper.urza.s3_connection import S3Connection

PART_BYTES = 16 * 2**20
"""An upload has up to five parts in memory: three on their way, one waiting, one being read."""
_MOST_PARTS = 10_000
"""S3 takes no more; larger objects get larger parts."""

_NOT_LISTED = frozenset({"NotImplemented", "MethodNotAllowed"})
"""Simple servers do not list uploads; they have their own way to remove old ones, or none."""


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One line of a bucket's list."""

    key: str
    size_bytes: int
    modified_at: datetime


def objects(connection: S3Connection, prefix: str) -> Generator[StoredObject]:
    """Give the objects whose names begin with `prefix`, in order."""
    with connection.translated():
        found = connection.client.list_objects(connection.bucket, prefix=prefix, recursive=True)
        pages = iter(found)
    while True:
        with connection.translated():
            item: Any = next(pages, None)
        if item is None:
            return
        yield StoredObject(
            key=item.object_name, size_bytes=item.size or 0, modified_at=item.last_modified
        )


def upload(connection: S3Connection, key: str, source: IO[bytes], size_bytes: int) -> None:
    """Send what `source` has, in one request or in parts; on an error nothing of it stays."""
    part_bytes = max(PART_BYTES, -(-size_bytes // _MOST_PARTS))
    with connection.translated():
        connection.client.put_object(
            connection.bucket, key, cast("Any", source), size_bytes, part_size=part_bytes
        )


def drafts(connection: S3Connection) -> Generator[Draft]:
    """Give the artifacts' uploads that were begun and neither completed nor aborted."""
    client: Any = connection.client  # the client has these methods, but does not publish them
    after: dict[str, str] = {}
    while True:
        with connection.translated():
            try:
                page = client._list_multipart_uploads(connection.bucket, **after)
            except S3Error as error:
                if error.code in _NOT_LISTED:
                    return
                raise
        for found in page.uploads:
            if sha256_of(found.object_name) is not None:
                yield Draft(
                    name=f"{found.object_name}?uploadId={found.upload_id}",
                    size_bytes=_size_of_parts(connection, found.object_name, found.upload_id),
                    modified_at=found.initiated_time,
                )
        if not page.is_truncated or not page.uploads:
            return
        last = page.uploads[-1]
        after = {"key_marker": last.object_name, "upload_id_marker": last.upload_id}


def abort(connection: S3Connection, name: str) -> bool:
    """Remove the parts of an upload; tell whether there was such an upload."""
    key, _, upload_id = name.partition("?uploadId=")
    if sha256_of(key) is None or not upload_id:
        return False
    client: Any = connection.client
    with connection.translated():
        try:
            client._abort_multipart_upload(connection.bucket, key, upload_id)
        except S3Error as error:
            if error.code == "NoSuchUpload":
                return False
            raise
    return True


def _size_of_parts(connection: S3Connection, key: str, upload_id: str) -> int:
    """Return the size of the first thousand parts, all but for the largest uploads."""
    client: Any = connection.client
    with connection.translated():
        try:
            return sum(
                part.size or 0
                for part in client._list_parts(connection.bucket, key, upload_id).parts
            )
        except S3Error as error:
            if error.code == "NoSuchUpload":  # completed or aborted meanwhile
                return 0
            raise
