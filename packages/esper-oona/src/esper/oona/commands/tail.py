"""`oona tail`: what was published lately, and what is being published."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

import typer

from esper.contracts import Bus, Record, TopicNames, utc_now
from esper.oona.commands.moments import Since, moment
from esper.oona.commands.printing import console, print_json
from esper.oona.commands.records import Filter, as_json, as_lines, seed_named
from esper.oona.commands.session import Json, Url, command, opened, topics_named

HELP = """
Show the newest messages, and follow.

Nothing is acknowledged: no group gets less for it. Ctrl-C ends it.

\b
  oona tail                                 the last 20, of every topic
  oona tail control --seed 1,0 --since 1h   what one seed was told
  oona tail --trace run-7 --no-follow -n 5 --full
  oona tail health --json | jq .payload.epoch
"""

_WINDOWS_SECONDS = (10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)
"""How far back to look for the newest messages, until there are enough."""
_OVERLAP_MS = 10_000
"""Following begins so long before the newest message seen: another topic may have got one meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to show."""

    topics: Collection[TopicNames]
    wanted: Filter
    since: datetime | str | None
    number: int | None
    """The newest so many; None for all."""
    follow: bool


@command
def tail(
    topic: Annotated[
        list[str] | None,
        typer.Argument(help="Topics, or parts of their names.", show_default="every topic"),
    ] = None,
    since: Since = None,
    number: Annotated[
        int | None,
        typer.Option("-n", help="At most so many.", min=0, show_default="20, or all --since"),
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Only about this seed: LAYER,SEED.")] = None,
    trace: Annotated[str | None, typer.Option(help="Only with this trace id.")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for more.")] = True,
    full: Annotated[bool, typer.Option("--full", help="Show whole payloads, indented.")] = False,
    url: Url = None,
    as_json_lines: Json = False,
) -> None:
    """Show messages."""
    asked = Request(
        topics=topics_named(topic),
        wanted=Filter(seed=seed_named(seed) if seed is not None else None, trace=trace),
        since=moment(since) if since is not None else None,
        number=20 if number is None and since is None else number,
        follow=follow,
    )
    asyncio.run(_show(url, asked, is_full=full, is_json=as_json_lines))


async def _show(url: str | None, asked: Request, *, is_full: bool, is_json: bool) -> None:
    out = console()
    async with opened(url) as bus, aclosing(_records(bus, asked)) as records:
        async for record in records:
            if is_json:
                print_json(as_json(record))
            else:
                for line in as_lines(record, width=out.width, is_full=is_full):
                    out.print(line)
            sys.stdout.flush()


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What one pass over the topics found."""

    since: datetime | str | None
    found: Sequence[Record]
    """What is to be shown."""
    recent: Sequence[tuple[TopicNames, str]]
    """Topics and positions of the last seconds, shown or not."""


async def _records(bus: Bus, asked: Request) -> AsyncGenerator[Record]:
    """Yield what is there, then what comes."""
    scan = await _newest(bus, asked)
    for record in scan.found:
        yield record
    if not asked.follow:
        return
    seen = set(scan.recent)
    async with aclosing(bus.read(asked.topics, since=_go_on_at(scan), follow=True)) as records:
        async for record in records:
            if (record.topic, record.position) not in seen and asked.wanted.takes(record):
                yield record


def _go_on_at(scan: _Scan) -> datetime | str | None:
    """Return where to begin following, so that nothing is missed: a little before the newest."""
    if not scan.recent:
        return scan.since
    newest_ms = max(_milliseconds(position) for _, position in scan.recent)
    return f"{max(newest_ms - _OVERLAP_MS, _first_ms(scan.since))}-0"


async def _newest(bus: Bus, asked: Request) -> _Scan:
    """Look further and further back until there is as much as is asked for."""
    if asked.since is not None or asked.number is None:
        return await _scan(bus, asked, asked.since)
    for seconds in _WINDOWS_SECONDS:
        scan = await _scan(bus, asked, utc_now() - timedelta(seconds=seconds))
        if len(scan.found) >= asked.number:
            return scan
    return await _scan(bus, asked, None)


async def _scan(bus: Bus, asked: Request, since: datetime | str | None) -> _Scan:
    found: deque[Record] = deque(maxlen=asked.number)
    recent: deque[tuple[TopicNames, str]] = deque()
    async with aclosing(bus.read(asked.topics, since=since)) as records:
        async for record in records:
            recent.append((record.topic, record.position))
            while _milliseconds(recent[0][1]) < _milliseconds(record.position) - _OVERLAP_MS:
                recent.popleft()
            if asked.wanted.takes(record):
                found.append(record)
    return _Scan(since=since, found=list(found), recent=list(recent))


def _milliseconds(position: str) -> int:
    """Return when the server got what is there, as a Unix time."""
    return int(position.partition("-")[0])


def _first_ms(since: datetime | str | None) -> int:
    if isinstance(since, datetime):
        return int(since.timestamp() * 1000)
    return _milliseconds(since) if since is not None else 0
