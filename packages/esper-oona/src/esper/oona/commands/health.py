"""`oona health` and `oona groups`: how the bus stands, and who reads what how far behind."""

import asyncio
from collections.abc import Sequence

import typer
from rich.markup import escape

from esper.contracts import BackendUnavailableError, BusHealth, GroupHealth, TopicHealth
from esper.oona.commands.printing import console, plural, print_json, size, span, table
from esper.oona.commands.session import EXIT_FAILURE, Json, Url, bus_at, command

HELP = """
Say whether the bus is up, and who is behind.

Ends with exit code 1 if the server does not answer, so that scripts can wait for it.

\b
  oona health
  oona health --json
  until oona health > health.txt; do sleep 1; done

LAG: messages that no consumer of the group was handed yet. IN HAND: handed out and not
acknowledged; AGAIN: of these, handed out before; OLDEST: age of the oldest of these.
DEAD: set aside (`oona dead-letters list`).
"""


@command
def health(url: Url = None, as_json: Json = False) -> None:
    """Say how the bus stands."""
    state = asyncio.run(bus_at(url).health())
    if as_json:
        print_json(state.model_dump(mode="json"))
        if not state.is_reachable:
            raise typer.Exit(EXIT_FAILURE)
        return
    reachable(state)
    out = console()
    out.print(
        f"[bold green]up[/]  {state.server} {state.version} at {state.address}, "
        f"answers in {span(state.round_trip_seconds)}"
    )
    for topic in state.topics:
        for line in topic_lines(topic):
            out.print(line)
    for group in (group for topic in state.topics for group in topic.groups if group.num_lost):
        lost = plural(group.num_lost, "message")
        out.print(f"[red]lost[/] {lost} by {escape(group.group)} on {group.topic.value}")
    if not state.topics:
        out.print("no messages and no groups yet")
    if state.num_dead_letters:
        letters = plural(state.num_dead_letters, "dead letter")
        out.print(f"[yellow]{letters}[/]; `oona dead-letters list` shows them")


def reachable(state: BusHealth) -> BusHealth:
    """Return the state; raises `BackendUnavailableError` if there is none."""
    if not state.is_reachable:
        raise BackendUnavailableError(state.problem or f"no answer from {state.address}")
    return state


def topic_lines(topic: TopicHealth) -> list[str]:
    """Return what to print about one topic and its groups."""
    kept = f"{plural(topic.length, 'message')}, {size(topic.size_bytes)}"
    ages = f", {span(topic.oldest_seconds)} to {span(topic.newest_seconds)} old"
    head = f"[bold]{topic.topic.value}[/]  {kept}{ages if topic.length else ''}"
    if not topic.groups:
        return [head, "  [dim]no groups[/]"]
    return [head, *_groups_table(topic.groups)]


def _groups_table(groups: Sequence[GroupHealth]) -> list[str]:
    header = ("GROUP", "LAG", "IN HAND", "AGAIN", "OLDEST", "DEAD", "CONSUMERS")
    rows = [
        (
            group.group,
            f"{'' if group.is_lag_exact else '≥'}{group.lag:,}",
            f"{group.num_in_flight:,}",
            f"{group.num_redelivered:,}",
            span(group.oldest_in_flight_seconds),
            f"{group.num_dead_letters:,}",
            _consumers(group),
        )
        for group in groups
    ]
    return table(header, rows, indent="  ")


def _consumers(group: GroupHealth) -> str:
    """Name the only consumer; count several."""
    names = [
        each.name + ("" if each.idle_seconds is None else f", idle {span(each.idle_seconds)}")
        for each in group.consumers
    ]
    return names[0] if len(names) == 1 else str(len(names) or "none")
