"""Bus URLs, checked: what `open_memory_bus` and `open_redis_bus` are told, as frozen options.

No message quotes the URL itself, because a mistyped one may carry the password anywhere. The forms for
Sentinel and Cluster are those that other Python projects have settled on.
"""

import math
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from esper.contracts import ConfigError, TopicNames
from esper.oona.retention import DEFAULT_RETENTION, PARAMETERS, Retention, read_retention

DEFAULT_RECLAIM_AFTER_SECONDS = 60.0
DEFAULT_MAX_DELIVERIES = 5
DEFAULT_PREFIX = "esper"
DEFAULT_REDIS_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379

type Layout = Literal["server", "sentinel", "cluster"]
type Node = tuple[str, int]
"""Host and port."""

_MEMORY_FORM = "memory:// or memory://NAME"
_REDIS_FORMS = {
    "server": "redis[s]://[user:password@]host[:port][/db]",
    "sentinel": "redis[s]+sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]",
    "cluster": "redis[s]+cluster://[user:password@]host[:port][,host[:port]…]",
}
_ENCODED = ", user and password percent-encoded"
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]@,\s]+)(?::(?P<port>\d+))?")
_PATHS = {
    "server": re.compile(r"/?|/(?P<db>\d+)"),
    "sentinel": re.compile(r"/(?P<service>[^/]+)/?(?P<db>\d+)?"),
    "cluster": re.compile(r"/?|/0"),
}
_SENTINEL_PARAMETERS = frozenset({"sentinel_username", "sentinel_password"})
_TLS_PARAMETERS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """Which broker of this process, and when it hands a message out again."""

    name: str
    reclaim_after_seconds: float
    max_deliveries: int = DEFAULT_MAX_DELIVERIES
    """A message that was handed out so often in vain goes to the dead letters."""
    retention: Mapping[TopicNames, Retention] = DEFAULT_RETENTION
    """What each topic keeps."""

    @classmethod
    def from_url(cls, url: str) -> "MemoryOptions":
        """Read `memory://NAME?reclaim_after_seconds=60`. Raises `ConfigError`."""
        parts = _split(url, schemes=("memory",), form=_MEMORY_FORM)
        if parts.path or parts.fragment or "@" in parts.netloc:
            raise ConfigError(f"bus URL has more than a name; expected {_MEMORY_FORM}")
        query = _query(parts, known={"reclaim_after_seconds", "max_deliveries", *PARAMETERS})
        return cls(
            name=parts.netloc,
            reclaim_after_seconds=_reclaim_after(query),
            max_deliveries=_max_deliveries(query),
            retention=read_retention(query),
        )


