"""What all commands share: the options, the bus they talk to, and how errors end.

A command is a plain function under `command`, which turns what goes wrong into one line and an exit code.
"""

import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Annotated, NoReturn

import typer

from esper.contracts import (
    BackendUnavailableError,
    Bus,
    ConfigError,
    EsperError,
    TopicNames,
    load_settings,
)
from esper.contracts.registry import bus_factory, scheme_of

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The bus: redis[s]://HOST:PORT/DB; a password may come from .env.",
        show_default="REDIS_URL",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


class Debug:
    """Whether errors are shown with their tracebacks; the option `--debug` sets it."""

    is_on = False


def command[**P](function: Callable[P, None]) -> Callable[P, None]:
    """End every error with one line on standard error and an exit code."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # `oona tail … | head`: nobody reads any more. Python would complain once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_FAILURE) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except EsperError as error:
            if Debug.is_on:
                raise
            is_outage = isinstance(error, BackendUnavailableError)
            fail(str(error), EXIT_FAILURE if is_outage else EXIT_BAD_INPUT)

    return guarded


def fail(text: str, code: int) -> NoReturn:
    """Say what went wrong and end."""
    typer.echo(f"oona: {text}", err=True)
    raise typer.Exit(code) from None


def url_of(url: str | None) -> str:
    """Return the URL of the bus that is asked for, with its password where the settings have it.

    Raises:
        ConfigError: if it names a bus that only one process has.
        UnknownSchemeError: if no such backend is installed.

    """
    settings = load_settings()
    asked = settings.redis_url.get_secret_value() if url is None else settings.with_password(url)
    bus_factory(asked)
    if scheme_of(asked) == "memory":
        raise ConfigError(
            "a memory:// bus lives inside the process that opened it, and this is another one; give "
            "the URL of a server: --url redis://HOST:PORT/DB, or REDIS_URL in the environment or .env"
        )
    return asked


def bus_at(url: str | None) -> Bus:
    """Return the bus that is asked for, not yet open. Raises as `url_of`."""
    asked = url_of(url)
    return bus_factory(asked)(asked)


@asynccontextmanager
async def opened(url: str | None) -> AsyncGenerator[Bus]:
    """Connect to the bus that is asked for. Raises as `bus_at`, and `BackendUnavailableError`."""
    bus = bus_at(url)
    await bus.open()
    try:
        yield bus
    finally:
        await bus.close()


def topic_named(text: str) -> TopicNames:
    """Return the topic of that name, or the only one that the word occurs in. Raises `ConfigError`."""
    if text in TopicNames:
        return TopicNames(text)
    found = [topic for topic in TopicNames if text and text.lower() in topic.value]
    if len(found) == 1:
        return found[0]
    problem = f"fits {len(found)} topics" if found else "is no topic"
    choice = ", ".join(topic.value for topic in found or TopicNames)
    raise ConfigError(f"{text!r} {problem}; expected one of {choice}, or a part of one")


def topics_named(texts: list[str] | None) -> list[TopicNames]:
    """Return the topics of these names, each once; all of them for none. Raises `ConfigError`."""
    return list(dict.fromkeys(topic_named(text) for text in texts or [])) or list(TopicNames)


def confirm(question: str, *, is_agreed: bool) -> None:
    """Ask, unless it was agreed on the command line; end the command if the answer is no.

    Raises:
        ConfigError: if there is nobody to ask.

    """
    if is_agreed:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} There is no terminal to ask at; give --yes to do it")
    if not typer.confirm(question):
        fail("nothing was changed", EXIT_FAILURE)
