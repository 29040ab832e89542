"""Moments as they are typed: `10m` ago, a time of ISO 8601, or a position on the bus."""

import re
from datetime import datetime, timedelta
from typing import Annotated

import typer

from esper.contracts import ConfigError, utc_now

_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_FORM = "how long ago (90s, 10m, 12h, 7d), a time such as 2026-11-23T08:00, or a position as --json shows it"

Since = Annotated[
    str | None,
    typer.Option("--since", help="How long ago (10m), a time (ISO 8601) or a position."),
]


def moment(text: str) -> datetime | str:
    """Return an aware time, or a position as it is. Raises `ConfigError`."""
    if re.fullmatch(r"\d{1,20}-\d{1,20}", text):
        return text
    if found := re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])", text):
        try:
            return utc_now() - timedelta(seconds=float(found[1]) * _UNIT_SECONDS[found[2]])
        except OverflowError:
            raise ConfigError(f"--since {text} is before all time; expected {_FORM}") from None
    try:
        return datetime.fromisoformat(text).astimezone()  # without a zone: local time
    except (ValueError, OverflowError):
        raise ConfigError(f"--since is {text!r}; expected {_FORM}") from None
