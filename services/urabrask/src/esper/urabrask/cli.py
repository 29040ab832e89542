"""The command line of the crucible: `urabrask --bus … --library … --artifacts … --signing-key …`.

Runs the worker in a process of its own beside any number of trainers, with the loop of
`esper.contracts.serving`.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from esper.contracts import EsperError, run_worker, setup_logging
from esper.urabrask.worker import make_worker

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
    signing_key: Annotated[
        Path | None,
        typer.Option(
            help="Ed25519 private key; made when missing.", show_default="a key for this process"
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Log more, and show tracebacks.")] = False,
) -> None:
    """Measure and judge the kernels that are announced on the bus, until Ctrl-C.

    A URL that is not given comes from the environment or from .env, which keeps passwords out of
    the process list. Several crucibles on one bus share the work, and should share the
    signing key: trainers run only what a key that they trust has signed.

    Example, with the servers that the trainers use too:

        urabrask --bus redis://localhost:6379/0 --library sqlite:///library.db
        --artifacts file:artifacts --signing-key crucible.key
    """
    setup_logging("urabrask", logging.DEBUG if debug else logging.INFO)
    try:
        run_worker(
            make_worker,
            bus_url=bus,
            library_url=library,
            artifacts_url=artifacts,
            signing_key_file=signing_key,
        )
    except EsperError as error:
        if debug:
            raise
        typer.echo(f"urabrask: {error}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Run the command line."""
    _app()
