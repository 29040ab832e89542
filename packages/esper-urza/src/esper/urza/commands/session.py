"""What all commands share: which library they work on, how they print, and how errors end.

A command is a plain function under `command`, which turns what goes wrong into one line and an exit code.
"""

import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.table import Table

from esper.contracts import (
    ArtifactStore,
    BackendUnavailableError,
    ConfigError,
    EsperError,
    Library,
    load_settings,
)
from esper.contracts.registry import artifact_store_factory, library_factory
from esper.urza.library import SqlLibrary

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_NEVER_CUT = 10_000
"""Columns of a terminal that no table needs."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
Number = Annotated[int, typer.Option("-n", help="At most so many.", min=1, max=1000)]


@dataclass
class Session:
    """What was said before the command: which library, and whether errors show their tracebacks."""

    library: str | None = None
    artifacts: str | None = None
    run: Path | None = None
    debug: bool = False


session = Session()
"""Of this process; `cli` fills it in."""


def command[**P](function: Callable[P, None]) -> Callable[P, None]:
    """End every error with one line on standard error and an exit code."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # `urza kernels list | head`: nobody reads any more. Python would complain once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_FAILURE) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except EsperError as error:
            if session.debug:
                raise
            is_outage = isinstance(error, BackendUnavailableError)
            fail(str(error), EXIT_FAILURE if is_outage else EXIT_BAD_INPUT)

    return guarded


def fail(text: str, code: int) -> NoReturn:
    """Say what went wrong and end."""
    typer.echo(f"urza: {text}", err=True)
    raise typer.Exit(code) from None


def make_library() -> tuple[Library, ArtifactStore]:
    """Return the library that is asked for and its store, neither open yet.

    Raises:
        ConfigError: if that is no library, or it is said twice.

    """
    settings = load_settings()
    if session.run is not None:
        library, artifacts = _of_run(session.run)
    else:
        given = session.library
        library = settings.library_url() if given is None else settings.with_password(given)
        artifacts = session.artifacts or f"s3://{settings.s3_bucket_name}"
    store = artifact_store_factory(artifacts)(artifacts)
    return library_factory(library)(library, store), store


def _of_run(folder: Path) -> tuple[str, str]:
    if session.library is not None or session.artifacts is not None:
        raise ConfigError("--run names a library of its own; leave out --library and --artifacts")
    database = folder.resolve() / "library.db"
    if not database.is_file():
        raise ConfigError(
            f"{folder} has no library.db; expected the folder of a run that kept its library there "
            "(a run with --library keeps it elsewhere: give that URL)"
        )
    return f"sqlite:///{database}", f"file://{database.parent / 'artifacts'}"


@contextmanager
def opened() -> Generator[Library]:
    """Connect to the library that is asked for. Raises as `make_library`, and `BackendUnavailableError`."""
    library, _ = make_library()
    library.open()
    try:
        yield library
    finally:
        library.close()


@contextmanager
def opened_here() -> Generator[tuple[SqlLibrary, ArtifactStore]]:
    """Connect to the database and the store themselves.

    Raises:
        ConfigError: if the library is behind somebody else's service.

    """
    library, store = make_library()
    if not isinstance(library, SqlLibrary):
        raise ConfigError(
            "this works on the database and the artifact store themselves, not through a service; "
            "run it where both can be reached, with --library and --artifacts"
        )
    library.open()
    try:
        yield library, store
    finally:
        library.close()


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


def console(*, is_for_progress: bool = False) -> Console:
    """Return where to print: coloured in a terminal, plain elsewhere; progress goes to standard error."""
    return Console(highlight=False, soft_wrap=True, emoji=False, stderr=is_for_progress)


def print_json(value: object) -> None:
    """Print one value as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False))


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns, none of them cut; those whose header ends in a blank to the right."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in header:
        justify = "right" if name.endswith(" ") else "left"
        table.add_column(name.strip(), justify=justify, no_wrap=True, overflow="ignore")
    for row in rows:
        table.add_row(*row)
    print_whole(table)


def print_whole(what: RenderableType) -> None:
    """Print a table or tree without cutting its lines."""
    Console(highlight=False, emoji=False, width=_NEVER_CUT).print(what)
