"""`urza gc`: deletes artifacts that nothing refers to, and what interrupted uploads have left."""

from datetime import timedelta
from typing import Annotated

import typer
from rich.progress import Progress

from esper.contracts import NotFoundError
from esper.urza.commands.session import (
    Json,
    Yes,
    command,
    confirm,
    console,
    opened_here,
    print_json,
    print_table,
)
from esper.urza.garbage import DEFAULT_GRACE, Collected, collect
from esper.urza.library import SqlLibrary

HELP = """
Show which artifacts nothing refers to, and delete them with --delete.

A kernel's bytes are stored before its record, so whoever is interrupted in between leaves bytes
behind. Only what is older than the grace period is deleted: a record may still be on its way. A day
is far longer than that takes, and than clocks differ.

\b
  urza gc
  urza gc --delete
  urza gc --older-than-hours 1 --json
"""


@command
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Do it; else only show.")] = False,
    older_than_hours: Annotated[
        float, typer.Option(help="The grace period.", min=0.0)
    ] = DEFAULT_GRACE / timedelta(hours=1),
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete what nothing refers to."""
    grace = timedelta(hours=older_than_hours)
    if delete and older_than_hours < 1:
        confirm(f"Delete even what is only {grace} old? Uploads may be going on.", is_agreed=yes)
    with opened_here() as (library, store), Progress(console=console(is_for_progress=True)) as bar:
        task = bar.add_task("artifacts", total=None)

        def is_referenced(sha256: str) -> bool:
            bar.advance(task)
            return _has_kernel(library, sha256)

        done = collect(store, is_referenced, older_than=grace, dry_run=not delete)
    if as_json:
        print_json(_as_json(done))
    else:
        _print(done)


def _has_kernel(library: SqlLibrary, sha256: str) -> bool:
    try:
        library.get_kernel(sha256)
    except NotFoundError:
        return False
    return True


def _as_json(done: Collected) -> dict[str, object]:
    return {
        "is_dry_run": done.is_dry_run,
        "removed": [each.sha256 for each in done.removed],
        "removed_drafts": [each.name for each in done.removed_drafts],
        "freed_bytes": done.freed_bytes,
        "num_referenced": done.referenced.number,
        "num_young": done.young.number,
        "num_young_drafts": done.young_drafts.number,
    }


def _print(done: Collected) -> None:
    out = console()
    rows = [
        [each.sha256[:12], f"{each.size_bytes:,}", f"{each.modified_at:%Y-%m-%d %H:%M} UTC"]
        for each in done.removed
    ] + [
        [
            f"draft {each.name[-12:]}",
            f"{each.size_bytes:,}",
            f"{each.modified_at:%Y-%m-%d %H:%M} UTC",
        ]
        for each in done.removed_drafts
    ]
    if rows:
        print_table(["ARTIFACT", "BYTES ", "STORED"], rows)
    number = len(rows)
    said = "would be" if done.is_dry_run else "were"
    out.print(f"{number:,} {said} deleted, {done.freed_bytes:,} bytes")
    out.print(
        f"[dim]{done.referenced.number:,} belong to kernels; {done.young.number:,} that belong to none "
        f"and {done.young_drafts.number:,} drafts are too young[/]"
    )
    if number and done.is_dry_run:
        out.print("urza gc --delete deletes them")
