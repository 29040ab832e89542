"""Tokens of the HTTP API: who may do what; of a secret only its sha256 is on file.

A secret has 256 random bits, so that a plain hash of it can be neither guessed nor reversed.
"""

import secrets
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from pydantic import Field

from esper.contracts import (
    LIBRARY_CHAIN,
    ConfigError,
    Contract,
    NotFoundError,
    UtcDatetime,
    sha256_hex,
    utc_now,
)
from esper.urza import audit
from esper.urza.records import Row
from esper.urza.schema import api_tokens

PREFIX = "urza_"
"""What every secret begins with, so that people and scanners recognise it."""

_SECRET_BYTES = 32


class Role(StrEnum):
    """What a token is for."""

    READER = "reader"
    """Reads everything. All others do too."""
    ARCHITECT = "architect"
    """Submits and archives blueprints."""
    FORGE = "forge"
    """Claims blueprints; uploads and registers kernels."""
    VALIDATOR = "validator"
    """Claims kernels, enrolls its key, records verdicts: nobody else sets a kernel VALIDATED."""
    CONTROLLER = "controller"
    """Files the outcomes of runs; archives kernels."""
    ADMIN = "admin"
    """Revokes validators' keys, and does whatever others do, except judging kernels."""


class Token(Contract):
    """A token as it is on file, without its secret."""

    token_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    name: str = Field(min_length=1, max_length=200)
    roles: tuple[Role, ...] = Field(min_length=1)
    created_at: UtcDatetime
    expires_at: UtcDatetime | None = None
    revoked_at: UtcDatetime | None = None

    def problem_at(self, moment: datetime) -> str | None:
        """Return why it is not valid at a moment, or None if it is."""
        if self.revoked_at is not None:
            return f"was revoked on {self.revoked_at:%Y-%m-%d}"
        if self.expires_at is not None and self.expires_at <= moment:
            return f"expired on {self.expires_at:%Y-%m-%d}"
        return None


def create(
    connection: sa.Connection,
    *,
    name: str,
    roles: set[Role],
    lifetime: timedelta | None = None,
) -> tuple[Token, str]:
    """File a new token; return it with its secret, which is nowhere else.

    Raises:
        ConfigError: without a name, a role, or any time to live.

    """
    if not 1 <= len(name) <= 200 or not roles:
        raise ConfigError("a token needs a name of 1 to 200 characters and at least one role")
    if lifetime is not None and lifetime <= timedelta():
        raise ConfigError(f"a token that lives for {lifetime}; expected a positive time")
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    now = utc_now()
    token = Token(
        token_id=secrets.token_hex(8),
        name=name,
        roles=tuple(sorted(roles)),
        created_at=now,
        expires_at=None if lifetime is None else now + lifetime,
    )
    row = token.model_dump() | {"roles": " ".join(token.roles), "secret_hash": hash_of(secret)}
    connection.execute(sa.insert(api_tokens).values(row))
    created = {"token_id": token.token_id, "name": name, "roles": list(token.roles)}
    audit.append(connection, LIBRARY_CHAIN, [("token_created", created)])
    return token, secret


def revoke(connection: sa.Connection, token_id: str) -> Token:
    """Revoke a token; again is harmless. Raises `NotFoundError`."""
    token = _read(connection, api_tokens.c.token_id == token_id)
    if token is None:
        raise NotFoundError(
            f"there is no token {token_id!r}; `urza tokens list` shows those there are"
        )
    if token.revoked_at is not None:
        return token
    now = utc_now()
    changed = sa.update(api_tokens).where(api_tokens.c.token_id == token_id)
    connection.execute(changed.values(revoked_at=now))
    audit.append(connection, LIBRARY_CHAIN, [("token_revoked", {"token_id": token_id})])
    return token.model_copy(update={"revoked_at": now})


def list_all(connection: sa.Connection) -> list[Token]:
    """Return every token that ever was, oldest first."""
    order = (api_tokens.c.created_at, api_tokens.c.token_id)
    return [_token(row) for row in connection.execute(sa.select(api_tokens).order_by(*order))]


def find(connection: sa.Connection, secret: str) -> Token | None:
    """Return the token of a secret, valid or not; None if there is none.

    It is found by the secret's hash in an index: how long that takes says nothing about other secrets.
    """
    return _read(connection, api_tokens.c.secret_hash == hash_of(secret))


def hash_of(secret: str) -> str:
    """Return what is kept of a secret."""
    return sha256_hex(secret.encode())


def _read(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Token | None:
    row = connection.execute(sa.select(api_tokens).where(condition)).one_or_none()
    return None if row is None else _token(row)


def _token(row: Row) -> Token:
    return Token(
        token_id=row.token_id,
        name=row.name,
        roles=tuple(map(Role, row.roles.split())),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
