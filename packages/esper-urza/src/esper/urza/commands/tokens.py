"""`urza tokens`: makes, lists and revokes the tokens of the HTTP API."""

from datetime import timedelta
from typing import Annotated

import typer

from esper.contracts import utc_now
from esper.urza import tokens
from esper.urza.commands.session import (
    Json,
    command,
    console,
    opened_here,
    print_json,
    print_table,
)
from esper.urza.tokens import Role

HELP = """
Make, list and revoke the tokens with which programs use the HTTP API.

The secret is shown once, when it is made; the library keeps its hash only.

\b
  urza tokens create trainer-1 --role controller --days 90
  urza tokens create forge --role forge
  urza tokens list
  urza tokens revoke 3f2a91c04d5e6f70
"""

app = typer.Typer(help=HELP, rich_markup_mode=None, no_args_is_help=True)


@app.command()
@command
def create(
    name: Annotated[str, typer.Argument(help="Whose it is; for people.")],
    role: Annotated[list[Role], typer.Option(help="What it is for; may be repeated.")],
    days: Annotated[
        float | None, typer.Option(help="How long it lives; for ever if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a token and show its secret, this once."""
    lifetime = None if days is None else timedelta(days=days)
    with opened_here() as (library, _), library.transaction() as connection:
        token, secret = tokens.create(connection, name=name, roles=set(role), lifetime=lifetime)
    if as_json:
        print_json(token.model_dump(mode="json") | {"secret": secret})
        return
    console(is_for_progress=True).print(
        f"token {token.token_id} for {', '.join(token.roles)}; its secret is shown this once:"
    )
    print(secret)


@app.command("list")
@command
def list_tokens(as_json: Json = False) -> None:
    """List all tokens, without their secrets."""
    with opened_here() as (library, _), library.snapshot() as connection:
        found = tokens.list_all(connection)
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
        return
    rows = [
        [
            each.token_id,
            each.name,
            " ".join(each.roles),
            f"{each.created_at:%Y-%m-%d}",
            "never" if each.expires_at is None else f"{each.expires_at:%Y-%m-%d}",
            each.problem_at(utc_now()) or "valid",
        ]
        for each in found
    ]
    if rows:
        print_table(["TOKEN", "NAME", "ROLES", "CREATED", "EXPIRES", "STATE"], rows)
    else:
        console().print("no tokens; `urza tokens create NAME --role admin` makes one")


@app.command()
@command
def revoke(
    token_id: Annotated[str, typer.Argument(help="As `urza tokens list` shows it.")],
    as_json: Json = False,
) -> None:
    """Let a token be used no more, within seconds."""
    with opened_here() as (library, _), library.transaction() as connection:
        token = tokens.revoke(connection, token_id)
    if as_json:
        print_json(token.model_dump(mode="json"))
    else:
        console().print(f"token {token_id} of {token.name} is revoked")
