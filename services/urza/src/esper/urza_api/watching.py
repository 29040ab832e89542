"""What an operator sees: /healthz, /readyz, /metrics, and a line in the log for every request."""

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esper.contracts import EsperError, get_logger
from esper.urza.library import SqlLibrary
from esper.urza_api.problems import respond

_log = get_logger("urza.api")

router = APIRouter(tags=["operation"])


class Metrics:
    """Counts and times of requests, by route: ids in paths are not told apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self._requests = Counter(
            "urza_requests", "Requests that were answered.", labels, registry=self.registry
        )
        self._seconds = Histogram(
            "urza_request_seconds",
            "Seconds until the answer was sent.",
            labels[:2],
            registry=self.registry,
        )

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        count, time_taken = self._of(method, route, status)
        count.inc()
        time_taken.observe(seconds)

    @lru_cache(maxsize=1_000)  # noqa: B019 - it lives as long as the application
    def _of(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        count = self._requests.labels(method, route, status)
        return count, self._seconds.labels(method, route)


@router.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> str:
    """Tell that the process is alive."""
    return "ok"


@router.get("/readyz", response_model=dict[str, str])
async def readyz(request: Request) -> Response:
    """Tell whether the database and the artifact store answer; 503 with the reason if not."""
    library: SqlLibrary = request.app.state.library
    problems = await run_in_threadpool(_problems, library)
    if not problems:
        return JSONResponse({"status": "ready"})
    return respond(503, "; ".join(problems.values()), name="not-ready", instance="/readyz")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Tell counts and times of requests, for Prometheus."""
    watched: Metrics = request.app.state.metrics
    return Response(generate_latest(watched.registry), media_type=CONTENT_TYPE_LATEST)


def _problems(library: SqlLibrary) -> Mapping[str, str]:
    problems: dict[str, str] = {}
    for name, ask in {
        "database": library.chains,
        "artifacts": lambda: next(iter(library.artifacts.list()), None),
    }.items():
        try:
            ask()
        except EsperError as error:
            problems[name] = str(error)
    return problems


class Watch:
    """Notes every request in the metrics and the log; never a token or a body."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._note(scope, status, time.perf_counter() - begun)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route: Any = scope.get("route")
        path = getattr(route, "path", "(none)")
        self._metrics.note(scope["method"], path, status, seconds)
        _log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            milliseconds=round(1000 * seconds, 1),
            token=scope.get("state", {}).get("token_id"),
        )
