"""Artifacts as objects in a bucket of MinIO or another S3 server, each under its sha256.

The store of runs on many machines; implements the port `esper.contracts.ArtifactStore`.

A stream waits in a temporary file until its hash is known, so no object is ever named by a hash that it
might not have; the server shows an object once all of it has arrived. Every put, also of bytes that are
there already, writes the object, which renews its age, and then makes sure that no garbage collection was
about to delete it (`s3_condemned`).
"""

import io
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from minio.error import S3Error

from esper.contracts import (
    BackendUnavailableError,
    ConfigError,
    Draft,
    NotFoundError,
    StoredArtifact,
    sha256_hex,
)
from esper.urza import s3_condemned, s3_uploads
from esper.urza.keys import check_expected, key_of, sha256_of
from esper.urza.s3_connection import S3Connection
from esper.urza.spool import spooled
from esper.urza.verifying import CHUNK_BYTES, check_chunks, read_verified, verified_chunks

_DEFAULT_REGION = "us-east-1"
"""What MinIO calls its only region unless told otherwise."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

_ATTEMPTS = 3
"""How often an object that was deleted while we put it is put again."""

_ABSENT = frozenset({"NoSuchKey"})
_CLOCK_STEP = timedelta(seconds=1)
"""An object's time is told in whole seconds, rounded down."""


class S3Store:
    """A bucket of objects named `ab/cdef…`; made by `open_s3_store`, used between `open` and `close`."""

    def __init__(self, connection: S3Connection) -> None:
        self._connection = connection

    @property
    def url(self) -> str:
        """The bucket's URL as it was given; it never holds credentials."""
        return self._connection.url

    def open(self) -> None:
        """Connect with the settings' credentials and make the bucket if it is missing.

        Raises:
            BackendUnavailableError: if the server cannot be reached.
            AccessRefusedError: if it refuses the credentials, or to make the bucket.
            ConfigError: if no credentials are set or the bucket's name is illegal.

        """
        self._connection.open()

    def close(self) -> None:
        """Release connections; twice is once."""
        self._connection.close()

    def put(self, blob: bytes) -> str:
        """Store `blob` and return its sha256; storing the same bytes twice is one.

        Raises:
            ArtifactIntegrityError: if the object of that hash holds other bytes.
            BackendUnavailableError: if the server cannot be reached or refuses.

        """
        return self._store(io.BytesIO(blob), sha256_hex(blob), len(blob)).sha256

    def put_stream(self, chunks: Iterable[bytes], *, sha256: str | None = None) -> StoredArtifact:
        """Store what `chunks` bring; see the port. Large ones go up in parts, in bounded memory.

        Raises:
            ArtifactIntegrityError: if the bytes hash to something else than `sha256`, or if the object
                of their hash holds other bytes.
            BackendUnavailableError: if the server cannot be reached or refuses.
            ServerFullError: if the folder for temporary files, or the server's disk, is full.

        """
        check_expected(sha256)
        with spooled(chunks, sha256) as spool:
            return self._store(spool.file, spool.sha256, spool.size_bytes)

    def get(self, sha256: str) -> bytes:
        """Return the bytes filed under `sha256`, verified.

        Raises:
            NotFoundError: if there are none.
            ArtifactIntegrityError: if the object holds other bytes.
            BackendUnavailableError: if the server cannot be reached or refuses.

        """
        with self._object(sha256) as response:
            return read_verified(self._chunks(response), sha256, place=self._place(sha256))

    @contextmanager
    def stream(self, sha256: str) -> Generator[Iterator[bytes]]:
        """Give the bytes in chunks, verified on the way; see the port.

        Raises:
            NotFoundError: on entering, if there are none.
            ArtifactIntegrityError: from the iterator, before its last chunk.
            BackendUnavailableError: if the server cannot be reached, refuses, or stops in the middle.

        """
        with (
            self._object(sha256) as response,
            closing(
                verified_chunks(self._chunks(response), sha256, place=self._place(sha256))
            ) as chunks,
        ):
            yield chunks

    def list(self) -> Iterator[StoredArtifact]:
        """Give every artifact, in order of its hash."""
        for found in s3_uploads.objects(self._connection, ""):
            sha256 = sha256_of(found.key)
            if sha256 is not None:
                yield StoredArtifact(
                    sha256=sha256, size_bytes=found.size_bytes, modified_at=found.modified_at
                )

    def delete(self, sha256: str, *, if_unmodified_since: datetime | None = None) -> bool:
        """Delete an artifact; tell whether there was one to delete. See the port."""
        key = key_of(sha256)
        if if_unmodified_since is None:
            return self._found(sha256) is not None and self._remove(key)
        with s3_condemned.condemned(self._connection, sha256):
            found = self._found(sha256)
            if found is None or found.modified_at + _CLOCK_STEP > if_unmodified_since:
                return False
            return self._remove(key)

    def drafts(self) -> Iterator[Draft]:
        """Give what unfinished uploads and deletions have left, as far as the server lists it.

        MinIO does not, and removes unfinished uploads itself after a day.
        """
        yield from s3_condemned.drafts(self._connection)
        yield from s3_uploads.drafts(self._connection)

    def discard(self, draft: Draft) -> bool:
        """Delete a draft, which ends an upload that still goes on; tell whether it was there."""
        if s3_condemned.is_draft(draft.name):
            return self._remove(draft.name)
        return s3_uploads.abort(self._connection, draft.name)

    def _store(self, source: IO[bytes], sha256: str, size_bytes: int) -> StoredArtifact:
        """Put what is there to be read, verified already, under its hash."""
        with self._response(sha256) as response:
            if response is not None:
                check_chunks(self._chunks(response), sha256, place=self._place(sha256))
        for _ in range(_ATTEMPTS):
            source.seek(0)
            s3_uploads.upload(self._connection, key_of(sha256), source, size_bytes)
            s3_condemned.wait_for_pardon(self._connection, sha256)
            found = self._found(sha256)
            if found is not None and found.size_bytes == size_bytes:
                return found
        raise BackendUnavailableError(
            f"the artifact store {self.url} took the {size_bytes} bytes of artifact {sha256} "
            f"{_ATTEMPTS} times and does not have them; check the server's log, and that nobody "
            "deletes artifacts by hand"
        )

    def _found(self, sha256: str) -> StoredArtifact | None:
        with self._connection.translated():
            try:
                found: Any = self._connection.client.stat_object(
                    self._connection.bucket, key_of(sha256)
                )
            except S3Error as error:
                if error.code in _ABSENT:
                    return None
                raise
        return StoredArtifact(sha256=sha256, size_bytes=found.size, modified_at=found.last_modified)

    def _remove(self, key: str) -> bool:
        with self._connection.translated():
            self._connection.client.remove_object(self._connection.bucket, key)
        return True

    @contextmanager
    def _response(self, sha256: str) -> Generator[Any]:
        """Give the answer to be read, or None if there is no such object."""
        key = key_of(sha256)
        with self._connection.translated():
            try:
                response: Any = self._connection.client.get_object(self._connection.bucket, key)
            except S3Error as error:
                if error.code not in _ABSENT:
                    raise
                response = None
        try:
            yield response
        finally:
            if response is not None:  # what was not read to its end is cut off
                response.close()
                response.release_conn()

    @contextmanager
    def _object(self, sha256: str) -> Generator[Any]:
        with self._response(sha256) as response:
            if response is None:
                raise NotFoundError(
                    f"artifact {sha256} is not in {self.url}; forge its kernel again"
                )
            yield response

    def _chunks(self, response: Any) -> Generator[bytes]:
        while True:
            with self._connection.translated():
                chunk: bytes = response.read(CHUNK_BYTES, decode_content=False)
            if not chunk:
                return
            yield chunk

    def _place(self, sha256: str) -> str:
        return f"object {self._connection.bucket}/{key_of(sha256)}"


