"""`urza show`: one record, whatever it is."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape

from esper.contracts import Blueprint, CompiledKernelArtifact, FieldReport
from esper.urza.commands.blueprints import print_blueprint
from esper.urza.commands.finding import record_named
from esper.urza.commands.kernels import print_kernel
from esper.urza.commands.session import Json, command, console, opened_here, print_json, print_table

HELP = """
Show one record, whatever it is: a blueprint, kernel, report, outcome, validator's key, or a run.

\b
  urza show 3f2a
  urza --run runs/demo show demo
"""


@command
def show(
    record: Annotated[str, typer.Argument(help="An id, or the beginning of one.")],
    as_json: Json = False,
) -> None:
    """Show one record."""
    with opened_here() as (library, _):
        kind, record_id = record_named(library, record)
        if kind == "run":
            _print_run(record_id, library.field_reports(record_id), as_json=as_json)
            return
        found = library.find_record(kind, record_id)
    if as_json:
        print_json({"kind": kind, **found.model_dump(mode="json")})
    elif isinstance(found, Blueprint):
        print_blueprint(found)
    elif isinstance(found, CompiledKernelArtifact):
        print_kernel(found)
    else:
        out = console()
        out.print(f"[bold]{kind} {escape(record_id)}[/]")
        for name, value in found.model_dump(mode="json").items():
            out.print(f"[dim]{name}[/] {escape(str(value))}")


def _print_run(run_id: str, outcomes: Sequence[FieldReport], *, as_json: bool) -> None:
    if as_json:
        print_json([each.model_dump(mode="json") for each in outcomes])
        return
    console().print(f"[bold]run {escape(run_id)}[/], {len(outcomes)} outcomes")
    rows = [
        [
            f"{each.epoch_started}-{each.epoch_ended}",
            each.site,
            each.blueprint_name,
            each.kernel_id[:12],
            each.outcome.value,
            each.reason,
        ]
        for each in outcomes
    ]
    print_table(["EPOCHS", "SITE", "BLUEPRINT", "KERNEL", "OUTCOME", "REASON"], rows)
