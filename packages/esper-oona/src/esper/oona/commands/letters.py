"""`oona dead-letters`: list what was set aside, look at one, hand it to its group again."""

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape

from esper.contracts import ConfigError, DeadLetter, MessageError, NotFoundError
from esper.contracts.messages import parse_message
from esper.oona.commands.printing import console, plural, print_json
from esper.oona.commands.session import (
    EXIT_FAILURE,
    Json,
    Url,
    Yes,
    command,
    confirm,
    fail,
    opened,
    topic_named,
)
from esper.oona.delivery import MAX_DEAD_LETTERS

HELP = """
List messages that were set aside; requeue them.

A group sets aside what nobody there could handle; the letter keeps the message and the reason.

\b
  oona dead-letters list
  oona dead-letters show 1764000000000-0
  oona dead-letters requeue 1764000000000-0
  oona dead-letters requeue --all --group urabrask
"""

app = typer.Typer(help=HELP, rich_markup_mode=None, no_args_is_help=True, add_completion=False)

Group = Annotated[str | None, typer.Option("--group", help="Only those of this group.")]
Topic = Annotated[str | None, typer.Option("--topic", help="Only those of this topic.")]


@app.command("list")
@command
def list_letters(
    group: Group = None,
    topic: Topic = None,
    number: Annotated[int, typer.Option("-n", help="At most so many, the oldest.", min=1)] = 20,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List dead letters, oldest first, each with the reason."""
    letters = asyncio.run(_read(url, group=group, topic=topic))
    if as_json:
        print_json([_as_json(letter) for letter in letters[:number]])
        return
    out = console()
    for letter in letters[:number]:
        tries = plural(letter.delivery_count, "time")
        out.print(
            f"[bold]{letter.letter_id}[/]  {letter.topic.value}  group {escape(letter.group)}, "
            f"handed out {tries}"
        )
        out.print(f"  [yellow]{escape(_first_line(letter.reason))}[/]")
    if not letters:
        out.print("no dead letters")
    elif len(letters) > number:
        out.print(f"[dim]and {len(letters) - number:,} more; -n shows more[/]")


@app.command()
@command
def show(
    letter_id: Annotated[str, typer.Argument(help="As `list` names it.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show one letter: the whole reason, and the message."""
    letters = asyncio.run(_read(url))
    found = [letter for letter in letters if letter.letter_id == letter_id]
    if not found:
        raise NotFoundError(
            f"there is no dead letter {letter_id!r}; `oona dead-letters list` shows those there are"
        )
    if as_json:
        print_json(_as_json(found[0]))
        return
    out = console()
    fields = _as_json(found[0])
    message = fields.pop("message")
    for name, value in fields.items():
        out.print(f"[dim]{name}[/] {escape(str(value))}")
    text = (
        json.dumps(message, indent=2, ensure_ascii=False) if isinstance(message, dict) else message
    )
    out.print(escape(str(text)))


@app.command()
@command
def requeue(
    letter_id: Annotated[list[str] | None, typer.Argument(help="As `list` names them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them, or of --group.")] = False,
    group: Group = None,
    topic: Topic = None,
    yes: Yes = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Hand letters to their groups again, as they were, with their attempts forgotten."""
    asked = letter_id or []
    if bool(asked) == every or (asked and (group is not None or topic is not None)):
        raise ConfigError("expected either the ids of letters, or --all with or without --group")
    if every:
        asked = [letter.letter_id for letter in asyncio.run(_read(url, group=group, topic=topic))]
        if asked:
            letters = plural(len(asked), "dead letter")
            confirm(f"Hand {letters} to their groups again?", is_agreed=yes)
    done, problems = asyncio.run(_requeue(url, asked))
    if as_json:
        print_json({"requeued": done, "problems": problems})
    else:
        console().print(f"{plural(len(done), 'message')} handed to their groups again")
        for problem in problems:
            typer.echo(f"oona: {problem}", err=True)
    if problems and as_json:
        raise typer.Exit(EXIT_FAILURE)
    if problems:
        fail(f"{plural(len(problems), 'letter')} could not be requeued", EXIT_FAILURE)


async def _read(
    url: str | None, *, group: str | None = None, topic: str | None = None
) -> Sequence[DeadLetter]:
    wanted = topic_named(topic) if topic is not None else None
    async with opened(url) as bus:
        letters = await bus.dead_letters(limit=MAX_DEAD_LETTERS * 2)
    return [
        letter
        for letter in letters
        if group in (None, letter.group) and wanted in (None, letter.topic)
    ]


async def _requeue(url: str | None, letter_ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the ids of those that went, and what was wrong with the others."""
    done: list[str] = []
    problems: list[str] = []
    async with opened(url) as bus:
        for letter_id in letter_ids:
            try:
                await bus.requeue(letter_id)
            except NotFoundError as error:
                problems.append(str(error))
            else:
                done.append(letter_id)
    return done, problems


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    try:
        message: Any = parse_message(letter.data).model_dump(mode="json")
    except MessageError:
        message = letter.data.decode(errors="backslashreplace")
    return {
        "letter_id": letter.letter_id,
        "topic": letter.topic.value,
        "group": letter.group,
        "delivery_count": letter.delivery_count,
        "reason": letter.reason,
        "message": message,
    }


def _first_line(text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"{first} …" if rest else first
