"""Bus URLs, checked: what `open_memory_bus` and `open_redis_bus` are told, as frozen options.

No message quotes the URL itself, because a mistyped one may carry the password anywhere.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from esper.contracts import ConfigError

DEFAULT_RECLAIM_AFTER_SECONDS = 60.0
DEFAULT_MAX_DELIVERIES = 5
DEFAULT_PREFIX = "esper"
DEFAULT_REDIS_PORT = 6379

_MEMORY_FORM = "memory:// or memory://NAME"
_REDIS_FORM = "redis[s]://[user:password@]host[:port][/db], user and password percent-encoded"
_TLS_PARAMETERS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """Which broker of this process, and when it hands a message out again."""

    name: str
    reclaim_after_seconds: float
    max_deliveries: int = DEFAULT_MAX_DELIVERIES
    """A message that was handed out so often in vain goes to the dead letters."""

    @classmethod
    def from_url(cls, url: str) -> "MemoryOptions":
        """Read `memory://NAME?reclaim_after_seconds=60`. Raises `ConfigError`."""
        parts = _split(url, schemes=("memory",), form=_MEMORY_FORM)
        if parts.path or parts.fragment or "@" in parts.netloc:
            raise ConfigError(f"bus URL has more than a name; expected {_MEMORY_FORM}")
        query = _query(parts, known={"reclaim_after_seconds", "max_deliveries"})
        return cls(
            name=parts.netloc,
            reclaim_after_seconds=_reclaim_after(query),
            max_deliveries=_max_deliveries(query),
        )


@dataclass(frozen=True, kw_only=True)
class RedisOptions:
    """Which server, who we are to it, and how its streams are used."""

    host: str
    port: int
    db: int
    username: str | None
    password: str | None = field(repr=False)
    tls: Mapping[str, str] | None
    """`ssl_…` settings of redis-py; None for a plain connection."""
    prefix: str
    """Stream keys are `prefix:topic`."""
    reclaim_after_seconds: float
    max_deliveries: int = DEFAULT_MAX_DELIVERIES
    """A message that was handed out so often in vain goes to the dead letters."""
    journal: Path | None = None
    """Folder for what could not be sent before the process ended; None: it is lost."""

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @classmethod
    def from_url(cls, url: str) -> "RedisOptions":
        """Read `redis://…?prefix=esper&reclaim_after_seconds=60`. Raises `ConfigError`."""
        parts = _split(url, schemes=("redis", "rediss"), form=_REDIS_FORM)
        known = {"prefix", "reclaim_after_seconds", "max_deliveries", "journal"}
        secure = parts.scheme == "rediss"
        query = _query(parts, known=known | _TLS_PARAMETERS if secure else known)
        try:
            port = parts.port
        except ValueError:
            raise ConfigError(f"bus URL has no valid port; expected {_REDIS_FORM}") from None
        if not re.fullmatch(r"/?|/\d+", parts.path) or parts.fragment or not parts.hostname:
            raise ConfigError(f"bus URL is malformed; expected {_REDIS_FORM}")
        prefix = query.get("prefix", DEFAULT_PREFIX)
        if not prefix:
            raise ConfigError("bus parameter prefix is empty; expected a word such as 'esper'")
        return cls(
            host=parts.hostname,
            port=DEFAULT_REDIS_PORT if port is None else port,
            db=int(parts.path.removeprefix("/") or 0),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            tls={k: query[k] for k in sorted(_TLS_PARAMETERS & set(query))} if secure else None,
            prefix=prefix,
            reclaim_after_seconds=_reclaim_after(query),
            max_deliveries=_max_deliveries(query),
            journal=_journal(query),
        )


def _split(url: str, *, schemes: Collection[str], form: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"bus URL is malformed; expected {form}") from None
    if parts.scheme not in schemes:
        raise ConfigError(f"bus URL has scheme {parts.scheme!r}; expected {form}")
    return parts


def _query(parts: SplitResult, *, known: Collection[str]) -> Mapping[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigError("bus URL has a malformed query; expected ?name=value&…") from None
    for name, _ in pairs:
        if name not in known:
            raise ConfigError(
                f"unknown bus parameter {name!r}; {parts.scheme}:// knows {', '.join(sorted(known))}"
            )
    return dict(pairs)


def _reclaim_after(query: Mapping[str, str]) -> float:
    text = query.get("reclaim_after_seconds", str(DEFAULT_RECLAIM_AFTER_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.001 <= seconds <= 86_400:
        raise ConfigError(
            f"bus parameter reclaim_after_seconds is {text!r}; expected seconds from 0.001 to 86400"
        )
    return seconds


def _max_deliveries(query: Mapping[str, str]) -> int:
    text = query.get("max_deliveries", str(DEFAULT_MAX_DELIVERIES))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise ConfigError(
            f"bus parameter max_deliveries is {text!r}; expected a number from 1 to 1000000"
        )
    return int(text)


def _journal(query: Mapping[str, str]) -> Path | None:
    if "journal" not in query:
        return None
    if not query["journal"]:
        raise ConfigError("bus parameter journal is empty; expected a folder")
    return Path(query["journal"])