@dataclass(frozen=True, kw_only=True)
class RedisOptions:
    """Which server, who we are to it, and how its streams are used."""

    layout: Layout = "server"
    nodes: tuple[Node, ...]
    """The server; or those sentinels, or nodes of the cluster, that are asked for the rest."""
    service: str | None = None
    """The name that the sentinels know the servers by."""
    db: int
    username: str | None
    password: str | None = field(repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: Mapping[str, str] | None
    """`ssl_…` settings of redis-py; None for a plain connection."""
    prefix: str
    """Stream keys are `prefix:topic`; in braces on a cluster, so that one node has all of them."""
    reclaim_after_seconds: float
    max_deliveries: int = DEFAULT_MAX_DELIVERIES
    """A message that was handed out so often in vain goes to the dead letters."""
    journal: Path | None = None
    """Folder for what could not be sent before the process ended; None: it is lost."""
    retention: Mapping[TopicNames, Retention] = DEFAULT_RETENTION
    """What each topic keeps."""

    @property
    def address(self) -> str:
        """`host:port`, or several of them, separated by commas."""
        return ",".join(f"{host}:{port}" for host, port in self.nodes)

    @property
    def form(self) -> str:
        """What a URL of this layout looks like."""
        return _REDIS_FORMS[self.layout]

    @classmethod
    def from_url(cls, url: str) -> "RedisOptions":
        """Read `redis://…?prefix=esper&reclaim_after_seconds=60`. Raises `ConfigError`."""
        any_form = ", or ".join(_REDIS_FORMS.values()) + _ENCODED
        schemes = [
            f"{s}{plus}" for s in ("redis", "rediss") for plus in ("", "+sentinel", "+cluster")
        ]
        parts = _split(url, schemes=schemes, form=any_form)
        scheme, _, kind = parts.scheme.partition("+")
        layout = cast("Layout", kind or "server")
        known = {"prefix", "reclaim_after_seconds", "max_deliveries", "journal", *PARAMETERS}
        known |= _TLS_PARAMETERS if scheme == "rediss" else frozenset[str]()
        known |= _SENTINEL_PARAMETERS if layout == "sentinel" else frozenset[str]()
        query = _query(parts, known=known)
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        path = _PATHS[layout].fullmatch(parts.path)
        if not path or parts.fragment or not hosts:
            raise ConfigError(f"bus URL is malformed; expected {_REDIS_FORMS[layout]}{_ENCODED}")
        found = path.groupdict()
        tls = {name: query[name] for name in sorted(_TLS_PARAMETERS & set(query))}
        return cls(
            layout=layout,
            nodes=_nodes(hosts, layout),
            service=unquote(found["service"]) if "service" in found else None,
            db=int(found.get("db") or 0),
            username=unquote(username) or None,
            password=unquote(password) or None,
            sentinel_username=query.get("sentinel_username"),
            sentinel_password=query.get("sentinel_password"),
            tls=tls if scheme == "rediss" else None,
            prefix=_prefix(query, layout),
            reclaim_after_seconds=_reclaim_after(query),
            max_deliveries=_max_deliveries(query),
            journal=_journal(query),
            retention=read_retention(query),
        )


def _nodes(hosts: str, layout: Layout) -> tuple[Node, ...]:
    """Read `host[:port][,host[:port]…]`; only a plain server is a single one."""
    default = DEFAULT_SENTINEL_PORT if layout == "sentinel" else DEFAULT_REDIS_PORT
    nodes: list[Node] = []
    for text in [hosts] if layout == "server" else hosts.split(","):
        match = _HOST.fullmatch(text)
        if match is None or not 1 <= int(match["port"] or default) <= 65_535:
            raise ConfigError(
                f"bus URL has no valid host and port; expected {_REDIS_FORMS[layout]}{_ENCODED}"
            )
        nodes.append((match["host"].strip("[]"), int(match["port"] or default)))
    return tuple(nodes)


def _prefix(query: Mapping[str, str], layout: Layout) -> str:
    prefix = query.get("prefix", DEFAULT_PREFIX)
    if not prefix:
        raise ConfigError("bus parameter prefix is empty; expected a word such as 'esper'")
    if layout != "cluster":
        return prefix
    if "{" in prefix or "}" in prefix:
        raise ConfigError(
            f"bus parameter prefix is {prefix!r}; on a cluster, expected a word without braces, "
            "which are put around it"
        )
    return f"{{{prefix}}}"


def _split(url: str, *, schemes: Collection[str], form: str) -> SplitResult:
    """Take the URL apart; what the library says about a bad one quotes it, so it is not passed on."""
    parts = None
    with suppress(ValueError):
        parts = urlsplit(url)
    if parts is None:
        raise ConfigError(f"bus URL is malformed; expected {form}")
    if parts.scheme not in schemes:
        raise ConfigError(f"bus URL has scheme {parts.scheme!r}; expected {form}")
    if "@" in parts.path + parts.query + parts.fragment:
        raise ConfigError(
            f"bus URL is malformed: an @ stands behind the host, so /, ? or # may be part of the "
            f"password; percent-encode them; expected {form}"
        )
    return parts


def _query(parts: SplitResult, *, known: Collection[str]) -> Mapping[str, str]:
    pairs = None
    with suppress(ValueError):
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    if pairs is None:
        raise ConfigError("bus URL has a malformed query; expected ?name=value&…")
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
