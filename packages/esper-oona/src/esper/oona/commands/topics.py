"""`oona topics`: every topic with its payload model, or the fields of one."""

import asyncio
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from esper.contracts import PAYLOADS, SCHEMA_VERSIONS, TopicHealth, TopicNames
from esper.oona.commands.health import reachable
from esper.oona.commands.printing import console, plural, print_json, span, table
from esper.oona.commands.session import Json, Url, bus_at, command, topic_named

HELP = """
List the topics: what they carry, hold, and who reads.

Naming one TOPIC (or a part of its name) lists the fields of its payload instead, which
`oona publish` wants; that needs no server.

\b
  oona topics
  oona topics control
  oona topics health --json
"""


@command
def topics(
    topic: Annotated[str | None, typer.Argument(help="Show the fields of this one.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List the topics."""
    if topic is not None:
        _show_fields(topic_named(topic), as_json=as_json)
        return
    state = reachable(asyncio.run(bus_at(url).health()))
    held = {each.topic: each for each in state.topics}
    if as_json:
        print_json([_as_json(name, held.get(name)) for name in TopicNames])
        return
    rows = [_row(name, held.get(name)) for name in TopicNames]
    header = ("TOPIC", "PAYLOAD", "SCHEMA", "LENGTH", "OLDEST")
    head, *lines = table(header, rows)
    out = console()
    out.print(head)
    for name, line in zip(TopicNames, lines, strict=True):
        out.print(line)
        if name in held and (groups := held[name].groups):
            words = ", ".join(f"{each.group} ({each.lag:,} behind)" for each in groups)
            out.print(f"  [dim]read by[/] {words}")


def _row(topic: TopicNames, found: TopicHealth | None) -> tuple[str, ...]:
    length, oldest = (found.length, found.oldest_seconds) if found is not None else (0, None)
    model = PAYLOADS[topic].__name__
    return topic.value, model, SCHEMA_VERSIONS[topic], f"{length:,}", span(oldest)


def _as_json(topic: TopicNames, found: TopicHealth | None) -> dict[str, Any]:
    return {
        "topic": topic.value,
        "payload": PAYLOADS[topic].__name__,
        "schema_version": SCHEMA_VERSIONS[topic],
        "length": found.length if found is not None else 0,
        "oldest_seconds": found.oldest_seconds if found is not None else None,
        "newest_seconds": found.newest_seconds if found is not None else None,
        "groups": {each.group: each.lag for each in (found.groups if found is not None else ())},
    }


def _show_fields(topic: TopicNames, *, as_json: bool) -> None:
    model = PAYLOADS[topic]
    if as_json:
        print_json(model.model_json_schema())
        return
    out = console()
    num_fields = plural(len(model.model_fields), "field")
    out.print(f"{topic.value} carries [bold]{model.__name__}[/], {num_fields}:")
    rows = [(name, _type(field), _default(field)) for name, field in model.model_fields.items()]
    for line in table(("FIELD", "TYPE", "IF LEFT OUT"), rows, indent="  "):
        out.print(line)


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    return (
        annotation.__name__ if isinstance(annotation, type) else str(annotation).rpartition(".")[2]
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "made for you" if field.default_factory is not None else repr(field.default)
