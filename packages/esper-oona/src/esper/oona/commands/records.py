"""Records of a topic as `oona tail` sees them: which are meant, and how they are shown."""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, cast

from rich.markup import escape

from esper.contracts import ConfigError, MessageError, OonaMessage, Record
from esper.contracts.messages import parse_message

_COLOURS = {
    "telemetry": "cyan",
    "control": "magenta",
    "compilation": "blue",
    "validation": "green",
    "system": "yellow",
    "innovation": "bright_red",
}
"""By the first word of the topic."""

_LONGEST_NAME = 16
_LONGEST_VALUE = 80
_LONGEST_HASH = 12
_LINES = 3
_UNTOLD = frozenset({"command_id", "report_id", "issued_at", "measured_at", "at"})
"""Fields that say little to people; --full shows them."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What is meant; None means all."""

    seed: tuple[int, int] | None = None
    trace: str | None = None

    def takes(self, record: Record) -> bool:
        """Tell whether the record is meant; what cannot be read is, unless something is asked for."""
        if self.seed is None and self.trace is None:
            return True
        message = read(record)
        if isinstance(message, MessageError):
            return False
        if self.trace is not None and message.trace_id != self.trace:
            return False
        return self.seed is None or _mentions(message.payload, self.seed)


def seed_named(text: str) -> tuple[int, int]:
    """Read `LAYER,SEED`. Raises `ConfigError`."""
    layer, _, seed = text.partition(",")
    if not (layer.strip().isdecimal() and seed.strip().isdecimal()):
        raise ConfigError(f"--seed is {text!r}; expected LAYER,SEED such as 1,0")
    return int(layer), int(seed)


def read(record: Record) -> OonaMessage | MessageError:
    """Return the message, or what is wrong with it."""
    try:
        return parse_message(record.data)
    except MessageError as error:
        return error


def as_json(record: Record) -> dict[str, Any]:
    """Return the record for machines: its position and its envelope, or why it has none."""
    message = read(record)
    place = {"position": record.position, "topic": record.topic.value}
    if isinstance(message, MessageError):
        data = record.data.decode(errors="backslashreplace")
        return {**place, "problem": str(message), "data": data}
    return {**place, **message.model_dump(mode="json")}


def as_lines(record: Record, *, width: int, is_full: bool) -> list[str]:
    """Return the record for people, with markup: who said what when, then the payload.

    Args:
        record: what to show.
        width: of the terminal, in characters.
        is_full: the whole payload, indented, instead of as much as fits a few lines.

    """
    topic = record.topic.value
    colour = _COLOURS.get(topic.partition(".")[0], "white")
    message = read(record)
    if isinstance(message, MessageError):
        reason = " ".join(str(message).split())
        head = f"[dim]{record.position}[/] [{colour}]{topic}[/]"
        return [head, f"  [red]{escape(_cut(reason, width - 2))}[/]"]
    time = message.timestamp.astimezone(UTC)
    head = (
        f"[dim]{time:%H:%M:%S}.{time.microsecond // 1000:03}Z[/] [{colour}]{topic}[/]  "
        f"{escape(_cut(message.sender_id, _LONGEST_NAME))}  "
        f"[dim]{escape(_cut(message.trace_id, _LONGEST_NAME))}[/]"
    )
    if is_full:
        text = json.dumps(message.payload, indent=2, ensure_ascii=False)
        return [head, *(f"  {escape(line)}" for line in text.splitlines())]
    said = [
        f"{key}={_brief(value)}"
        for key, value in message.payload.items()
        if key not in _UNTOLD and value not in (None, False, "", [], {})
    ]
    lines = textwrap.wrap("  ".join(said), width - 2, max_lines=_LINES, placeholder=" …")
    return [head, *(f"  {escape(line)}" for line in lines)]


def _mentions(value: object, seed: tuple[int, int]) -> bool:
    """Tell whether a payload, or something inside it, is about the seed."""
    if isinstance(value, dict):
        fields = cast("Mapping[str, object]", value)
        if fields.get("seed_id") == list(seed):
            return True
        if (fields.get("layer_id"), fields.get("seed_id")) == seed:
            return True
        return any(_mentions(each, seed) for each in fields.values())
    if isinstance(value, list):
        return any(_mentions(each, seed) for each in cast("Sequence[object]", value))
    return False


def _brief(value: object) -> str:
    """Return a value in a few characters; of a structure, its size."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:_LONGEST_HASH]
    if isinstance(value, dict):
        return f"{{{len(cast('Mapping[str, object]', value))}}}"
    if isinstance(value, list):
        items = cast("Sequence[object]", value)
        if any(isinstance(item, (dict, list)) for item in items):
            return f"[{len(items)}]"
        return f"[{','.join(map(_brief, items))}]"
    return _cut(" ".join(str(value).split()), _LONGEST_VALUE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: max(length - 1, 0)]}…"
