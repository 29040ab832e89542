"""`urza verify`: walks through the whole library and names what is damaged."""

from contextlib import closing
from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from esper.contracts import ConfigError
from esper.urza.adopting import adopt
from esper.urza.commands.session import (
    EXIT_FAILURE,
    Json,
    Yes,
    command,
    confirm,
    console,
    opened_here,
    print_json,
)
from esper.urza.library import SqlLibrary
from esper.urza.rows import Damage
from esper.urza.verify import read_heads, verify

HELP = """
Verify everything: each chain of events, each row against them, each artifact's bytes.

Ends at the first thing that is damaged, or names all of them with --all; exit code 1 then. At the
end it prints where each chain ends: note that elsewhere, and give it back with --head next time,
so that nobody can cut off a chain's end unnoticed.

\b
  urza verify
  urza --run runs/demo verify --all --json
  urza verify --head library=3f2a…
  urza verify --adopt      record what was there before libraries kept a record
"""


@command
def verify_library(
    every: Annotated[bool, typer.Option("--all", help="Name all that is damaged.")] = False,
    head: Annotated[
        list[str] | None, typer.Option(help="CHAIN=HASH, as an earlier time printed it.")
    ] = None,
    artifacts: Annotated[bool, typer.Option(help="Read every artifact too.")] = True,
    adopt_records: Annotated[
        bool, typer.Option("--adopt", help="First record what has no event, as it is.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Verify the library."""
    heads = dict(_chain_and_hash(each) for each in head or ())
    with opened_here() as (library, _):
        if adopt_records:
            _adopt(library, is_agreed=yes)
        found = _walk(library, heads, artifacts=artifacts, every=every)
        ends = [asdict(each) for each in read_heads(library)]
    if as_json:
        print_json({"damages": [asdict(each) for each in found], "heads": ends})
    else:
        _print(found, ends, artifacts=artifacts)
    if found:
        raise typer.Exit(EXIT_FAILURE)


def _walk(
    library: SqlLibrary, heads: dict[str, str], *, artifacts: bool, every: bool
) -> list[Damage]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    found: list[Damage] = []
    with Progress(
        *columns, TimeRemainingColumn(), console=console(is_for_progress=True), transient=True
    ) as bar:
        tasks = {"": bar.add_task("verifying", visible=False)}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], completed=done, total=total)

        with closing(verify(library, heads=heads, artifacts=artifacts, progress=show)) as walk:
            found.extend(walk if every else islice(walk, 1))
    return found


def _adopt(library: SqlLibrary, *, is_agreed: bool) -> None:
    unrecorded = [each for each in verify(library, artifacts=False) if each.is_unrecorded]
    out = console(is_for_progress=True)
    if not unrecorded:
        out.print("every record has an event; there is nothing to adopt")
        return
    for each in unrecorded[:10]:
        out.print(escape(each.problem))
    confirm(f"Record {len(unrecorded):,} records as they are now, on trust?", is_agreed=is_agreed)
    out.print(f"{adopt(library):,} records adopted")


def _print(found: list[Damage], ends: list[dict[str, object]], *, artifacts: bool) -> None:
    out = console()
    for each in found:
        out.print(f"[red]{each.kind}[/] {escape(each.problem)}")
    for end in ends:
        number = f"{end['num_events']:,} events"
        out.print(f"[dim]chain {escape(str(end['chain']))}: {number}, head {end['hash']}[/]")
    if found:
        return
    out.print("all is as it was recorded" + ("" if artifacts else "; artifacts were not read"))


def _chain_and_hash(text: str) -> tuple[str, str]:
    chain, _, digest = text.rpartition("=")
    if not chain or len(digest) != 64:
        raise ConfigError(f"--head {text!r}; expected CHAIN=HASH, such as library= and 64 digits")
    return chain, digest
