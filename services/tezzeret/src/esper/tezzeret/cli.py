"""The command line of the forge: `tezzeret --bus … --library … --artifacts …`.

Runs the worker in a process of its own beside any number of trainers, with the loop of
`esper.contracts.serving`.
"""

import logging
from typing import Annotated

import typer

from esper.contracts import EsperError, run_worker, setup_logging
from esper.tezzeret.worker import make_worker

_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@_app.command()
def _serve(
    bus: Annotated[
        str | None, typer.Option(help="Message bus URL.", show_default="REDIS_URL")
    ] = None,
    library: Annotated[
        str | None, typer.Option(help="Library URL.", show_default="DATABASE_URL or POSTGRES_*")
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Artifact store URL.", show_default="s3://S3_BUCKET_NAME")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Log more, and show tracebacks.")] = False,
) -> None:
    """Forge kernels for the blueprints that are submitted on the bus, until Ctrl-C.

    A URL that is not given comes from the environment or from .env, which keeps passwords out of
    the process list. Several forges on one bus share the work.

    Example, with the servers that the trainers use too:

        tezzeret --bus redis://localhost:6379/0 --library sqlite:///library.db --artifacts file:artifacts
    """
    setup_logging("tezzeret", logging.DEBUG if debug else logging.INFO)
    try:
        run_worker(make_worker, bus_url=bus, library_url=library, artifacts_url=artifacts)
    except EsperError as error:
        if debug:
            raise
        typer.echo(f"tezzeret: {error}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Run the command line."""
    _app()
