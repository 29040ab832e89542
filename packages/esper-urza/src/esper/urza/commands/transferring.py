"""`urza export` and `urza import`: a whole library as one file."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from esper.urza.commands.keys import load
from esper.urza.commands.session import Json, command, console, opened_here, print_json
from esper.urza.exporting import Tell, export_library
from esper.urza.importing import check_file, import_library
from esper.urza.manifests import LibraryManifest, SignedManifest
from esper.urza.signing import read_public_key

EXPORT_HELP = """
Write the whole library into one file: records, chains, artifacts.

A tar archive of JSON Lines and artifacts, and a manifest that a signing key may seal. The same
contents give the same bytes, from any database and store. Not in it: claims, and tokens of the
service.

\b
  urza export library.tar
  urza export library.tar --key library.key
"""

IMPORT_HELP = """
Fill an empty library from a file that `urza export` wrote.

Everything in it is verified first. If it is interrupted or refused, no record is left; artifacts
that were stored by then are removed by `urza gc`.

\b
  urza --library sqlite:///copy.db --artifacts file:copy import library.tar --trust library.key.pub
  urza import library.tar --trust library.key.pub --check      is this backup good
"""


@command
def export(
    file: Annotated[Path, typer.Argument(help="The file, which must not exist yet.")],
    key: Annotated[Path | None, typer.Option(help="The private key that signs.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Put on the record that it was signed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the library into a file."""
    signer = None if key is None else load(key)
    with opened_here() as (library, _), _progress() as tell:
        done = export_library(library, file, key=signer, is_recorded=record, tell=tell)
    _print(done.signed, done.manifest, f"wrote {file}", as_json=as_json)


@command
def import_(
    file: Annotated[Path, typer.Argument(help="The file.")],
    trust: Annotated[
        list[str] | None,
        typer.Option(
            help="A public key that must vouch for it: a file, or 64 hexadecimal digits.",
            show_default="take it from anybody, if it is whole",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only verify the file; needs no library.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fill an empty library from a file."""
    trusted = None if trust is None else [read_public_key(each) for each in trust]
    if check:
        with _progress() as tell:
            checked = check_file(file, trusted=trusted, tell=tell)
        _print(checked.signed, checked.manifest, f"{file} is whole", as_json=as_json)
        return
    with opened_here() as (library, _), _progress() as tell:
        done = import_library(library, file, trusted=trusted, tell=tell)
    _print(done.signed, done.manifest, f"read {file}", as_json=as_json)


@contextmanager
def _progress() -> Generator[Tell]:
    """Give what draws a bar for each step, in a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    out = console(is_for_progress=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield tell


def _print(signed: SignedManifest, manifest: LibraryManifest, what: str, *, as_json: bool) -> None:
    signer = None if signed.signature is None else signed.signature.key_id
    counts = {member.name: member.num_records for member in manifest.members}
    if as_json:
        print_json(
            {
                "records": counts,
                "num_artifacts": manifest.num_artifacts,
                "artifact_bytes": manifest.artifact_bytes,
                "manifest": signed.digest,
                "key_id": signer,
            }
        )
        return
    out = console()
    out.print(escape(what))
    for name, count in counts.items():
        out.print(f"  [dim]{name}[/] {count:,}")
    out.print(
        f"  [dim]artifacts[/] {manifest.num_artifacts:,} of {manifest.artifact_bytes:,} bytes"
    )
    out.print("nobody signed it" if signer is None else f"signed by key {signer[:12]}")
