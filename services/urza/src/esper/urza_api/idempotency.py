"""Requests that may be repeated: `Idempotency-Key` (IETF draft-ietf-httpapi-idempotency-key-header).

The first answer to a key is kept for a day and given again; most operations of a library may be repeated
anyway, but a claim would be another one.
"""

import hashlib
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, override

import sqlalchemy as sa
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from fastapi.routing import APIRoute

from esper.contracts import utc_now
from esper.urza import tables
from esper.urza.library import SqlLibrary
from esper.urza.schema import api_requests
from esper.urza_api.problems import ProblemError
from esper.urza_api.security import Gate

KEPT = timedelta(days=1)
_STALLED = timedelta(minutes=2)
"""After that long, who was answering is taken to be gone."""
_MAX_KEY = 200
_HEADERS = ("content-type", "etag", "location")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    token_id: str
    key: str
    fingerprint: str

    def is_row(self) -> sa.ColumnElement[bool]:
        return sa.and_(api_requests.c.token_id == self.token_id, api_requests.c.key == self.key)


class IdempotentRoute(APIRoute):
    """Answers a POST that carries a known key as it was answered the first time."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_once(request: Request) -> Response:
            key = request.headers.get("idempotency-key")
            if key is None or request.method != "POST":
                return await handle(request)
            return await _once(request, key, handle)

        return handle_once


async def _once(
    request: Request, key: str, handle: Callable[[Request], Coroutine[Any, Any, Response]]
) -> Response:
    if not 1 <= len(key) <= _MAX_KEY or not key.isprintable():
        raise ProblemError(
            400,
            "bad-idempotency-key",
            f"Idempotency-Key needs 1 to {_MAX_KEY} printable characters",
        )
    gate: Gate = request.app.state.gate
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    token = await gate.admit(request, secret if scheme.lower() == "bearer" else None)
    body = await request.body()
    said = f"{request.method} {request.url.path}?{request.url.query}\n".encode() + body
    asked = _Asked(token_id=token.token_id, key=key, fingerprint=hashlib.sha256(said).hexdigest())
    library: SqlLibrary = request.app.state.library
    known = await run_in_threadpool(_begin, library, asked)
    if known is not None:
        return known
    try:
        response = await handle(request)
    except BaseException:
        await run_in_threadpool(_forget, library, asked)
        raise
    await run_in_threadpool(_keep, library, asked, response)
    return response


def _begin(library: SqlLibrary, asked: _Asked) -> Response | None:
    """Return the answer that was given before; None if this is the first time."""
    now = utc_now()
    row = {"token_id": asked.token_id, "key": asked.key, "fingerprint": asked.fingerprint}
    with library.transaction() as connection:
        connection.execute(sa.delete(api_requests).where(api_requests.c.begun_at < now - KEPT))
        found = connection.execute(
            sa.select(api_requests).where(asked.is_row()).with_for_update()
        ).one_or_none()
        if found is None:
            # Of two at the same moment, the database lets one insert; the other is told below.
            inserted = tables.insert_once(connection, api_requests, row | {"begun_at": now})
            if inserted:
                return None
        elif found.fingerprint != asked.fingerprint:
            raise ProblemError(
                422,
                "idempotency-key-reused",
                "this Idempotency-Key came with another request before; use a new one for each",
            )
        elif found.status is not None:
            return _again(found.status, json.loads(found.headers), found.body)
        elif found.begun_at < now - _STALLED:
            stalled = sa.update(api_requests).where(asked.is_row())
            connection.execute(stalled.values(begun_at=now))
            return None
    raise ProblemError(
        409,
        "request-in-progress",
        "the first request with this Idempotency-Key is still being answered; try again",
        {"Retry-After": "1"},
    )


def _keep(library: SqlLibrary, asked: _Asked, response: Response) -> None:
    headers = {name: response.headers[name] for name in _HEADERS if name in response.headers}
    values = {
        "status": response.status_code,
        "headers": json.dumps(headers),
        "body": bytes(response.body),
    }
    with library.transaction() as connection:
        connection.execute(sa.update(api_requests).where(asked.is_row()).values(values))


def _forget(library: SqlLibrary, asked: _Asked) -> None:
    """Let a request that failed be tried again."""
    with library.transaction() as connection:
        connection.execute(sa.delete(api_requests).where(asked.is_row()))


def _again(status: int, headers: Mapping[str, str], body: bytes) -> Response:
    return Response(body, status, headers={**headers, "Idempotent-Replayed": "true"})
