"""The command line of the library: `urza query`, `urza verify`, `urza lineage`, and what else `--help` lists.

Every command works through the ports, like any other client of the library; see `commands`.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from esper.contracts import setup_logging
from esper.urza.commands import (
    blueprints,
    collecting,
    kernels,
    keys,
    migrating,
    querying,
    sealed,
    showing,
    tokens,
    tracing,
    transferring,
    verifying,
)
from esper.urza.commands.session import session

_HELP = """
Look at the library of blueprints and kernels, and look after it.

The library is that of DATABASE_URL or POSTGRES_* and S3_BUCKET_NAME (environment or .env), of
--library and --artifacts, or that of one run: --run FOLDER. These options come before the command.
Ids may be shortened, as long as it is clear which is meant. Exit code 1: something failed or is
damaged; 2: bad input. Every command has --help with examples, and --json.

\b
  urza --run runs/demo kernels list      what a run had to choose from
  urza query --tag zero_init             the kernels that match
  urza show 3f2a                         one record, whatever it is
  urza lineage demo --svg lineage.svg    where a grown model comes from
  urza verify                            is everything as it was filed
  urza gc                                what could be deleted
  urza keys list                         who signs, and who judges
  urza export library.tar                all of it, in one file
"""

app = typer.Typer(
    help=_HELP,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
app.command("migrate", help=migrating.HELP)(migrating.migrate)
app.add_typer(blueprints.app, name="blueprints")
app.add_typer(kernels.app, name="kernels")
app.command("query", help=querying.HELP)(querying.query)
app.command("show", help=showing.HELP)(showing.show)
app.command("lineage", help=tracing.HELP)(tracing.lineage)
app.add_typer(tokens.app, name="tokens")
app.command("verify", help=verifying.HELP)(verifying.verify_library)
app.command("gc", help=collecting.HELP)(collecting.gc)
keys.app.command("verify", help=sealed.HELP)(sealed.verify)
app.add_typer(keys.app, name="keys")
app.command("export", help=transferring.EXPORT_HELP)(transferring.export)
app.command("import", help=transferring.IMPORT_HELP)(transferring.import_)


@app.callback()
def _prepare(
    library: Annotated[
        str | None,
        typer.Option(help="The library's URL.", show_default="DATABASE_URL or POSTGRES_*"),
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Its artifact store's.", show_default="s3://S3_BUCKET_NAME")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The library in this run's folder.")] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show log lines, and tracebacks of errors.")
    ] = False,
) -> None:
    # What a person must know is said by the command itself; log lines are for --debug.
    setup_logging("urza", logging.DEBUG if debug else logging.CRITICAL)
    session.library, session.artifacts, session.run = library, artifacts, run
    session.debug = debug


def main() -> None:
    """Run the command line."""
    app(prog_name="urza")
