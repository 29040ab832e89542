"""`oona replay`: hand a group again what it had."""

import asyncio
from datetime import datetime
from typing import Annotated

import typer

from esper.contracts import ConfigError, TopicNames
from esper.oona.commands.moments import Since, moment
from esper.oona.commands.printing import console, print_json
from esper.oona.commands.session import Json, Url, Yes, command, confirm, opened, topics_named

HELP = """
Hand a group again what it had.

It gets everything that the topics still hold from --since on, in their order; no other group is
concerned. Its handlers see those messages twice, so it asks first.

\b
  oona replay innovation --group archive --since 12h
  oona replay control --group kasmina --since 1764000000000-0 --yes
"""


@command
def replay(
    topic: Annotated[list[str], typer.Argument(help="Topics, or parts of their names.")],
    group: Annotated[str, typer.Option("--group", help="Who gets them again.")],
    since: Since = None,
    everything: Annotated[
        bool, typer.Option("--all", help="From the oldest message kept, instead of --since.")
    ] = False,
    yes: Yes = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Set a group back."""
    if (since is None) != everything:
        raise ConfigError("expected either --since, or --all for everything that is kept")
    topics = topics_named(topic)
    start = moment(since) if since is not None else None
    names = ", ".join(each.value for each in topics)
    text = "everything" if since is None else f"what came since {start}"
    confirm(f"Hand group {group} {text} on {names} again?", is_agreed=yes)
    count = asyncio.run(_replay(url, topics, group, start))
    if as_json:
        print_json({"group": group, "topics": topics, "lag": count})
    else:
        console().print(f"group {group} has {count:,} messages to read on {names}", markup=False)


async def _replay(
    url: str | None, topics: list[TopicNames], group: str, start: datetime | str | None
) -> int:
    """Set the group back; return how many messages it has to read now."""
    async with opened(url) as bus:
        await bus.replay(topics, group=group, since=start)
        state = await bus.health()
    found = [each for topic in state.topics for each in topic.groups]
    return sum(each.lag for each in found if each.group == group and each.topic in topics)
