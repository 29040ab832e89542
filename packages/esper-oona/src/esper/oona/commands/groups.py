"""`oona groups`: list consumer groups, create one, remove one."""

import asyncio
from typing import Annotated

import typer

from esper.contracts import Bus, GroupHealth, NotFoundError, TopicNames
from esper.oona.commands.health import reachable, topic_lines
from esper.oona.commands.printing import console, plural, print_json
from esper.oona.commands.session import (
    Json,
    Url,
    Yes,
    bus_at,
    command,
    confirm,
    opened,
    topics_named,
)

HELP = """
List the consumer groups, create one, or remove one.

A group receives what is published after it was created, until it is removed; what it has not
acknowledged is kept for it. A group that nobody reads any more should be removed.

\b
  oona groups
  oona groups create archive --topic health --topic epoch
  oona groups remove archive
"""

app = typer.Typer(
    help=HELP, rich_markup_mode=None, invoke_without_command=True, add_completion=False
)

Name = Annotated[str, typer.Argument(help="The group's name.")]
Topics = Annotated[
    list[str] | None,
    typer.Option("--topic", help="A topic, or a part of its name; may be repeated.",
                 show_default="every topic"),
]  # fmt: skip


@app.callback()
@command
def groups(context: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """List the groups."""
    if context.invoked_subcommand is not None:
        return
    state = reachable(asyncio.run(bus_at(url).health()))
    found = [group for topic in state.topics for group in topic.groups]
    if as_json:
        print_json([group.model_dump(mode="json") for group in found])
        return
    out = console()
    for topic in state.topics:
        for line in topic_lines(topic) if topic.groups else ():
            out.print(line)
    if not found:
        out.print("no groups yet; `oona groups create NAME` makes one")


@app.command()
@command
def create(name: Name, topic: Topics = None, url: Url = None, as_json: Json = False) -> None:
    """Let a group receive what is published from now on; one that exists stays as it is."""
    topics = topics_named(topic)

    async def work() -> None:
        async with opened(url) as bus:
            await bus.create_group(topics, group=name)

    asyncio.run(work())
    if as_json:
        print_json({"group": name, "topics": topics})
    else:
        console().print(f"group {name} receives from {_listed(topics)}", markup=False)


@app.command()
@command
def remove(
    name: Name, topic: Topics = None, yes: Yes = False, url: Url = None, as_json: Json = False
) -> None:
    """Forget a group, with everything that it has not acknowledged."""
    topics = topics_named(topic)
    found = [
        group for group in _groups(bus_at(url)) if group.topic in topics and group.group == name
    ]
    if not found:
        where = "any topic" if topic is None else _listed(topics)
        raise NotFoundError(f"there is no group {name!r} on {where}; `oona groups` lists them")
    unread = sum(group.lag + group.num_in_flight for group in found)
    where = _listed([group.topic for group in found])
    confirm(
        f"Remove group {name} from {where}? It has {plural(unread, 'message')} to handle.",
        is_agreed=yes,
    )

    async def work() -> None:
        async with opened(url) as bus:
            await bus.remove_group([group.topic for group in found], group=name)

    asyncio.run(work())
    if as_json:
        print_json({"group": name, "topics": [group.topic for group in found], "unread": unread})
    else:
        text = f"group {name} is gone from {where}, with {plural(unread, 'message')}"
        console().print(text, markup=False)


def _groups(bus: Bus) -> list[GroupHealth]:
    state = reachable(asyncio.run(bus.health()))
    return [group for topic in state.topics for group in topic.groups]


def _listed(topics: list[TopicNames]) -> str:
    return "every topic" if set(topics) == set(TopicNames) else ", ".join(t.value for t in topics)
