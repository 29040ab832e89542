"""The application: endpoints under /api/v1, and how they are put together.

Order of reading: `app` → `blueprints`, `kernels`, `artifacts`, `claims`, `record` → `state` → `security`;
`problems`, `answers`, `idempotency`, `limits`, `watching`.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from esper.urza.library import SqlLibrary
from esper.urza_api import (
    artifacts,
    blueprints,
    claims,
    describing,
    kernels,
    limits,
    problems,
    record,
    watching,
)
from esper.urza_api.problems import Problem
from esper.urza_api.security import Gate

_DESCRIPTION = """
The library of blueprints and kernels. Every request needs a token that `urza tokens create` has made:
`Authorization: Bearer urza_…`. Whatever goes wrong is a problem of RFC 9457 whose `type` names the error.
"""

_PROBLEMS = {
    400: "The body is not what it says it is, or the Idempotency-Key is malformed",
    401: "No valid token",
    403: "The token lacks the role, or the kernel was refused",
    404: "There is no such record",
    409: "The status does not allow it, or a request is in progress",
    413: "The body is too large",
    422: "The request is not as it should be",
    429: "Too many requests without a valid token",
    503: "The database or the store does not answer",
}


def make_app(library: SqlLibrary) -> FastAPI:
    """Return the application for a library, which is opened when it starts and closed when it ends."""

    @asynccontextmanager
    async def opened(_app: FastAPI) -> AsyncGenerator[None]:
        await run_in_threadpool(library.open)
        yield
        await run_in_threadpool(library.close)

    app = FastAPI(
        title="Urza",
        version=version("esper-urza-api"),
        description=_DESCRIPTION,
        lifespan=opened,
        redoc_url=None,
    )
    app.state.library = library
    app.state.gate = Gate(library)
    app.state.metrics = watching.Metrics()
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text} for status, text in _PROBLEMS.items()
    }
    # Kernels first: they are asked for most, and a request is held against the routes in this order.
    for part in (kernels, blueprints, artifacts, claims, record):
        app.include_router(part.router, prefix="/api/v1", responses=described)
    app.include_router(watching.router)
    problems.install(app)
    limits.install(app)
    describing.install(app)
    app.add_middleware(watching.Watch, metrics=app.state.metrics)
    return app
