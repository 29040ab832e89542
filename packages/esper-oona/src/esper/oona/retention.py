"""How long a topic's messages are kept: the policy of each topic, read from a bus URL.

`options` reads it; the memory broker and `redis_tending` carry it out. A message that every group has
acknowledged is kept, for replay, until it is too old or too many came after it. One that a group has
yet to acknowledge is kept until then, unless its topic may drop it: then it goes all the same, and
counts as lost.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from esper.contracts import ConfigError, TopicNames

PARAMETER = "retain"
"""Of a bus URL: `retain=…` for every topic, `retain.TOPIC=…` for one."""

PARAMETERS = frozenset({PARAMETER, *(f"{PARAMETER}.{topic.value}" for topic in TopicNames)})

DATA_LOSS = "data loss on the bus"
"""The event of every log line about messages that a group lost, or may have lost."""

HELD_UP = (
    "a group holds up a topic: what it has not acknowledged is kept beyond the retention; let it read, "
    "or remove_group it"
)
"""The event of the warning that a group does not read, at first and each time its backlog doubled."""

_DAY_SECONDS = 86_400.0
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY_SECONDS}
_LONGEST_AGE_SECONDS = 36_500 * _DAY_SECONDS
_GREATEST_LENGTH = 10**12
_FORM = (
    "words with commas between them: a number of messages, an age such as 90s, 30m, 12h or 7d, and "
    "'keep' or 'drop' for what a group has not acknowledged; for example 100000,7d,keep"
)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What one topic keeps."""

    max_length: int
    """Messages beyond which the oldest go."""
    max_age_seconds: float
    """Messages older than this go."""
    may_drop: bool
    """Whether they go although a group has not acknowledged them; they are counted as lost then."""


_KEPT = Retention(max_length=100_000, max_age_seconds=7 * _DAY_SECONDS, may_drop=False)
_DEFAULTS = {
    topic: replace(_KEPT, may_drop=topic is TopicNames.TELEMETRY_SEED_HEALTH)
    for topic in TopicNames
}
"""Telemetry is plentiful, and the newest is worth the most: a group that never reads it must not fill
the server. Everything else waits for its groups."""

DEFAULT_RETENTION: Mapping[TopicNames, Retention] = MappingProxyType(_DEFAULTS)


def read_retention(query: Mapping[str, str]) -> Mapping[TopicNames, Retention]:
    """Return the policy of every topic: the defaults, changed by `retain` and `retain.TOPIC`.

    Raises:
        ConfigError: if a value is malformed; words that are not given leave the default.

    """
    policies = dict(_DEFAULTS)
    for topic in TopicNames:
        for name in (PARAMETER, f"{PARAMETER}.{topic.value}"):
            if name in query:
                policies[topic] = _changed(policies[topic], name, query[name])
    return MappingProxyType(policies)


def _changed(policy: Retention, name: str, text: str) -> Retention:
    """Apply the words of one parameter, each kind of which may come once."""
    changes: dict[str, int | float | bool] = {}
    for word in text.split(","):
        if word in ("keep", "drop"):
            change: tuple[str, int | float | bool] = "may_drop", word == "drop"
        elif re.fullmatch(r"[0-9]{1,13}", word) and 0 < int(word) <= _GREATEST_LENGTH:
            change = "max_length", int(word)
        elif found := re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhd])", word):
            change = "max_age_seconds", float(found[1]) * _UNIT_SECONDS[found[2]]
        else:
            raise ConfigError(f"bus parameter {name} has {word!r}; expected {_FORM}")
        if change[0] in changes:
            raise ConfigError(f"bus parameter {name} is {text!r}; expected each kind of word once")
        changes.update([change])
    changed = Retention(
        max_length=int(changes.get("max_length", policy.max_length)),
        max_age_seconds=float(changes.get("max_age_seconds", policy.max_age_seconds)),
        may_drop=bool(changes.get("may_drop", policy.may_drop)),
    )
    if not 0.001 <= changed.max_age_seconds <= _LONGEST_AGE_SECONDS:
        raise ConfigError(
            f"bus parameter {name} is {text!r}; expected an age from 0.001s to 36500d"
        )
    return changed