def open_s3_store(url: str) -> S3Store:
    """Make the store for `s3://bucket[?endpoint=http://host:port][&region=…]`; `open()` connects.

    Endpoint and credentials come from the settings (S3_ENDPOINT_URL, MINIO_ROOT_USER,
    MINIO_ROOT_PASSWORD). The entry point `s3` in the group `esper.artifacts`.

    Raises:
        ConfigError: if the URL is malformed or holds credentials.

    """
    expected = "expected s3://bucket, s3://bucket?endpoint=http://host:port or …&region=name"
    parts = urlsplit(url)
    if "@" in parts.netloc or "@" in parts.query:
        raise ConfigError(
            "the artifact store's URL holds credentials; set MINIO_ROOT_USER and "
            f"MINIO_ROOT_PASSWORD instead; {expected}"
        )
    if not _BUCKET.fullmatch(parts.netloc) or parts.path.strip("/") or parts.fragment:
        raise ConfigError(
            f"artifact store {url!r} does not name a bucket (3 to 63 lower-case letters, digits, "
            f"hyphens and dots); {expected}"
        )
    options = parse_qs(parts.query)
    if unknown := sorted(options.keys() - {"endpoint", "region"}):
        raise ConfigError(f"artifact store {url!r} has unknown options {unknown}; {expected}")
    endpoint = options.get("endpoint", [None])[0]
    if endpoint is not None and not re.match(r"https?://[^/]", endpoint):
        raise ConfigError(f"artifact store {url!r} has endpoint {endpoint!r}; {expected}")
    region = options.get("region", [_DEFAULT_REGION])[0]
    return S3Store(S3Connection(parts.netloc, endpoint=endpoint, region=region, url=url))
