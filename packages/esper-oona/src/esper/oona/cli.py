"""The command line of the bus: `oona topics`, `oona health`, `oona groups`, and what else `--help` lists.

Every command is a client of the bus like any other; see `commands`.
"""

import logging
from typing import Annotated

import typer

from esper.contracts import setup_logging
from esper.oona.commands import bench, groups, health, letters, publishing, replaying, tail, topics
from esper.oona.commands.session import Debug

_HELP = """
Look at the message bus, and put things right.

The bus is the one that REDIS_URL names (environment or .env), or --url. Topics may be named by a
part of their name: `control` is control.kasmina.commands. Exit code 1: something failed; 2: bad
input. Every command has --help with examples, and --json.

\b
  oona health                       is it up, who is behind
  oona topics                       what there is
  oona tail --seed 1,0               what happens to one seed
  oona publish control '{…}'        one message by hand
  oona dead-letters requeue --all   try again what failed
"""

app = typer.Typer(
    help=_HELP,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
app.command("topics", help=topics.HELP)(topics.topics)
app.command("health", help=health.HELP)(health.health)
app.command("tail", help=tail.HELP)(tail.tail)
app.command("publish", help=publishing.HELP)(publishing.publish)
app.command("replay", help=replaying.HELP)(replaying.replay)
app.command("bench", help=bench.HELP)(bench.bench)
app.add_typer(groups.app, name="groups")
app.add_typer(letters.app, name="dead-letters")


@app.callback()
def _prepare(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show log lines, and tracebacks of errors.")
    ] = False,
) -> None:
    # What a person must know is said by the command itself; log lines are for --debug.
    setup_logging("oona", logging.DEBUG if debug else logging.CRITICAL)
    Debug.is_on = debug


def main() -> None:
    """Run the command line."""
    app(prog_name="oona")
