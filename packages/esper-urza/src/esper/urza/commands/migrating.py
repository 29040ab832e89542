"""`urza migrate`: brings the database's schema up to date."""

from typing import Annotated

import typer

from esper.contracts import ConfigError
from esper.urza.commands.session import (
    EXIT_FAILURE,
    Json,
    command,
    console,
    make_library,
    print_json,
)
from esper.urza.library import SqlLibrary

HELP = """
Bring the database's schema up to date.

Whoever opens a library does that too; this is for an administrator who does it beforehand, with
rights that others lack. Several at once are harmless: each revision is applied once.

\b
  urza --library sqlite:///library.db migrate
  urza migrate --check     change nothing; exit code 1 if there is something to do
"""


@command
def migrate(
    check: Annotated[bool, typer.Option("--check", help="Only tell whether it is.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the schema up to date."""
    library, _ = make_library()
    if not isinstance(library, SqlLibrary):
        raise ConfigError("a service looks after its own database; migrate where that is")
    before, newest = library.revisions()
    after = before
    if before != newest and not check:
        library.migrate()
        after = newest
    if as_json:
        print_json({"before": before, "after": after, "newest": newest})
    elif before == newest:
        console().print(f"the schema is up to date: revision {newest}")
    elif check:
        console().print(f"the schema is at revision {before or 'none'}; the newest is {newest}")
    else:
        console().print(f"the schema went from revision {before or 'none'} to {newest}")
    if after != newest:
        raise typer.Exit(EXIT_FAILURE)
