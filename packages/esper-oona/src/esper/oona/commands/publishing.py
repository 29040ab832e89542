"""`oona publish`: one message from the command line, checked against its topic's model."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from esper.contracts import PAYLOADS, ConfigError, MessageError, Payload, TopicNames
from esper.contracts.config import message_of
from esper.oona.commands.printing import console, print_json
from esper.oona.commands.session import Json, Url, command, opened, topic_named

HELP = """
Publish one message.

Its payload is JSON: inline, in a file, or on standard input (-). It is checked against the
topic's model first (`oona topics TOPIC` lists the fields).

\b
  oona publish control '{"seed_id": [0, 0], "target": "CULLED",
    "epoch": 3, "reason": "by hand"}'
  oona publish field_reports --file report.json --trace run-7
  jq .payload letter.json | oona publish control -
"""


@command
def publish(
    topic: Annotated[str, typer.Argument(help="A topic, or a part of its name.")],
    payload: Annotated[str | None, typer.Argument(help="JSON, or - for standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the payload from this file.")] = None,
    sender: Annotated[str, typer.Option(help="Who says so.")] = "oona",
    trace: Annotated[
        str | None, typer.Option(help="What it belongs to.", show_default="a new one")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Publish one message."""
    name = topic_named(topic)
    checked = _checked(name, _read(payload, file))

    async def work() -> str:
        async with opened(url) as bus:
            return await bus.publish(checked, sender_id=sender, trace_id=trace)

    event_id = asyncio.run(work())
    if as_json:
        print_json({"topic": name.value, "event_id": event_id})
    else:
        console().print(f"published {event_id} on {name.value}")


def _read(payload: str | None, file: Path | None) -> str:
    """Return the text of the payload. Raises `ConfigError`."""
    if (payload is None) == (file is None):
        raise ConfigError("expected the payload either inline, or as --file FILE, or as - (stdin)")
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"file {file} cannot be read: {error}") from error
    return sys.stdin.read() if payload == "-" else str(payload)


def _checked(topic: TopicNames, text: str) -> Payload:
    """Return the payload; raises `MessageError` that names each wrong field."""
    model = PAYLOADS[topic]
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors(include_url=False))
        raise MessageError(
            f"not a valid {model.__name__} for {topic.value}: {problems}. "
            f"`oona topics {topic.value}` lists the fields"
        ) from None


def _problem(item: ErrorDetails) -> str:
    """Name the field, what was expected, and what came instead."""
    field = ".".join(map(str, item["loc"])) or "payload"
    if item["type"] == "extra_forbidden":
        return f"{field}: no such field"
    if item["type"] in ("missing", "json_invalid"):
        return f"{field}: {message_of(item)}"
    return f"{field}: {message_of(item)}, got {item['input']!r:.60}"
