"""The command line of the service: `urza-api`."""

import ipaddress
import logging
from typing import Annotated

import typer
import uvicorn

from esper.contracts import ConfigError, EsperError, load_settings, setup_logging
from esper.contracts.registry import artifact_store_factory, library_factory
from esper.urza import tokens
from esper.urza.library import SqlLibrary
from esper.urza_api.app import make_app

_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_GRACE_SECONDS = 20


@_app.command()
def _serve(
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.", min=0, max=65535)] = 8000,
    library: Annotated[
        str | None, typer.Option(help="Library URL.", show_default="DATABASE_URL or POSTGRES_*")
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Artifact store URL.", show_default="s3://S3_BUCKET_NAME")
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="TLS ends at a proxy in front of this.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more, and show tracebacks.")] = False,
) -> None:
    """Serve the library over HTTP, until Ctrl-C.

    Everybody needs a token; the first one is made beside the database:

        urza --library sqlite:///library.db tokens create me --role admin

        urza-api --library sqlite:///library.db --artifacts file:artifacts

        curl -H "Authorization: Bearer urza_…" localhost:8000/api/v1/kernels

    It listens on this machine only. Tokens travel in clear text, so to let others in put a proxy with
    TLS in front, and say so: --host 0.0.0.0 --behind-proxy. /docs describes every request.
    """
    setup_logging("urza-api", logging.DEBUG if debug else logging.INFO)
    try:
        _check_host(host, behind_proxy=behind_proxy)
        served = _library(library, artifacts)
        app = make_app(served)
        _say_where(served, host, port)
        uvicorn.run(
            app,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            proxy_headers=behind_proxy,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    except EsperError as error:
        if debug:
            raise
        typer.echo(f"urza-api: {error}", err=True)
        raise typer.Exit(2) from None


def _say_where(library: SqlLibrary, host: str, port: int) -> None:
    typer.echo(
        f"urza-api: http://{host}:{port}/docs describes every request; Ctrl-C ends it", err=True
    )
    with library.snapshot() as connection:
        if not tokens.list_all(connection):
            typer.echo(
                "urza-api: nobody has a token yet; `urza tokens create NAME --role admin` makes one",
                err=True,
            )


def _check_host(host: str, *, behind_proxy: bool) -> None:
    """Raise `ConfigError` for an address that others reach, unless a proxy protects the tokens."""
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local and not behind_proxy:
        raise ConfigError(
            f"--host {host} can be reached by others, and tokens would travel in clear text; put a "
            "proxy with TLS in front and say --behind-proxy, or listen at 127.0.0.1"
        )


def _library(library: str | None, artifacts: str | None) -> SqlLibrary:
    settings = load_settings()
    library = settings.library_url() if library is None else settings.with_password(library)
    artifacts = artifacts or f"s3://{settings.s3_bucket_name}"
    made = library_factory(library)(library, artifact_store_factory(artifacts)(artifacts))
    if not isinstance(made, SqlLibrary):
        raise ConfigError("this serves a database; --library names another service")
    made.open()  # says what is wrong before anybody connects
    return made


def main() -> None:
    """Run the command line."""
    _app(prog_name="urza-api")
