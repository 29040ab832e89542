"""Requests to a library's service, repeated where that is safe, and its problems as Esper's errors.

`http_library` asks through it. A problem (RFC 9457) names the class of the error that the service met, so
that callers see the same as beside the database.
"""

import json
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit
from uuid import uuid4

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

import esper.contracts.errors as errors_module
from esper.contracts import (
    AccessRefusedError,
    BackendUnavailableError,
    ConfigError,
    Contract,
    EsperError,
)

CONNECT_SECONDS = 3.0
READ_SECONDS = 60.0
_RETRIES = 3
"""After pauses of 0, 0.4 and 0.8 seconds; or as long as the service asks for."""
_PREFIX = "urn:esper:problem:"

type Parameters = Sequence[tuple[str, str]]

ERRORS: Mapping[str, type[EsperError]] = {
    name: kind
    for name, kind in vars(errors_module).items()
    if isinstance(kind, type) and issubclass(kind, EsperError)
}


class HttpConnection:
    """A pool of connections to one service; thread-safe."""

    def __init__(self, url: str, token: str | None) -> None:
        """Prepare, without connecting.

        Raises:
            ConfigError: if the URL is malformed or holds credentials.

        """
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(
                "the library's URL is malformed; expected http://host:port or https://host"
            )
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                "the library's URL holds credentials; put the token into URZA_TOKEN instead"
            )
        self.url = url.rstrip("/")
        self._token = token
        retries = urllib3.Retry(
            total=_RETRIES,
            connect=1,
            status_forcelist=(502, 503, 504),
            allowed_methods=None,  # every request may be repeated with the effect of one
            backoff_factor=0.2,
            raise_on_status=False,
        )
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self._pool = urllib3.PoolManager(maxsize=32, retries=retries, timeout=timeout)
        self._is_open = False

    def open(self) -> None:
        """Allow requests."""
        self._is_open = True

    def close(self) -> None:
        """Release the connections; allow no more requests."""
        self._is_open = False
        self._pool.clear()

    def get(self, path: str, parameters: Parameters = ()) -> bytes:
        """Return what is at a path. Raises as `send`."""
        return self.send("GET", path, parameters=parameters).data

    def post(self, path: str, record: Contract | None = None, *, once: bool = False) -> bytes:
        """Send a record; return the answer, empty where there is none.

        Args:
            path: below /api/v1.
            record: what to send.
            once: it would be another one if it were repeated, so it gets a key.

        Raises:
            EsperError: as `send`.

        """
        headers = {"Content-Type": "application/json"}
        if once:
            headers["Idempotency-Key"] = uuid4().hex
        body = b"" if record is None else record.model_dump_json().encode()
        return self.send("POST", path, body=body, headers=headers).data

    def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        parameters: Parameters = (),
        headers: Mapping[str, str] | None = None,
    ) -> BaseHTTPResponse:
        """Send a request and return its answer, all of it read.

        Raises:
            BackendUnavailableError: if the service cannot be reached or does not answer.
            EsperError: what the service met.

        """
        if not self._is_open:
            raise BackendUnavailableError(
                f"the library behind {self.url} is not open; call open() first"
            )
        given = {"Accept": "application/json, application/problem+json", **(headers or {})}
        if self._token is not None:
            given["Authorization"] = f"Bearer {self._token}"
        try:
            answer = self._pool.request(
                method,
                f"{self.url}/api/v1{path}",
                body=body,
                fields=None if not parameters else list(parameters),
                headers=given,
            )
        except HTTPError as error:
            raise BackendUnavailableError(
                f"the library's service at {self.url} does not answer: {_cause(error)}; check that it "
                "runs (`urza-api`) and that host and port are right"
            ) from error
        if answer.status >= 400:
            raise self._error(answer)
        return answer

    def _error(self, answer: BaseHTTPResponse) -> EsperError:
        """Return the error that the service met."""
        try:
            problem = json.loads(answer.data)
            name = str(problem["type"]).removeprefix(_PREFIX)
            detail = str(problem["detail"])
        except (ValueError, TypeError, KeyError):
            return BackendUnavailableError(
                f"{self.url} answered with status {answer.status} and no explanation; is that Urza?"
            )
        if kind := ERRORS.get(name):
            return kind(detail)
        if answer.status in (401, 403):
            return AccessRefusedError(
                f"the library's service at {self.url} refuses: {detail} (the token is URZA_TOKEN's)"
            )
        if answer.status in (400, 413, 422):
            return ConfigError(detail)
        return BackendUnavailableError(f"the library's service at {self.url}: {detail}")


def _cause(error: HTTPError) -> str:
    """Return what went wrong in the end, without the history of attempts."""
    reason = getattr(error, "reason", None) or error
    return str(reason).partition(": ")[2] or str(reason)
