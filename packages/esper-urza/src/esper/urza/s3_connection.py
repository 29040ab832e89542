"""One client of one bucket: where it is, who we are to it, and its errors as ours.

`s3_store` and its helpers `s3_uploads` and `s3_condemned` ask through it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from esper.contracts import (
    AccessRefusedError,
    BackendUnavailableError,
    ConfigError,
    EsperError,
    ServerFullError,
)
from esper.contracts.settings import load_settings

CONNECT_SECONDS = 2.0
READ_SECONDS = 30.0
"""For each piece of an answer, not for the whole of it."""
RETRIES_UNANSWERED = 1
"""With the time to connect, a dead endpoint is reported within five seconds."""
RETRIES_OF_ERRORS = 3
"""Of answers with status 5xx, after pauses of 0, 0.2 and 0.4 seconds."""

_REFUSED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})
_FULL = frozenset(
    {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
)
_SOMEBODY_MADE_IT = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})


class S3Connection:
    """A client with the settings' credentials, used between `open` and `close`; thread-safe."""

    def __init__(self, bucket: str, *, endpoint: str | None, region: str, url: str) -> None:
        self.bucket = bucket
        self.url = url
        self._endpoint = endpoint
        self._region = region
        self._http: urllib3.PoolManager | None = None
        self._client: Minio | None = None

    @property
    def client(self) -> Minio:
        """The client. Raises `BackendUnavailableError` if the connection is not open."""
        if self._client is None:
            raise BackendUnavailableError(
                f"the artifact store {self.url} is not open; call open() first"
            )
        return self._client

    def open(self) -> None:
        """Connect with the settings' credentials and make the bucket if it is missing; twice is once.

        Raises:
            BackendUnavailableError: if the server cannot be reached.
            AccessRefusedError: if it refuses the credentials, or to make the bucket.
            ConfigError: if no credentials are set or the bucket's name is illegal.

        """
        if self._client is not None:
            return
        settings = load_settings()
        if settings.minio_root_user is None or settings.minio_root_password is None:
            raise ConfigError(
                f"no credentials for {self.url}: set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD, "
                "in the environment or in .env"
            )
        self._endpoint = self._endpoint or settings.s3_endpoint_url
        server = urlsplit(self._endpoint)
        http = _make_pool()
        try:
            with self.translated():
                client = Minio(
                    server.netloc,
                    access_key=settings.minio_root_user,
                    secret_key=settings.minio_root_password.get_secret_value(),
                    secure=server.scheme == "https",
                    region=self._region,
                    http_client=http,
                )
                if not client.bucket_exists(self.bucket):
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

    def _make_bucket(self, client: Minio) -> None:
        try:
            client.make_bucket(self.bucket)
        except S3Error as error:
            # Somebody else made it in between; theirs and unusable is told by the first put.
            if error.code in _SOMEBODY_MADE_IT:
                return
            if error.code in _REFUSED:
                raise AccessRefusedError(
                    f"{self._where()} has no bucket {self.bucket!r}, and these credentials may not "
                    f"make it ({error.code}); have it made, or choose another"
                ) from error
            raise

    @contextmanager
    def translated(self) -> Generator[None]:
        """Turn the client's errors into ours."""
        try:
            yield
        except EsperError:  # some are also OSErrors or ValueErrors
            raise
        except S3Error as error:
            raise self._refusal(error) from error
        except (ServerError, InvalidResponseError) as error:  # an answer that is not S3's
            raise BackendUnavailableError(
                f"{self._where()} answered what no S3 server does: {_first_line(error)}; check the "
                "server, what is in front of it, and the endpoint (S3_ENDPOINT_URL or ?endpoint=)"
            ) from error
        except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
            raise BackendUnavailableError(
                f"{self._where()} cannot be reached: {_reason(error)}; check that the server runs "
                "and that the endpoint (S3_ENDPOINT_URL or ?endpoint=) is right"
            ) from error
        except ValueError as error:  # how the client reports an illegal bucket name or endpoint
            raise ConfigError(f"{self._where()} cannot be used: {error}") from error

    def _where(self) -> str:
        return f"the artifact store {self.url} at {self._endpoint}"

    def _refusal(self, error: S3Error) -> BackendUnavailableError:
        told = f"{self._where()} refused: {error.code} ({error.message})"
        if error.code in _REFUSED:
            return AccessRefusedError(
                f"{told}; check MINIO_ROOT_USER and MINIO_ROOT_PASSWORD and their rights"
            )
        if error.code in _FULL or error.response.status == HTTPStatus.INSUFFICIENT_STORAGE:
            return ServerFullError(f"{told}; make room on its disks, or raise the bucket's quota")
        return BackendUnavailableError(f"{told}; check the server's log")


def _make_pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        retries=urllib3.Retry(
            total=None,
            connect=RETRIES_UNANSWERED,
            read=RETRIES_UNANSWERED,
            other=RETRIES_UNANSWERED,
            redirect=0,
            status=RETRIES_OF_ERRORS,
            backoff_factor=0.1,
            # Repeated are requests that have the effect of one: all but POST, which begins and
            # completes uploads in parts.
            allowed_methods=["HEAD", "GET", "PUT", "DELETE"],
            status_forcelist=[500, 502, 503, 504],
            raise_on_status=False,  # the server's own words say more than "too many 503"
            respect_retry_after_header=False,  # nobody waits here for as long as a server likes
        ),
        maxsize=8,
    )


def _reason(error: Exception) -> str:
    """Return why, without urllib3's wrapping and object addresses."""
    inner = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
    return str(inner).rpartition(": ")[2] or type(inner).__name__


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
