"""Who asks, and whether they may: bearer tokens (RFC 6750) with roles, and a limit on failed logins."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer

from esper.contracts import utc_now
from esper.urza import tokens
from esper.urza.library import SqlLibrary
from esper.urza.tokens import Role, Token
from esper.urza_api.problems import ProblemError

_KNOWN_SECONDS = 5.0
"""How long a token that was found is not looked up again: a revocation takes that long."""
_MAX_KNOWN = 10_000
MAX_FAILURES = 10
"""Of one address in a minute."""
_WINDOW_SECONDS = 60.0

BEARER = HTTPBearer(auto_error=False, description="A token that `urza tokens create` has made.")


class Gate:
    """Finds the token of a secret, and slows down who guesses; for one event loop, its memory bounded."""

    def __init__(self, library: SqlLibrary) -> None:
        self._library = library
        self._known: OrderedDict[str, tuple[float, Token]] = OrderedDict()
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def admit(self, request: Request, secret: str | None) -> Token:
        """Return the valid token of a request.

        Raises:
            ProblemError: 401 without one, 429 after too many failures from the request's address.

        """
        now = time.monotonic()
        address = request.client.host if request.client is not None else "unknown"
        if secret is None:
            self._check_failures(address, now)
            raise _unauthorized("this needs a token: Authorization: Bearer urza_…")
        digest = tokens.hash_of(secret)
        if (
            digest not in self._known
        ):  # who guesses does not lock out who is at work from the same address
            self._check_failures(address, now)
        found_at, token = self._known.get(digest, (0.0, None))
        if token is None or now - found_at >= _KNOWN_SECONDS:
            token = await run_in_threadpool(self._look_up, secret)
            if token is not None:
                _remember(self._known, digest, (now, token))
        if token is None:
            self._note_failure(address, now)
            raise _unauthorized("there is no such token; `urza tokens create` makes one")
        if problem := token.problem_at(utc_now()):
            self._note_failure(address, now)
            raise _unauthorized(f"the token {token.token_id} {problem}; ask for another")
        return token

    def _look_up(self, secret: str) -> Token | None:
        with self._library.snapshot() as connection:
            return tokens.find(connection, secret)

    def _check_failures(self, address: str, now: float) -> None:
        since, count = self._failures.get(address, (now, 0))
        if count >= MAX_FAILURES and now - since < _WINDOW_SECONDS:
            wait = int(_WINDOW_SECONDS - (now - since)) + 1
            raise ProblemError(
                429,
                "too-many-failures",
                f"{count} requests from {address} had no valid token; try again in {wait} s",
                {"Retry-After": str(wait)},
            )

    def _note_failure(self, address: str, now: float) -> None:
        since, count = self._failures.get(address, (now, 0))
        if now - since >= _WINDOW_SECONDS:
            since, count = now, 0
        _remember(self._failures, address, (since, count + 1))


def _remember[Value](where: OrderedDict[str, Value], key: str, value: Value) -> None:
    where[key] = value
    where.move_to_end(key)
    if len(where) > _MAX_KNOWN:
        where.popitem(last=False)


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})


async def authenticated(request: Request) -> Token:
    """Return the token of a request, whatever it may do."""
    gate: Gate = request.app.state.gate
    # Called here instead of by FastAPI, which takes its time over dependencies of dependencies.
    credentials = await BEARER(request)
    token = await gate.admit(request, credentials.credentials if credentials is not None else None)
    request.state.token_id = token.token_id
    return token


def allowed(*roles: Role) -> Callable[[Request], Awaitable[Token]]:
    """Return the dependency that lets in tokens with one of these roles only."""

    async def check(request: Request) -> Token:
        token = await authenticated(request)
        if not set(roles) & set(token.roles):
            raise ProblemError(
                403,
                "forbidden",
                f"this needs a token with the role {' or '.join(roles)}; "
                f"{token.name!r} has {', '.join(token.roles)}",
            )
        return token

    return check
