"""What a Redis server's refusals mean: which pass, and the typed error that says what to do.

`redis_client` translates with it whatever the driver raises. No message holds a password: the server's
own texts never do, and ours name the address only.
"""

import re

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from esper.contracts import (
    AccessRefusedError,
    BackendUnavailableError,
    KeyTakenError,
    ReadOnlyServerError,
    ServerFullError,
)
from esper.oona.options import RedisOptions

DRIVER_ERRORS = (RedisError, OSError)
"""What a call to the driver may raise."""

_CODES: tuple[tuple[type[Exception], str], ...] = (
    (NoPermissionError, "NOPERM"),
    (AuthenticationError, "NOAUTH"),
    (AuthorizationError, "NOAUTH"),
    (BusyLoadingError, "LOADING"),
    (OutOfMemoryError, "OOM"),
    (ReadOnlyError, "READONLY"),
    (MasterDownError, "MASTERDOWN"),
    (MovedError, "MOVED"),
    (AskError, "ASK"),
    (TryAgainError, "TRYAGAIN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (ClusterCrossSlotError, "CROSSSLOT"),
)
"""The driver cuts off the codes for which it has classes; a class comes before its parent."""

_CODE = re.compile(r"-?([A-Z]{3,})\b")
_IN_SCRIPT = re.compile(r"@user_script: ?\d+: (?:@user_script: ?\d+: )?-?([A-Z]{3,})\b")
"""Redis 6 wraps what a command in a script was refused with."""

_IN_PIPELINE = re.compile(r" of pipeline caused error: \W*([A-Z]{3,})\b")
"""The driver wraps what a command in a pipeline was refused with."""

_FORBIDDEN_IN_SCRIPT = re.compile(r"ACL failure in script|The user executing the script can't")
"""What Redis 7 and later say instead of NOPERM."""

_NEEDED_RIGHTS = (
    "+@stream +@string +@hash +@sortedset +@scripting +@connection "
    "+exists +del +pexpire +pttl +memory +time +info"
)
"""What a user must be allowed for all that the bus does."""

_FAILOVER_CODES = frozenset({"READONLY", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED", "LOADING"})
_FULL_CODES = frozenset({"MISCONF", "OOM"})
_ELSEWHERE_CODES = frozenset({"READONLY", "MASTERDOWN", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})


class MovedAwayError(RedisConnectionError):
    """The server that a connection leads to is not, or no longer, the one that takes our writes."""


def code_of(error: Exception | str) -> str:
    """Return the word that a server's refusal begins with, such as `MISCONF`; empty if it has none."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    text = str(error)
    if _FORBIDDEN_IN_SCRIPT.search(text):
        return "NOPERM"
    match = _IN_SCRIPT.search(text) or _IN_PIPELINE.search(text) or _CODE.match(text)
    return match[1] if match else ""


def is_elsewhere(error: ResponseError) -> bool:
    """Tell whether another server of the same group may do what this one refused."""
    return code_of(error) in _ELSEWHERE_CODES


def is_passing_code(code: str) -> bool:
    """Tell whether what is refused with the code may succeed later: a full disk, a failover."""
    return code in _FAILOVER_CODES or code in _FULL_CODES


def is_passing(error: Exception) -> bool:
    """Tell whether the same command may succeed later: an outage, a full disk, a failover."""
    code = code_of(error)
    if code in ("NOAUTH", "NOPERM"):
        return False
    if isinstance(error, ResponseError):
        return is_passing_code(code)
    return isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError))


def unavailable(options: RedisOptions, error: Exception) -> BackendUnavailableError:
    """Say what the driver's error means and what to do about it, without the password."""
    server = f"the Redis server at {options.address}"
    code = code_of(error)
    if code in _FAILOVER_CODES or code in _FULL_CODES:
        return _not_now(server, code, error)
    if code == "NOAUTH":
        return AccessRefusedError(
            f"{server} refuses the credentials ({error}); give the right ones in the URL: "
            f"{options.form}, percent-encoded"
        )
    if code == "NOPERM":
        return AccessRefusedError(
            f"{server} forbids the user {options.username or 'default'!r} what the bus needs "
            f"({error}); allow it: ACL SETUSER {options.username or 'default'} ~{options.prefix}:* "
            f"{_NEEDED_RIGHTS}"
        )
    if code == "WRONGTYPE":
        return KeyTakenError(
            f"{server} keeps something that is no stream under a key {options.prefix}:… of the bus "
            f"({error}); rename or delete that key, or give the bus names of its own with ?prefix="
        )
    if isinstance(error, MovedAwayError):
        return BackendUnavailableError(
            f"nobody behind {options.address} takes writes at the moment ({error}); after a failover "
            "that lasts seconds; if it stays, look at the servers"
        )
    if isinstance(error, ResponseError):
        return BackendUnavailableError(
            f"{server} refused a command: {error}{_hint(options, error)}"
        )
    if "SSL" in str(error):
        return BackendUnavailableError(
            f"no TLS connection to {options.address} ({error}); if its certificate is not trusted, give "
            "the authority with ?ssl_ca_certs=FILE"
        )
    plain = "" if options.tls is None else " with TLS"
    return BackendUnavailableError(
        f"no Redis server answers{plain} at {options.address} ({error}); start one with "
        "`docker compose --env-file .env -f infra/docker-compose.yml up -d redis`, "
        "correct the URL, or use memory://"
    )


def _not_now(server: str, code: str, error: Exception) -> BackendUnavailableError:
    """Return the error for what passes by itself or when somebody sees to the server."""
    waiting = "what is queued waits, and is sent then"
    match code:
        case "MISCONF":
            return ServerFullError(
                f"{server} takes no writes because it cannot save to disk ({error}); make room on its "
                f"disk, and look into its log; {waiting}"
            )
        case "OOM":
            return ServerFullError(
                f"{server} has no memory left ({error}); raise its maxmemory (CONFIG SET maxmemory), "
                f"or remove data; {waiting}"
            )
        case "READONLY":
            return ReadOnlyServerError(
                f"{server} is a read-only replica ({error}); name its master in the URL, let "
                f"redis+sentinel://… find it, or promote this one (REPLICAOF NO ONE); {waiting}"
            )
        case _:
            return BackendUnavailableError(
                f"{server} takes no writes at the moment ({code}: {error}); {waiting}"
            )


def _hint(options: RedisOptions, error: ResponseError) -> str:
    """Return what else may be wrong where a URL leads to another kind of server."""
    if options.layout == "server" and code_of(error) in (
        "MOVED",
        "ASK",
        "CROSSSLOT",
        "CLUSTERDOWN",
    ):
        return "; it belongs to a cluster: write redis+cluster://… in the URL"
    if "unknown command" in str(error):
        return (
            "; is it a sentinel, or older than Redis 6.2? Sentinels want redis+sentinel://…/service"
        )
    if "cluster support disabled" in str(error):
        return "; it belongs to no cluster: write redis://… in the URL"
    return ""
