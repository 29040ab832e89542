"""Artifacts as objects in a bucket of MinIO or another S3 server, each under its sha256.

The store of runs on many machines; implements the port `esper.contracts.ports.ArtifactStore`.
"""

import io
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from esper.contracts import (
    BackendUnavailableError,
    ConfigError,
    EsperError,
    NotFoundError,
    sha256_hex,
)
from esper.contracts.settings import load_settings
from esper.urza.keys import check_bytes, key_of

_CONNECT_SECONDS = 2.0
_READ_SECONDS = 30.0
_RETRIES = 1
"""With the time to connect, a dead endpoint is reported within five seconds."""

_DEFAULT_REGION = "us-east-1"
"""What MinIO calls its only region unless told otherwise."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

_REFUSED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})


class S3Store:
    """A bucket of objects named `ab/cdef…`; made by `open_s3_store`, used between `open` and `close`."""

    def __init__(self, bucket: str, *, endpoint: str | None, region: str, url: str) -> None:
        self._bucket = bucket
        self._endpoint = endpoint
        self._region = region
        self._url = url
        self._http: urllib3.PoolManager | None = None
        self._client: Minio | None = None

    @property
    def url(self) -> str:
        """The bucket's URL as it was given; it never holds credentials."""
        return self._url

    def open(self) -> None:
        """Connect with the settings' credentials and make the bucket if it is missing.

        Raises:
            BackendUnavailableError: if the server cannot be reached or refuses the credentials.
            ConfigError: if no credentials are set or the bucket's name is illegal.

        """
        if self._client is not None:
            return
        settings = load_settings()
        if settings.minio_root_user is None or settings.minio_root_password is None:
            raise ConfigError(
                f"no credentials for {self._url}: set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD, "
                "in the environment or in .env"
            )
        self._endpoint = self._endpoint or settings.s3_endpoint_url
        server = urlsplit(self._endpoint)
        http = _make_pool()
        try:
            with self._translated():
                client = Minio(
                    server.netloc,
                    access_key=settings.minio_root_user,
                    secret_key=settings.minio_root_password.get_secret_value(),
                    secure=server.scheme == "https",
                    region=self._region,
                    http_client=http,
                )
                self._make_bucket(client)
        except BaseException:
            http.clear()
            raise
        self._http, self._client = http, client

    def close(self) -> None:
        """Release connections; twice is once."""
        if self._http is not None:
            self._http.clear()
        self._http = self._client = None

    def put(self, blob: bytes) -> str:
        """Store `blob` and return its sha256; storing the same bytes twice is one.

        Raises:
            ArtifactIntegrityError: if the object of that hash holds other bytes.
            BackendUnavailableError: if the server cannot be reached or refuses.

        """
        sha256 = sha256_hex(blob)
        key = key_of(sha256)
        with self._translated():
            stored = self._read(key)
            if stored is None:
                self._opened().put_object(self._bucket, key, io.BytesIO(blob), len(blob))
            else:
                check_bytes(stored, sha256, place=f"object {self._bucket}/{key}")
        return sha256

    def get(self, sha256: str) -> bytes:
        """Return the bytes filed under `sha256`, verified.

        Raises:
            NotFoundError: if there are none.
            ArtifactIntegrityError: if the object holds other bytes.
            BackendUnavailableError: if the server cannot be reached or refuses.

        """
        key = key_of(sha256)
        with self._translated():
            blob = self._read(key)
        if blob is None:
            raise NotFoundError(f"artifact {sha256} is not in {self._url}; forge its kernel again")
        check_bytes(blob, sha256, place=f"object {self._bucket}/{key}")
        return blob

    def _read(self, key: str) -> bytes | None:
        response: Any = None
        try:
            response = self._opened().get_object(self._bucket, key)
            return bytes(response.read())
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            raise
        finally:
            if response is not None:
                response.close()
                response.release_conn()

    def _make_bucket(self, client: Minio) -> None:
        if client.bucket_exists(self._bucket):
            return
        try:
            client.make_bucket(self._bucket)
        except S3Error as error:
            # Somebody else made it in between; theirs and unusable is told by the first put.
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def _opened(self) -> Minio:
        if self._client is None:
            raise BackendUnavailableError(
                f"the artifact store {self._url} is not open; call open() first"
            )
        return self._client

    @contextmanager
    def _translated(self) -> Generator[None]:
        where = f"the artifact store {self._url} at {self._endpoint}"
        try:
            yield
        except EsperError:  # some are also OSErrors or ValueErrors
            raise
        except S3Error as error:
            advice = "check the server's log"
            if error.code in _REFUSED:
                advice = "check MINIO_ROOT_USER and MINIO_ROOT_PASSWORD and their rights"
            raise BackendUnavailableError(
                f"{where} refused: {error.code} ({error.message}); {advice}"
            ) from error
        except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
            raise BackendUnavailableError(
                f"{where} cannot be reached: {_reason(error)}; check that the server runs and that "
                "the endpoint (S3_ENDPOINT_URL or ?endpoint=) is right"
            ) from error
        except ValueError as error:  # how the client reports an illegal bucket name or endpoint
            raise ConfigError(f"{where} cannot be used: {error}") from error


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
    return S3Store(parts.netloc, endpoint=endpoint, region=region, url=url)


def _make_pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
        retries=urllib3.Retry(
            total=_RETRIES, backoff_factor=0.1, status_forcelist=[500, 502, 503, 504]
        ),
        maxsize=8,
    )


def _reason(error: Exception) -> str:
    """Return why, without urllib3's wrapping and object addresses."""
    inner = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
    return str(inner).rpartition(": ")[2] or type(inner).__name__
