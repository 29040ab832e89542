"""Everything that can go wrong, as problem details (RFC 9457, `application/problem+json`).

The `type` names one of Esper's errors, so that a client raises the very same one.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from esper.contracts import (
    AccessRefusedError,
    ArtifactIntegrityError,
    BackendUnavailableError,
    ChainError,
    ConfigError,
    EsperError,
    IllegalTransitionError,
    KernelRejectedError,
    ManifestError,
    MessageError,
    NotFoundError,
    ServerFullError,
    get_logger,
)

_log = get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
PREFIX = "urn:esper:problem:"

STATUSES: Mapping[type[EsperError], int] = {
    NotFoundError: 404,
    IllegalTransitionError: 409,
    KernelRejectedError: 403,
    ArtifactIntegrityError: 422,
    ConfigError: 422,
    MessageError: 422,
    ManifestError: 422,
    ChainError: 500,
    ServerFullError: 507,
    AccessRefusedError: 503,
    BackendUnavailableError: 503,
}
"""Of errors and their children; the first that fits. Any other is a 500."""


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, Any]] | None = None
    """For a request that is not as it should be: each place, and what is wrong there."""


class ProblemError(Exception):
    """Ends a request with a problem of its own."""

    def __init__(
        self, status: int, name: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.name, self.detail = status, name, detail
        self.headers = dict(headers or {})


def respond(
    status: int,
    detail: str,
    *,
    name: str | None = None,
    instance: str | None = None,
    errors: list[dict[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return a problem as a response."""
    problem = Problem(
        type="about:blank" if name is None else PREFIX + name,
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=instance,
        errors=errors,
    )
    content = problem.model_dump(exclude_none=True)
    return JSONResponse(content, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def name_of(error: EsperError) -> str:
    """Return the last part of the `type` of an error: its class."""
    return type(error).__name__


def install(app: FastAPI) -> None:
    """Have the application answer every error with a problem."""
    app.add_exception_handler(EsperError, _esper_error)
    app.add_exception_handler(ProblemError, _problem_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


def _esper_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EsperError)
    status = next((code for kind, code in STATUSES.items() if isinstance(error, kind)), 500)
    if status >= 500:
        _log.warning("request failed", path=request.url.path, error=str(error))
    headers = {"Retry-After": "1"} if status == 503 else None
    return respond(
        status, str(error), name=name_of(error), instance=request.url.path, headers=headers
    )


def _problem_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return respond(
        error.status,
        error.detail,
        name=error.name,
        instance=request.url.path,
        headers=error.headers,
    )


def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"in": ".".join(map(str, each["loc"])), "problem": each["msg"]} for each in error.errors()
    ]
    detail = "; ".join(f"{each['in']}: {each['problem']}" for each in errors)
    return respond(
        422, detail[:2000], name="invalid-request", instance=request.url.path, errors=errors[:20]
    )


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    details = {
        404: f"there is nothing at {path}; /docs shows what there is",
        405: f"{path} does not take {request.method}; /docs shows what it takes",
    }
    detail = details.get(error.status_code, str(error.detail))
    return respond(error.status_code, detail, instance=path, headers=error.headers)


def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("request failed unexpectedly", path=request.url.path, exc_info=error)
    return respond(
        500, "something went wrong here; the server's log says what", instance=request.url.path
    )
